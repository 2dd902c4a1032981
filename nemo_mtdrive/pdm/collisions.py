"""At-fault collisions (NC) and time to collision (TTC), for every trajectory, step and track."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.pdm.geometry import FRONT_LEFT, FRONT_RIGHT, bearing, boxes_overlap, segment_meets_box
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.pdm.observation import WINDOW, Seen
from nemo_mtdrive.pdm.simulate import HEADING, STEP_S, VX, VY, X, Y

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

NO_HIT = -1
"""Value of `Collisions.ttc_after` where TTC is kept."""

_STOPPED_EGO_SPEED = 0.05
_TTC_STOPPED_SPEED = 0.005
_BEHIND, _AHEAD = math.radians(150.0), math.radians(30.0)
_TTC_STEPS = (0, 3, 6, 9)
_FORGIVEN, _TTC_FORGIVEN, _COLLIDED, _TOO_CLOSE = range(4)
"""What was found of a track."""


@dataclass(frozen=True)
class Collisions:
    """B trajectories, T steps, N tracks."""

    at_fault: NDArray[np.bool_]
    """[B, T, N] the ego is in an at-fault collision with the track."""
    ttc_after: NDArray[np.int8]
    """[B, T, N] steps (0, 3, 6, 9) after which the ego, moved straight on, hits a track ahead of it; else `NO_HIT`."""
    no_collision: Array
    """[B] NC: 1, 0.5 (an object was hit), 0 (a road user was hit)."""
    time_to_collision: Array
    """[B] TTC: 1 or 0."""


@kernel
def _is_at_fault(
    state: Array, speed: float, box: Array, between: bool, track_center: Array, track_box: Array, is_stopped: bool,
    front: Array,
) -> bool:
    """Whether an overlap of the ego with a track is the ego's fault; front [4, 2] is a workspace."""
    if not speed > _STOPPED_EGO_SPEED:
        return False
    if is_stopped:
        return True
    if bearing(state[X], state[Y], state[HEADING], track_center[0], track_center[1]) > _BEHIND:
        return False
    front[0], front[1] = box[FRONT_LEFT], box[FRONT_RIGHT]
    return between or segment_meets_box(front[:2], track_box)


@kernel
def _is_ahead(state: Array, track_center: Array, careful: bool) -> bool:
    """Whether the ego has to mind a track that it would hit: ahead, or where it must look around, not behind."""
    angle = bearing(state[X], state[Y], state[HEADING], track_center[0], track_center[1])
    return angle < _AHEAD or (careful and not angle > _BEHIND)


@kernel
def _moved_box_overlaps(box: Array, way_x: float, way_y: float, track_box: Array, moved: Array) -> bool:
    """Whether a box [4, 2], moved, overlaps a track's; moved [4, 2] is a workspace."""
    for i in range(4):
        moved[i, 0], moved[i, 1] = box[i, 0] + way_x, box[i, 1] + way_y
    return boxes_overlap(moved, track_box)


@kernel
def _ego_windows(states: Array, corners: Array, radius: float, motion: Array, reach: Array) -> None:
    """Fill motion [T, 3], velocity x, y and speed, and the ego's bounds, TTC included, in each window: reach [W, 4]."""
    reach[:, :2], reach[:, 2:] = math.inf, -math.inf
    for t in range(len(states)):
        speed = math.hypot(states[t, VX], states[t, VY])
        motion[t, 0], motion[t, 1] = math.cos(states[t, HEADING]) * speed, math.sin(states[t, HEADING]) * speed
        motion[t, 2] = speed
        w = t // WINDOW
        for k in range(2):
            now = corners[t, 4, k]
            later = now + motion[t, k] * (_TTC_STEPS[-1] * STEP_S)
            reach[w, k] = min(reach[w, k], min(now, later) - radius)
            reach[w, 2 + k] = max(reach[w, 2 + k], max(now, later) + radius)


@kernel
def _follow_track(
    n: int, start: int, stop: int, states: Array, corners: Array, motion: Array, radius: float, areas: Flags, seen: Seen,
    at_fault: Flags, ttc_after: NDArray[np.int8], found: Flags, workspace: Array,
) -> None:
    """Test track n at steps start to stop - 1: fills at_fault, ttc_after [T, N] and found [4] as in `find_collisions`."""
    centers = seen.centers
    reach_squared = (radius + seen.radii[n]) ** 2 + 1e-6
    for t in range(start, stop):
        x, y = corners[t, 4, 0], corners[t, 4, 1]
        if not found[_FORGIVEN]:
            dx, dy = centers[n, t, 0] - x, centers[n, t, 1] - y
            # Circles around the boxes first: most pairs are far apart.
            if dx * dx + dy * dy <= reach_squared and boxes_overlap(corners[t], seen.corners[n, t]):
                fault = _is_at_fault(states[t], motion[t, 2], corners[t], areas[0, t] or areas[1, t], centers[n, t],
                                     seen.corners[n, t], seen.is_stopped[n], workspace)
                at_fault[t, n] = fault
                found[_FORGIVEN if not fault else _COLLIDED] = True
        if found[_TTC_FORGIVEN] or motion[t, 2] < _TTC_STOPPED_SPEED:
            continue
        for after in _TTC_STEPS:
            future, seconds = t + after, after * STEP_S
            way_x, way_y = motion[t, 0] * seconds, motion[t, 1] * seconds
            dx, dy = centers[n, future, 0] - (x + way_x), centers[n, future, 1] - (y + way_y)
            if (dx * dx + dy * dy <= reach_squared and not found[_TTC_FORGIVEN]
                    and _moved_box_overlaps(corners[t], way_x, way_y, seen.corners[n, future], workspace)):
                careful = areas[0, t] or areas[1, t] or areas[3, t]
                if not _is_ahead(states[t], centers[n, future], careful):
                    found[_TTC_FORGIVEN] = True
                elif ttc_after[t, n] == NO_HIT:
                    ttc_after[t, n] = after
                    found[_TOO_CLOSE] = True


@kernel
def find_collisions(
    states: Array, corners: Array, radius: float, areas: Flags, seen: Seen, at_fault: Flags, ttc_after: NDArray[np.int8]
) -> tuple[float, float]:
    """Test one simulated trajectory against the tracks; returns its NC and TTC.

    An overlap that is not the ego's fault (standing, hit from behind, hit at the side while in its lane) is forgiven
    for the rest of the 4 s; so is a TTC overlap with a track that is not ahead. Tracks do not bear on one another, so
    each is followed by itself, through the windows of time where its bounds meet the ego's.

    Args:
        states: [T, 11]
        corners: [T, 5, 2] boxes and their centres.
        radius: half the diagonal of the ego's box [m].
        areas: [4, T] in the order of `EgoAreas`.
        seen: the N tracks.
        at_fault, ttc_after: [T, N] filled as in `Collisions`.
    """
    at_fault[:], ttc_after[:] = False, NO_HIT
    windows = seen.reach.shape[1]
    motion, own, workspace = np.empty((len(states), 3)), np.empty((windows, 4)), np.empty((4, 2))
    found = np.empty(4, dtype=np.bool_)
    _ego_windows(states, corners, radius, motion, own)
    no_collision, time_to_collision = 1.0, 1.0
    for n in range(len(seen.radii)):
        found[_FORGIVEN] = found[_TTC_FORGIVEN] = seen.is_ignored[n]
        found[_COLLIDED] = found[_TOO_CLOSE] = False
        for w in range(windows):
            if (own[w, 0] <= seen.reach[n, w, 2] and own[w, 2] >= seen.reach[n, w, 0]
                    and own[w, 1] <= seen.reach[n, w, 3] and own[w, 3] >= seen.reach[n, w, 1]):
                _follow_track(n, w * WINDOW, min((w + 1) * WINDOW, len(states)), states, corners, motion, radius, areas,
                              seen, at_fault, ttc_after, found, workspace)
        if found[_COLLIDED]:
            no_collision = min(no_collision, 0.0 if seen.is_agent[n] else 0.5)
        if found[_TOO_CLOSE]:
            time_to_collision = 0.0
    return no_collision, time_to_collision
