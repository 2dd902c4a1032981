"""What a vision tower can learn before there is language: a front picture, and what its scene knows of the place it shows.

A `Views` holds numbers only, a few hundred bytes a scene; pictures stay with the scenes and are read when they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.data.single_turn import can_teach
from nemo_mtdrive.driving.scene import COMMANDS, Array, Scene
from nemo_mtdrive.driving.sources import SceneSource

AHEAD_M = (2.0, 42.0)
"""The ground that is looked at, in front of the rear axle [m]."""
ASIDE_M = 16.0
"""And to either side [m]."""
CELL_M = (4.0, 2.0)
"""Length and width of its cells [m]."""
ROWS, COLUMNS = 10, 16
PIXELS_A_M = 10
DRIVABLE_SHARE, OCCUPIED_SHARE = 0.5, 0.05
"""From this share of its area on a cell counts as drivable, or as occupied."""

LAYERS = ("drivable", "occupied")


@dataclass(frozen=True)
class Views:
    """Of n scenes, in the ego frame of t = 0."""

    ids: list[str]
    history: NDArray[np.float32]
    """[n, 4, 3] poses, as the question has them."""
    command: NDArray[np.int64]
    """[n] place in COMMANDS."""
    speed: NDArray[np.float32]
    """[n] [m/s]"""
    future: NDArray[np.float32]
    """[n, 8, 3] what the human drove."""
    ground: NDArray[np.bool_]
    """[n, 2, ROWS, COLUMNS] whether a cell of the ground ahead is drivable, and whether somebody or something is on it at
    t = 0; rows away from the ego, columns from its right to its left."""


def read_views(source: SceneSource, ids: Sequence[str], advance: Callable[[int], None]) -> Views:
    """Read the scenes; those without history, command or human future are left out.

    Raises:
        ValueError: none is left.
    """
    kept, rows = [], []
    for scene_id in ids:
        scene = source.load(scene_id)
        if can_teach(scene):
            kept.append(scene_id)
            rows.append((scene.history, COMMANDS.index(str(scene.command)), scene.ego.velocity[0], scene.future,
                         ground(scene)))
        advance(1)
    if not kept:
        raise ValueError(f"none of {len(ids)} scenes has history, command, camera and human future")
    history, command, speed, future, cells = zip(*rows, strict=True)
    return Views(kept, np.stack(history).astype(np.float32), np.array(command), np.array(speed, dtype=np.float32),
                 np.stack(future).astype(np.float32), np.stack(cells))


def ground(scene: Scene) -> NDArray[np.bool_]:
    """[2, ROWS, COLUMNS] of one scene; see `Views.ground`."""
    known = scene.map
    roads = [block.polygon for block in known.roadblocks if block.kind == "roadblock"]
    areas = [area.polygon for area in (*known.intersections, *known.carparks)]
    boxes = [_box(track.size, track.states[0]) for track in scene.tracks if len(track.states) and track.states[0, 0] == 0]
    pose = scene.ego.rear_axle_pose
    return np.stack([_covered([*roads, *areas], pose) >= DRIVABLE_SHARE, _covered(boxes, pose) >= OCCUPIED_SHARE])


def _box(size: Array, state: Array) -> Array:
    """[4, 2] corners of a box in the map frame; size [l, w, h], state [t, x, y, heading, ...]."""
    half = 0.5 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * size[:2]
    cosine, sine = np.cos(state[3]), np.sin(state[3])
    return np.asarray(half @ np.array([[cosine, sine], [-sine, cosine]]) + state[1:3])


def _covered(polygons: Iterable[Array], pose: Array) -> Array:
    """[ROWS, COLUMNS] the share of each cell that polygons [P, 2] of the map frame cover."""
    rows, columns = round((AHEAD_M[1] - AHEAD_M[0]) * PIXELS_A_M), round(2 * ASIDE_M * PIXELS_A_M)
    drawn = np.zeros((rows, columns), dtype=np.uint8)
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    to_ego = np.array([[cosine, -sine], [sine, cosine]])
    for polygon in polygons:
        ahead, left = ((np.asarray(polygon) - pose[:2]) @ to_ego).T
        corners = np.stack([(left + ASIDE_M) * PIXELS_A_M, (ahead - AHEAD_M[0]) * PIXELS_A_M], axis=1)
        cv2.fillPoly(drawn, [np.round(corners).astype(np.int32)], 1)
    return np.asarray(drawn.reshape(ROWS, rows // ROWS, COLUMNS, columns // COLUMNS).mean(axis=(1, 3), dtype=np.float64))
