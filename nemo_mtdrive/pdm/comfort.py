"""Comfort (C): six smoothed signals of the simulated drive inside fixed bounds.

Every Savitzky-Golay filter over 41 samples is linear, so each is one constant matrix, taken from scipy's own filter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from nemo_mtdrive.pdm.simulate import AX, AY, HEADING, STEP_S, STEPS

Array = NDArray[np.float64]

BOUNDS = {
    "lon_accel": (-4.05, 2.40),
    "lat_accel": (-4.89, 4.89),
    "jerk": (-8.37, 8.37),
    "lon_jerk": (-4.13, 4.13),
    "yaw_accel": (-1.93, 1.93),
    "yaw_rate": (-0.95, 0.95),
}
"""Strict bounds of the signals [m/s2, m/s2, m/s3, m/s3, rad/s2, rad/s]."""

_DECIMALS = 8


def _filter_matrix(window: int, order: int, derivative: int = 0) -> Array:
    return savgol_filter(np.eye(STEPS), window, order, deriv=derivative, delta=STEP_S, axis=0)


_ACCELERATION = _filter_matrix(STEPS, 2)
_ACCELERATION_FOR_JERK = _filter_matrix(8, 2)
_JERK = _filter_matrix(STEPS, 2, derivative=1)
_YAW_RATE = _filter_matrix(5, 2, derivative=1)
_YAW_ACCELERATION = _filter_matrix(5, 3, derivative=2)


def _smooth(signal: Array, matrix: Array) -> Array:
    return np.round(signal @ matrix.T, _DECIMALS)


def comfort_signals(states: Array) -> dict[str, Array]:
    """The signals of simulated states [B, 41, 11], by the names in `BOUNDS`, [B, 41] each."""
    longitudinal, lateral = states[..., AX], states[..., AY]
    heading = np.unwrap(states[..., HEADING], axis=-1)
    return {
        "lon_accel": _smooth(longitudinal, _ACCELERATION),
        "lat_accel": _smooth(lateral, _ACCELERATION),
        "jerk": _smooth(_smooth(np.hypot(longitudinal, lateral), _ACCELERATION_FOR_JERK), _JERK),
        "lon_jerk": _smooth(_smooth(longitudinal, _ACCELERATION_FOR_JERK), _JERK),
        "yaw_accel": _smooth(heading, _YAW_ACCELERATION),
        "yaw_rate": _smooth(heading, _YAW_RATE),
    }


def comfort(states: Array) -> Array:
    """C of simulated states [B, 41, 11]: [B], 1 where every signal is inside its bounds at every step, else 0."""
    comfortable = np.ones(len(states), dtype=bool)
    for name, signal in comfort_signals(states).items():
        low, high = BOUNDS[name]
        comfortable &= ((signal > low) & (signal < high)).all(axis=-1)
    return comfortable.astype(np.float64)
