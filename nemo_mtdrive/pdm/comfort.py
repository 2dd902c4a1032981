"""Comfort (C): six smoothed signals of the simulated drive inside fixed bounds.

Savitzky-Golay filters are linear: over all 41 samples a least-squares quadratic, over shorter windows a few taps, which
are taken from scipy's own filter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from nemo_mtdrive.pdm.geometry import shorter_turn
from nemo_mtdrive.pdm.kernel import kernel
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

LIMITS = np.array(list(BOUNDS.values()))
"""[6, 2] the same as an array."""
WORK_ROWS = len(BOUNDS) + 5
"""Rows of 41 numbers that `is_comfortable` works in."""

_ROUNDING = 1e8
"""Filtered signals have eight decimals."""


_TIMES_S = (np.arange(STEPS) - STEPS // 2) * STEP_S
"""t of the samples, 0 in the middle."""


class Filters(NamedTuple):
    """Savitzky-Golay filters: a window of all samples is one quadratic a + b t + c t^2, shorter ones are taps."""

    times: Array
    """[41] t [s]."""
    fit: Array
    """[41, 3] what each sample adds to a, b, c."""
    smoothing: Array
    """[41, 8] window 8, order 2."""
    smoothing_first: NDArray[np.int64]
    """[41] sample of the first tap."""
    yaw_rate: Array
    """[41, 5] first derivative, order 2."""
    yaw_rate_first: NDArray[np.int64]
    yaw_acceleration: Array
    """[41, 5] second derivative, order 3."""
    yaw_acceleration_first: NDArray[np.int64]


def _taps(window: int, order: int, derivative: int) -> tuple[Array, NDArray[np.int64]]:
    """Taps [41, window] and the sample [41] of each first one."""
    matrix = savgol_filter(np.eye(STEPS), window, order, deriv=derivative, delta=STEP_S, axis=0)
    first = np.minimum((matrix != 0.0).argmax(axis=1), STEPS - window)
    return np.take_along_axis(matrix, first[:, None] + np.arange(window), axis=1), first


def _make_filters() -> Filters:
    fit = np.linalg.pinv(_TIMES_S[:, None] ** np.arange(3)).T
    return Filters(_TIMES_S, np.ascontiguousarray(fit), *_taps(8, 2, 0), *_taps(5, 2, 1), *_taps(5, 3, 2))


FILTERS = _make_filters()


@kernel
def _tap(signal: Array, taps: Array, first: NDArray[np.int64], out: Array) -> None:
    """Filter a signal [41] with taps [41, w] into out [41]."""
    for k in range(len(out)):
        total = 0.0
        for j in range(taps.shape[1]):
            total += taps[k, j] * signal[first[k] + j]
        out[k] = total
    _round(out)


@kernel
def _round(signal: Array) -> None:
    for k in range(len(signal)):
        signal[k] = np.rint(signal[k] * _ROUNDING) / _ROUNDING


@kernel
def _fit(signal: Array, filters: Filters, derivative: bool, out: Array) -> None:
    """The quadratic through a signal [41], or its derivative, into out [41]."""
    a = b = c = 0.0
    for k in range(len(signal)):
        a += signal[k] * filters.fit[k, 0]
        b += signal[k] * filters.fit[k, 1]
        c += signal[k] * filters.fit[k, 2]
    for k in range(len(signal)):
        t = filters.times[k]
        out[k] = b + 2.0 * c * t if derivative else a + (b + c * t) * t
    _round(out)


@kernel
def fill_signals(states: Array, filters: Filters, raw: Array, out: Array) -> None:
    """Write the signals of one trajectory [41, 11] into out [6, 41], in the order of `BOUNDS`; raw [5, 41] is work."""
    turned = 0.0
    for k in range(len(states)):
        longitudinal, lateral = states[k, AX], states[k, AY]
        raw[0, k], raw[1, k] = longitudinal, lateral
        raw[2, k] = math.sqrt(longitudinal * longitudinal + lateral * lateral)
        if k > 0:
            turn = states[k, HEADING] - states[k - 1, HEADING]
            turned += shorter_turn(turn) - turn
        raw[3, k] = states[k, HEADING] + turned
    _fit(raw[0], filters, False, out[0])
    _fit(raw[1], filters, False, out[1])
    _tap(raw[2], filters.smoothing, filters.smoothing_first, raw[4])
    _fit(raw[4], filters, True, out[2])
    _tap(raw[0], filters.smoothing, filters.smoothing_first, raw[4])
    _fit(raw[4], filters, True, out[3])
    _tap(raw[3], filters.yaw_acceleration, filters.yaw_acceleration_first, out[4])
    _tap(raw[3], filters.yaw_rate, filters.yaw_rate_first, out[5])


@kernel
def is_comfortable(states: Array, filters: Filters, limits: Array, work: Array) -> bool:
    """Whether every signal of one simulated trajectory is inside its bounds at every step; work is [11, 41]."""
    signals = work[:len(limits)]
    fill_signals(states, filters, work[len(limits):], signals)
    for number in range(len(limits)):
        for k in range(signals.shape[1]):
            if not limits[number, 0] < signals[number, k] < limits[number, 1]:
                return False
    return True


def comfort_signals(states: Array) -> dict[str, Array]:
    """The signals of simulated states [B, 41, 11], by the names in `BOUNDS`, [B, 41] each."""
    signals, raw = np.empty((len(states), len(BOUNDS), STEPS)), np.empty((WORK_ROWS - len(BOUNDS), STEPS))
    for row, out in zip(np.ascontiguousarray(states), signals, strict=True):
        fill_signals(row, FILTERS, raw, out)
    return {name: signals[:, number] for number, name in enumerate(BOUNDS)}
