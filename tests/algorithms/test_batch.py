"""Packed micro-batches: bounds on how evenly they are dealt, and what is in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_mtdrive.algorithms.batch import balance, build_micro_batch, joined, silent
from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.types import NOT_OURS, Episode, RolloutTask
from tests.algorithms.test_mtgrpo import IMAGE, episode

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=120)


@given(LENGTHS, st.integers(1, 8000), st.integers(1, 9))
def test_tokens_are_dealt_evenly(lengths: list[int], budget: int, ranks: int) -> None:
    dealt = balance(lengths, budget, ranks)
    assert len(dealt) == ranks
    assert [i for share in dealt for part in share for i in part] == list(range(len(lengths)))
    assert all(part for share in dealt for part in share)
    assert all(len(part) == 1 or sum(lengths[i] for i in part) <= budget for share in dealt for part in share)
    loads = [sum(lengths[i] for part in share for i in part) for share in dealt]
    sizes = [sum(len(part) for part in share) for share in dealt]
    mean, longest = sum(lengths) / ranks, max(lengths)
    assert max(loads) <= mean + longest
    if min(sizes) > 1:
        assert min(loads) >= mean - longest
    assert min(sizes) >= 1 or len(lengths) < ranks
    most = max(len(share) for share in dealt)
    assert [len(share) for share in dealt] == [min(most, size) for size in sizes]


@given(st.lists(st.integers(1, 500), min_size=20, max_size=120), st.integers(1, 4))
def test_few_micro_batches_are_made(lengths: list[int], ranks: int) -> None:
    """Where the longest is a quarter of the budget, micro-batches are three quarters full at least, but for a last one."""
    dealt = balance(lengths, 2000, ranks)
    heaviest = max(sum(lengths[i] for part in share for i in part) for share in dealt)
    assert max(len(share) for share in dealt) <= 1 + heaviest / 1500


def test_dealing_by_hand() -> None:
    assert balance([4, 4, 4, 4, 4, 4], budget=8, ranks=2) == [[[0, 1], [2]], [[3, 4], [5]]]
    assert balance([9, 1, 1, 1], budget=8, ranks=2) == [[[0]], [[1, 2, 3]]]
    assert balance([5, 5, 5, 5], budget=9, ranks=1) == [[[0], [1], [2], [3]]]
    assert balance([1, 6, 1, 6, 1, 6], budget=8, ranks=1) == [[[0, 1], [2, 3], [4, 5]]]
    assert balance([3, 3], budget=8, ranks=3) == [[[0]], [[1]], []]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TINY_TOKENIZER)


@pytest.fixture(scope="module")
def episodes(tokenizer: Tokenizer) -> list[Episode]:
    """Two rollouts of one scene and one of another, whose picture is taller."""
    task = RolloutTask("a", 4, 0, 0, 0, 1.0)
    siblings = [episode(tokenizer, task, i, [0.5] * (i + 1)) for i in range(2)]
    return [siblings[0], replace(episode(tokenizer, task, 2, [0.1]), image_keys=("other",)), siblings[1]]


def images(key: str) -> np.ndarray:
    return {"k": IMAGE, "other": IMAGE[::-1].copy()}[key]


def test_a_row_has_no_padding_and_each_image_once(tokenizer: Tokenizer, episodes: list[Episode]) -> None:
    batch = build_micro_batch(episodes, images, tokenizer, torch.device("cpu"))
    lengths = [len(e.tokens) for e in episodes]
    assert batch["segments"].tolist() == [0, *np.cumsum(lengths)]
    assert batch["tokens"].tolist() == [np.concatenate([e.tokens for e in episodes]).tolist()]
    assert batch["mask"].tolist() == [(np.concatenate([e.turn_of_token for e in episodes]) >= 0).tolist()]
    for place, row in zip(batch["positions"].split(lengths, dim=2), episodes, strict=True):
        expected = mrope_positions(row.tokens, row.image_grids, tokenizer.image_pad, tokenizer.vision_start)
        assert np.array_equal(place[:, 0].numpy(), expected)
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 2]]
    assert batch["image_index"].tolist() == [0, 1, 0]
    assert batch["pixel_values"].shape == (8, 1176)
    assert not torch.equal(batch["pixel_values"][:4], batch["pixel_values"][4:])


def test_numbers_a_token_follow_the_row(episodes: list[Episode]) -> None:
    row = joined((np.full(len(e.tokens), float(i)) for i, e in enumerate(episodes)), torch.float32)
    assert row.shape == (1, sum(len(e.tokens) for e in episodes)) and row.dtype == torch.float32
    assert row[0].unique_consecutive(return_counts=True)[1].tolist() == [len(e.tokens) for e in episodes]


def test_a_silent_episode_teaches_nothing(tokenizer: Tokenizer, episodes: list[Episode]) -> None:
    quiet = silent(episodes[0])
    assert (quiet.turn_of_token == NOT_OURS).all() and np.array_equal(quiet.tokens, episodes[0].tokens)
    assert not build_micro_batch([quiet], images, tokenizer, torch.device("cpu"))["mask"].any()
