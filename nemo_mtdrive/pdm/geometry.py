"""Plane geometry for scoring, compiled: boxes, rings and lines as float64 arrays in metres.

Touching counts as overlapping, and a point on a ring is outside it: that is what the intersects and contains predicates
of the geometry engine behind NAVSIM say, and scores at a boundary depend on it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

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


@njit(cache=True, error_model="numpy")
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


@njit(cache=True, error_model="numpy")
def inside_ring(x: float, y: float, ring: Array) -> bool:
    """Whether the point lies strictly inside the closed ring [n, 2] (first vertex repeated last); even-odd rule."""
    crossings = 0
    for i in range(ring.shape[0] - 1):
        ax, ay, bx, by = ring[i, 0], ring[i, 1], ring[i + 1, 0], ring[i + 1, 1]
        if (ax < x and bx < x) or (ay > y and by > y) or (ay < y and by < y):
            continue
        if ay == y and by == y:
            if min(ax, bx) <= x <= max(ax, bx):
                return False
            continue
        turn = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
        if turn == 0.0:
            return False
        if (ay > y) != (by > y) and (turn > 0.0) == (by > ay):
            crossings += 1
    return crossings % 2 == 1


@njit(cache=True, error_model="numpy")
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


@njit(cache=True, error_model="numpy")
def boxes_overlap(first: Array, second: Array) -> bool:
    """Whether two boxes, corners [4, 2] each, share a point (separating-axis test)."""
    for box in (first, second):
        for i in range(2):
            if _gap_along(box[i + 1, 1] - box[i, 1], box[i, 0] - box[i + 1, 0], first, second):
                return False
    return True


@njit(cache=True, error_model="numpy")
def segment_meets_box(segment: Array, box: Array) -> bool:
    """Whether a segment [2, 2] and a box, corners [4, 2], share a point."""
    if _gap_along(segment[1, 1] - segment[0, 1], segment[0, 0] - segment[1, 0], segment, box):
        return False
    along_first = _gap_along(box[1, 1] - box[0, 1], box[0, 0] - box[1, 0], segment, box)
    return not (along_first or _gap_along(box[2, 1] - box[1, 1], box[1, 0] - box[2, 0], segment, box))


@njit(cache=True, error_model="numpy")
def bearing(x: float, y: float, heading: float, to_x: float, to_y: float) -> float:
    """Unsigned angle [rad] from the heading of a pose to a point; nan where the point is the pose itself."""
    dx, dy = to_x - x, to_y - y
    norm = math.sqrt(dx * dx + dy * dy)
    if norm == 0.0:
        return math.nan
    return math.acos(max(-1.0, min(1.0, (math.cos(heading) * dx + math.sin(heading) * dy) / norm)))


@njit(cache=True, error_model="numpy")
def progress_along(line: Array, x: float, y: float) -> float:
    """Arc length [m] of the point of the polyline [n, 2] that is nearest to (x, y); the first of equals."""
    best, best_distance, start = 0.0, math.inf, 0.0
    for i in range(line.shape[0] - 1):
        ax, ay = line[i, 0], line[i, 1]
        dx, dy = line[i + 1, 0] - ax, line[i + 1, 1] - ay
        squared = dx * dx + dy * dy
        length = math.sqrt(squared)
        factor = 0.0 if squared == 0.0 else max(0.0, min(1.0, ((x - ax) * dx + (y - ay) * dy) / squared))
        distance = math.hypot(x - (ax + factor * dx), y - (ay + factor * dy))
        if distance < best_distance:
            best, best_distance = start + factor * length, distance
        start += length
    return best
