r"""Turn-level group relative advantages: line 10 of Algorithm 1, Eq. 3, and the three estimators of Table 3.

For the G rollouts of one question, r_ij is the reward of turn j of rollout i (Eq. 2), and A_ij the advantage of every
token of that turn:

    sequence    (ID 1)  A_ij = (R_i - mean R) / std R,  R_i = mean_j r_ij
    per_turn    (ID 2)  A_ij = (r_ij - mean_i r_ij) / std_i r_ij, over the rollouts that have a turn j   (Eq. 3)
    cross_turn  (ID 3)  A_ij = (r_ij - mean r) / std r, over every turn of the group

The paper writes std without saying which; it is built on veRL, whose GRPO takes the sample deviation (n - 1), and so do
we. Statistics are two-pass fp64. Values that are all equal, or a single one, have no spread: advantage exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.types import Group

Rewards = Sequence[Sequence[float]]
"""[G][turns of rollout i] r_ij of the valid rollouts of one group."""

TIE = 1e-9
"""Rewards closer than this are equal: the difference is rounding, and dividing by it would make noise of size 1."""


def normalise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x - mean) / sample std of [n] values; exactly 0 where they are all equal or there is one."""
    if len(values) < 2 or np.ptp(values) <= TIE:
        return np.zeros_like(values)
    centred = values - values.mean()
    return centred / np.sqrt((centred**2).sum() / (len(values) - 1))


def sequence(rewards: Rewards) -> list[NDArray[np.float64]]:
    """GRPO on the mean of a rollout's turn rewards (Table 3 ID 1)."""
    advantages = normalise(np.array([np.mean(turns) for turns in rewards], dtype=np.float64))
    return [np.full(len(turns), advantage) for turns, advantage in zip(rewards, advantages, strict=True)]


def per_turn(rewards: Rewards) -> list[NDArray[np.float64]]:
    """Normalised within each turn index over the rollouts that reached it (Table 3 ID 2, Eq. 3)."""
    result = [np.zeros(len(turns)) for turns in rewards]
    for turn in range(max(map(len, rewards), default=0)):
        reached = [i for i, turns in enumerate(rewards) if len(turns) > turn]
        for i, advantage in zip(reached, normalise(np.array([rewards[i][turn] for i in reached])), strict=True):
            result[i][turn] = advantage
    return result


def cross_turn(rewards: Rewards) -> list[NDArray[np.float64]]:
    """Normalised over all turns of the group (Table 3 ID 3)."""
    if not rewards:
        return []
    flat = normalise(np.concatenate([np.asarray(turns, dtype=np.float64) for turns in rewards]))
    return np.split(flat, np.cumsum([len(turns) for turns in rewards])[:-1])


ESTIMATORS = {"sequence": sequence, "per_turn": per_turn, "cross_turn": cross_turn}


def group_advantages(group: Group, estimator: str) -> list[NDArray[np.float64]]:
    """A_ij for each episode of a group, [turns] each; an invalid episode takes no part and gets zeros.

    Raises:
        ValueError: a reward of a valid episode is not finite, or the estimator is unknown.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"mtgrpo.estimator={estimator}: set it to one of {', '.join(ESTIMATORS)}")
    valid = [episode for episode in group.episodes if episode.valid]
    for episode in valid:
        if not np.isfinite(episode.rewards).all():
            raise ValueError(f"episode {episode.episode_id}: rewards {episode.rewards} are not finite")
    found = iter(ESTIMATORS[estimator]([episode.rewards for episode in valid]))
    return [next(found) if episode.valid else np.zeros(len(episode.turns)) for episode in group.episodes]


def has_spread(group: Group, estimator: str) -> bool:
    """Whether any token of the group has a non-zero advantage, so that the group teaches something."""
    return any(advantages.any() for advantages in group_advantages(group, estimator))
