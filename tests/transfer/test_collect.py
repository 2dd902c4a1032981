"""Groups in the order of the tasks, each episode once, whatever order and how often they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mtdrive.transfer.collect import CollectTimeout, EpisodeCollector, digest
from nemo_mtdrive.transfer.link import Received, ReceiveTimeout
from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.types import Episode, Group

from .make_episodes import make_episode, make_image, make_task

TASKS = [make_task("b"), make_task("a", group_size=2), make_task("c", group_size=1)]
EPISODES = [make_episode(task, index, make_image(0)) for task in TASKS for index in range(task.group_size)]
STALE = make_episode(make_task("b", step=2), 0, make_image(0))


class Arrivals:
    """A receiver whose episodes are given."""

    endpoint = "test"
    refused = 0

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._episodes = list(episodes)
        self.left_at_safe: list[int] = []

    def receive(self, timeout_s: float) -> Received:
        if not self._episodes:
            raise ReceiveTimeout
        return Received(self._episodes.pop(0), {}, wire_bytes=10, decode_s=0.25)

    def mark_safe(self) -> None:
        self.left_at_safe.append(len(self._episodes))

    def close(self) -> None:
        self._episodes.clear()


@given(order=st.permutations(EPISODES), again=st.lists(st.sampled_from([*EPISODES, STALE]), max_size=5), data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_order_and_any_repeats_give_the_same_groups(
    order: list[Episode], again: list[Episode], data: st.DataObject
) -> None:
    arriving = list(order)
    for episode in again:
        arriving.insert(data.draw(st.integers(0, len(arriving) - 1)), episode)
    seen: list[tuple[str, int, int]] = []

    def arrived(received: Received, there: int, total: int) -> None:
        seen.append((received.episode.episode_id, there, total))

    collected = EpisodeCollector(Arrivals(arriving)).collect(TASKS, deadline_s=0, on_arrival=arrived)
    assert [group.scene_id for group in collected.groups] == ["b", "a", "c"]
    assert [episode for group in collected.groups for episode in group.episodes] == EPISODES
    assert all(any(episode is each for each in arriving) for group in collected.groups for episode in group.episodes)
    assert sorted(name for name, _, _ in seen) == sorted(episode.episode_id for episode in EPISODES)
    assert [entry[1:] for entry in seen] == [(count, 7) for count in range(1, 8)]
    metrics = collected.metrics
    last = max(arriving.index(episode) for episode in EPISODES)
    assert metrics.episodes == 7 and metrics.duplicates + metrics.stale + 7 <= len(arriving)
    assert metrics.wire_bytes == 10 * (7 + metrics.duplicates + metrics.stale) >= 10 * (last + 1)
    assert metrics.exposed_s == 0.25 and metrics.overlapped_s == 0.25 * (metrics.wire_bytes / 10 - 1)
    expected = [Group(task.scene_id, tuple(e for e in EPISODES if e.scene_id == task.scene_id)) for task in TASKS]
    assert collected.digest == digest(expected)


def test_repeats_and_strangers_are_counted() -> None:
    arriving = [STALE, EPISODES[0], EPISODES[0], STALE, *EPISODES]
    metrics = EpisodeCollector(Arrivals(arriving)).collect(TASKS, deadline_s=0).metrics
    assert (metrics.duplicates, metrics.stale, metrics.episodes) == (2, 2, 7)


def test_episodes_are_safe_when_the_step_is_whole_and_not_before() -> None:
    arrivals = Arrivals([*EPISODES[:3], EPISODES[0]])
    with pytest.raises(CollectTimeout):
        EpisodeCollector(arrivals).collect(TASKS, deadline_s=0)
    assert arrivals.left_at_safe == []
    arrivals = Arrivals([*EPISODES, EPISODES[0]])
    EpisodeCollector(arrivals).collect(TASKS, deadline_s=0)
    assert arrivals.left_at_safe == [1]


def test_what_comes_early_is_kept_for_the_tasks_that_will_ask_for_it() -> None:
    later = [make_task("later", group_size=2, step=3)]
    first, second = (make_episode(later[0], index, make_image(0)) for index in range(2))
    other = dataclasses.replace(first, reason="a second run of the same task")
    collector = EpisodeCollector(Arrivals([first, *EPISODES, other, second, STALE]))
    collector.expect(TASKS)
    collector.expect(later)
    assert collector.collect(TASKS, deadline_s=0).metrics.stale == 0
    collected = collector.collect(later, deadline_s=0)
    assert collected.groups == [Group("later", (first, second))] and collected.groups[0].episodes[0] is first
    assert (collected.metrics.episodes, collected.metrics.duplicates, collected.metrics.wire_bytes) == (2, 1, 30)


def test_the_first_of_two_copies_counts() -> None:
    other = dataclasses.replace(EPISODES[0], reason="a second run of the same task")
    collected = EpisodeCollector(Arrivals([EPISODES[0], other, *EPISODES[1:]])).collect(TASKS, deadline_s=0)
    assert collected.groups[0].episodes[0] is EPISODES[0]


def test_the_deadline_names_what_is_missing() -> None:
    with pytest.raises(CollectTimeout, match=r"4 of 7 episodes did not come within 0.1 s \(train/3/0/b/3, "):
        EpisodeCollector(Arrivals(EPISODES[:3])).collect(TASKS, deadline_s=0.1)


def test_the_wait_can_be_ended() -> None:
    def worker_died() -> None:
        raise ChildProcessError("worker 3 ended with -9")

    with pytest.raises(ChildProcessError, match="worker 3"):
        EpisodeCollector(Arrivals([])).collect(TASKS, deadline_s=60, on_wait=worker_died)


def test_an_id_with_other_content_is_refused() -> None:
    wrong = dataclasses.replace(EPISODES[1], policy_version=1)
    with pytest.raises(TransferError, match=r"\('b', 1, 1\), asked for \('b', 1, 2\)"):
        EpisodeCollector(Arrivals([wrong])).collect(TASKS, deadline_s=0)


def test_tasks_for_the_same_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="two tasks of a step"):
        EpisodeCollector(Arrivals([])).collect([TASKS[0], TASKS[0]], deadline_s=0)


def test_the_digest_sees_one_bit_and_the_order() -> None:
    tokens = EPISODES[0].tokens.copy()
    tokens[5] ^= 1
    groups = [
        [Group("b", tuple(EPISODES[:4]))],
        [Group("b", (dataclasses.replace(EPISODES[0], tokens=tokens), *EPISODES[1:4]))],
        [Group("b", (EPISODES[1], EPISODES[0], *EPISODES[2:4]))],
    ]
    assert len({digest(each) for each in groups}) == 3


def test_no_tasks_need_no_wait() -> None:
    assert EpisodeCollector(Arrivals([])).collect([], deadline_s=0).groups == []
