"""Advantages against numbers worked by hand, for the three estimators of Table 3."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nemo_mtdrive.algorithms import advantage
from nemo_mtdrive.types import Episode, Group, Turn


def episode(index: int, rewards: list[float], valid: bool = True, scene: str = "s") -> Episode:
    turns = tuple(Turn(j, 0, 1, "", None, None, 1.0, r, "") for j, r in enumerate(rewards))
    empty = np.zeros(0)
    return Episode(f"{scene}/{index}", scene, index, 0, 0, empty.astype(np.int32), empty.astype(np.int16),
                   empty.astype(np.float32), (), (), turns, valid, "clean")


def group(*rewards: list[float]) -> Group:
    return Group("s", tuple(episode(i, r) for i, r in enumerate(rewards)))


def test_sequence_by_hand() -> None:
    # R = 0.5, 0.8, 0.2: mean 0.5, deviations 0, 0.3, -0.3, sample std sqrt(0.18 / 2) = 0.3
    found = advantage.group_advantages(group([0.2, 0.8], [0.8], [0.1, 0.2, 0.3]), "sequence", 6)
    assert_allclose(found[0], [0, 0], atol=1e-15)
    assert_allclose(found[1], [1.0], rtol=1e-12)
    assert_allclose(found[2], [-1.0, -1.0, -1.0], rtol=1e-12)


def test_per_turn_by_hand() -> None:
    # turn 0: 0.2, 0.8, 0.5: mean 0.5, std 0.3. turn 1: 0.9, 0.3: mean 0.6, std 0.3 sqrt 2. turn 2: one rollout only.
    found = advantage.group_advantages(group([0.2, 0.9], [0.8], [0.5, 0.3, 1.0]), "per_turn", 6)
    assert_allclose(found[0], [-1.0, 1 / math.sqrt(2)], rtol=1e-12)
    assert_allclose(found[1], [1.0], rtol=1e-12)
    assert_allclose(found[2], [0.0, -1 / math.sqrt(2), 0.0], rtol=1e-12, atol=1e-15)


def test_cross_turn_by_hand() -> None:
    # all turns: 0, 1, 1, 0, 0.5: mean 0.5, squared deviations 4 * 0.25 = 1, sample std sqrt(1 / 4) = 0.5
    found = advantage.group_advantages(group([0.0, 1.0], [1.0], [0.0, 0.5]), "cross_turn", 6)
    assert_allclose(found[0], [-1.0, 1.0], rtol=1e-12)
    assert_allclose(found[1], [1.0], rtol=1e-12)
    assert_allclose(found[2], [-1.0, 0.0], rtol=1e-12, atol=1e-15)


def test_unbiased_by_hand() -> None:
    # N = 3, last rewards carried on: (0.2, 0.8, 0.8), (0.6, 0.6, 0.6), (0.3, 0.3, 0.9)
    # gains: (1.8, 1.2, 0) / 3, (1.8, 0, 0) / 3, (1.5, 0.6, 0.6) / 3; each minus the mean of the two others
    found = advantage.group_advantages(group([0.2, 0.8], [0.6], [0.3, 0.3, 0.9]), "unbiased", 3)
    assert_allclose(found[0], [0.6 - 0.55, 0.4 - 0.1], rtol=1e-12)
    assert_allclose(found[1], [0.6 - 0.55], rtol=1e-12)
    assert_allclose(found[2], [0.5 - 0.6, 0.2 - 0.2, 0.2 - 0.0], rtol=1e-12, atol=1e-15)


def test_unbiased_knows_how_many_turns_there_may_be() -> None:
    with pytest.raises(ValueError, match=r"has 3 turns and rollout\.max_turns=2"):
        advantage.group_advantages(group([0.1], [0.1, 0.2, 0.3]), "unbiased", 2)


def test_lonely_turns_are_counted() -> None:
    assert advantage.lonely_turns(group([0.1] * 5, [0.1, 0.2], [0.1])) == 3
    assert advantage.lonely_turns(group([0.1, 0.2], [0.3, 0.4])) == 0
    assert advantage.lonely_turns(Group("s", (episode(0, [0.1, 0.2]), episode(1, [0.1, 0.2], valid=False)))) == 2


@pytest.mark.parametrize("estimator", advantage.ESTIMATORS)
def test_an_exact_tie_gives_exactly_zero(estimator: str) -> None:
    found = advantage.group_advantages(group(*[[0.93]] * 8), estimator, 6)
    assert all((a == 0.0).all() for a in found)
    assert not advantage.has_spread(group(*[[0.93]] * 8), estimator, 6)


def test_near_equal_rewards_do_not_cancel() -> None:
    """fp32 E[x^2] - E[x]^2 would give 0 or a negative variance here."""
    rewards = [[0.9300001], [0.9300002], [0.9300003]]
    assert_allclose(np.concatenate(advantage.per_turn(rewards)), [-1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("estimator", advantage.ESTIMATORS)
def test_invalid_episodes_take_no_part(estimator: str) -> None:
    rewards = [[0.2, 0.9], [0.8], [0.5, 0.3, 1.0]]
    clean = advantage.group_advantages(group(*rewards), estimator, 6)
    broken = Group("s", (episode(0, rewards[0]), episode(1, [math.nan, 0.0], valid=False), episode(2, rewards[1]),
                         episode(3, rewards[2])))
    found = advantage.group_advantages(broken, estimator, 6)
    assert (found[1] == 0).all()
    for mine, expected in zip([found[0], found[2], found[3]], clean, strict=True):
        assert (mine == expected).all()


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="s/1: rewards"):
        advantage.group_advantages(group([0.1], [math.nan]), "per_turn", 6)


@pytest.mark.parametrize("estimator", ["sequence", "per_turn", "cross_turn"])
def test_advantages_are_centred_and_scaled(estimator: str) -> None:
    rng = np.random.default_rng(5)
    rewards = [list(rng.uniform(size=rng.integers(1, 7))) for _ in range(8)]
    found = advantage.advantages_of(rewards, estimator, 6)
    assert [len(a) for a in found] == [len(r) for r in rewards]
    if estimator == "sequence":
        pools = [np.array([a[0] for a in found])]
    elif estimator == "cross_turn":
        pools = [np.concatenate(found)]
    else:
        pools = [np.array([a[j] for a in found if len(a) > j]) for j in range(max(map(len, found)))]
        pools = [pool for pool in pools if len(pool) > 1]
    for pool in pools:
        assert_allclose([pool.mean(), pool.std(ddof=1)], [0, 1], atol=1e-12)
