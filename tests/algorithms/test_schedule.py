"""The learning rate over steps."""

from __future__ import annotations

import itertools

import pytest

from nemo_mtdrive.algorithms.schedule import learning_rate


def test_it_warms_up_and_falls_to_a_hundredth() -> None:
    rates = [learning_rate(step, 100, 2.0, 10, 0.01) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 5 for i in range(10)])
    assert rates[10] == 2.0 and rates[100] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.02 + 0.99)


def test_it_may_stay() -> None:
    assert [learning_rate(step, 5, 3.0, 0, 1.0) for step in range(5)] == [3.0] * 5
    assert [learning_rate(step, 2, 3.0, 4, 1.0) for step in range(2)] == [0.75, 1.5], "shorter than its warm-up"
