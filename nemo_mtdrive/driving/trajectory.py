"""Trajectories [8, 3] of [x m, y m, heading rad] at t = 0.5 .. 4.0 s in the ego frame of t = 0."""

from __future__ import annotations

import numpy as np

from nemo_mtdrive.driving.scene import Array, Scene
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S

TIMES = TRAJECTORY_STEP_S * np.arange(1, TRAJECTORY_POINTS + 1)
"""[8] the times of the points [s]."""


def constant_velocity(scene: Scene) -> Array:
    """The ego keeps its velocity vector and heading of t = 0: [8, 3]."""
    return np.column_stack([TIMES * scene.ego.velocity[0], TIMES * scene.ego.velocity[1], np.zeros(len(TIMES))])


def constant_yaw_rate(scene: Scene) -> Array:
    """The ego keeps its speed and the yaw rate of the last half second of its history: an arc [8, 3].

    Raises:
        ValueError: the scene has no history.
    """
    if scene.history is None:
        raise ValueError(f"scene {scene.scene_id}: got no history, constant_yaw_rate needs one")
    speed = float(scene.ego.velocity[0])
    yaw_rate = -float(scene.history[-2, 2]) / TRAJECTORY_STEP_S
    heading = yaw_rate * TIMES
    # sin(h)/h and (1-cos(h))/h through sinc, so that a straight line needs no special case
    half = heading / 2.0
    chord = speed * TIMES * np.sinc(half / np.pi)
    return np.column_stack([chord * np.cos(half), chord * np.sin(half), np.arctan2(np.sin(heading), np.cos(heading))])


def displacement_errors(predicted: Array, actual: Array) -> Array:
    """Distance between the points of two trajectories [..., 8, >=2], metres: [..., 8]."""
    difference = np.asarray(predicted)[..., :2] - np.asarray(actual)[..., :2]
    return np.sqrt((difference**2).sum(axis=-1))


def ade(predicted: Array, actual: Array) -> float:
    """Average displacement error over the points [m]."""
    return float(displacement_errors(predicted, actual).mean())


def fde(predicted: Array, actual: Array) -> float:
    """Displacement error of the last point [m]."""
    return float(displacement_errors(predicted, actual)[..., -1].mean())


def interpolate_poses(times: Array, poses: Array, at: Array) -> Array:
    """Poses [n, 3] known at `times` [n] -> poses [m, 3] at `at` [m], linear, headings the short way round.

    Times outside the known span give the nearest known pose.
    """
    unwrapped = np.array(poses, dtype=np.float64)
    unwrapped[:, 2] = np.unwrap(unwrapped[:, 2])
    result = np.column_stack([np.interp(at, times, unwrapped[:, column]) for column in range(3)])
    result[:, 2] = np.arctan2(np.sin(result[:, 2]), np.cos(result[:, 2]))
    return result


def dense(trajectory: Array, step_s: float) -> Array:
    """A trajectory [8, 3] with the origin put before it, resampled every `step_s` from 0 s to 4 s inclusive."""
    count = round(float(TIMES[-1]) / step_s) + 1
    return interpolate_poses(np.concatenate([[0.0], TIMES]), np.vstack([np.zeros(3), trajectory]),
                             step_s * np.arange(count))


def box_corners(poses: Array, length: float, width: float, rear_to_center: float) -> Array:
    """Corners [n, 4, 2] (front left, front right, rear right, rear left) of boxes at poses [n, 3].

    `rear_to_center` is the distance from the pose's point forward to the centre of the box (0 for a box centre).
    """
    poses = np.atleast_2d(poses)
    along = rear_to_center + 0.5 * length * np.array([1.0, 1.0, -1.0, -1.0])
    across = 0.5 * width * np.array([1.0, -1.0, -1.0, 1.0])
    cos, sin = np.cos(poses[:, 2:3]), np.sin(poses[:, 2:3])
    return np.stack([poses[:, 0:1] + cos * along - sin * across, poses[:, 1:2] + sin * along + cos * across], axis=-1)


def boxes_overlap(first: Array, second: Array) -> np.ndarray:
    """Whether boxes [n, 4, 2] and [n, 4, 2] overlap, pair by pair, by the separating-axis test: bool [n]."""
    apart = np.zeros(len(first), dtype=bool)
    for box in (first, second):
        for edge in (box[:, 1] - box[:, 0], box[:, 2] - box[:, 1]):
            mine = np.einsum("nkd,nd->nk", first, edge)
            other = np.einsum("nkd,nd->nk", second, edge)
            apart |= (mine.max(1) < other.min(1)) | (other.max(1) < mine.min(1))
    return ~apart
