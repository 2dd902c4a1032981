"""The worker's end of IPSS: work overlaps generation, is bounded, and its failures come out."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.transfer.stream import EpisodeStream
from nemo_mtdrive.types import Episode

from .make_episodes import make_episode, make_image, make_task
from .processes import wait_until

EPISODES = [make_episode(make_task("scene", 8), index, make_image(0)) for index in range(8)]


class SlowSender:
    """Takes `seconds` an episode; fails on the given index; can be held back."""

    def __init__(self, seconds: float = 0.0, fails_on: int = -1) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.sent: list[int] = []
        self.wire_bytes = 0
        self.flushed = 0
        self._seconds = seconds
        self._fails_on = fails_on

    def send(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        self.gate.wait(10)
        time.sleep(self._seconds)
        if episode.index == self._fails_on:
            raise TransferError(f"episode {episode.index} failed")
        self.sent.append(episode.index)
        self.wire_bytes += 100

    def flush(self, timeout_s: float) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.gate.set()


def open_stream(sender: SlowSender, threads: int = 2, in_flight: int = 4) -> EpisodeStream:
    return EpisodeStream(sender, threads=threads, in_flight=in_flight, flush_timeout_s=5)


def test_sending_hides_behind_generation() -> None:
    sender = SlowSender(seconds=0.2)
    stream = open_stream(sender)
    start = time.perf_counter()
    for episode in EPISODES[:4]:
        stream.on_episode_end(episode, {})
    handed_in = time.perf_counter() - start
    wait_until(lambda: len(sender.sent) == 4)
    time.sleep(0.2)  # the others still generate
    metrics = stream.on_rollout_end()
    stream.close()
    assert handed_in < 0.4 and metrics.exposed_s < 0.4 < 0.8 <= metrics.overlapped_s
    assert sorted(sender.sent) == [0, 1, 2, 3] and sender.flushed == 1
    assert (metrics.episodes, metrics.wire_bytes) == (4, 400)


def test_metrics_are_of_one_rollout() -> None:
    stream = open_stream(SlowSender())
    for episodes in (EPISODES[:2], EPISODES[2:5], []):
        for episode in episodes:
            stream.on_episode_end(episode, {})
        metrics = stream.on_rollout_end()
        assert (metrics.episodes, metrics.wire_bytes) == (len(episodes), 100 * len(episodes))
    stream.close()


def test_generation_waits_when_too_much_is_in_flight() -> None:
    sender = SlowSender()
    sender.gate.clear()
    stream = open_stream(sender, in_flight=2)
    handed_in: list[int] = []

    def generate() -> None:
        for episode in EPISODES[:5]:
            stream.on_episode_end(episode, {})
            handed_in.append(episode.index)

    worker = threading.Thread(target=generate)
    worker.start()
    wait_until(lambda: handed_in == [0, 1])
    time.sleep(0.2)
    assert handed_in == [0, 1]
    sender.gate.set()
    worker.join(5)
    assert handed_in == [0, 1, 2, 3, 4] and stream.on_rollout_end().blocked_s > 0.1
    stream.close()


def test_a_failure_in_the_pool_comes_out_at_the_next_episode() -> None:
    stream = open_stream(SlowSender(fails_on=0))
    with pytest.raises(TransferError, match="episode 0 failed"):
        for episode in EPISODES:
            stream.on_episode_end(episode, {})
            time.sleep(0.1)
    stream.close()


def test_a_failure_in_the_pool_comes_out_at_the_end_of_the_rollout() -> None:
    sender = SlowSender(seconds=0.05, fails_on=2)
    stream = open_stream(sender)
    for episode in EPISODES[:3]:
        stream.on_episode_end(episode, {})
    with pytest.raises(TransferError, match="episode 2 failed"):
        stream.on_rollout_end()
    assert sender.flushed == 0
    stream.close()


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"transfer.threads=0"):
        open_stream(SlowSender(), threads=0)
