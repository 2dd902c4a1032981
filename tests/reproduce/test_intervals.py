"""Intervals against what can be reckoned: the normal approximation, every draw of three seeds, ratios of constants."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nemo_mtdrive.reproduce.intervals import Estimate, drawn_means, estimate, ratio


def test_scenes_of_one_seed_as_the_normal_approximation_has_it() -> None:
    values = np.random.default_rng(1).normal(50.0, 20.0, (1, 1000))
    found = estimate(values)
    half = 1.96 * values.std(ddof=1) / 1000**0.5
    assert found.value == pytest.approx(values.mean()) and found.ci95 is not None
    assert found.ci95[0] == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert found.ci95[1] == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_seeds_alone_as_all_their_draws_have_it() -> None:
    """Where scenes do not differ, a mean is of one of 27 draws of the three seeds, spread by sqrt(3 / 2)."""
    seeds = np.array([70.0, 72.0, 77.0])
    spread = seeds.mean() + 1.5**0.5 * (seeds - seeds.mean())
    every = sorted(np.mean(draw) for draw in product(spread, repeat=3))
    means = drawn_means(np.repeat(seeds[:, None], 50, axis=1), draws=40_000)
    assert np.unique(means.round(6)) == pytest.approx(np.unique(np.round(every, 6)))
    assert means.std() == pytest.approx(seeds.std(ddof=1) / 3**0.5, rel=0.02), "the unbiased standard error"
    found = estimate(np.repeat(seeds[:, None], 50, axis=1))
    assert found.value == pytest.approx(73.0) and found.ci95 == pytest.approx((every[0], every[-1]))


def test_scenes_are_the_same_for_all_seeds() -> None:
    """Three seeds that answer alike are no more than one: their interval is that of the scenes."""
    scenes = np.random.default_rng(2).normal(0.0, 1.0, 400)
    one, three = estimate(scenes[None]), estimate(np.stack([scenes] * 3))
    assert one.ci95 is not None and three.ci95 is not None
    assert three.ci95[1] - three.ci95[0] == pytest.approx(one.ci95[1] - one.ci95[0], rel=0.06)


def test_both_spreads_add_up() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.0, 1.0, (1, 500)) + np.array([-1.0, 0.0, 1.0])[:, None]
    of_seeds, of_scenes = 1.0 / 3**0.5, values[0].std(ddof=1) / 500**0.5
    assert drawn_means(values, 20_000).std() == pytest.approx((of_seeds**2 + of_scenes**2) ** 0.5, rel=0.03)


def test_what_was_not_measured_is_left_out() -> None:
    values = np.array([[1.0, np.nan, 3.0, np.nan], [1.0, 2.0, np.nan, np.nan]])
    assert estimate(values).value == pytest.approx(7.0 / 4.0)
    assert estimate(np.full((2, 3), np.nan)) == estimate(np.zeros((1, 0)).reshape(1, 0)), "nothing at all"
    assert estimate(np.array([[4.0]])).ci95 is None and estimate(np.array([[4.0]])).value == 4.0


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(4).random((3, 30))
    assert estimate(values) == estimate(values.copy())


def test_a_constant_ratio_has_no_spread() -> None:
    below = np.random.default_rng(5).random((3, 40)) + 1.0
    found = ratio(1.2 * below, below)
    assert found.value == pytest.approx(1.2) and found.ci95 == pytest.approx((1.2, 1.2))
    assert ratio(below, np.zeros((3, 40))).value is None
    above = below.copy()
    above[0, 0] = np.nan
    assert ratio(above, below).value == pytest.approx(1.0), "a pair counts where both are known"


def test_shares_stay_shares() -> None:
    assert Estimate(91.0, (75.0, 107.0)).within(0.0, 100.0) == Estimate(91.0, (75.0, 100.0))
    assert Estimate(0.1, (-0.2, 0.4)).within(0.0, 100.0).ci95 == (0.0, 0.4)
    assert Estimate(1.0, None).within(0.0, 1.0) == Estimate(1.0, None)
