"""What the car does with a plan: an LQR tracker steers a kinematic bicycle along it (NAVSIM v1).

A plan of 8 points becomes 41 reference poses at 10 Hz. The reference's speed and curvature are least-squares fits over
all 4 s; at each 0.1 s the tracker turns them into an acceleration and a steering rate, which the bicycle applies with a
first-order lag. Fits are solved in the speeds and curvatures themselves: the speed fit is then one constant matrix, and
the curvature fit a tridiagonal system, solved without cancellation even where the car stands still.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Ego, to_map_frame
from nemo_mtdrive.pdm.geometry import wrap_angle
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S

Array = NDArray[np.float64]

STEPS = 41
"""States of a simulated trajectory: t = 0.0, 0.1, ... 4.0 s."""

STEP_S = 0.1
"""Time between two states [s]."""

STEPS_PER_POINT = 5
"""States between two points of a trajectory."""

X, Y, HEADING, VX, VY, AX, AY, STEERING, STEERING_RATE, YAW_RATE, YAW_ACCELERATION = range(11)
"""Columns of a state: rear axle in the map frame [m, rad]; velocity and acceleration in its own; angles and rates."""
COLUMNS = 11

FARTHEST_M = 1e6
"""Plans are clipped to this many metres per coordinate: farther numbers say nothing more and would overflow."""

_HORIZON = 10
_SPEED_WEIGHT = 10.0
_LATERAL_WEIGHT, _HEADING_WEIGHT = 1.0, 10.0
_INPUT_WEIGHT = 1.0
_JERK_PENALTY, _CURVATURE_RATE_PENALTY, _INITIAL_CURVATURE_PENALTY = 1e-4, 1e-2, 1e-10
_STOPPING_SPEED, _STOPPING_GAIN = 0.2, 0.5
_ACCELERATION_LAG, _STEERING_LAG, _MAX_STEERING = 0.2, 0.05, math.pi / 3.0


def _speed_fit_matrix() -> Array:
    """[40, 40]: distances driven along the heading in each step [m] -> fitted speeds [m/s].

    Meant as a penalty on jerk. In nuPlan and NAVSIM the difference matrix loses its upper diagonal but for the last
    row, so accelerations themselves are penalised, the last one only against the one before it. Scores depend on it.
    """
    count = STEPS - 1
    penalised = np.eye(count - 2, count - 1)
    penalised[-1, -1] = -1.0
    penalised = penalised @ np.diff(np.eye(count), axis=0) / STEP_S
    normal = STEP_S**2 * np.eye(count) + _JERK_PENALTY * penalised.T @ penalised
    return np.ascontiguousarray(np.linalg.solve(normal, STEP_S * np.eye(count)))


_SPEED_FIT = _speed_fit_matrix()


def check_trajectories(trajectories: Array) -> Array:
    """Return trajectories as float64 [B, 8, 3].

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    array = np.asarray(trajectories, dtype=np.float64)
    if array.ndim != 3 or array.shape[1:] != (TRAJECTORY_POINTS, 3):
        raise ValueError(f"trajectories: got shape {array.shape}, want [B, {TRAJECTORY_POINTS}, 3]")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array).all(axis=(1, 2)))[0, 0])
        raise ValueError(f"trajectories[{row}]: got a number that is not finite, want x [m], y [m], heading [rad]")
    return array


def _whole_us(seconds: Array, t0_us: int) -> NDArray[np.int64]:
    return ((seconds + t0_us * 1e-6) * 1e6).astype(np.int64)


def sample_times_us(t0_us: int) -> NDArray[np.int64]:
    """[41] when a reference is sampled [us]; float seconds cut to microseconds, so with a real clock some are early."""
    return _whole_us(np.arange(STEPS) * STEP_S, t0_us).clip(t0_us)


def interpolate_poses(poses: Array, times_us: NDArray[np.int64], at_us: NDArray[np.int64]) -> Array:
    """Poses [B, n, 3] at times [n], linear in between, at the times [m] inside that range -> [B, m, 3]."""
    unwrapped = poses.copy()
    unwrapped[..., 2] = np.unwrap(unwrapped[..., 2], axis=1)
    after = np.searchsorted(times_us, at_us).clip(1, len(times_us) - 1)
    before = after - 1
    slopes = (unwrapped[:, after] - unwrapped[:, before]) / (times_us[after] - times_us[before])[:, None]
    result = slopes * (at_us - times_us[before])[:, None] + unwrapped[:, before]
    # Into [-pi, pi): a reference straight backwards must have -pi, or the tracker turns to the other side.
    result[..., 2] = (result[..., 2] + np.pi) % (2.0 * np.pi) - np.pi
    return result


def reference_poses(trajectories: Array, ego_pose: Array, t0_us: int = 0) -> Array:
    """Plans in the ego frame -> what the tracker follows.

    Args:
        trajectories: [B, 8, 3] checked plans.
        ego_pose: [x, y, heading] of the rear axle at t = 0 in the map frame; it is the plan's start.
        t0_us: the scene's clock [us]; only its rounding matters.

    Returns:
        [B, 41, 3] poses in the map frame.
    """
    points = trajectories.copy()
    points[..., :2] = np.clip(points[..., :2], -FARTHEST_M, FARTHEST_M)
    points[..., 2] = wrap_angle(points[..., 2])
    poses = np.empty((len(points), TRAJECTORY_POINTS + 1, 3))
    poses[:, 0] = ego_pose
    poses[:, 1:] = to_map_frame(points, ego_pose)
    poses[:, :, 2] = wrap_angle(poses[:, :, 2])
    at_us = sample_times_us(t0_us)
    times_us = np.append(t0_us, _whole_us(np.arange(1, TRAJECTORY_POINTS + 1) * TRAJECTORY_STEP_S, t0_us))
    return interpolate_poses(poses, times_us, at_us.clip(times_us[0], times_us[-1]))


def initial_state(ego: Ego) -> Array:
    """The state [11] at t = 0; steering angle and yaw rate are taken as 0, as NAVSIM does."""
    state = np.zeros(COLUMNS)
    state[[X, Y, HEADING]] = ego.rear_axle_pose
    state[[VX, VY]] = ego.velocity
    state[[AX, AY]] = ego.acceleration
    return state


@njit(cache=True, error_model="numpy")
def _fit_curvature(turns: Array, speeds: Array, out: Array) -> None:
    """Curvatures [1/m] for heading changes [n] at speeds [n], their rate penalised; out [n].

    Minimises sum (dt v_k c_k - turn_k)^2 + p sum ((c_k - c_k-1)/dt)^2 + p0 c_0^2: a tridiagonal system, divided by
    p/dt^2 and eliminated from its end. excess[k] is the pivot less 1, a sum of positive terms.
    """
    count = len(turns)
    scale = STEP_S * STEP_S / _CURVATURE_RATE_PENALTY
    excess, right = np.empty(count), np.empty(count)
    for k in range(count - 1, -1, -1):
        travelled = speeds[k] * STEP_S
        excess[k], right[k] = scale * travelled * travelled, scale * travelled * turns[k]
        if k < count - 1:
            excess[k] += excess[k + 1] / (1.0 + excess[k + 1])
            right[k] += right[k + 1] / (1.0 + excess[k + 1])
    out[0] = right[0] / (excess[0] + scale * _INITIAL_CURVATURE_PENALTY)
    for k in range(1, count):
        out[k] = (right[k] + out[k - 1]) / (1.0 + excess[k])


@njit(cache=True, error_model="numpy")
def _steering_rate(
    lateral: float, heading: float, steering: float, speed: float, acceleration: float, curvatures: Array, step: int,
    wheel_base: float,
) -> float:
    """Steering rate [rad/s] held for 1 s that best removes the lateral and heading error at its end (one-step LQR)."""
    last = len(curvatures) - 1
    gain_lateral = gain_heading = gain_steering = 0.0
    for k in range(_HORIZON):
        travelled = (speed + k * acceleration * STEP_S) * STEP_S
        curvature = curvatures[min(step + k, last)]
        lateral, heading = lateral + travelled * heading, heading + travelled * (steering / wheel_base - curvature)
        gain_lateral += travelled * gain_heading
        gain_heading += travelled * gain_steering / wheel_base
        gain_steering += STEP_S
    heading = math.atan2(math.sin(heading), math.cos(heading))
    weighted = _LATERAL_WEIGHT * gain_lateral * lateral + _HEADING_WEIGHT * gain_heading * heading
    return -weighted / (_LATERAL_WEIGHT * gain_lateral**2 + _HEADING_WEIGHT * gain_heading**2 + _INPUT_WEIGHT)


@njit(cache=True, error_model="numpy")
def _drive(reference: Array, start: Array, wheel_base: float, speed_fit: Array) -> Array:
    """Simulate every reference [B, 41, 3] from the start state [11]; returns states [B, 41, 11]."""
    states = np.zeros((reference.shape[0], STEPS, COLUMNS))
    driven, turns = np.empty(STEPS - 1), np.empty(STEPS - 1)
    speeds, curvatures = np.empty(STEPS - 1), np.empty(STEPS - 1)
    horizon_s = _HORIZON * STEP_S
    for b in range(reference.shape[0]):
        path = reference[b]
        for k in range(STEPS - 1):
            turn = path[k + 1, 2] - path[k, 2]
            turns[k] = math.atan2(math.sin(turn), math.cos(turn))
            driven[k] = (math.cos(path[k, 2]) * (path[k + 1, 0] - path[k, 0])
                         + math.sin(path[k, 2]) * (path[k + 1, 1] - path[k, 1]))
        for k in range(STEPS - 1):
            speeds[k] = 0.0
            for j in range(STEPS - 1):
                speeds[k] += speed_fit[k, j] * driven[j]
        _fit_curvature(turns, speeds, curvatures)
        for column in range(COLUMNS):
            states[b, 0, column] = start[column]
        for step in range(STEPS - 1):
            now, after = states[b, step], states[b, step + 1]
            wanted = speeds[min(step + _HORIZON, STEPS - 2)]
            if wanted <= _STOPPING_SPEED and now[VX] <= _STOPPING_SPEED:
                acceleration, steering_rate = -_STOPPING_GAIN * (now[VX] - wanted), 0.0
            else:
                acceleration = (-horizon_s * _SPEED_WEIGHT * (now[VX] - wanted)
                                / (horizon_s * _SPEED_WEIGHT * horizon_s + _INPUT_WEIGHT))
                error_x, error_y, along = now[X] - path[step, 0], now[Y] - path[step, 1], path[step, 2]
                heading_error = now[HEADING] - along
                steering_rate = _steering_rate(
                    error_y * math.cos(along) - error_x * math.sin(along),
                    math.atan2(math.sin(heading_error), math.cos(heading_error)),
                    now[STEERING], now[VX], acceleration, curvatures, step, wheel_base)
            _advance(now, acceleration, steering_rate, wheel_base, after)
    return states


@njit(cache=True, error_model="numpy")
def _advance(now: Array, acceleration: float, steering_rate: float, wheel_base: float, after: Array) -> None:
    """One Euler step of the kinematic bicycle under commands that arrive with a first-order lag; writes after [11]."""
    lagged = STEP_S / (STEP_S + _ACCELERATION_LAG) * (acceleration - now[AX]) + now[AX]
    turned = STEP_S / (STEP_S + _STEERING_LAG) * (STEP_S * steering_rate)
    after[X] = now[X] + now[VX] * math.cos(now[HEADING]) * STEP_S
    after[Y] = now[Y] + now[VX] * math.sin(now[HEADING]) * STEP_S
    heading = now[HEADING] + now[VX] * math.tan(now[STEERING]) / wheel_base * STEP_S
    after[HEADING] = (heading + math.pi) % (2.0 * math.pi) - math.pi
    after[VX] = now[VX] + lagged * STEP_S
    after[AX] = lagged
    after[STEERING_RATE] = turned / STEP_S
    after[STEERING] = min(max(now[STEERING] + turned, -_MAX_STEERING), _MAX_STEERING)
    after[YAW_RATE] = after[VX] * math.tan(after[STEERING]) / wheel_base
    after[YAW_ACCELERATION] = (after[YAW_RATE] - now[YAW_RATE]) / STEP_S


def simulate(reference: Array, ego: Ego) -> Array:
    """Drive along references.

    Args:
        reference: [B, 41, 3] map-frame poses at 10 Hz, from `reference_poses` or a planner.
        ego: the car and its state at t = 0.

    Returns:
        [B, 41, 11] states; the lateral velocity and acceleration of t = 0 are kept, later ones are 0.
    """
    return _drive(np.ascontiguousarray(reference), initial_state(ego), ego.vehicle.wheel_base, _SPEED_FIT)
