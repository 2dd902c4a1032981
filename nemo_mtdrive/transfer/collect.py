"""Trainer side of the stream: the episodes of a step, each exactly once, in the order of the tasks.

Workers finish in any order, a re-queued task may bring an episode twice, a reconnect repeats what was not acknowledged:
`EpisodeCollector` names what it expects by `RolloutTask.episode_id` and takes the first of each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.link import EpisodeReceiver, Received, ReceiveTimeout
from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.types import Group, RolloutTask

_POLL_S = 0.5
Image = NDArray[np.uint8] | NDArray[np.float32]


class CollectTimeout(TransferError):
    """The deadline passed before all episodes were there."""


@dataclass(frozen=True)
class CollectMetrics:
    """One step's transfer as this training rank saw it."""

    episodes: int
    wire_bytes: int
    """Received on this rank's socket."""
    overlapped_s: float
    """Seconds of decoding done while episodes were still missing, so hidden behind generation."""
    exposed_s: float
    """Seconds of decoding of the last delivery, which nothing hid."""
    waited_s: float
    """Wall time of `collect`."""
    duplicates: int
    """Episodes that came again and were dropped."""
    stale: int
    """Episodes that nobody expects (of an earlier step) and were dropped."""
    refused: int
    """Messages that were refused: corrupt, of another version, run or protocol."""


@dataclass(frozen=True)
class Collected:
    """What a step trains on."""

    groups: list[Group]
    """In the order of the tasks; episodes ordered by index."""
    received: Mapping[str, Received]
    """By episode id: images of each episode, and `decode_again`."""
    digest: str
    """Of all groups; equal on ranks that have equal data. Tensor-parallel ranks must agree before they compute: a
    worker that died between two receivers leaves them different copies of a repeated episode."""
    metrics: CollectMetrics

    def image(self, episode_id: str, key: str) -> Image:
        """What an image key of an episode stands for; goes into `images.pixel_values`."""
        return self.received[episode_id].images[key]


class EpisodeCollector:
    """Receives until everything that was asked for is there.

    Args:
        receiver: this rank's; belongs to the collector from now on.
    """

    def __init__(self, receiver: EpisodeReceiver) -> None:
        self._receiver = receiver
        self._expected: set[str] = set()
        self._early: dict[str, Received] = {}

    def expect(self, tasks: Sequence[RolloutTask]) -> None:
        """These tasks are being played and will be collected later: what comes of them meanwhile is kept."""
        self._expected |= {task.episode_id(i) for task in tasks for i in range(task.group_size)}

    @property
    def endpoint(self) -> str:
        """The address that senders connect to."""
        return self._receiver.endpoint

    def collect(
        self,
        tasks: Sequence[RolloutTask],
        *,
        deadline_s: float,
        on_arrival: Callable[[Received, int, int], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Collected:
        """Wait for all G episodes of each task; unblocked by the workers' streams.

        Args:
            tasks: what was handed out; their order is the order of the groups.
            deadline_s: from now.
            on_arrival: called with each new episode, how many are there, and how many there will be.
            on_wait: called twice a second at least; may raise to end the wait (a worker died and cannot be replaced).

        Raises:
            CollectTimeout: the deadline passed; the message names missing episodes.
            ValueError: two tasks ask for the same episode.
        """
        start = time.monotonic()
        expected = {task.episode_id(i): (task, i) for task in tasks for i in range(task.group_size)}
        if len(expected) != sum(task.group_size for task in tasks):
            raise ValueError("two tasks of a step have the same scene, purpose and step: draw each scene once a step")
        self._expected -= expected.keys()
        arrived: dict[str, Received] = {}
        early = [self._early.pop(episode_id) for episode_id in expected if episode_id in self._early]
        duplicates = stale = wire_bytes = 0
        refused_before = self._receiver.refused
        overlapped_s = last_s = 0.0
        next_look = start
        while len(arrived) < len(expected):
            if on_wait is not None and time.monotonic() >= next_look:
                on_wait()
                next_look = time.monotonic() + _POLL_S
            left_s = start + deadline_s - time.monotonic()
            try:
                received = early.pop() if early else self._receiver.receive(max(0.0, min(left_s, _POLL_S)))
            except ReceiveTimeout:
                if left_s <= 0:
                    raise CollectTimeout(_late(expected, arrived, deadline_s)) from None
                continue
            episode = received.episode
            if episode.episode_id in self._expected:  # counted when it is collected
                self._early.setdefault(episode.episode_id, received)
                continue
            wire_bytes += received.wire_bytes
            overlapped_s, last_s = overlapped_s + last_s, received.decode_s
            if episode.episode_id not in expected:
                stale += 1
            elif episode.episode_id in arrived:
                duplicates += 1
            else:
                _check(received, *expected[episode.episode_id])
                arrived[episode.episode_id] = received
                if on_arrival is not None:
                    on_arrival(received, len(arrived), len(expected))
        self._receiver.mark_safe()
        groups = [
            Group(task.scene_id, tuple(arrived[task.episode_id(i)].episode for i in range(task.group_size)))
            for task in tasks
        ]
        metrics = CollectMetrics(
            episodes=len(arrived), wire_bytes=wire_bytes, overlapped_s=overlapped_s, exposed_s=last_s,
            waited_s=time.monotonic() - start, duplicates=duplicates, stale=stale,
            refused=self._receiver.refused - refused_before,
        )
        return Collected(groups, arrived, digest(groups), metrics)

    def close(self) -> None:
        """Free the link. Safe to call again."""
        self._receiver.close()


def digest(groups: Sequence[Group]) -> str:
    """BLAKE2b-128 over every value of every episode, as hex: equal content, equal digest."""
    running = hashlib.blake2b(digest_size=16)
    for group in groups:
        for episode in group.episodes:
            for frame in wire.encode(episode):
                running.update(frame)
    return running.hexdigest()


def _check(received: Received, task: RolloutTask, index: int) -> None:
    """An id that matches with other content is a worker's fault and must not reach the loss."""
    episode = received.episode
    got = (episode.scene_id, episode.index, episode.policy_version)
    wanted = (task.scene_id, index, task.policy_version)
    if got != wanted:
        raise TransferError(f"episode {episode.episode_id}: (scene, index, version) is {got}, asked for {wanted}")


def _late(expected: Mapping[str, object], arrived: Mapping[str, object], deadline_s: float) -> str:
    missing = [episode_id for episode_id in expected if episode_id not in arrived]
    some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return (f"{len(missing)} of {len(expected)} episodes did not come within {deadline_s:g} s ({some}): look at the "
            "rollout workers, or set rollout.rollout_timeout_s higher")
