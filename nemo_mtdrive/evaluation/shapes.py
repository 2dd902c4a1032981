"""What pictures of an episode are made of, as named shapes: figures (matplotlib) and the page (SVG) colour them by name.

Ego frame of t = 0, x forward, y left, metres; `camera_shapes` are in pixels of a picture. Only numbers of records reach
a shape, never text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.evaluation.marks import MARKED, Window, corners, marks_of, points_in_image, ribbon
from nemo_mtdrive.telemetry.excerpt import CameraView, SceneExcerpt

Array = NDArray[np.float64]
BODIES = {"vehicle": "car", "pedestrian": "person", "bicycle": "person"}
"""Type of a road user -> name of its body; others are "thing"."""
EGO = {"front_length": 4.049, "rear_length": 1.127, "width": 2.297}
"""The body of an ego whose scene was not recorded: NAVSIM's Pacifica [m]."""


@dataclass(frozen=True)
class Path:
    """Lines [n, 2]; closed ones are areas, of which later ones inside earlier ones are holes."""

    name: str
    lines: tuple[Array, ...]
    closed: bool


@dataclass(frozen=True)
class Disc:
    """A filled circle; `point` is the number 0..7 of the trajectory's point that it shows, if it shows one."""

    name: str
    x: float
    y: float
    radius: float
    point: int | None = None


Shape = Path | Disc


def scene_shapes(excerpt: SceneExcerpt | None) -> list[Shape]:
    """The scene at t = 0, bottom up: "road", "walk", "edge" (of lanes), "human" (its way), for each road user its way
    over the next 4 s ("car-goes", ...) and its body ("car", "person", "thing"), and "ego".

    Without an excerpt the ego is alone.
    """
    if excerpt is None:
        return [_body("ego", 0.0, 0.0, 0.0, EGO)]
    shapes = [_path("road", [ring for area in excerpt.drivable for ring in area], closed=True),
              _path("walk", excerpt.crosswalks, closed=True), _path("edge", excerpt.lane_edges, closed=False)]
    if excerpt.future is not None:
        shapes.append(_path("human", [[[0.0, 0.0], *excerpt.future]], closed=False))
    for box in excerpt.boxes:
        name = BODIES.get(box.type, "thing")
        if len(box.path) > 1:
            shapes.append(_path(f"{name}-goes", [box.path], closed=False))
        half = 0.5 * box.length
        shapes.append(_body(name, box.x, box.y, box.heading,
                            {"front_length": half, "rear_length": half, "width": box.width}))
    return [*(shape for shape in shapes if shape.lines), _body("ego", 0.0, 0.0, 0.0, excerpt.ego)]


def turn_shapes(turn: Mapping[str, Any], window: Window) -> list[Shape]:
    """A turn's trajectory ("plan", eight "point") and what the review's violations name, as in Fig. 4: "dac" (a cross),
    "met-ttc" and "met-nc" (the obstacle where it is met), "ttc" and "nc" (its dot).
    """
    shapes: list[Shape] = []
    unit = (window.front - window.back) / 60.0
    if turn["trajectory"] is not None:
        shapes.append(_path("plan", [[[0.0, 0.0], *turn["trajectory"]]], closed=False))
        shapes += [Disc("point", float(x), float(y), 0.55 * unit, number)
                   for number, (x, y, *_) in enumerate(turn["trajectory"])]
    for mark in sorted(marks_of(turn), key=lambda mark: MARKED.index(mark.metric)):
        name = mark.metric.lower()
        if mark.box is not None:
            x, y, heading, length, width = mark.box
            size = {"front_length": 0.5 * length, "rear_length": 0.5 * length, "width": width}
            shapes.append(_body(f"met-{name}", x, y, heading, size))
        if mark.metric == "DAC":
            shapes.append(_path(name, [np.array([mark.x, mark.y]) + unit * np.array(arm)
                                       for arm in ([[-1.0, -1.0], [1.0, 1.0]], [[-1.0, 1.0], [1.0, -1.0]])], closed=False))
        else:
            # NC lies on top and is smaller: an obstacle of both metrics shows both colours.
            shapes.append(Disc(name, mark.x, mark.y, (1.35 if name == "ttc" else 0.9) * unit))
    return shapes


def camera_shapes(camera: CameraView | None, turn: Mapping[str, Any] | None, width: int, height: int) -> list[Shape]:
    """A turn's trajectory in a width x height picture: the "band" that the ego would drive over, and the "point"s in it.

    Nothing without a camera or a trajectory, or where it is out of sight.
    """
    if camera is None or turn is None or turn["trajectory"] is None:
        return []
    shapes: list[Shape] = []
    band = ribbon(turn["trajectory"], camera, width, height)
    if len(band) > 2:
        shapes.append(Path("band", (np.clip(band, -9 * width, 10 * width),), closed=True))
    for number, (u, v) in enumerate(points_in_image(turn["trajectory"], camera, width, height)):
        if 0.0 <= u <= width and 0.0 <= v <= height:
            shapes.append(Disc("point", float(u), float(v), 0.0065 * width, number))
    return shapes


def _path(name: str, lines: Iterable[Sequence[Sequence[float]] | Array], *, closed: bool) -> Path:
    return Path(name, tuple(np.asarray([row[:2] for row in line], dtype=np.float64) for line in lines), closed)


def _body(name: str, x: float, y: float, heading: float, size: Mapping[str, float]) -> Path:
    return Path(name, (corners(x, y, heading, size["front_length"], size["rear_length"], size["width"]),), closed=True)
