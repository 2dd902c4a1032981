"""95% intervals of means over scenes and seeds, and of their differences.

Every seed is measured on the same held-out scenes, so the two are crossed: a hard scene is hard for all seeds. Each draw
therefore takes seeds anew and, apart from that, scenes anew, the same ones for all its seeds; what was measured for a pair
counts as often as its seed times as often as its scene was drawn. Scenes drawn apart for each seed would count the same
scene as three and give intervals that are too narrow.

Three seeds drawn from three have 2/3 of the spread between seeds that there is. The seeds' means are spread by
sqrt(n / (n - 1)) before, so that the variance of the draws is the usual unbiased one. With one seed the interval is of
scenes alone and says nothing about other trainings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS, SEED = 4000, 0


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval; None where nothing was measured, or one pair alone."""

    value: float | None
    ci95: tuple[float, float] | None

    def within(self, low: float, high: float) -> Estimate:
        """Of what cannot be below `low` or above `high`, as a share: the ends of its interval neither."""
        return replace(self, ci95=self.ci95 and (max(low, self.ci95[0]), min(high, self.ci95[1])))


def estimate(values: Array, *, draws: int = DRAWS, seed: int = SEED) -> Estimate:
    """The mean of values [seeds, scenes] over all pairs, NaN ones left out; the same values give the same interval."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return Estimate(None, None)
    mean = float(values[known].mean())
    if known.sum() < 2 or values.shape[1] < 2:
        return Estimate(mean, None)
    found = drawn_means(values, draws, seed)
    low, high = np.percentile(found[np.isfinite(found)], [2.5, 97.5])
    return Estimate(mean, (float(low), float(high)))


def drawn_means(values: Array, draws: int = DRAWS, seed: int = SEED) -> Array:
    """[draws] the means of values [seeds, scenes] over seeds and scenes drawn anew; NaN where a draw knows none."""
    spread = _spread(values)
    known = np.isfinite(spread).astype(np.float64)
    filled = np.where(known > 0, spread, 0.0)
    seeds, scenes = values.shape
    of_seed, of_scene = _drawn(seeds, draws, (seed, 0)), _drawn(scenes, draws, (seed, 1))
    sums = (of_seed * (of_scene @ filled.T)).sum(axis=1)
    weights = (of_seed * (of_scene @ known.T)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / weights)


@lru_cache(maxsize=6)  # the columns of a table are all of the same scenes
def _drawn(count: int, draws: int, seed: tuple[int, int]) -> Array:
    """[draws, count] how often each of `count` is drawn when as many are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=draws).astype(np.float64)


def _spread(values: Array) -> Array:
    """The values with the seeds' means moved apart by sqrt(n / (n - 1)) around their mean."""
    seeds = len(values)
    if seeds < 2:
        return values
    known = np.isfinite(values)
    means = np.where(known, values, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    there = known.any(axis=1)
    away = np.where(there, means - means[there].mean(), 0.0)
    return np.asarray(values + ((seeds / (seeds - 1)) ** 0.5 - 1.0) * away[:, None])


def ratio(numerator: Array, denominator: Array, *, draws: int = DRAWS, seed: int = SEED) -> Estimate:
    """The ratio of the means of two [seeds, scenes], both drawn with the same seeds and scenes; NaN pairs are left out."""
    known = np.isfinite(numerator) & np.isfinite(denominator)
    above, below = (np.where(known, values, np.nan) for values in (numerator, denominator))
    if not known.any() or not np.nanmean(below):
        return Estimate(None, None)
    value = float(np.nanmean(above) / np.nanmean(below))
    if known.sum() < 2 or numerator.shape[1] < 2:
        return Estimate(value, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = drawn_means(above, draws, seed) / drawn_means(below, draws, seed)
    found = found[np.isfinite(found)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(value, (float(low), float(high)))
