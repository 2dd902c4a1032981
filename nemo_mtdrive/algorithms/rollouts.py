"""The trainer's side of rolling out: hand tasks to the workers, collect every rank's copy of the episodes, sync weights.

Every training rank calls the same methods. Rank 0 has the `WorkerPool` and speaks to the workers; all ranks receive the
episodes themselves, because tensor-parallel ranks need the same data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.algorithms.batch import Payload
from nemo_mtdrive.callbacks.ipss import IPSS
from nemo_mtdrive.callbacks.weight_sync import WeightSync
from nemo_mtdrive.rollout.pool import WorkerPool
from nemo_mtdrive.telemetry.progress import Bar
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.collect import Collected, CollectMetrics
from nemo_mtdrive.transfer.link import Received
from nemo_mtdrive.types import Episode, Group, RolloutTask


@dataclass(frozen=True)
class Deadlines:
    """How long is waited for workers [s]."""

    start_s: float
    rollout_s: float


@dataclass(frozen=True)
class Ticket:
    """Tasks that the workers have, to be gathered later."""

    tasks: tuple[RolloutTask, ...]
    number: int
    """What the worker pool calls them; -1 on ranks without one."""


class _Ahead(threading.Thread):
    """Waits for a ticket beside the training; a daemon, so that a trainer that fails does not wait for it."""

    def __init__(self, ticket: Ticket, wait: Callable[[], Collected]) -> None:
        super().__init__(name="gather-ahead", daemon=True)
        self.ticket = ticket
        self._wait = wait
        self._outcome: Collected | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._wait()
        except Exception as error:  # raised again where the result is asked for
            self._outcome = error

    def result(self) -> Collected:
        """What came; raises what went wrong."""
        self.join()
        if isinstance(self._outcome, Collected):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome


class RolloutClient:
    """`algorithms.mtgrpo.Rollouts` over rollout workers.

    Args:
        ipss: this rank's end of the episode stream.
        weights: publishes the policy's weights.
        pool: the workers, on rank 0; None on the others.
        agree: raises when the ranks hold different data; called with a digest (collective).
        decode_each_time: decode an episode anew whenever its images are asked for (`transfer.iptc=false`).
    """

    def __init__(self, ipss: IPSS, weights: WeightSync, pool: WorkerPool | None, deadlines: Deadlines,
                 agree: Callable[[str], None], decode_each_time: bool) -> None:
        self._ipss = ipss
        self._weights = weights
        self._pool = pool
        self._deadlines = deadlines
        self._agree = agree
        self.decode_each_time = decode_each_time
        self.on_picture: Callable[[str, Payload], None] | None = None
        """Gets key and content of each image of a training batch as it arrives, while others are still rolled out."""
        self._received: dict[str, Received] = {}
        self._transfer: CollectMetrics | None = None
        self._worker_metrics: dict[str, float] = {}
        self._lost_before = (0, 0)
        self._ahead: _Ahead | None = None

    @property
    def policy_version(self) -> int:
        """Number of the last published weights."""
        return self._weights.version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        """Go on counting from a checkpoint; before the first `publish`."""
        self._weights.version = version

    def wait_ready(self) -> None:
        """Wait until every worker has built its engine; unblocked by their "ready".

        Raises:
            WorkerLost: one was not ready in time.
        """
        if self._pool is not None:
            self._pool.wait_ready(self._deadlines.start_s)

    def publish(self) -> None:
        """Put the current weights into the engines under the current version. Collective."""
        self._weights.publish()
        self._load()

    def publish_next(self) -> None:
        """The weights changed: put them into the engines as the next version. Collective."""
        self._weights.on_step_end()
        self._load()

    def _load(self) -> None:
        if self._pool is not None:
            self._pool.load_weights(self._weights.version, {"version": self._weights.version}, self._deadlines.start_s)

    def generate(self, tasks: Sequence[RolloutTask], bar: Bar | None = None, *, more: bool = False) -> list[Group]:
        """Roll the tasks out and wait for every episode: `submit` and `gather` in one. Collective."""
        return self.gather(self.submit(tasks), bar, more=more)

    def submit(self, tasks: Sequence[RolloutTask], *, gather_ahead: bool = False) -> Ticket:
        """Hand tasks to the workers and come back at once; several tickets may be open. Collective.

        The workers play tickets in the order of their submission, with the weights of the tasks' policy version. With
        `gather_ahead` a thread takes the episodes in as they come, so that workers never wait for a trainer that
        computes; until that ticket is gathered nothing else may be asked of the workers.
        """
        self._ipss.collector.expect(tasks)
        ticket = Ticket(tuple(tasks), self._pool.start(tasks) if self._pool is not None else -1)
        if gather_ahead:
            self._ahead = _Ahead(ticket, lambda: self._wait_for(ticket, None))
        return ticket

    def gather(self, ticket: Ticket, bar: Bar | None = None, *, more: bool = False) -> list[Group]:
        """Wait for every episode of a ticket; groups in the order of its tasks. Collective.

        What arrives of other open tickets meanwhile is kept for them. With `more` the images of earlier calls stay
        available: a step asks again for what it lacks.

        Raises:
            SharesError: the same tasks took down too many workers.
            CollectTimeout: the deadline passed.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.ticket is not ticket:
            raise ValueError("rollouts are under way ahead of the trainer: gather their ticket first")
        collected = self._wait_for(ticket, bar, self.on_picture) if ahead is None else ahead.result()
        kept = self._received if more else {}
        self._agree(collected.digest)
        self._received = kept | dict(collected.received)
        self._transfer = collected.metrics
        return collected.groups

    def adopt(self, groups: Sequence[Group], images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Know the images of groups that came out of a checkpoint, by key."""
        self._received |= {
            episode.episode_id: Received(episode, {key: images[key] for key in episode.image_keys}, 0, 0.0,
                                         tuple(wire.encode(episode)))
            for group in groups for episode in group.episodes}

    def _wait_for(self, ticket: Ticket, bar: Bar | None,
                  on_picture: Callable[[str, Payload], None] | None = None) -> Collected:
        """Every episode of a ticket, and every rank has them."""
        trained_on = {task.purpose for task in ticket.tasks} == {"train"}

        def arrived(received: Received, count: int, total: int) -> None:
            if bar is not None:
                bar.advance(1)
            if on_picture is not None and trained_on:
                for key in received.episode.image_keys:
                    on_picture(key, received.images[key])

        collected = self._ipss.collect(ticket.tasks, deadline_s=self._deadlines.rollout_s, on_arrival=arrived,
                                       on_wait=self._look_after_workers)
        self._finish(ticket)
        return collected

    def _look_after_workers(self) -> None:
        if self._pool is not None:
            self._take(self._pool.poll())

    def _finish(self, ticket: Ticket) -> None:
        """Hear the workers out, so that every rank has every episode of the ticket."""
        while self._pool is not None and self._pool.busy(ticket.number):
            self._take(self._pool.poll(0.5))

    def _take(self, heard: Sequence[tuple[str, Any]]) -> None:
        for _, message in heard:
            if message.type == "done":
                for name, value in message["metrics"].items():
                    self._worker_metrics[name] = self._worker_metrics.get(name, 0.0) + value

    def images(self, episodes: Sequence[Episode]) -> Callable[[str], Payload]:
        """How to get at the images of episodes of this step, by key."""
        found: dict[str, Payload] = {}
        for episode in episodes:
            received = self._received[episode.episode_id]
            found |= received.decode_again()[1] if self.decode_each_time else received.images
        return found.__getitem__

    def collect(self) -> dict[str, float]:
        """Transfer metrics since the last call."""
        found = {f"transfer/{name}": float(value) for name, value in asdict(self._transfer).items()} \
            if self._transfer is not None else {}
        found |= {f"worker/{name}": float(value) for name, value in self._worker_metrics.items()}
        self._worker_metrics = {}
        if self._pool is not None:
            lost, replayed = self._pool.lost, self._pool.replayed_groups
            found |= {"worker/lost": float(lost - self._lost_before[0]),
                      "worker/replayed_groups": float(replayed - self._lost_before[1])}
            self._lost_before = (lost, replayed)
        return found | {"transfer/weight_bytes": float(self._weights.bytes_published)}

    def stop(self) -> None:
        """Ask the workers to end and close this rank's links."""
        if self._pool is not None:
            self._pool.stop(5.0)
        self._ipss.close()
