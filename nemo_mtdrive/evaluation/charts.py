"""Learning curves of metrics.jsonl as inline SVG, coloured and made interactive by the page.

Which metrics share a chart is decided by their names (`RULES`); a metric that no rule knows gets a chart of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from nemo_mtdrive.evaluation.drawing import path_data
from nemo_mtdrive.telemetry.metrics import RESERVED

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26
SERIES_COLOURS = 8
"""The style sheet has classes s0 .. s7."""
MAX_POINTS = 400
"""Of a series; a chart has about as many pixels."""


@dataclass(frozen=True)
class Series:
    """One line: (step, value) pairs, None where the metric was not finite."""

    name: str
    points: tuple[tuple[int, float | None], ...]


@dataclass(frozen=True)
class Chart:
    """One chart; `stacked` fills the areas between the sums of the series."""

    title: str
    phase: str
    series: tuple[Series, ...]
    stacked: bool
    headline: bool
    """Whether it belongs to the first charts of the page, or to "all other metrics"."""
    unit: str = "step"
    """What is counted along the x axis."""


RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("Loss", re.compile(r"(^|/)loss$")),
    ("Reward", re.compile(r"reward(/|_)(mean|turn_?\d+|last_turn)$")),
    ("PDMS", re.compile(r"(^|/|_)(PDMS|pdms)(_mean)?$")),
    ("KL to the reference", re.compile(r"(^|/)kl(/|_|$)(?!coef)")),
    ("Log-prob gap, rollout engine to trainer", re.compile(r"log_?prob_gap")),
    ("Turns per episode", re.compile(r"turns_per_episode|(^|/)turns(/mean)?$")),
    ("Groups with spread", re.compile(r"with_spread|spread_share")),
    ("Time per step (s)", re.compile(r"^timers/(?!step$|share/)[^/]+$")),
)


def charts_of(lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts of a run's metrics, phase by phase in order of appearance; series need a finite value."""
    found: list[Chart] = []
    for phase in dict.fromkeys(line["phase"] for line in lines):
        own = [line for line in lines if line["phase"] == phase]
        names = [name for name in dict.fromkeys(name for line in own for name in line) if name not in RESERVED]
        series = {name: made for name in names if (made := _series(name, own)) is not None}
        for title, pattern in RULES:
            group = [series.pop(name) for name in list(series) if pattern.search(name)]
            if group:
                found.append(Chart(title, phase, tuple(group), title.startswith("Time"), True))
        found += [Chart(name, phase, (one,), False, False) for name, one in series.items()]
    return found


def _series(name: str, lines: Iterable[Mapping[str, Any]]) -> Series | None:
    points = tuple((line["step"], line[name]) for line in lines if name in line)
    if not all(value is None or isinstance(value, (int, float)) for _, value in points):
        return None
    return Series(name, thin(points, MAX_POINTS)) if any(value is not None for _, value in points) else None


def thin(points: Sequence[tuple[int, float | None]], most: int) -> tuple[tuple[int, float | None], ...]:
    """At most `most` points: means over equal stretches, at the last step of each."""
    if len(points) <= most:
        return tuple(points)
    cuts = [round(number * len(points) / most) for number in range(most + 1)]
    thinned: list[tuple[int, float | None]] = []
    for start, stop in pairwise(cuts):
        known = [value for _, value in points[start:stop] if value is not None]
        thinned.append((points[stop - 1][0], sum(known) / len(known) if known else None))
    return tuple(thinned)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that cover low..high, each a multiple of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def format_number(value: float) -> str:
    """At most four significant digits, no trailing zeros: `0.25`, `1500`, `3e-05`."""
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3g}"


def draw(chart: Chart) -> Markup:
    """The chart as SVG; `data-chart` holds the numbers for the page's tooltips."""
    series = _stack(chart.series) if chart.stacked else chart.series
    steps = [step for one in series for step, _ in one.points]
    values = [value for one in series for _, value in one.points if value is not None]
    low, high = min(values), max(values)
    if chart.stacked:
        low = 0.0
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = (low if low == 0.0 else low - margin), high + margin
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        return (LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM))

    parts = []
    for tick in ticks(low, high, 5):
        y = place(first, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
                     f'{format_number(tick)}</text>')
    for tick in ticks(first, last, 5):
        if tick == int(tick):
            x = place(tick, low)[0]
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:.0f}</text>')
    # Nulls are bridged: a metric that is logged every few steps is one line.
    below: tuple[tuple[float, float], ...] = ()
    for number, one in enumerate(series):
        colour = f"s{number % SERIES_COLOURS}"
        if chart.stacked:
            above = tuple(place(step, value or 0.0) for step, value in one.points)
            floor = below or (place(one.points[0][0], 0.0), place(one.points[-1][0], 0.0))
            parts.append(f'<path class="area {colour}" d="{path_data([*above, *reversed(floor)], 1)}z"/>')
            below = above
        known = [place(step, value) for step, value in one.points if value is not None]
        parts.append(f'<path class="line {colour}" d="{path_data(known, 1)}"/>')
        if len(known) < 12:
            parts += [f'<circle class="knot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in known]
    data = {"unit": chart.unit, "first": first, "last": last, "left": LEFT, "right": WIDTH - RIGHT,
            "series": [{"name": _short(one.name), "points": [[s, v] for s, v in one.points]} for one in chart.series]}
    return Markup(f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
                  f'aria-label="{escape(chart.title)}" data-chart="{escape(json.dumps(data))}">'
                  f'{"".join(parts)}<line class="cursor" y1="{TOP}" '
                  f'y2="{HEIGHT - BOTTOM}"/></svg>')


def legend(chart: Chart) -> list[tuple[str, str, str]]:
    """(colour class, name, last value) of each series."""
    entries = []
    for number, one in enumerate(chart.series):
        last = next(value for _, value in reversed(one.points) if value is not None)
        entries.append((f"s{number % SERIES_COLOURS}", _short(one.name), format_number(last)))
    return entries


def _short(name: str) -> str:
    """What a legend needs: `reward/turn_1` -> `turn 1`, `rollout/last_turn/PDMS` -> `last turn`."""
    parts = name.removesuffix("/PDMS").split("/")
    return " ".join(parts[1:] or parts).replace("_", " ")


def _stack(series: Sequence[Series]) -> tuple[Series, ...]:
    """Running sums over the steps that any series has."""
    steps = sorted({step for one in series for step, _ in one.points})
    total = dict.fromkeys(steps, 0.0)
    stacked = []
    for one in series:
        for step, value in one.points:
            total[step] += value or 0.0
        stacked.append(Series(one.name, tuple((step, total[step]) for step in steps)))
    return tuple(stacked)
