"""Figures in the manner of the paper's Fig. 4: the front camera with the projected trajectory, and a bird's-eye view
of each turn with its violations marked. Matplotlib without a display; PNG, SVG or PDF by the file's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path as DrawnPath
from numpy.typing import NDArray

from nemo_mtdrive.evaluation.marks import (
    MARKED,
    PANEL_ASPECT,
    Window,
    corners,
    marks_of,
    points_in_image,
    ribbon,
    window_of,
)
from nemo_mtdrive.telemetry.excerpt import SceneExcerpt

COLOURS = {
    "DAC": "#e5342b", "TTC": "#1f6fff", "NC": "#f5b800", "plan": "#0f9d76", "human": "#7c8794", "ego": "#0f9d76",
    "ground": "#e6e9e4", "road": "#c3c8ce", "edge": "#ffffff", "walk": "#f4f5f6", "vehicle": "#66717f",
    "person": "#b0609c", "object": "#d9853b", "text": "#20262d", "dim": "#5d6875",
}
PEOPLE = ("pedestrian", "bicycle")


def draw_bird_eye(axes: Axes, excerpt: SceneExcerpt | None, turn: Mapping[str, Any] | None, window: Window) -> None:
    """One bird's-eye view, forward up: map, road users, the human's path (dashed), the turn's trajectory and marks."""
    axes.set_xlim(-window.side, window.side)
    axes.set_ylim(window.back, window.front)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(COLOURS["ground"])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if excerpt is not None:
        _draw_map(axes, excerpt)
        if excerpt.future is not None:
            path = _up([[0.0, 0.0], *excerpt.future])
            axes.plot(*path, "--", color=COLOURS["human"], linewidth=1.4, zorder=5)
    size = {"front_length": 4.049, "rear_length": 1.127, "width": 2.297} if excerpt is None else excerpt.ego
    _body(axes, corners(0.0, 0.0, 0.0, size["front_length"], size["rear_length"], size["width"]), COLOURS["ego"], 6)
    if turn is None:
        return
    if turn["trajectory"] is not None:
        path = _up([[0.0, 0.0], *turn["trajectory"]])
        axes.plot(*path, color=COLOURS["plan"], linewidth=2.2, zorder=7, solid_capstyle="round")
        axes.plot(path[0][1:], path[1][1:], "o", color="white", markeredgecolor=COLOURS["plan"], markersize=4.0,
                  markeredgewidth=1.3, zorder=8)
    for mark in sorted(marks_of(turn), key=lambda mark: MARKED.index(mark.metric)):
        if mark.box is not None:
            x, y, heading, length, width = mark.box
            outline = np.column_stack(_up(corners(x, y, heading, length / 2, length / 2, width)))
            axes.add_patch(Polygon(outline, fill=False, edgecolor=COLOURS[mark.metric], linewidth=1.3,
                                   linestyle=(0, (2, 1.5)), zorder=9))
        if mark.metric == "DAC":
            axes.plot([-mark.y], [mark.x], "x", color=COLOURS["DAC"], markersize=8, markeredgewidth=2.6, zorder=10)
        else:
            # NC lies on top and is smaller: an obstacle of both metrics shows both colours.
            axes.plot([-mark.y], [mark.x], "o", color=COLOURS[mark.metric], markeredgecolor="white",
                      markersize=11 if mark.metric == "TTC" else 7.5, markeredgewidth=0.9, zorder=10)


def draw_camera(axes: Axes, image: NDArray[np.uint8] | None, excerpt: SceneExcerpt | None,
                turn: Mapping[str, Any] | None) -> None:
    """The front image [H, W, 3] with the turn's trajectory as a band on the ground; a grey field without an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if image is None:
        axes.set_facecolor(COLOURS["ground"])
        return
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="bicubic", extent=(0, width, height, 0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    if turn is None or turn["trajectory"] is None or excerpt is None or excerpt.camera is None:
        return
    band = ribbon(turn["trajectory"], excerpt.camera, width, height)
    if len(band) > 2:
        axes.add_patch(Polygon(band, facecolor=COLOURS["plan"], edgecolor="white", alpha=0.55, linewidth=0.8))
    pixels = points_in_image(turn["trajectory"], excerpt.camera, width, height)
    axes.plot(pixels[:, 0], pixels[:, 1], "o", color="white", markeredgecolor=COLOURS["plan"], markersize=3.6)


def turns_figure(excerpt: SceneExcerpt | None, image: NDArray[np.uint8] | None, turns: Sequence[Mapping[str, Any]],
                 title: str) -> Figure:
    """A strip: the camera with the first and the last trajectory, then a bird's-eye view for each turn.

    Raises:
        ValueError: no turns.
    """
    if not turns:
        raise ValueError("a figure of an episode needs at least one turn")
    panel, height = 2.35, 2.35 / PANEL_ASPECT
    shown = [turns[0]] if len(turns) == 1 else [turns[0], turns[-1]]
    each = (height - 0.12) / 2
    camera_width = each * (2.0 if image is None else image.shape[1] / image.shape[0])
    total_width, total_height = camera_width + 0.12 + len(turns) * (panel + 0.12), height + 0.78
    figure = Figure(figsize=(total_width, total_height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def place(left: float, bottom: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / total_width, bottom / total_height, width / total_width, tall / total_height))

    for number, turn in enumerate(shown):
        drop = (number + 1) * each + number * 0.12 if len(shown) > 1 else (height + each) / 2
        axes = place(0.06, 0.36 + height - drop, camera_width, each)
        draw_camera(axes, image, excerpt, turn)
        axes.set_aspect("auto")
        axes.text(0.02, 0.95, f"turn {turn['index'] + 1}", transform=axes.transAxes, va="top", fontsize=8,
                  color="white", fontweight="bold",
                  bbox={"facecolor": "#20262dcc", "edgecolor": "none", "boxstyle": "round,pad=0.3"})
    window = window_of(excerpt, turns)
    for number, turn in enumerate(turns):
        axes = place(camera_width + 0.18 + number * (panel + 0.12), 0.36, panel, height)
        draw_bird_eye(axes, excerpt, turn, window)
        axes.set_title(f"turn {turn['index'] + 1}   {_verdict(turn)}", fontsize=9, color=COLOURS["text"], pad=4)
    figure.text(0.06 / total_width, 1 - 0.2 / total_height, title, fontsize=9.5, fontweight="bold", va="center",
                color=COLOURS["text"])
    _legend(figure, total_width, total_height)
    return figure


def save_turns_figure(path: str | os.PathLike[str], excerpt: SceneExcerpt | None, image: NDArray[np.uint8] | None,
                      turns: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Write `turns_figure`; the file's suffix (png, svg, pdf) chooses the form."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    turns_figure(excerpt, image, turns, title).savefig(file)
    return file


def _verdict(turn: Mapping[str, Any]) -> str:
    if turn["scores"] is None:
        return "no trajectory"
    broken = [name for name in ("NC", "DAC", "TTC") if turn["scores"][name] < 1.0]
    return f"PDMS {100 * turn['scores']['PDMS']:.0f}" + (f"  ({', '.join(broken)})" if broken else "")


def _up(points: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ego frame -> picture: forward is up, left is left."""
    rows = np.asarray([row[:2] for row in points], dtype=np.float64)
    return -rows[:, 1], rows[:, 0]


def _draw_map(axes: Axes, excerpt: SceneExcerpt) -> None:
    for rings in excerpt.drivable:
        vertices = [np.column_stack(_up([*ring, ring[0]])) for ring in rings]
        codes = [[DrawnPath.MOVETO, *[DrawnPath.LINETO] * (len(ring) - 2), DrawnPath.CLOSEPOLY] for ring in vertices]
        shape = DrawnPath(np.vstack(vertices), np.concatenate(codes))
        axes.add_patch(PathPatch(shape, facecolor=COLOURS["road"], edgecolor="none", zorder=1))
    for ring in excerpt.crosswalks:
        axes.add_patch(Polygon(np.column_stack(_up(ring)), facecolor=COLOURS["walk"], edgecolor="none", alpha=0.8,
                               zorder=2))
    for line in excerpt.lane_edges:
        axes.plot(*_up(line), color=COLOURS["edge"], linewidth=0.8, zorder=3)
    for box in excerpt.boxes:
        colour = COLOURS["vehicle" if box.type == "vehicle" else "person" if box.type in PEOPLE else "object"]
        if len(box.path) > 1:
            axes.plot(*_up(box.path), color=colour, linewidth=1.0, alpha=0.55, zorder=4)
        _body(axes, corners(box.x, box.y, box.heading, box.length / 2, box.length / 2, box.width), colour, 5)


def _body(axes: Axes, outline: NDArray[np.float64], colour: str, level: float) -> None:
    axes.add_patch(Polygon(np.column_stack(_up(outline)), facecolor=colour, edgecolor="white", linewidth=0.7,
                           zorder=level))


def _legend(figure: Figure, width: float, height: float) -> None:
    entries = [("-", "o", COLOURS["plan"], "planned trajectory"), ("--", "", COLOURS["human"], "human"),
               ("", "x", COLOURS["DAC"], "off the drivable area (DAC)"), ("", "o", COLOURS["TTC"], "obstacle, TTC"),
               ("", "o", COLOURS["NC"], "obstacle, collision (NC)")]
    handles = [Line2D([], [], linestyle=line, marker=marker, color=colour, markersize=6, label=label,
                      markeredgewidth=2.2 if marker == "x" else 1.0) for line, marker, colour, label in entries]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.02 / width, 0.16 / height), ncols=len(handles),
                  frameon=False, fontsize=min(7.5, 1.05 * width), labelcolor=COLOURS["dim"], handletextpad=0.5,
                  columnspacing=1.4)
