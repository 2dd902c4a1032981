"""Samplers: a function of (seed, position), every item once an epoch, and splits that share no log."""

from __future__ import annotations

from collections import Counter

import pytest

from nemo_mtdrive.data.sampler import EpochSampler, MixedSampler, split_ids


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


def test_a_mixed_epoch_has_each_pool_as_often_as_its_weight() -> None:
    pools = [range(8), range(100, 106), range(200, 203)]
    sampler = MixedSampler(pools, [1.0, 0.5, 2.0], seed=4)
    assert sampler.epoch_size == 8 + 3 + 6
    first, second = Counter(sampler.take(0, 17)), Counter(sampler.take(17, 17))
    assert all(first[item] == second[item] == 1 for item in pools[0])
    assert all(first[item] == second[item] == 2 for item in pools[2])
    assert all(first[item] + second[item] == 1 for item in pools[1])  # the half that the first epoch left out comes second
    assert sampler.take(0, 17) != sorted(sampler.take(0, 17))


def test_a_mixed_sampler_gives_the_same_items_whatever_was_asked_before() -> None:
    def fresh() -> MixedSampler:
        return MixedSampler([range(5), range(10, 17)], [1.0, 1.5], seed=1)

    together = fresh().take(0, 45)
    sampler = fresh()
    assert [sampler.take(step * 5, 5) for step in (8, 0, 3)] == [together[40:45], together[0:5], together[15:20]]
    with pytest.raises(ValueError, match=r"pools of \[0, 3\] items"):
        MixedSampler([[], range(3)], [1.0, 0.0], seed=1)


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
