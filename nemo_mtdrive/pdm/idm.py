"""The intelligent driver model behind leaders, compiled: how far along its path each of PDM-Closed's proposals gets."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.pdm.geometry import ego_corners, segment_meets_box, wrapped
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.pdm.observation import OBSERVED_STEPS
from nemo_mtdrive.pdm.simulate import STEP_S

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

FORECAST_STRIDE = 2
"""Steps between two samples of the forecast."""

_MIN_GAP_M, _HEADWAY_S, _MAX_ACCELERATION, _MAX_DECELERATION, _EXPONENT = 1.0, 1.5, 1.5, 3.0, 10


class Obstacles(NamedTuple):
    """What lies in a path's corridor: M obstacles, those of sample s at [first[s], first[s + 1])."""

    first: Indices
    """[26 + 1]"""
    where: Array
    """[M] way of the centroid along the path [m]."""
    motion: Array
    """[M, 3] is it a track (1) or a light (0), its speed [m/s], its heading [rad]."""
    first_vertex: Indices
    """[M + 1]"""
    vertices: Array
    """[V, 2] closed rings."""


@kernel
def _point_gap(x: float, y: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Squared distance of a point to a segment."""
    dx, dy = bx - ax, by - ay
    squared = dx * dx + dy * dy
    factor = 0.0 if squared == 0.0 else max(0.0, min(1.0, ((x - ax) * dx + (y - ay) * dy) / squared))
    off_x, off_y = x - (ax + factor * dx), y - (ay + factor * dy)
    return off_x * off_x + off_y * off_y


@kernel
def _holds(ring: Array, x: float, y: float) -> bool:
    """Whether a point that is not on the closed ring [n, 2] is inside it; even-odd rule."""
    inside = False
    for i in range(len(ring) - 1):
        ax, ay, bx, by = ring[i, 0], ring[i, 1], ring[i + 1, 0], ring[i + 1, 1]
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            inside = not inside
    return inside


@kernel
def gap_between(box: Array, ring: Array) -> float:
    """Distance [m] between a box, corners [4, 2], and the area of a closed ring [n, 2]; 0 where they share a point."""
    if _holds(ring, box[0, 0], box[0, 1]):
        return 0.0
    least = math.inf
    for i in range(len(ring) - 1):
        if segment_meets_box(ring[i:i + 2], box):
            return 0.0
        for k in range(4):
            after = (k + 1) % 4
            least = min(least, _point_gap(box[k, 0], box[k, 1], ring[i, 0], ring[i, 1], ring[i + 1, 0], ring[i + 1, 1]))
            least = min(least, _point_gap(ring[i, 0], ring[i, 1], box[k, 0], box[k, 1], box[after, 0], box[after, 1]))
    return math.sqrt(least)


@kernel
def pose_at(path: Array, lengths: Array, distance: float, out: Array) -> None:
    """The pose [3] of a path [n, 3], headings unwrapped, at a way along it, clipped to the path."""
    last = len(lengths) - 1
    clipped = max(min(distance, lengths[last]), min(1e-5, lengths[last]))
    after = min(max(np.searchsorted(lengths, clipped), 1), last)
    span = lengths[after] - lengths[after - 1]
    part = (clipped - lengths[after - 1]) / (span if span > 0.0 else 1.0)
    for column in range(3):
        out[column] = path[after - 1, column] + part * (path[after, column] - path[after - 1, column])
    out[2] = wrapped(out[2])


@kernel
def _find_leader(
    own: float, pose: Array, box: Array, obstacles: Obstacles, sample: int, leader: Array
) -> tuple[bool, bool]:
    """Update leader [3] from the nearest obstacle ahead of `own` [m]; returns (whether there is one, whether two are
    equally near)."""
    nearest, least, is_tie = -1, math.inf, False
    for m in range(obstacles.first[sample], obstacles.first[sample + 1]):
        if obstacles.where[m] > own:
            gap = gap_between(box, obstacles.vertices[obstacles.first_vertex[m]:obstacles.first_vertex[m + 1]])
            is_tie = gap == least or (is_tie and gap > least)
            if gap < least:
                nearest, least = m, gap
    if nearest < 0:
        return False, False
    leader[0] = own + least
    if obstacles.motion[nearest, 0] > 0.0:
        leader[1] = obstacles.motion[nearest, 1] * math.cos(obstacles.motion[nearest, 2] - pose[2])
    return True, is_tie


@kernel
def unroll(
    path: Array, lengths: Array, obstacles: Obstacles, body: Array, start: float, ego_speed: float, wanted: Array,
    poses: Array,
) -> bool:
    """Drive K proposals along one path behind its leaders; whether anywhere two leaders were equally near.

    Kept from the original: leaders are looked up at even steps only, so at step 1 there is none and progress 0 stands
    for it, which brakes; and the three numbers of a leader (progress, speed, rear length) are written over those of the
    proposal before, so the rear length of a free road or the speed of a vehicle can stay behind.

    Args:
        path: [n, 3] poses, headings unwrapped.
        lengths: [n] way along it [m].
        obstacles: in its corridor.
        body: half length, half width, rear axle to centre [m] of the ego.
        start: where the ego is [m].
        ego_speed: at t = 0 [m/s].
        wanted: [K] speeds [m/s].
        poses: [K, 51, 3] what is filled.
    """
    count = len(wanted)
    progress, speed, leaders = np.full(count, start), np.full(count, ego_speed), np.zeros((count, 3))
    current, pose, box = np.zeros(3), np.empty(3), np.empty((5, 2))
    any_tie = False
    for k in range(count):
        pose_at(path, lengths, start, poses[k, 0])
    for step in range(1, OBSERVED_STEPS):
        if step % FORECAST_STRIDE == 0:
            current[:] = 0.0
            for k in range(count):
                pose_at(path, lengths, progress[k], pose)
                ego_corners(pose[0], pose[1], pose[2], body[0], body[1], body[2], box)
                has_leader, is_tie = _find_leader(progress[k], pose, box[:4], obstacles, step // FORECAST_STRIDE, current)
                any_tie |= is_tie
                if not has_leader:
                    current[0], current[2] = lengths[-1], body[0]
                leaders[k] = current
        for k in range(count):
            reaction = speed[k] * (speed[k] - leaders[k, 1]) / (2.0 * math.sqrt(_MAX_ACCELERATION * _MAX_DECELERATION))
            desired_gap = _MIN_GAP_M + speed[k] * _HEADWAY_S + reaction
            gap = max(leaders[k, 0] - progress[k] - leaders[k, 2], _MIN_GAP_M)
            acceleration = _MAX_ACCELERATION * (1.0 - (speed[k] / wanted[k]) ** _EXPONENT - (desired_gap / gap) ** 2)
            acceleration = max(min(acceleration, _MAX_ACCELERATION), -_MAX_DECELERATION)
            progress[k], speed[k] = progress[k] + STEP_S * speed[k], speed[k] + STEP_S * acceleration
            pose_at(path, lengths, progress[k], poses[k, step])
    return any_tie
