"""Samplers: a function of (seed, position), every item once an epoch, and splits that share no log."""

from __future__ import annotations

import pytest

from nemo_mtdrive.data.sampler import EpochSampler, split_ids


def test_each_epoch_has_every_item_once_in_another_order() -> None:
    sampler = EpochSampler(7, seed=3)
    first, second = sampler.take(0, 7), sampler.take(7, 7)
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_a_position_gives_the_same_item_whatever_was_asked_before() -> None:
    steps = [EpochSampler(10, seed=1).take(step * 4, 4) for step in range(8)]
    together = EpochSampler(10, seed=1).take(0, 32)
    assert [index for step in steps for index in step] == together
    assert EpochSampler(10, seed=2).take(0, 32) != together


def test_nothing_to_sample_from() -> None:
    with pytest.raises(ValueError, match="got 0 items"):
        EpochSampler(0, seed=1)


def test_held_out_scenes_share_no_log() -> None:
    ids = [f"log{log}-{window}" for log in range(5) for window in range(10)]
    train, held_out = split_ids(ids, held_out=15, seed=0)
    assert len(held_out) == 15
    assert not {i.split("-")[0] for i in train} & {i.split("-")[0] for i in held_out}
    assert len(train) == 30
    assert split_ids(list(reversed(ids)), 15, seed=0)[1] != [] and split_ids(ids, 15, seed=0) == (train, held_out)


def test_ids_without_a_log_are_split_one_by_one() -> None:
    train, held_out = split_ids([f"p{i}" for i in range(10)], held_out=3, seed=0)
    assert (len(train), len(held_out)) == (7, 3)
    assert not set(train) & set(held_out)


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(ValueError, match="scenes.held_out=9 takes all 4 scenes of 1 logs"):
        split_ids([f"log-{i}" for i in range(4)], held_out=9, seed=0)
