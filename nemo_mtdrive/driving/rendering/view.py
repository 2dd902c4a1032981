"""`View`: the way from the map frame to the canvas, and stripes along lines on the ground."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.scene import Array, Lane, Scene

FAR_M = 130.0


class View:
    """The canvas with the way from the map frame to the ego frame."""

    def __init__(self, canvas: Canvas, scene: Scene) -> None:
        self.canvas = canvas
        x, y, heading = scene.ego.rear_axle_pose.tolist()
        self.heading = heading
        self._origin = np.array([x, y])
        cos, sin = math.cos(heading), math.sin(heading)
        self._turn = np.array([[cos, -sin], [sin, cos]])
        self._eye = canvas.position[:2]
        self._axis = canvas.axis[:2]

    def local(self, points: Array) -> Array:
        """Map-frame points [n, 2] in the ego frame."""
        local: Array = (points - self._origin) @ self._turn
        return local

    def to_map(self, points: Array) -> Array:
        """Ego-frame points [n, 2] in the map frame."""
        placed: Array = points @ self._turn.T + self._origin
        return placed

    def depths(self, points: Array) -> tuple[Array, Array]:
        """(along, across) the viewing direction [m] of ego-frame points [n, 2]."""
        off = points - self._eye
        return off @ self._axis, off @ np.array([-self._axis[1], self._axis[0]])

    def may_be_seen(self, points: Array) -> bool:
        """Whether the bounding box of the points [n, 2], laid along the view, reaches into it."""
        along, across = self.depths(points)
        far = float(along.max())
        return bool(far > 0.5 and along.min() < FAR_M and across.min() < 0.75 * far + 3.0
                    and across.max() > -0.75 * far - 3.0)

    def stretches(self, line: Array) -> list[Array]:
        """The parts of a polyline [n, 2] that lie ahead, each [m, 2] with a vertex at least every 3 m."""
        line = dense(line, 2.0)
        along, across = self.depths(line)
        ahead = (along > self.canvas.nearest_ground - 1.5) & (along < FAR_M) & (np.abs(across) < along + 12.0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ahead, [False]]).astype(np.int8))).tolist()
        found = [line[max(start - 1, 0) : stop + 1] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        return [stretch for stretch in found if len(stretch) > 1]

    def ribbon(self, line: Array, half_width: float, colour: Colour) -> None:
        """A stripe along a polyline [n, 2] of the ego frame."""
        for stretch in self.stretches(line):
            self.canvas.fill_ground(stripe(stretch, half_width), colour)

    def dashes(self, line: Array, half_width: float, colour: Colour, dash: float, gap: float) -> None:
        """A broken stripe along a polyline [n, 2] of the ego frame; dashes and gaps in metres."""
        distance = arc_length(line)
        starts = np.arange(0.0, distance[-1], dash + gap)
        at = np.stack([starts, np.minimum(starts + dash, distance[-1])], axis=1)
        ends = points_at(line, distance, at)
        along, across = self.depths(ends[:, 0])
        ends = ends[(along > -2.0) & (along < FAR_M) & (np.abs(across) < along + 6.0)]
        ahead = ends[:, 1] - ends[:, 0]
        ahead = ahead * (half_width / (np.sqrt((ahead**2).sum(1, keepdims=True)) + 1e-9))
        side = np.column_stack([-ahead[:, 1], ahead[:, 0]])[:, None]
        self.canvas.fill_tiles(np.concatenate([ends + side, (ends - side)[:, ::-1]], axis=1), colour)


def dense(line: Array, step: float) -> Array:
    """The polyline with extra vertices so that no segment is longer than about `step`."""
    distance = arc_length(line)
    if np.diff(distance).max() <= 1.5 * step:
        return line
    return points_at(line, distance, np.union1d(distance, np.arange(0.0, distance[-1], step)))


@njit(cache=True)  # type: ignore[untyped-decorator]
def stripe(line: Array, half_width: float) -> Array:
    """The outline [2 n, 2] of a band around a polyline [n, 2]."""
    count = len(line)
    outline = np.empty((2 * count, 2))
    side = normals(line)
    for i in range(count):
        for k in range(2):
            outline[i, k] = line[i, k] + half_width * side[i, k]
            outline[2 * count - 1 - i, k] = line[i, k] - half_width * side[i, k]
    return outline


@njit(cache=True)  # type: ignore[untyped-decorator]
def normals(line: Array) -> Array:
    """Unit vectors [n, 2] to the left of a polyline's vertices."""
    count = len(line)
    left = np.empty((count, 2))
    for i in range(count):
        before, after = max(i - 1, 0), min(i + 1, count - 1)
        x, y = line[after, 0] - line[before, 0], line[after, 1] - line[before, 1]
        length = math.sqrt(x * x + y * y) + 1e-9
        left[i, 0], left[i, 1] = -y / length, x / length
    return left


@njit(cache=True)  # type: ignore[untyped-decorator]
def arc_length(line: Array) -> Array:
    """[n] metres from the first vertex."""
    distance = np.zeros(len(line))
    for i in range(1, len(line)):
        x, y = line[i, 0] - line[i - 1, 0], line[i, 1] - line[i - 1, 1]
        distance[i] = distance[i - 1] + math.sqrt(x * x + y * y)
    return distance


def points_at(line: Array, distance: Array, at: Array) -> Array:
    """Points [..., 2] of a polyline at arc lengths [...]."""
    points = np.empty((*at.shape, 2))
    points[..., 0] = np.interp(at, distance, line[:, 0])
    points[..., 1] = np.interp(at, distance, line[:, 1])
    return points


def lane_edges(lane: Lane) -> tuple[Array, Array]:
    """(left, right) boundary [n, 2] of a lane in driving direction, from its polygon's two halves."""
    half = len(lane.polygon) // 2
    return lane.polygon[:half], lane.polygon[half:][::-1]
