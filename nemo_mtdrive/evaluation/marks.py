"""The geometry of an episode's pictures: marks, windows and projections, from which `shapes` are made.

The marks are those of the paper's Fig. 4: a red cross on each trajectory point that violates DAC, a blue dot on each
obstacle of the TTC metric, a yellow dot on each obstacle of the NC metric. Ego frame of t = 0, metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import project as project_full
from nemo_mtdrive.driving.scene import Camera
from nemo_mtdrive.driving.trajectory import dense
from nemo_mtdrive.telemetry.excerpt import CameraView, SceneExcerpt

Array = NDArray[np.float64]
MARKED = ("DAC", "TTC", "NC")
MIN_DEPTH = 0.5
"""Nearer points are not projected [m]: they lie beside or behind the lens."""
PANEL_ASPECT = 0.75
"""Width over height of a bird's-eye view, forward up."""


@dataclass(frozen=True)
class Mark:
    """One mark: where, and for TTC and NC the obstacle's box (x, y, heading, length, width) where it was met."""

    metric: str
    x: float
    y: float
    box: tuple[float, float, float, float, float] | None


@dataclass(frozen=True)
class Window:
    """What a bird's-eye view shows [m]: x forward from `back` to `front`, y from -`side` to `side`."""

    back: float
    front: float
    side: float


def marks_of(turn: Mapping[str, Any]) -> list[Mark]:
    """The marks of a recorded turn, each place once per metric; violations without a place are passed over."""
    found: dict[tuple[str, float, float], Mark] = {}
    for violation in turn["violations"]:
        metric, thing, point = violation["metric"], violation.get("object"), violation.get("point")
        if metric not in MARKED:
            continue
        if metric != "DAC" and thing is not None:
            x, y, _, length, width, _, heading = (float(value) for value in thing[:7])
            mark = Mark(metric, x, y, (x, y, heading, length, width))
        elif turn["trajectory"] is not None and point is not None:
            x, y = turn["trajectory"][point][:2]
            mark = Mark(metric, float(x), float(y), None)
        else:
            continue
        found[metric, mark.x, mark.y] = mark
    return list(found.values())


def corners(x: float, y: float, heading: float, front: float, rear: float, width: float) -> Array:
    """[4, 2] corners of a body whose reference point is `front` behind its nose and `rear` before its tail [m]."""
    forward, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    along, across = np.array([front, front, -rear, -rear]), 0.5 * width * np.array([1.0, -1.0, -1.0, 1.0])
    shape: Array = np.array([x, y]) + along[:, None] * forward + across[:, None] * left
    return shape


def window_of(excerpt: SceneExcerpt | None, turns: Sequence[Mapping[str, Any]]) -> Window:
    """One window for all turns of an episode, so that its panels can be compared; always of `PANEL_ASPECT`.

    It holds the trajectories, the human's way and the marks, and a stretch ahead of them.
    """
    paths = [np.asarray(turn["trajectory"])[:, :2] for turn in turns if turn["trajectory"] is not None]
    paths += [np.array([[mark.x, mark.y]]) for turn in turns for mark in marks_of(turn)]
    if excerpt is not None and excerpt.future is not None:
        paths.append(np.asarray(excerpt.future)[:, :2])
    points = np.vstack([np.zeros((1, 2)), *paths])
    # A hostile or untrained answer may go anywhere; the picture stays a picture of the scene.
    points = points[(np.abs(points) < 90.0).all(axis=1)]
    length = max(36.0, float(points[:, 0].max()) + 18.0, 2.0 * (float(np.abs(points[:, 1]).max()) + 6.0) / PANEL_ASPECT)
    back = -10.0 + min(0.0, float(points[:, 0].min()))
    return Window(back, back + length, 0.5 * PANEL_ASPECT * length)


def project(points: Array, camera: CameraView, width: int, height: int) -> Array:
    """Ego-frame points [n, 3] (or [n, 2] on the ground) -> [n, 2] pixels of a width x height picture of this camera.

    Points nearer than `MIN_DEPTH` are NaN.
    """
    pinhole = Camera("", camera.width, camera.height, np.asarray(camera.intrinsics), np.asarray(camera.extrinsics))
    pixels, depth = project_full(points, pinhole)
    pixels[depth < MIN_DEPTH] = np.nan
    scaled: Array = pixels * [width / camera.width, height / camera.height]
    return scaled


def ribbon(trajectory: Sequence[Sequence[float]], camera: CameraView, width: int, height: int,
           half_width: float = 0.9) -> Array:
    """The band that the ego would drive over, on the ground, as a polygon [n, 2] in pixels; empty when out of sight."""
    poses = dense(np.asarray(trajectory, dtype=np.float64), 0.1)
    left = np.column_stack([-np.sin(poses[:, 2]), np.cos(poses[:, 2])]) * half_width
    sides = [project(poses[:, :2] + side * left, camera, width, height) for side in (1.0, -1.0)]
    seen = np.isfinite(sides[0][:, 0]) & np.isfinite(sides[1][:, 0])
    return np.vstack([sides[0][seen], sides[1][seen][::-1]])


def points_in_image(trajectory: Sequence[Sequence[float]], camera: CameraView, width: int, height: int) -> Array:
    """The eight points on the ground, [8, 2] pixels, NaN for those out of sight."""
    return project(np.asarray(trajectory, dtype=np.float64)[:, :2], camera, width, height)
