"""Numbers in 0..1 that a seed decides, a hundred times cheaper to start than numpy's generators."""

from __future__ import annotations

import numpy as np
from numba import njit

from nemo_mtdrive.driving.scene import Array


@njit(cache=True)  # type: ignore[untyped-decorator]
def _split_mix(seed: int, count: int) -> Array:
    state = np.uint64(seed)
    drawn = np.empty(count)
    for i in range(count):
        state += np.uint64(0x9E3779B97F4A7C15)
        mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        drawn[i] = float((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0
    return drawn


class Draws:
    """Draws one after the other, as `numpy.random.Generator.uniform` gives them (SplitMix64)."""

    def __init__(self, seed: int) -> None:
        self._seed, self._drawn = seed, 0

    def uniform(self, low: float, high: float, count: int) -> Array:
        """[count] numbers in [low, high)."""
        # every call has its own stream, so that the counts before it do not matter
        self._drawn += 1
        drawn: Array = low + (high - low) * _split_mix((self._seed * 64 + self._drawn) % (1 << 62), count)
        return drawn
