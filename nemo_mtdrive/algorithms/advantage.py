r"""Turn-level group relative advantages: line 10 of Algorithm 1, Eq. 3, the three estimators of Table 3 and a fourth.

For the G rollouts of one question, r_ij is the reward of turn j of rollout i (Eq. 2), and A_ij the advantage of every
token of that turn:

    sequence    (ID 1)  A_ij = (R_i - mean R) / std R,  R_i = mean_j r_ij
    per_turn    (ID 2)  A_ij = (r_ij - mean_i r_ij) / std_i r_ij, over the rollouts that have a turn j   (Eq. 3)
    cross_turn  (ID 3)  A_ij = (r_ij - mean r) / std r, over every turn of the group

The paper writes std without saying which; it is built on veRL, whose GRPO takes the sample deviation (n - 1), and so do
we. Statistics are two-pass fp64. Values that are all equal, or a single one, have no spread: advantage exactly 0.

These three say how good a turn was, not what it led to: where the policy itself decides how many turns there are, they
can reward it for going on (docs/mtgrpo.md). The fourth estimates the exact policy gradient of

    J = E[1/N sum_{j=1..N} r_ij],  r_ij = the last reward of rollout i for every turn after its end

    unbiased            A_ij = g_ij - mean_{k != i} g_kj,  g_ij = 1/N sum_{l=j..N} (r_il - r_i,j-1),  r_i0 = 0

g_ij is what turn j and all that followed added to the answer before it. Neither r_i,j-1 nor the other rollouts depend on
what turn j says, so subtracting them changes no expectation; nothing is divided by a spread of its own.
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


def unbiased(rewards: Rewards, max_turns: int) -> list[NDArray[np.float64]]:
    """The exact gradient's advantages; `max_turns` is N, the turns an episode may have whatever the policy does."""
    gains = np.array([_gains(turns, max_turns) for turns in rewards]).reshape(len(rewards), max_turns)
    if len(rewards) < 2:
        return [np.zeros(len(turns)) for turns in rewards]
    others = (gains.sum(axis=0) - gains) / (len(rewards) - 1)
    advantages = np.where(np.ptp(gains, axis=0) <= TIE, 0.0, gains - others)
    return [row[:len(turns)] for row, turns in zip(advantages, rewards, strict=True)]


def _gains(turns: Sequence[float], max_turns: int) -> NDArray[np.float64]:
    """g_ij of one rollout, [N]: the last reward is carried on to turn N, so that stopping is neither paid nor fined."""
    if len(turns) > max_turns:
        raise ValueError(f"an episode has {len(turns)} turns and rollout.max_turns={max_turns}: set it to what was used")
    carried = np.concatenate([turns, np.full(max_turns - len(turns), turns[-1])])
    before = np.concatenate([[0.0], carried[:-1]])
    ahead = np.arange(max_turns, 0, -1)
    return (np.cumsum(carried[::-1])[::-1] - ahead * before) / max_turns


ESTIMATORS = ("sequence", "per_turn", "cross_turn", "unbiased")


def advantages_of(rewards: Rewards, estimator: str, max_turns: int) -> list[NDArray[np.float64]]:
    """A_ij [turns of rollout i] of the valid rollouts of one group.

    Raises:
        ValueError: the estimator is unknown.
    """
    if estimator == "sequence":
        return sequence(rewards)
    if estimator == "per_turn":
        return per_turn(rewards)
    if estimator == "cross_turn":
        return cross_turn(rewards)
    if estimator == "unbiased":
        return unbiased(rewards, max_turns)
    raise ValueError(f"mtgrpo.estimator={estimator}: set it to one of {', '.join(ESTIMATORS)}")


def group_advantages(group: Group, estimator: str, max_turns: int) -> list[NDArray[np.float64]]:
    """A_ij for each episode of a group, [turns] each; an invalid episode takes no part and gets zeros.

    Raises:
        ValueError: a reward of a valid episode is not finite, or the estimator is unknown.
    """
    valid = [episode for episode in group.episodes if episode.valid and episode.turns]
    for episode in valid:
        if not np.isfinite(episode.rewards).all():
            raise ValueError(f"episode {episode.episode_id}: rewards {episode.rewards} are not finite")
    found = iter(advantages_of([episode.rewards for episode in valid], estimator, max_turns))
    return [next(found) if episode.valid and episode.turns else np.zeros(len(episode.turns)) for episode in group.episodes]


def has_spread(group: Group, estimator: str, max_turns: int) -> bool:
    """Whether any token of the group has a non-zero advantage, so that the group teaches something."""
    return any(advantages.any() for advantages in group_advantages(group, estimator, max_turns))


def lonely_turns(group: Group) -> int:
    """Turn indices that a single valid rollout reached: within a turn it is compared with nobody, and learns nothing."""
    lengths = sorted((len(episode.turns) for episode in group.episodes if episode.valid), reverse=True)
    return lengths[0] - lengths[1] if len(lengths) > 1 else sum(lengths)
