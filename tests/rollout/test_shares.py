"""Shares of a batch: cut once, each played by one worker at a time, whole, and by another when that is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mtdrive.rollout.shares import IN_HAND, Shares, SharesError
from nemo_mtdrive.types import RolloutTask

NAMES = ["a", "b", "c"]


def tasks(count: int, version: int = 1) -> list[RolloutTask]:
    return [RolloutTask(f"s{slot}", 2, slot, version, 0, 1.0, slot=slot) for slot in range(count)]


def given_to(shares: Shares, living: list[str]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for share in shares.hand_out(living):
        assert share.worker is not None
        found.setdefault(share.worker, []).append([task.slot for task in share.tasks])
    return found


def test_task_i_goes_to_worker_i_modulo_their_number() -> None:
    shares = Shares(NAMES, 3)
    shares.cut(tasks(7))
    assert given_to(shares, NAMES) == {"a": [[0, 3, 6]], "b": [[1, 4]], "c": [[2, 5]]}
    assert given_to(shares, NAMES) == {}


def test_fewer_tasks_than_workers_and_none() -> None:
    shares = Shares(NAMES, 3)
    assert not shares.unfinished(shares.cut([]))
    shares.cut(tasks(1))
    assert given_to(shares, NAMES) == {"a": [[0]]}


def test_a_share_of_a_worker_that_is_away_goes_whole_to_the_least_busy() -> None:
    shares = Shares(NAMES, 3)
    shares.cut(tasks(3))
    shares.hand_out(["b"])
    assert shares.take_back("b") == 2  # its own, and that of "a", or of "c": it has two in hand
    assert given_to(shares, ["a", "c"]) == {"a": [[0], [1]], "c": [[2]]}


def test_a_worker_holds_a_few_and_its_own_wait_for_it() -> None:
    shares = Shares(["a", "b"], 3)
    batches = [shares.cut(tasks(2)) for _ in range(IN_HAND + 1)]
    assert {name: len(mine) for name, mine in given_to(shares, ["a", "b"]).items()} == {"a": IN_HAND, "b": IN_HAND}
    first = shares.held_by("a")[0]
    shares.done(first.number)
    assert list(given_to(shares, ["a", "b"])) == ["a"]
    assert [shares.unfinished(batch) for batch in batches] == [True] * len(batches)


def test_a_batch_is_finished_with_its_last_share() -> None:
    shares = Shares(["a", "b"], 3)
    batch = shares.cut(tasks(2))
    one, two = shares.hand_out(["a", "b"])
    shares.done(one.number)
    assert shares.unfinished(batch)
    shares.done(two.number)
    shares.done(two.number)  # said again
    assert not shares.unfinished(batch) and not shares.unfinished()


def test_versions_do_not_mix_in_a_batch() -> None:
    with pytest.raises(ValueError, match="different policy versions"):
        Shares(NAMES, 3).cut([*tasks(1, version=1), *tasks(1, version=2)])


def test_a_share_is_lost_a_bounded_number_of_times() -> None:
    shares = Shares(["a", "b"], 1)
    shares.cut(tasks(2))
    shares.hand_out(["a", "b"])
    assert shares.take_back("a") == 1
    shares.hand_out(["b"])
    with pytest.raises(SharesError, match="2 workers were lost while they played the same 1 tasks"):
        shares.take_back("b")


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 9), events=st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=40))
def test_whatever_dies_every_task_is_finished_once(count: int, events: list[tuple[str, bool]]) -> None:
    shares = Shares(NAMES, 1000)
    shares.cut(tasks(count))
    living, finished = list(NAMES), []

    def finish(name: str) -> None:
        for share in shares.held_by(name)[:1]:
            finished.extend(task.slot for task in share.tasks)
            shares.done(share.number)

    for name, dies in events:
        shares.hand_out(living)
        if dies and name in living:
            living.remove(name)
            shares.take_back(name)
        elif dies:
            living.append(name)
        else:
            finish(name)
    living = list(NAMES)
    while shares.unfinished():
        shares.hand_out(living)
        for name in living:
            finish(name)
    assert sorted(finished) == list(range(count))
