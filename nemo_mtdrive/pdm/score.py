"""The PDM score's parts (Eq. 1 of the paper, NAVSIM v1): NC, DAC, TTC, C, DDC and the raw progress behind EP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Vehicle
from nemo_mtdrive.pdm.collisions import Collisions, find_collisions
from nemo_mtdrive.pdm.comfort import comfort
from nemo_mtdrive.pdm.drivable import DrivableMap, EgoAreas, ego_areas
from nemo_mtdrive.pdm.geometry import progress_along
from nemo_mtdrive.pdm.observation import Observation
from nemo_mtdrive.pdm.simulate import STEP_S

Array = NDArray[np.float64]

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


def _driving_direction(centers: Array, oncoming: NDArray[np.bool_]) -> Array:
    """DDC from box centres [B, T, 2]: the longest way off the route's lanes within 1 s, in three grades."""
    way = np.zeros(oncoming.shape)
    way[:, 1:] = np.linalg.norm(np.diff(centers, axis=1), axis=-1)
    way[~oncoming] = 0.0
    total = np.concatenate([np.zeros((len(way), _ONCOMING_STEPS + 1)), np.cumsum(way, axis=1)], axis=1)
    longest = (total[:, _ONCOMING_STEPS + 1:] - total[:, : -_ONCOMING_STEPS - 1]).max(axis=1)
    return np.where(longest < _ONCOMING_FREE_M, 1.0, np.where(longest < _ONCOMING_LIMIT_M, 0.5, 0.0))


def measure(states: Array, vehicle: Vehicle, drivable: DrivableMap, on_route: NDArray[np.bool_], centerline: Array,
            observation: Observation) -> Measured:
    """Measure simulated trajectories.

    Args:
        states: [B, 41, 11] from `simulate`.
        vehicle: the ego's body.
        drivable: the map around the scene's ego, P polygons.
        on_route: [P] polygons that are lanes of the route; with none, DDC is 1.
        centerline: [n, 2] line along which progress counts.
        observation: the other road users.
    """
    areas, corners = ego_areas(states, vehicle, drivable, on_route)
    centers = corners[:, :, 4]
    progress = np.array([progress_along(centerline, *row[-1]) - progress_along(centerline, *row[0]) for row in centers])
    return Measured(
        areas=areas,
        collisions=find_collisions(states, corners, areas, observation, vehicle),
        drivable_area=1.0 - areas.non_drivable.any(axis=1),
        comfort=comfort(states),
        driving_direction=_driving_direction(centers, areas.oncoming) if on_route.any() else np.ones(len(states)),
        progress_m=np.clip(progress, 0.0, None),
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
