"""Plans that are not the human's: good, bad and absurd answers to learn from, written with two decimals as answers are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import TIMES, constant_velocity
from nemo_mtdrive.types import TRAJECTORY_POINTS

Array = NDArray[np.float64]

PLANS = 24
"""Plans of `sample_plans`."""
_CHANGED, _ARCS, _NOISY = 9, 7, 6


def sample_plans(scene: Scene, seed: int | np.random.Generator) -> Array:
    """Plans of all sorts [PLANS, 8, 3]: the expert's and the constant-velocity driver's, perturbed ones, arcs, noisy ones.

    Where the scene has no future, the constant-velocity driver stands in for the expert.
    """
    random = np.random.default_rng(seed)
    steady = constant_velocity(scene)
    expert = steady if scene.future is None else scene.future
    changed = _changed(expert, random, _CHANGED)
    noisy = expert[:, :2] + random.normal(0.0, 1.0, (_NOISY, TRAJECTORY_POINTS, 2)) * [[[0.4, 0.25]]]
    ways = np.concatenate([changed, _arcs(random, float(scene.ego.velocity[0])), noisy])
    return np.round(np.concatenate([expert[None], steady[None], _with_headings(ways)]), 2)


def perturbed(expert: Array, random: np.random.Generator, count: int) -> Array:
    """[count, 8, 3] the plan of an expert [8, 3] with its speed changed and a drift to a side."""
    return np.round(_with_headings(_changed(expert, random, count)), 2)


def _changed(expert: Array, random: np.random.Generator, count: int) -> Array:
    """[count, 8, 2] another speed, and a drift that grows with time."""
    base = expert[None].repeat(count, axis=0)
    speed, drift = random.uniform(0.0, 1.7, (count, 1)), random.normal(0.0, 2.0, (count, 1))
    return np.stack([base[..., 0] * speed, base[..., 1] * speed + drift * (TIMES / 4.0) ** 2], axis=-1)


def _arcs(random: np.random.Generator, speed_now: float) -> Array:
    """[_ARCS, 8, 2] constant acceleration until standstill, constant yaw rate."""
    acceleration, yaw_rate = random.uniform(-4.0, 3.0, (_ARCS, 1)), random.normal(0.0, 0.12, (_ARCS, 1))
    fine = np.arange(1, 41) * 0.1
    speed = np.maximum(speed_now + acceleration * fine, 0.0)
    heading = yaw_rate * fine
    way = np.stack([np.cumsum(speed * np.cos(heading), axis=1), np.cumsum(speed * np.sin(heading), axis=1)], axis=-1)
    return 0.1 * way[:, 4::5]


def _with_headings(ways: Array) -> Array:
    """Ways [B, 8, 2] with headings along them, 0 where they hardly move: [B, 8, 3]."""
    steps = np.diff(ways, axis=1, prepend=np.zeros((len(ways), 1, 2)))
    heading = np.where(np.hypot(steps[..., 0], steps[..., 1]) > 0.3, np.arctan2(steps[..., 1], steps[..., 0]), 0.0)
    return np.concatenate([ways, heading[..., None]], axis=-1)
