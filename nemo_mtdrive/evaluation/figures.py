"""Figures in the manner of the paper's Fig. 4: the front camera with the projected trajectory, and a bird's-eye view
of each turn with its violations marked; a row an episode. Matplotlib without a display; PNG, SVG or PDF.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as DrawnPath
from numpy.typing import NDArray

from nemo_mtdrive.evaluation.drawing import AS_IT_IS
from nemo_mtdrive.evaluation.marks import PANEL_ASPECT, Window, window_of
from nemo_mtdrive.evaluation.shapes import Disc, Shape, camera_shapes, scene_shapes, turn_shapes
from nemo_mtdrive.evaluation.shapes import Path as Outline
from nemo_mtdrive.telemetry.excerpt import SceneExcerpt

COLOURS = {
    "DAC": "#e5342b", "TTC": "#1f6fff", "NC": "#f5b800", "plan": "#0f9d76", "human": "#7c8794", "ego": "#0f9d76",
    "ground": "#e6e9e4", "road": "#c3c8ce", "edge": "#ffffff", "walk": "#f4f5f6", "vehicle": "#66717f",
    "person": "#b0609c", "object": "#d9853b", "text": "#20262d", "dim": "#5d6875",
}
STYLES: Mapping[str, Mapping[str, Any]] = {
    "road": {"facecolor": COLOURS["road"]},
    "walk": {"facecolor": COLOURS["walk"], "alpha": 0.8},
    "edge": {"edgecolor": COLOURS["edge"], "linewidth": 0.8},
    "human": {"edgecolor": COLOURS["human"], "linewidth": 1.4, "linestyle": (0, (4, 2.5))},
    **{f"{name}-goes": {"edgecolor": COLOURS[colour], "linewidth": 1.0, "alpha": 0.55}
       for name, colour in (("car", "vehicle"), ("person", "person"), ("thing", "object"))},
    **{name: {"facecolor": COLOURS[colour], "edgecolor": "white", "linewidth": 0.7}
       for name, colour in (("car", "vehicle"), ("person", "person"), ("thing", "object"), ("ego", "ego"))},
    "plan": {"edgecolor": COLOURS["plan"], "linewidth": 2.2, "capstyle": "round", "joinstyle": "round"},
    "point": {"facecolor": "white", "edgecolor": COLOURS["plan"], "linewidth": 1.3},
    **{f"met-{name.lower()}": {"edgecolor": COLOURS[name], "linewidth": 1.3, "linestyle": (0, (2, 1.5))}
       for name in ("TTC", "NC")},
    "dac": {"edgecolor": COLOURS["DAC"], "linewidth": 2.6, "capstyle": "round"},
    **{name.lower(): {"facecolor": COLOURS[name], "edgecolor": "white", "linewidth": 0.9} for name in ("TTC", "NC")},
    "band": {"facecolor": COLOURS["plan"], "edgecolor": "white", "alpha": 0.55, "linewidth": 0.8},
}
UP = np.array([[0.0, 1.0], [-1.0, 0.0]])
"""Ego frame -> axes: forward is up, left is left."""
FORMATS = (".png", ".svg", ".pdf")
PANEL, GAP, MARGIN = 2.35, 0.12, 0.06
"""Width of a bird's-eye view, and the space between panels and at the edge [in]."""
TITLE, LEGEND = 0.56, 0.36
"""Height above each row for its title, and below the last for the legend [in]."""
HEIGHT = PANEL / PANEL_ASPECT


@dataclass(frozen=True)
class Row:
    """One episode of a figure; turns in the form of recorded ones (`telemetry.recorder`)."""

    excerpt: SceneExcerpt | None
    image: NDArray[np.uint8] | None
    """The front picture, [H, W, 3]."""
    turns: Sequence[Mapping[str, Any]]
    title: str


def draw_bird_eye(axes: Axes, excerpt: SceneExcerpt | None, turn: Mapping[str, Any] | None, window: Window) -> None:
    """One bird's-eye view, forward up: map, road users, the human's path (dashed), the turn's trajectory and marks."""
    _bare(axes)
    axes.set_facecolor(COLOURS["ground"])
    _draw(axes, [*scene_shapes(excerpt), *([] if turn is None else turn_shapes(turn, window))], UP)
    axes.set_xlim(-window.side, window.side)
    axes.set_ylim(window.back, window.front)
    axes.set_aspect("equal")


def draw_camera(axes: Axes, image: NDArray[np.uint8] | None, excerpt: SceneExcerpt | None,
                turn: Mapping[str, Any] | None) -> None:
    """The front image [H, W, 3] with the turn's trajectory as a band on the ground; a grey field without an image."""
    _bare(axes)
    if image is None:
        axes.set_facecolor(COLOURS["ground"])
        return
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="bicubic", extent=(0, width, height, 0))
    _draw(axes, camera_shapes(None if excerpt is None else excerpt.camera, turn, width, height), AS_IT_IS)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")


def episodes_figure(rows: Sequence[Row]) -> Figure:
    """A row an episode: the camera with the first and the last trajectory, then a bird's-eye view for each turn.

    Raises:
        ValueError: no rows, or a row without turns.
    """
    if not rows or not all(row.turns for row in rows):
        raise ValueError("a figure needs at least one episode, and each of them at least one turn")
    each = (HEIGHT - GAP) / 2
    camera_width = max(each * (2.0 if row.image is None else row.image.shape[1] / row.image.shape[0]) for row in rows)
    width = 2 * MARGIN + camera_width + max(len(row.turns) for row in rows) * (PANEL + GAP)
    height = len(rows) * (HEIGHT + TITLE) + LEGEND
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    for number, row in enumerate(rows):
        bottom = height - (number + 1) * (HEIGHT + TITLE)
        _draw_row(figure, row, bottom, camera_width)
        figure.text(MARGIN / width, (bottom + HEIGHT + 0.38) / height, row.title, fontsize=9.5, fontweight="bold",
                    va="center", color=COLOURS["text"])
    _legend(figure, width, height)
    return figure


def save_figure(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write `episodes_figure`, whole or not at all; the same rows give the same bytes.

    Raises:
        ValueError: the file's suffix is not one of `FORMATS`, or see `episodes_figure`.
    """
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"{file}: a figure's name ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    form = file.suffix.lower()[1:]
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with rc_context({"svg.hashsalt": "figure", "pdf.fonttype": 42}):  # TrueType: journals refuse Type 3
        episodes_figure(rows).savefig(temporary, format=form, metadata=dated.get(form))
    temporary.replace(file)
    return file


def _draw_row(figure: Figure, row: Row, bottom: float, camera_width: float) -> None:
    total_width, total_height = figure.get_size_inches()
    each = (HEIGHT - GAP) / 2

    def place(left: float, low: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / total_width, low / total_height, width / total_width, tall / total_height))

    shown = [row.turns[0]] if len(row.turns) == 1 else [row.turns[0], row.turns[-1]]
    for number, turn in enumerate(shown):
        drop = (number + 1) * each + number * GAP if len(shown) > 1 else (HEIGHT + each) / 2
        axes = place(MARGIN, bottom + HEIGHT - drop, camera_width, each)
        draw_camera(axes, row.image, row.excerpt, turn)
        axes.text(0.02, 0.95, f"turn {turn['index'] + 1}", transform=axes.transAxes, va="top", fontsize=8,
                  color="white", fontweight="bold", zorder=99,
                  bbox={"facecolor": "#20262dcc", "edgecolor": "none", "boxstyle": "round,pad=0.3"})
    window = window_of(row.excerpt, row.turns)
    for number, turn in enumerate(row.turns):
        axes = place(MARGIN + camera_width + GAP + number * (PANEL + GAP), bottom, PANEL, HEIGHT)
        draw_bird_eye(axes, row.excerpt, turn, window)
        axes.set_title(f"turn {turn['index'] + 1}   {verdict(turn)}", fontsize=8.5, color=COLOURS["text"], pad=4)


def verdict(turn: Mapping[str, Any]) -> str:
    """`PDMS 27  (DAC, TTC)`: the score and what the review's violations name."""
    if turn["scores"] is None:
        return "no trajectory"
    broken = list(dict.fromkeys(violation["metric"] for violation in turn["violations"]))
    return f"PDMS {100 * turn['scores']['PDMS']:.0f}" + (f"  ({', '.join(broken)})" if broken else "")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw(axes: Axes, shapes: Iterable[Shape], frame: NDArray[np.float64]) -> None:
    """Shapes bottom up in their `STYLES`."""
    for level, shape in enumerate(shapes, start=1):
        style = {"facecolor": "none", "edgecolor": "none", **STYLES[shape.name]}
        axes.add_patch(PathPatch(_disc(shape, frame) if isinstance(shape, Disc) else _outline(shape, frame),
                                 zorder=level, **style))


def _outline(shape: Outline, frame: NDArray[np.float64]) -> DrawnPath:
    vertices, codes = [], []
    for line in shape.lines:
        points = line @ frame
        vertices += [points, points[:1]] if shape.closed else [points]
        codes += [DrawnPath.MOVETO, *[DrawnPath.LINETO] * (len(line) - 1), *([DrawnPath.CLOSEPOLY] if shape.closed else [])]
    return DrawnPath(np.vstack(vertices), codes)


def _disc(shape: Disc, frame: NDArray[np.float64]) -> DrawnPath:
    return DrawnPath.circle(tuple(np.array([shape.x, shape.y]) @ frame), shape.radius)


def _legend(figure: Figure, width: float, height: float) -> None:
    entries = [("-", "o", COLOURS["plan"], "planned trajectory"), ("--", "", COLOURS["human"], "human"),
               ("", "x", COLOURS["DAC"], "off the drivable area (DAC)"), ("", "o", COLOURS["TTC"], "obstacle, TTC"),
               ("", "o", COLOURS["NC"], "obstacle, collision (NC)")]
    handles = [Line2D([], [], linestyle=line, marker=marker, color=colour, markersize=6, label=label,
                      markeredgewidth=2.2 if marker == "x" else 1.0) for line, marker, colour, label in entries]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.02 / width, 0.16 / height), ncols=len(handles),
                  frameon=False, fontsize=min(7.5, 1.05 * width), labelcolor=COLOURS["dim"], handletextpad=0.5,
                  columnspacing=1.4)
