"""`View`: the way from the map frame to the canvas, and stripes along lines on the ground."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

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
        self._basis = np.column_stack([self._axis, [-self._axis[1], self._axis[0]]])

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
        laid = (points - self._eye) @ self._basis
        return laid[:, 0], laid[:, 1]

    def may_be_seen(self, points: Array) -> bool:
        """Whether the bounding box of the points [n, 2], laid along the view, reaches into it."""
        along, across = self.depths(points)
        far = float(along.max())
        return bool(far > 0.5 and along.min() < FAR_M and across.min() < 0.75 * far + 3.0
                    and across.max() > -0.75 * far - 3.0)

    def stretches(self, line: Array) -> list[Array]:
        """The parts of a polyline [n, 2] that lie ahead, each [m, 2] with a vertex at least every 3 m."""
        line = dense(line, 2.0)
        cuts = _runs(line, self._eye, self._axis, self.canvas.nearest_ground - 1.5)
        return [line[start:stop] for start, stop in cuts.tolist()]

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


@njit(cache=True)  # type: ignore[untyped-decorator]
def _runs(line: Array, eye: Array, axis: Array, nearest: float) -> NDArray[np.int64]:
    """[k, 2] where the runs of vertices that may be seen begin and end, each with one vertex more at either end."""
    found = np.empty((len(line), 2), dtype=np.int64)
    runs, start = 0, -1
    for i in range(len(line) + 1):
        ahead = False
        if i < len(line):
            x, y = line[i, 0] - eye[0], line[i, 1] - eye[1]
            along, across = x * axis[0] + y * axis[1], abs(y * axis[0] - x * axis[1])
            ahead = nearest < along < FAR_M and across < along + 12.0
        if ahead and start < 0:
            start = i
        elif not ahead and start >= 0:
            found[runs, 0], found[runs, 1] = max(start - 1, 0), min(i + 1, len(line))
            runs += found[runs, 1] - found[runs, 0] > 1
            start = -1
    return found[:runs]


@njit(cache=True)  # type: ignore[untyped-decorator]
def dense(line: Array, step: float) -> Array:
    """The polyline with extra vertices, at equal distances, in segments longer than 1.5 `step`."""
    count = len(line)
    parts = np.ones(count, dtype=np.int64)
    for i in range(count - 1):
        length = math.hypot(line[i + 1, 0] - line[i, 0], line[i + 1, 1] - line[i, 1])
        if length > 1.5 * step:
            parts[i] = math.ceil(length / step)
    filled = np.empty((parts.sum(), 2))
    at = 0
    for i in range(count):
        for k in range(parts[i]):
            share = k / parts[i]
            after = min(i + 1, count - 1)
            filled[at, 0] = line[i, 0] + share * (line[after, 0] - line[i, 0])
            filled[at, 1] = line[i, 1] + share * (line[after, 1] - line[i, 1])
            at += 1
    return filled


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
