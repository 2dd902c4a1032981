"""Plane geometry for scoring, compiled: boxes and lines as float64 arrays in metres.

Touching counts as overlapping: that is what the intersects predicate of the geometry engine behind NAVSIM says, and
scores at a boundary depend on it. Rings are in `rings`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.pdm.kernel import kernel

Array = NDArray[np.float64]

FRONT_LEFT, REAR_LEFT, REAR_RIGHT, FRONT_RIGHT = range(4)
"""Order of a box's corners in every [..., 4, 2] array of this package."""


def wrap_angle(angle: Array) -> Array:
    """Angles [rad] mapped to (-pi, pi]."""
    return np.arctan2(np.sin(angle), np.cos(angle))


def box_corners(center: Array, heading: Array, length: float | Array, width: float | Array) -> Array:
    """Corners [..., 4, 2] of boxes with centres [..., 2] and headings [...]."""
    lon = 0.5 * np.asarray(length)[..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    lat = 0.5 * np.asarray(width)[..., None] * np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
    return np.stack([center + lon + lat, center - lon + lat, center - lon - lat, center + lon - lat], axis=-2)


@kernel
def wrapped(angle: float) -> float:
    """An angle [rad] mapped to [-pi, pi], compiled; those inside stay to the last bit."""
    if -math.pi <= angle <= math.pi:
        return angle
    return math.atan2(math.sin(angle), math.cos(angle))


@kernel
def shorter_turn(turn: float) -> float:
    """A difference of two angles [rad] the short way round, as numpy's unwrap has it."""
    if abs(turn) < math.pi:
        return turn
    shorter = (turn + math.pi) % (2.0 * math.pi) - math.pi
    return math.pi if shorter == -math.pi and turn > 0.0 else shorter


@kernel
def half_open_angle(angle: float) -> float:
    """An angle [rad] mapped to [-pi, pi)."""
    moved = angle + math.pi
    if not 0.0 <= moved < 2.0 * math.pi:
        moved = moved % (2.0 * math.pi)
    return moved - math.pi


@kernel
def ego_corners(
    x: float, y: float, heading: float, half_length: float, half_width: float, rear_axle_to_center: float, out: Array
) -> None:
    """Write the four corners of the ego whose rear axle is at (x, y), then its centre, into out [5, 2]."""
    cos, sin = math.cos(heading), math.sin(heading)
    lon_x, lon_y = half_length * cos, half_length * sin
    lat_x, lat_y = half_width * math.cos(heading + 0.5 * math.pi), half_width * math.sin(heading + 0.5 * math.pi)
    center_x, center_y = x + rear_axle_to_center * cos, y + rear_axle_to_center * sin
    out[FRONT_LEFT, 0], out[FRONT_LEFT, 1] = center_x + (lat_x + lon_x), center_y + (lat_y + lon_y)
    out[REAR_LEFT, 0], out[REAR_LEFT, 1] = center_x + (lat_x - lon_x), center_y + (lat_y - lon_y)
    out[REAR_RIGHT, 0], out[REAR_RIGHT, 1] = center_x - (lat_x + lon_x), center_y - (lat_y + lon_y)
    out[FRONT_RIGHT, 0], out[FRONT_RIGHT, 1] = center_x - (lat_x - lon_x), center_y - (lat_y - lon_y)
    out[4, 0], out[4, 1] = center_x, center_y


@kernel
def _gap_along(axis_x: float, axis_y: float, first: Array, second: Array) -> bool:
    """Whether the two point sets are apart when projected on the axis."""
    first_min = first_max = first[0, 0] * axis_x + first[0, 1] * axis_y
    for i in range(1, first.shape[0]):
        value = first[i, 0] * axis_x + first[i, 1] * axis_y
        first_min, first_max = min(first_min, value), max(first_max, value)
    second_min = second_max = second[0, 0] * axis_x + second[0, 1] * axis_y
    for i in range(1, second.shape[0]):
        value = second[i, 0] * axis_x + second[i, 1] * axis_y
        second_min, second_max = min(second_min, value), max(second_max, value)
    return first_max < second_min or second_max < first_min


@kernel
def _boxes_apart(axis_x: float, axis_y: float, first: Array, second: Array) -> bool:
    """`_gap_along` of two boxes, corners first in both arrays."""
    a, b = first[0, 0] * axis_x + first[0, 1] * axis_y, first[1, 0] * axis_x + first[1, 1] * axis_y
    c, d = first[2, 0] * axis_x + first[2, 1] * axis_y, first[3, 0] * axis_x + first[3, 1] * axis_y
    first_min, first_max = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    a, b = second[0, 0] * axis_x + second[0, 1] * axis_y, second[1, 0] * axis_x + second[1, 1] * axis_y
    c, d = second[2, 0] * axis_x + second[2, 1] * axis_y, second[3, 0] * axis_x + second[3, 1] * axis_y
    return first_max < min(min(a, b), min(c, d)) or max(max(a, b), max(c, d)) < first_min


@kernel
def boxes_overlap(first: Array, second: Array) -> bool:
    """Whether two boxes, corners [4, 2] each (more rows are not looked at), share a point (separating-axis test)."""
    for i in range(2):
        if _boxes_apart(first[i + 1, 1] - first[i, 1], first[i, 0] - first[i + 1, 0], first, second):
            return False
    for i in range(2):
        if _boxes_apart(second[i + 1, 1] - second[i, 1], second[i, 0] - second[i + 1, 0], first, second):
            return False
    return True


@kernel
def segment_meets_box(segment: Array, box: Array) -> bool:
    """Whether a segment [2, 2] and a box, corners [4, 2], share a point."""
    if _gap_along(segment[1, 1] - segment[0, 1], segment[0, 0] - segment[1, 0], segment, box):
        return False
    along_first = _gap_along(box[1, 1] - box[0, 1], box[0, 0] - box[1, 0], segment, box)
    return not (along_first or _gap_along(box[2, 1] - box[1, 1], box[1, 0] - box[2, 0], segment, box))


@kernel
def bearing(x: float, y: float, heading: float, to_x: float, to_y: float) -> float:
    """Unsigned angle [rad] from the heading of a pose to a point; nan where the point is the pose itself."""
    dx, dy = to_x - x, to_y - y
    norm = math.sqrt(dx * dx + dy * dy)
    if norm == 0.0:
        return math.nan
    return math.acos(max(-1.0, min(1.0, (math.cos(heading) * dx + math.sin(heading) * dy) / norm)))


def lengths_along(line: Array) -> Array:
    """[n] way [m] along a polyline [n, 2] to each of its vertices."""
    steps = np.diff(line, axis=0)
    return np.append(0.0, np.cumsum(np.sqrt(steps[:, 0] ** 2 + steps[:, 1] ** 2)))


@kernel
def way_along(line: Array, lengths: Array, x: float, y: float) -> float:
    """Way [m] along a polyline [n, 2] with `lengths_along` to its point nearest to (x, y), the first of equals."""
    best, best_squared = 0.0, math.inf
    for i in range(line.shape[0] - 1):
        from_x, from_y = x - line[i, 0], y - line[i, 1]
        dx, dy = line[i + 1, 0] - line[i, 0], line[i + 1, 1] - line[i, 1]
        length = lengths[i + 1] - lengths[i]
        factor = 0.0
        if length > 0.0:
            factor = max(0.0, min(1.0, (from_x * dx + from_y * dy) / (dx * dx + dy * dy)))
        off_x, off_y = from_x - factor * dx, from_y - factor * dy
        squared = off_x * off_x + off_y * off_y
        if squared < best_squared:
            best, best_squared = lengths[i] + factor * length, squared
    return best


def progress_along(line: Array, x: float, y: float) -> float:
    """As `way_along`, for a line that is asked once."""
    return way_along(np.ascontiguousarray(line), lengths_along(line), x, y)
