"""The timeline of a step as a picture and a table, from RUN/trace.json; the report page embeds both.

Above, one bar of the whole step in the colours of what it waited for (exposed time); below, a row for each thread of
each process. Only numbers and names of ours reach the markup; process names are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nemo_mtdrive.telemetry.spans import PHASES, Span
from nemo_mtdrive.telemetry.timeline import OTHER, PhaseTime, Window, exposure, innermost, read_trace

COLOURS = {
    "generate": "#2f6db3", "log_prob": "#3f9a8a", "reference": "#7cb5a0", "update": "#2c7a4b", "environment": "#8e6bb8",
    "sync": "#b0893b", "serialise": "#d9822b", "transfer": "#c8443c", "assemble": "#7a7f87", "wait": "#c9cdd3",
    OTHER: "#eceef1",
}
"""Computing is blue and green, moving data red and orange, waiting grey."""
WIDTH, LABELS, ROW, GAP, BAR = 960, 150, 16, 4, 26
_MARGIN, _LEGEND, _AXIS = 8, 26, 24
_LEAST_PX = 0.4
"""Narrower pieces are drawn with this width, so that short work can be seen."""


@dataclass(frozen=True)
class StepPicture:
    """A step ready for a page."""

    step: int
    svg: str
    """A whole <svg> element, no script, no link."""
    rows: list[tuple[str, PhaseTime]]
    """Phases that took time, and "other", with their seconds; the exposed ones add up to `step_s`."""
    step_s: float


def last_step(run_dir: Path) -> StepPicture | None:
    """The last step of a run; None where it has no trace.

    Raises:
        ValueError: trace.json is not one of this program.
    """
    path = run_dir / "trace.json"
    if not path.is_file():
        return None
    spans, windows = read_trace(path)
    return picture(spans, windows[-1]) if windows else None


def picture(spans: Sequence[Span], window: Window) -> StepPicture:
    """The timeline and the table of one step."""
    parts = [part for part in innermost(spans) if part.stop_ns > window.start_ns and part.start_ns < window.stop_ns]
    times = exposure(spans, window)
    rows = [(name, each) for name, each in times.items() if each.busy_s > 0]
    return StepPicture(window.step, _svg(parts, window, times), rows, (window.stop_ns - window.start_ns) / 1e9)


def rows_by_exposure(shown: StepPicture) -> list[tuple[str, PhaseTime]]:
    """The rows of a step, what it waited for longest first."""
    return sorted(shown.rows, key=lambda row: -row[1].exposed_s)


def label(phase: str) -> str:
    """A phase in words."""
    return {"log_prob": "log-prob", OTHER: "nothing ran"}.get(phase, phase)


def _svg(parts: Sequence[Span], window: Window, times: dict[str, PhaseTime]) -> str:
    lanes = sorted({(part.process, part.thread) for part in parts})
    top = {lane: _MARGIN + BAR + 14 + index * (ROW + GAP) for index, lane in enumerate(lanes)}
    floor = _MARGIN + BAR + 14 + len(lanes) * (ROW + GAP)
    length = max(1, window.stop_ns - window.start_ns)
    scale = (WIDTH - LABELS - _MARGIN) / length

    def box(start: int, stop: int, y: float, height: float, phase: str) -> str:
        left = max(start, window.start_ns) - window.start_ns
        wide = min(stop, window.stop_ns) - window.start_ns - left
        return (f'<rect x="{LABELS + left * scale:.2f}" y="{y:.0f}" width="{max(wide * scale, _LEAST_PX):.2f}" '
                f'height="{height:.0f}" fill="{COLOURS[phase]}"><title>{escape(label(phase))} {wide / 1e6:.2f} ms</title>'
                "</rect>")

    marks = [_text(LABELS - 8, _MARGIN + BAR / 2 + 4, "step waits for", "end")]
    marks += [box(start, stop, _MARGIN, BAR, phase) for phase, start, stop in _foremost(parts, window)]
    for process, thread in lanes:
        name = process if thread == 0 else f"{process}, thread {thread}"
        marks.append(_text(LABELS - 8, top[process, thread] + ROW - 4, name, "end"))
    marks += [box(part.start_ns, part.stop_ns, top[part.process, part.thread], ROW, part.phase) for part in parts]
    marks += _axis(length, scale, floor)
    shown = [name for name in (*PHASES, OTHER) if times[name].busy_s > 0]
    marks += _legend(shown, floor + _AXIS)
    height = floor + _AXIS + _LEGEND * (1 + (len(shown) - 1) // 8)
    return (f'<svg class="timeline" viewBox="0 0 {WIDTH} {height:.0f}" width="100%" role="img" '
            f'aria-label="timeline of step {window.step}" font-family="sans-serif" font-size="11">{"".join(marks)}</svg>')


def _foremost(parts: Sequence[Span], window: Window) -> list[tuple[str, int, int]]:
    """What each moment of the window belongs to, as `exposure` has it: (phase, start, stop) in order."""
    order = {name: index for index, name in enumerate(PHASES)}
    changes = sorted(
        (moment, order[part.phase], change) for part in parts
        for moment, change in ((max(part.start_ns, window.start_ns), 1), (min(part.stop_ns, window.stop_ns), -1)))
    running, now = [0] * len(PHASES), window.start_ns
    found: list[tuple[str, int, int]] = []
    for moment, which, change in [*changes, (window.stop_ns, -1, 0)]:
        phase = next((name for name, count in zip(PHASES, running, strict=True) if count), OTHER)
        if moment > now:
            if found and found[-1][0] == phase:
                found[-1] = (phase, found[-1][1], moment)
            else:
                found.append((phase, now, moment))
        now = moment
        if change:
            running[which] += change
    return found


def _axis(length: int, scale: float, y: float) -> list[str]:
    seconds = length / 1e9
    tick = next(step for power in range(-6, 9) for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
                if seconds / step <= 10)
    marks = [f'<line x1="{LABELS}" y1="{y:.0f}" x2="{LABELS + length * scale:.0f}" y2="{y:.0f}" stroke="#9aa0a6"/>']
    for index in range(int(seconds / tick) + 1):
        marks.append(_text(LABELS + index * tick * 1e9 * scale, y + 14, f"{index * tick:g} s", "middle"))
    return marks


def _legend(names: Sequence[str], y: float) -> list[str]:
    marks = []
    for index, name in enumerate(names):
        x, line = LABELS + (index % 8) * 98, y + _LEGEND * (index // 8)
        marks.append(f'<rect x="{x}" y="{line + 8:.0f}" width="11" height="11" fill="{COLOURS[name]}"/>')
        marks.append(_text(x + 15, line + 17, label(name), "start"))
    return marks


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.0f}" text-anchor="{anchor}" fill="currentColor">{escape(words)}</text>'
