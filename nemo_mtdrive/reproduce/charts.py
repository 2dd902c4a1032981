"""A result as a picture: its rows with intervals, or its curves. SVG, the same bytes for the same result."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nemo_mtdrive.reproduce.intervals import Estimate
from nemo_mtdrive.reproduce.results import Panel, Result

TEXT, DIM, GRID = "#20262d", "#5d6875", "#e1e5e8"
COLOURS = ("#0f766e", "#c2570c", "#4457a6", "#8a3a7f", "#6b7280")
WIDTH = 7.2
"""Of a picture [in]."""
MOST_ROWS = 24
"""That a picture shows of a longer table."""


def draw_result(path: Path, result: Result) -> None:
    """Write the picture, whole or not at all."""
    figure = _panels(result) if result.panels else _rows(result)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with rc_context({"svg.hashsalt": "reproduce", "svg.fonttype": "none"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.replace(path)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _rows(result: Result) -> Figure:
    """A dot and its interval a row."""
    rows = result.rows[:MOST_ROWS]
    figure = _figure(0.9 + 0.3 * len(rows))
    axes = figure.add_subplot()
    labels = []
    for at, row in enumerate(rows):
        labels.append(", ".join(name for name in row.names if name))
        found = row.cells.get(result.drawn)
        if not isinstance(found, Estimate) or found.value is None:
            continue
        if found.ci95 is not None:
            axes.plot(found.ci95, [at, at], color=COLOURS[0], linewidth=1.6, solid_capstyle="butt")
        axes.plot([found.value], [at], "o", color=COLOURS[0], markersize=5)
        axes.annotate(f"{found.value:.1f}", (found.value, at), xytext=(0, 5), textcoords="offset points", ha="center",
                      fontsize=7, color=DIM)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, color=TEXT)
    axes.set_ylim(len(labels) - 0.4, -0.8)
    _dress(axes, f"{result.drawn}, 95% interval", "", result.title)
    return figure


def _panels(result: Result) -> Figure:
    """Curves side by side."""
    figure = _figure(3.1)
    for at, panel in enumerate(result.panels, start=1):
        axes = figure.add_subplot(1, len(result.panels), at)
        _curves(axes, panel)
        alike = [other for other, earlier in zip(figure.axes, result.panels[:at - 1], strict=False) if earlier.y == panel.y]
        if alike:
            axes.sharey(alike[0])
    return figure


def _curves(axes: Axes, panel: Panel) -> None:
    for colour, line in zip(COLOURS, panel.lines, strict=False):
        xs = [x for x, *_ in line.points]
        axes.plot(xs, [mean for _, mean, _, _ in line.points], color=colour, linewidth=1.6, label=line.label,
                  marker="o" if len(xs) < 12 else None, markersize=3.5)
        bounds = [(x, low, high) for x, _, low, high in line.points if low is not None and high is not None]
        if bounds:
            axes.fill_between([x for x, _, _ in bounds], [low for _, low, _ in bounds], [high for *_, high in bounds],
                              color=colour, alpha=0.14, linewidth=0)
    _dress(axes, panel.x, panel.y, panel.title)
    if any(line.points for line in panel.lines):
        axes.legend(fontsize=7, frameon=False, labelcolor=TEXT)


def _dress(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color=TEXT)
    axes.set_xlabel(x, fontsize=8, color=DIM)
    axes.set_ylabel(y, fontsize=8, color=DIM)
    axes.tick_params(labelsize=7.5, colors=DIM, length=2)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(GRID)
