"""Groups of episodes -> mini-batches of packed micro-batches, with an advantage and a weight a token (line 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nemo_mtdrive.algorithms.advantage import group_advantages
from nemo_mtdrive.algorithms.batch import balance, silent
from nemo_mtdrive.algorithms.loss import token_weights
from nemo_mtdrive.algorithms.policy import DataShare
from nemo_mtdrive.config import MtGRPOConfig, RolloutConfig
from nemo_mtdrive.types import NOT_OURS, Episode, Group


@dataclass
class TrainingMicroBatch:
    """Episodes that are scored together, with what the phases of a step add."""

    key: str
    episodes: list[Episode]
    advantages: list[NDArray[np.float32]]
    """[T] of each episode: A of the token's turn, 0 for tokens that are not the model's own."""
    weights: list[float]
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None


MiniBatch = list[TrainingMicroBatch]
Row = tuple[Episode, NDArray[np.float32], float]
"""An episode, A of each of its tokens, and the weight of an own token in the loss."""


def each_of(mini_batches: Sequence[MiniBatch]) -> list[TrainingMicroBatch]:
    """All micro-batches in order."""
    return [micro for mini_batch in mini_batches for micro in mini_batch]


def assemble(step: int, groups: list[Group], settings: MtGRPOConfig, rollout: RolloutConfig,
             share: DataShare) -> list[MiniBatch]:
    """Line 10: advantages of every token, and the episodes in mini-batches of whole groups and packed micro-batches.
    This data rank keeps its share; a mini-batch without a valid episode is left out."""
    size = settings.mini_batch_prompts
    mini_batches = []
    for number, start in enumerate(range(0, len(groups), size)):
        chosen = groups[start:start + size]
        rows = _rows(chosen, settings, rollout)
        if not rows:
            continue
        lengths = [len(episode.tokens) for episode, _, _ in rows]
        mine = balance(lengths, settings.micro_batch_tokens, share.size)[share.rank]
        if not mine:  # fewer episodes than data ranks
            mine, rows = [[0]], [(silent(rows[0][0]), np.zeros_like(rows[0][1]), 0.0)]
        mini_batches.append([TrainingMicroBatch(f"{step}/{number}/{i}", *_columns([rows[j] for j in indices]))
                             for i, indices in enumerate(mine)])
    return mini_batches


def _rows(groups: list[Group], settings: MtGRPOConfig, rollout: RolloutConfig) -> list[Row]:
    """(episode, A of each token, weight of each own token) of the valid episodes of a mini-batch (Eq. 4)."""
    valid: list[list[tuple[Episode, NDArray[np.float64]]]] = []
    for group in groups:
        advantages = group_advantages(group, settings.estimator, rollout.max_turns)
        valid.append([(e, a) for e, a in zip(group.episodes, advantages, strict=True) if e.valid and e.turns])
    lengths = [[int((episode.turn_of_token != NOT_OURS).sum()) for episode, _ in rows] for rows in valid]
    longest = rollout.max_turns * rollout.max_answer_tokens
    weights = token_weights(settings.aggregation, lengths, longest)
    return [(episode, _of_token(episode, of_turn), weight)
            for rows, of_rows in zip(valid, weights, strict=True)
            for (episode, of_turn), weight in zip(rows, of_rows, strict=True)]


def _of_token(episode: Episode, of_turn: NDArray[np.float64]) -> NDArray[np.float32]:
    """[T] A of each token: its turn's, 0 for tokens that are not the model's own."""
    own = episode.turn_of_token != NOT_OURS
    of_token = np.zeros(len(episode.tokens), dtype=np.float32)
    of_token[own] = of_turn[episode.turn_of_token[own]]
    return of_token


def _columns(rows: list[Row]) -> tuple[list[Episode], list[NDArray[np.float32]], list[float]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
