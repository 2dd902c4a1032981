"""What the tracker follows: a plan of 8 points, or a planner's poses, sampled at 10 Hz by the scene's clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.pdm.geometry import half_open_angle, shorter_turn, wrapped
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.pdm.simulate import STEP_S, STEPS
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

FARTHEST_M = 1e6
"""Plans are clipped to this many metres per coordinate: farther numbers say nothing more and would overflow."""


class Sampling(NamedTuple):
    """How 41 samples lie between given times."""

    before: Indices
    """[..., 41] last given time that is not after the sample."""
    elapsed_us: Array
    """[..., 41] from there to the sample."""
    span_us: Array
    """[..., 41] from there to the next given time."""


def _whole_us(seconds: Array, t0_us: int) -> Indices:
    return ((seconds + t0_us * 1e-6) * 1e6).astype(np.int64)


def sample_times_us(t0_us: int) -> Indices:
    """[41] when a reference is sampled [us]; float seconds cut to microseconds, so with a real clock some are early."""
    return _whole_us(np.arange(STEPS) * STEP_S, t0_us).clip(t0_us)


def sampling(times_us: Indices, at_us: Indices) -> Sampling:
    """How the times [41] lie between given times [n]; before the first and after the last, the outer spans go on."""
    before = np.searchsorted(times_us, at_us).clip(1, len(times_us) - 1) - 1
    elapsed, span = at_us - times_us[before], times_us[before + 1] - times_us[before]
    return Sampling(before, elapsed.astype(np.float64), span.astype(np.float64))


def plan_sampling(t0_us: int) -> Sampling:
    """For plans of 8 points that start at a scene's clock [us]; only its rounding matters."""
    times_us = np.append(t0_us, _whole_us(np.arange(1, TRAJECTORY_POINTS + 1) * TRAJECTORY_STEP_S, t0_us))
    return sampling(times_us, sample_times_us(t0_us).clip(times_us[0], times_us[-1]))


def together(samplings: Sequence[Sampling]) -> Sampling:
    """Those of several scenes as arrays [S, 41]."""
    before, elapsed_us, span_us = zip(*samplings, strict=True)
    return Sampling(np.stack(before), np.stack(elapsed_us), np.stack(span_us))


@kernel
def _sample(poses: Array, before: Indices, elapsed: Array, span: Array, out: Array) -> None:
    """Poses [n, 3], linear in between, the short way round -> out [41, 3]; the poses' headings are unwrapped."""
    shift, heading = 0.0, poses[0, 2]
    for k in range(1, len(poses)):
        turn, heading = poses[k, 2] - heading, poses[k, 2]
        shift += shorter_turn(turn) - turn
        poses[k, 2] = heading + shift
    for k in range(len(out)):
        i = before[k]
        for column in range(3):
            slope = (poses[i + 1, column] - poses[i, column]) / span[k]
            out[k, column] = slope * elapsed[k] + poses[i, column]
        # Into [-pi, pi): a reference straight backwards must have -pi, or the tracker turns to the other side.
        out[k, 2] = half_open_angle(out[k, 2])


@kernel
def _references(
    plans: Array, row_scene: Indices, origins: Array, before: Indices, elapsed: Array, span: Array, out: Array
) -> None:
    """Plans [B, 8, 3] in the frames of origins[row_scene[b]] -> out [B, 41, 3] in the map frame."""
    poses = np.empty((plans.shape[1] + 1, 3))
    for b in range(len(plans)):
        s = row_scene[b]
        x, y, heading = origins[s]
        cos, sin = math.cos(heading), math.sin(heading)
        poses[0, 0], poses[0, 1], poses[0, 2] = x, y, wrapped(heading)
        for k in range(plans.shape[1]):
            forward = min(max(plans[b, k, 0], -FARTHEST_M), FARTHEST_M)
            left = min(max(plans[b, k, 1], -FARTHEST_M), FARTHEST_M)
            poses[k + 1, 0], poses[k + 1, 1] = x + cos * forward - sin * left, y + sin * forward + cos * left
            poses[k + 1, 2] = wrapped(wrapped(plans[b, k, 2]) + heading)
        _sample(poses, before[s], elapsed[s], span[s], out[b])


def references_many(plans: Array, row_scene: Indices, origins: Array, samplings: Sampling) -> Array:
    """Plans of several scenes -> what the tracker follows.

    Args:
        plans: [B, 8, 3] checked plans in the ego frames of their scenes.
        row_scene: [B] which scene each one is of.
        origins: [S, 3] rear axles at t = 0 in the map frame; a plan starts there.
        samplings: [S, 41] arrays.

    Returns:
        [B, 41, 3] poses in the map frame.
    """
    out = np.empty((len(plans), STEPS, 3))
    _references(np.array(plans, order="C"), row_scene, origins, *samplings, out)  # a copy: compiled for arrays of one kind
    return out


def reference_poses(plans: Array, ego_pose: Array, t0_us: int = 0) -> Array:
    """Checked plans [B, 8, 3] of one scene -> [B, 41, 3] map-frame poses; `ego_pose` is the rear axle at t = 0."""
    one_scene = together([plan_sampling(t0_us)])
    return references_many(plans, np.zeros(len(plans), dtype=np.int64), np.asarray(ego_pose)[None], one_scene)


def sample_poses(poses: Array, times_us: Indices, at_us: Indices) -> Array:
    """Poses [n, 3] at times [n] -> [41, 3] at times [41], linear in between, headings in [-pi, pi)."""
    out = np.empty((len(at_us), 3))
    _sample(poses.copy(), *sampling(times_us, at_us), out)
    return out
