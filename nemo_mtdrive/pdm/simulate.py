"""What the car does with a plan: an LQR tracker steers a kinematic bicycle along it (NAVSIM v1).

A plan becomes 41 reference poses at 10 Hz (`reference`). The reference's speed and curvature are least-squares fits over
all 4 s; at each 0.1 s the tracker turns them into an acceleration and a steering rate, which the bicycle applies with a
first-order lag. Fits are solved in the speeds and curvatures themselves: the speed fit is then one constant matrix, and
the curvature fit a tridiagonal system, solved without cancellation even where the car stands still.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Ego
from nemo_mtdrive.pdm.geometry import half_open_angle, wrapped
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.types import TRAJECTORY_POINTS

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

STEPS = 41
"""States of a simulated trajectory: t = 0.0, 0.1, ... 4.0 s."""

STEP_S = 0.1
"""Time between two states [s]."""

STEPS_PER_POINT = 5
"""States between two points of a trajectory."""

X, Y, HEADING, VX, VY, AX, AY, STEERING, STEERING_RATE, YAW_RATE, YAW_ACCELERATION = range(11)
"""Columns of a state: rear axle in the map frame [m, rad]; velocity and acceleration in its own; angles and rates."""
COLUMNS = 11

_HORIZON = 10
_SPEED_WEIGHT = 10.0
_LATERAL_WEIGHT, _HEADING_WEIGHT = 1.0, 10.0
_INPUT_WEIGHT = 1.0
_JERK_PENALTY, _CURVATURE_RATE_PENALTY, _INITIAL_CURVATURE_PENALTY = 1e-4, 1e-2, 1e-10
_STOPPING_SPEED, _STOPPING_GAIN = 0.2, 0.5
_ACCELERATION_LAG, _STEERING_LAG, _MAX_STEERING = 0.2, 0.05, math.pi / 3.0


def _speed_fit_matrix() -> Array:
    """[40, 40]: fitted speeds [m/s] that each step's distance along the heading [m] (a row) contributes.

    Meant as a penalty on jerk. In nuPlan and NAVSIM the difference matrix loses its upper diagonal but for the last
    row, so accelerations themselves are penalised, the last one only against the one before it. Scores depend on it.
    """
    count = STEPS - 1
    penalised = np.eye(count - 2, count - 1)
    penalised[-1, -1] = -1.0
    penalised = penalised @ np.diff(np.eye(count), axis=0) / STEP_S
    normal = STEP_S**2 * np.eye(count) + _JERK_PENALTY * penalised.T @ penalised
    return np.ascontiguousarray(np.linalg.solve(normal, STEP_S * np.eye(count)).T)


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


def initial_state(ego: Ego) -> Array:
    """The state [11] at t = 0; steering angle and yaw rate are taken as 0, as NAVSIM does."""
    state = np.zeros(COLUMNS)
    state[[X, Y, HEADING]] = ego.rear_axle_pose
    state[[VX, VY]] = ego.velocity
    state[[AX, AY]] = ego.acceleration
    return state


@kernel
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


@kernel
def _steering_rate(
    lateral: float, heading: float, steering: float, speed: float, acceleration: float, curvatures: Array, step: int,
    wheel_base: float,
) -> float:
    """Steering rate [rad/s] held for 1 s that best removes the lateral and heading error at its end (one-step LQR)."""
    last = len(curvatures) - 1
    curved = steering / wheel_base
    gain_lateral = gain_heading = gain_steering = 0.0
    for k in range(_HORIZON):
        travelled = (speed + k * acceleration * STEP_S) * STEP_S
        lateral, heading = lateral + travelled * heading, heading + travelled * (curved - curvatures[min(step + k, last)])
        gain_lateral += travelled * gain_heading
        gain_heading += travelled * gain_steering / wheel_base
        gain_steering += STEP_S
    weighted = _LATERAL_WEIGHT * gain_lateral * lateral + _HEADING_WEIGHT * gain_heading * wrapped(heading)
    return -weighted / (_LATERAL_WEIGHT * gain_lateral**2 + _HEADING_WEIGHT * gain_heading**2 + _INPUT_WEIGHT)


@kernel
def _drive(
    reference: Array, row_start: Indices, starts: Array, wheel_bases: Array, speed_fit: Array, states: Array
) -> None:
    """Follow each reference [B, 41, 3] from starts[row_start[b]]; fills states [B, 41, 11]."""
    turns, speeds, curvatures = np.empty(STEPS - 1), np.empty(STEPS - 1), np.empty(STEPS - 1)
    cos, sin = np.empty(STEPS - 1), np.empty(STEPS - 1)
    for b in range(reference.shape[0]):
        path, wheel_base = reference[b], wheel_bases[row_start[b]]
        speeds[:] = 0.0
        for k in range(STEPS - 1):
            turns[k] = wrapped(path[k + 1, 2] - path[k, 2])
            cos[k], sin[k] = math.cos(path[k, 2]), math.sin(path[k, 2])
            driven = cos[k] * (path[k + 1, 0] - path[k, 0]) + sin[k] * (path[k + 1, 1] - path[k, 1])
            for j in range(STEPS - 1):
                speeds[j] += speed_fit[k, j] * driven
        _fit_curvature(turns, speeds, curvatures)
        states[b, 0] = starts[row_start[b]]
        tan_steering = math.tan(states[b, 0, STEERING])
        for step in range(STEPS - 1):
            now, after = states[b, step], states[b, step + 1]
            wanted = speeds[min(step + _HORIZON, STEPS - 2)]
            if wanted <= _STOPPING_SPEED and now[VX] <= _STOPPING_SPEED:
                acceleration, steering_rate = -_STOPPING_GAIN * (now[VX] - wanted), 0.0
            else:
                horizon_s = _HORIZON * STEP_S
                acceleration = (-horizon_s * _SPEED_WEIGHT * (now[VX] - wanted)
                                / (horizon_s * _SPEED_WEIGHT * horizon_s + _INPUT_WEIGHT))
                error_x, error_y = now[X] - path[step, 0], now[Y] - path[step, 1]
                steering_rate = _steering_rate(
                    error_y * cos[step] - error_x * sin[step], wrapped(now[HEADING] - path[step, 2]), now[STEERING],
                    now[VX], acceleration, curvatures, step, wheel_base)
            tan_steering = _advance(now, tan_steering, acceleration, steering_rate, wheel_base, after)


@kernel
def _advance(
    now: Array, tan_steering: float, acceleration: float, steering_rate: float, wheel_base: float, after: Array
) -> float:
    """One Euler step of the kinematic bicycle under commands that arrive with a first-order lag; writes after [11].

    The tangent of the steering angle comes in for the state now, and the one of the state after is returned.
    """
    lagged = STEP_S / (STEP_S + _ACCELERATION_LAG) * (acceleration - now[AX]) + now[AX]
    turned = STEP_S / (STEP_S + _STEERING_LAG) * (STEP_S * steering_rate)
    after[X] = now[X] + now[VX] * math.cos(now[HEADING]) * STEP_S
    after[Y] = now[Y] + now[VX] * math.sin(now[HEADING]) * STEP_S
    after[HEADING] = half_open_angle(now[HEADING] + now[VX] * tan_steering / wheel_base * STEP_S)
    after[VX], after[VY] = now[VX] + lagged * STEP_S, 0.0
    after[AX], after[AY] = lagged, 0.0
    after[STEERING_RATE] = turned / STEP_S
    after[STEERING] = min(max(now[STEERING] + turned, -_MAX_STEERING), _MAX_STEERING)
    tan_after = math.tan(after[STEERING])
    after[YAW_RATE] = after[VX] * tan_after / wheel_base
    after[YAW_ACCELERATION] = (after[YAW_RATE] - now[YAW_RATE]) / STEP_S
    return tan_after


def simulate_many(reference: Array, row_start: Indices, starts: Array, wheel_bases: Array) -> Array:
    """Drive along references of several scenes at once.

    Args:
        reference: [B, 41, 3] map-frame poses at 10 Hz, from `reference_poses` or a planner.
        row_start: [B] which start each one has.
        starts: [S, 11] initial states.
        wheel_bases: [S] of their cars [m].

    Returns:
        [B, 41, 11] states; the lateral velocity and acceleration of t = 0 are kept, later ones are 0.
    """
    states = np.empty((len(reference), STEPS, COLUMNS))
    _drive(np.ascontiguousarray(reference), row_start, starts, wheel_bases, _SPEED_FIT, states)
    return states


def simulate(reference: Array, ego: Ego) -> Array:
    """Drive along references [B, 41, 3] of one scene; as `simulate_many`."""
    return simulate_many(reference, np.zeros(len(reference), dtype=np.int64), initial_state(ego)[None],
                         np.array([ego.vehicle.wheel_base]))
