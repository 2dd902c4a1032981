"""The PDM score's parts (Eq. 1 of the paper, NAVSIM v1): NC, DAC, TTC, C, DDC and the raw progress behind EP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Vehicle
from nemo_mtdrive.pdm.collisions import Collisions, find_collisions
from nemo_mtdrive.pdm.comfort import FILTERS, LIMITS, WORK_ROWS, Filters, is_comfortable
from nemo_mtdrive.pdm.drivable import DrivableMap, EgoAreas, classify
from nemo_mtdrive.pdm.geometry import ego_corners, way_along
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.pdm.observation import Observation, Seen
from nemo_mtdrive.pdm.rings import Rings
from nemo_mtdrive.pdm.simulate import HEADING, STEP_S, STEPS, X, Y

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

EP_WEIGHT, TTC_WEIGHT, COMFORT_WEIGHT = 5.0, 5.0, 2.0
"""Weights of the weighted average in Eq. 1; NC and DAC multiply it."""

PROGRESS_THRESHOLD_M = 5.0
"""EP is 1 for everybody clean where neither the plan nor the reference gets farther than this."""

_ONCOMING_STEPS = round(1.0 / STEP_S)
_ONCOMING_FREE_M, _ONCOMING_LIMIT_M = 2.0, 6.0


@dataclass(frozen=True)
class Measured:
    """What was measured on B simulated trajectories; EP needs the reference's progress besides."""

    areas: EgoAreas
    collisions: Collisions
    drivable_area: Array
    """[B] DAC, 1 or 0."""
    comfort: Array
    """[B] C, 1 or 0."""
    driving_direction: Array
    """[B] DDC: 1, 0.5 or 0 (weight 0 in NAVSIM v1)."""
    progress_m: Array
    """[B] way of the box centre along the route's centreline, at least 0."""

    @property
    def no_collision(self) -> Array:
        """[B] NC."""
        return self.collisions.no_collision

    @property
    def penalty(self) -> Array:
        """[B] NC x DAC."""
        return self.no_collision * self.drivable_area

    @property
    def clean_progress_m(self) -> Array:
        """[B] progress x NC x DAC, what EP compares."""
        return self.progress_m * self.penalty


@kernel
def _driving_direction(corners: Array, oncoming: Flags) -> float:
    """DDC from boxes with centres [T, 5, 2]: the longest way off the route's lanes within 1 s, in three grades."""
    ways = np.zeros(STEPS + 1)
    longest = 0.0
    for t in range(STEPS):
        way = 0.0
        if t > 0 and oncoming[t]:
            dx, dy = corners[t, 4, 0] - corners[t - 1, 4, 0], corners[t, 4, 1] - corners[t - 1, 4, 1]
            way = math.sqrt(dx * dx + dy * dy)
        ways[t + 1] = ways[t] + way
        longest = max(longest, ways[t + 1] - ways[max(t - _ONCOMING_STEPS, 0)])
    if longest < _ONCOMING_FREE_M:
        return 1.0
    return 0.5 if longest < _ONCOMING_LIMIT_M else 0.0


@kernel
def _measure(
    states: Array, body: Array, rings: Rings, kinds: Indices, on_route: Flags, line: Array, lengths: Array, seen: Seen,
    filters: Filters, limits: Array, areas: Flags, at_fault: Flags, ttc_after: NDArray[np.int8], measures: Array,
) -> None:
    """Fill areas [B, 4, T], at_fault and ttc_after [B, T, N] and measures [B, 6]: NC, DAC, TTC, C, DDC, progress."""
    corners, work = np.empty((STEPS, 5, 2)), np.empty((WORK_ROWS, STEPS))
    half_length, half_width, to_center = body[0], body[1], body[2]
    radius = math.hypot(half_length, half_width)
    has_route = on_route.any()
    start_x = start_y = math.nan
    start = 0.0
    for b in range(states.shape[0]):
        for t in range(STEPS):
            ego_corners(states[b, t, X], states[b, t, Y], states[b, t, HEADING], half_length, half_width, to_center,
                        corners[t])
        classify(rings, kinds, on_route, states[b], corners, areas[b])
        if not (corners[0, 4, 0] == start_x and corners[0, 4, 1] == start_y):
            start_x, start_y = corners[0, 4, 0], corners[0, 4, 1]
            start = way_along(line, lengths, start_x, start_y)
        no_collision, time_to_collision = find_collisions(
            states[b], corners, radius, areas[b], seen, at_fault[b], ttc_after[b])
        measures[b, 0], measures[b, 1], measures[b, 2] = no_collision, 0.0 if areas[b, 1].any() else 1.0, time_to_collision
        measures[b, 3] = 1.0 if is_comfortable(states[b], filters, limits, work) else 0.0
        measures[b, 4] = _driving_direction(corners, areas[b, 2]) if has_route else 1.0
        measures[b, 5] = max(way_along(line, lengths, corners[-1, 4, 0], corners[-1, 4, 1]) - start, 0.0)


def measure(states: Array, vehicle: Vehicle, drivable: DrivableMap, on_route: Flags, centerline: Array, lengths: Array,
            observation: Observation) -> Measured:
    """Measure simulated trajectories.

    Args:
        states: [B, 41, 11] from `simulate`.
        vehicle: the ego's body.
        drivable: the map around the scene's ego, P polygons.
        on_route: [P] polygons that are lanes of the route; with none, DDC is 1.
        centerline: [n, 2] line along which progress counts.
        lengths: [n] way along it.
        observation: the N other road users.
    """
    batch, tracks = len(states), len(observation.tracks)
    body = np.array([0.5 * vehicle.length, 0.5 * vehicle.width, vehicle.rear_axle_to_center])
    areas = np.empty((batch, 4, STEPS), dtype=bool)
    at_fault, ttc_after = np.empty((batch, STEPS, tracks), dtype=bool), np.empty((batch, STEPS, tracks), dtype=np.int8)
    measures = np.empty((batch, 6))
    _measure(states, body, drivable.rings, drivable.kinds, on_route, centerline, lengths, observation.seen, FILTERS,
             LIMITS, areas, at_fault, ttc_after, measures)
    no_collision, drivable_area, time_to_collision, comfort, direction, progress = measures.T
    return Measured(
        areas=EgoAreas(areas[:, 0], areas[:, 1], areas[:, 2], areas[:, 3]),
        collisions=Collisions(at_fault, ttc_after, no_collision, time_to_collision),
        drivable_area=drivable_area,
        comfort=comfort,
        driving_direction=direction,
        progress_m=progress,
    )


def ego_progress(measured: Measured, best_m: Array | float) -> Array:
    """EP [B]: the share of the best clean progress, its own included; where all are slow, 1, or 0 if not clean."""
    best = np.maximum(measured.clean_progress_m, best_m)
    share = measured.clean_progress_m / np.maximum(best, PROGRESS_THRESHOLD_M)
    return np.where(best > PROGRESS_THRESHOLD_M, share, (measured.penalty > 0.0).astype(np.float64))


def pdm_score(measured: Measured, progress: Array) -> Array:
    """PDMS [B], Eq. 1."""
    time_to_collision = measured.collisions.time_to_collision
    weighted = EP_WEIGHT * progress + TTC_WEIGHT * time_to_collision + COMFORT_WEIGHT * measured.comfort
    return measured.penalty * (weighted / (EP_WEIGHT + TTC_WEIGHT + COMFORT_WEIGHT))


def scores(measured: Measured, reference_m: float) -> list[dict[str, float]]:
    """The scores of each trajectory by `types.SCORE_NAMES`; `reference_m` is the clean progress of PDM-Closed [m].

    Each is held against the reference alone: normalising over a batch, as a planner does, gives other numbers.
    """
    progress = ego_progress(measured, reference_m)
    columns = {
        "NC": measured.no_collision,
        "DAC": measured.drivable_area,
        "TTC": measured.collisions.time_to_collision,
        "EP": progress,
        "C": measured.comfort,
        "DDC": measured.driving_direction,
        "PDMS": pdm_score(measured, progress),
    }
    return [{name: float(column[row]) for name, column in columns.items()} for row in range(len(progress))]
