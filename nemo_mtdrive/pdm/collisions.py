"""At-fault collisions (NC) and time to collision (TTC), for every trajectory, step and track."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Vehicle
from nemo_mtdrive.pdm.drivable import EgoAreas
from nemo_mtdrive.pdm.geometry import FRONT_LEFT, FRONT_RIGHT, bearing, boxes_overlap, segment_meets_box
from nemo_mtdrive.pdm.observation import Observation
from nemo_mtdrive.pdm.simulate import HEADING, STEP_S, VX, VY, X, Y

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

NO_HIT = -1
"""Value of `Collisions.ttc_after` where TTC is kept."""

_STOPPED_EGO_SPEED = 0.05
_TTC_STOPPED_SPEED = 0.005
_BEHIND, _AHEAD = math.radians(150.0), math.radians(30.0)
_TTC_STEPS = (0, 3, 6, 9)


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


@njit(cache=True, error_model="numpy")
def _may_touch(radius: float, center_x: float, center_y: float, track_center: Array, track_radius: float) -> bool:
    """Whether the circles around two boxes meet, with a little to spare."""
    dx, dy = track_center[0] - center_x, track_center[1] - center_y
    reach = radius + track_radius
    return dx * dx + dy * dy <= reach * reach + 1e-6


@njit(cache=True, error_model="numpy")
def _find_collisions(
    states: Array, corners: Array, radius: float, multiple_lanes: Flags, non_drivable: Flags, centers: Array,
    track_corners: Array, present: Flags, radii: Array, is_agent: Flags, is_stopped: Flags, is_ignored: Flags,
    at_fault: Flags, no_collision: Array,
) -> None:
    """Fill at_fault [B, T, N] and no_collision [B]."""
    front = np.empty((2, 2))
    for b in range(states.shape[0]):
        ignored = is_ignored.copy()
        for t in range(states.shape[1]):
            state, box = states[b, t], corners[b, t, :4]
            for n in range(len(radii)):
                if ignored[n] or not present[t, n]:
                    continue
                if not _may_touch(radius, corners[b, t, 4, 0], corners[b, t, 4, 1], centers[t, n], radii[n]):
                    continue
                if not boxes_overlap(box, track_corners[t, n]):
                    continue
                fault = False
                if math.hypot(state[VX], state[VY]) > _STOPPED_EGO_SPEED:
                    if is_stopped[n]:
                        fault = True
                    elif not bearing(state[X], state[Y], state[HEADING], centers[t, n, 0], centers[t, n, 1]) > _BEHIND:
                        front[0, 0], front[0, 1] = box[FRONT_LEFT, 0], box[FRONT_LEFT, 1]
                        front[1, 0], front[1, 1] = box[FRONT_RIGHT, 0], box[FRONT_RIGHT, 1]
                        fault = (segment_meets_box(front, track_corners[t, n])
                                 or multiple_lanes[b, t] or non_drivable[b, t])
                if fault:
                    at_fault[b, t, n] = True
                    no_collision[b] = min(no_collision[b], 0.0 if is_agent[n] else 0.5)
                else:
                    ignored[n] = True


@njit(cache=True, error_model="numpy")
def _find_ttc(
    states: Array, corners: Array, radius: float, multiple_lanes: Flags, non_drivable: Flags, intersection: Flags,
    centers: Array, track_corners: Array, present: Flags, radii: Array, is_ignored: Flags, ttc_after: NDArray[np.int8],
    time_to_collision: Array,
) -> None:
    """Fill ttc_after [B, T, N] and time_to_collision [B]."""
    moved = np.empty((4, 2))
    for b in range(states.shape[0]):
        ignored = is_ignored.copy()
        for t in range(states.shape[1]):
            state = states[b, t]
            speed = math.hypot(state[VX], state[VY])
            if speed < _TTC_STOPPED_SPEED:
                continue
            careful = multiple_lanes[b, t] or non_drivable[b, t] or intersection[b, t]
            ahead_x, ahead_y = math.cos(state[HEADING]) * speed, math.sin(state[HEADING]) * speed
            for after in _TTC_STEPS:
                future, seconds = t + after, after * STEP_S
                moved_yet = False
                for n in range(len(radii)):
                    if ignored[n] or not present[future, n]:
                        continue
                    center_x = corners[b, t, 4, 0] + ahead_x * seconds
                    center_y = corners[b, t, 4, 1] + ahead_y * seconds
                    if not _may_touch(radius, center_x, center_y, centers[future, n], radii[n]):
                        continue
                    if not moved_yet:
                        for i in range(4):
                            moved[i, 0] = corners[b, t, i, 0] + ahead_x * seconds
                            moved[i, 1] = corners[b, t, i, 1] + ahead_y * seconds
                        moved_yet = True
                    if not boxes_overlap(moved, track_corners[future, n]):
                        continue
                    angle = bearing(state[X], state[Y], state[HEADING], centers[future, n, 0], centers[future, n, 1])
                    if angle < _AHEAD or (careful and not angle > _BEHIND):
                        if ttc_after[b, t, n] == NO_HIT:
                            ttc_after[b, t, n] = after
                        time_to_collision[b] = 0.0
                    else:
                        ignored[n] = True


def find_collisions(
    states: Array, corners: Array, areas: EgoAreas, observation: Observation, vehicle: Vehicle
) -> Collisions:
    """Test simulated states [B, 41, 11] with boxes [B, 41, 5, 2] against the observed tracks.

    An overlap that is not the ego's fault (standing, hit from behind, hit at the side while in its lane) is forgiven
    for the rest of the 4 s; so is a TTC overlap with a track that is not ahead.
    """
    batch, steps = states.shape[:2]
    at_fault = np.zeros((batch, steps, len(observation.tracks)), dtype=bool)
    ttc_after = np.full(at_fault.shape, NO_HIT, dtype=np.int8)
    no_collision, time_to_collision = np.ones(batch), np.ones(batch)
    radius = 0.5 * math.hypot(vehicle.length, vehicle.width)
    seen = observation
    _find_collisions(states, corners, radius, areas.multiple_lanes, areas.non_drivable, seen.centers, seen.corners,
                     seen.present, seen.radii, seen.is_agent, seen.is_stopped, seen.is_ignored, at_fault, no_collision)
    _find_ttc(states, corners, radius, areas.multiple_lanes, areas.non_drivable, areas.intersection, seen.centers,
              seen.corners, seen.present, seen.radii, seen.is_ignored, ttc_after, time_to_collision)
    return Collisions(at_fault, ttc_after, no_collision, time_to_collision)
