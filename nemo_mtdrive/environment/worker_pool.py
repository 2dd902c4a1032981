"""The scoring processes of a server: jobs go to the one that knows their scene, and come back whatever dies.

A scene belongs to one worker, whose cache then hits; an idle worker takes work from one with a long queue. A worker has
at most two messages of about `CHUNK` trajectories in hand. When it dies or hangs, what it had in hand goes to others
(scoring has no side effects, so a second review is the same one) and it is started again. A job that was in hand at
`MAX_DEATHS` deaths fails instead: it may be what kills them. Everything here runs in one event loop; nothing locks.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.episodes import EpisodeError, UnknownScene
from nemo_mtdrive.environment.worker import LENGTH, WorkerSpec
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.process import describe_exit

CHUNK = 64
"""Trajectories of a message to a worker, or more where one job has more."""
IN_HAND = 2
"""Messages that a worker may hold: the next one waits there while it works on one."""
STEAL_FROM = 512
"""Queued trajectories of a worker at which an idle one helps; below, preparing the scene again would cost more."""
MAX_DEATHS = 4
"""Deaths of workers with the same job in hand after which the job fails."""
START_S = 600.0
"""How long a worker may take to start [s]; the first one on a machine compiles its kernels."""
STUCK_S = 120.0
"""A worker that answers nothing for so long is killed [s]."""
LONGEST_PAUSE_S = 10.0
"""Between two attempts to start a worker that fails to start [s]."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""A worker is a core, unless the environment says otherwise."""
HOMES_KEPT = 65536
"""Scenes whose worker is remembered."""


class ScoringFailed(RuntimeError):
    """No result could be had for this job; others are not affected."""


class DeadlinePassed(Exception):
    """The request's deadline passed before a worker took the job; it was dropped."""


class WorkerFailed(RuntimeError):
    """A worker did not start."""


@dataclass
class Deadline:
    """When the work of a request is no longer wanted [monotonic s]; a later request for the same work extends it."""

    at: float

    def extend(self, other: Deadline) -> None:
        """Keep the later one."""
        self.at = max(self.at, other.at)

    @property
    def left_s(self) -> float:
        """Seconds until then, negative after it."""
        return self.at - time.monotonic()


@dataclass(eq=False)
class _Job:
    message: Mapping[str, Any]
    weight: int
    deadline: Deadline
    future: asyncio.Future[dict[str, Any]]
    deaths: int = 0

    @property
    def scene_id(self) -> str:
        return str(self.message["scene_id"])

    def settle(self, outcome: Mapping[str, Any] | Exception) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(dict(outcome))


@dataclass(eq=False)
class _Worker:
    """One place in the pool; the process in it may change."""

    index: int
    queue: deque[_Job] = field(default_factory=deque)
    in_hand: deque[list[_Job]] = field(default_factory=deque)
    process: subprocess.Popen[bytes] | None = None
    writer: asyncio.StreamWriter | None = None
    ready: bool = False
    since: float = 0.0
    """When it was given what it works on now [monotonic s]."""
    homes: int = 0
    """Scenes that belong to it."""
    queued: int = 0
    """Trajectories in `queue`."""

    def push(self, job: _Job, *, first: bool = False) -> None:
        self.queued += job.weight
        (self.queue.appendleft if first else self.queue.append)(job)

    def pop(self) -> _Job:
        job = self.queue.popleft()
        self.queued -= job.weight
        return job

    def empty(self) -> list[_Job]:
        """Take everything out of the queue."""
        jobs = list(self.queue)
        self.queue.clear()
        self.queued = 0
        return jobs


class ScoringPool:
    """Scoring processes; `start` them, then await `open` and `review`.

    Args:
        spec: how each worker makes its scenes and reviewer.
        workers: how many.
        say: where restarts are told, a line each.
        stuck_s: see `STUCK_S`.
    """

    def __init__(self, spec: WorkerSpec, workers: int, say: Callable[[str], None], *, stuck_s: float = STUCK_S) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: set it to 1 or more")
        self._spec = spec
        self._say = say
        self._stuck_s = stuck_s
        self._workers = [_Worker(index) for index in range(workers)]
        self._homes: OrderedDict[str, _Worker] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        self.restarts = 0

    @property
    def ready(self) -> int:
        """Workers that are warm now."""
        return sum(worker.ready for worker in self._workers)

    @property
    def size(self) -> int:
        """Workers there should be."""
        return len(self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that are warm now."""
        return [worker.process.pid for worker in self._workers if worker.ready and worker.process is not None]

    async def start(self) -> None:
        """Start all workers and wait until each is warm; however that ends, `close` is due.

        Raises:
            WorkerFailed: one did not start.
        """
        readers = await asyncio.gather(*(self._spawn(worker) for worker in self._workers))
        self._tasks = [asyncio.create_task(self._live(worker, reader))
                       for worker, reader in zip(self._workers, readers, strict=True)]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """End the workers; jobs that are left fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await self._bury(worker)
            for job in (*worker.empty(), *(job for batch in worker.in_hand for job in batch)):
                job.settle(ScoringFailed("the server ends"))
            worker.in_hand.clear()

    async def open(self, scene_id: str, want_image: bool, deadline: Deadline) -> tuple[str, str, NDArray[np.uint8] | None]:
        """(prompt, image key, image or None) of a scene.

        Raises:
            UnknownScene, EpisodeError: the source has no such scene, or it cannot be driven.
            ScoringFailed, DeadlinePassed: see there.
        """
        reply = await self._ask({"op": "open", "scene_id": scene_id, "want_image": want_image}, 1, deadline)
        image = reply["image"]
        return reply["prompt"], reply["image_key"], None if image is None else messages.unpack_array(image)

    async def review(self, scene_id: str, trajectories: NDArray[np.float64], deadline: Deadline) -> list[Review | str]:
        """A review of each trajectory [B, 8, 3], or in its place what went wrong with it.

        Raises:
            UnknownScene, EpisodeError, ScoringFailed, DeadlinePassed: as `open`.
        """
        reply = await self._ask({"op": "review", "scene_id": scene_id, "trajectories": trajectories}, len(trajectories),
                                deadline)
        return [row["error"] if "error" in row else Review(row["scores"], row["violations"], row["feedback"])
                for row in reply["reviews"]]

    def drop_expired(self) -> None:
        """Let go of queued jobs whose deadline passed, so that a queue that does not move cannot grow."""
        for worker in self._workers:
            for job in worker.empty():
                if not _dropped(job):
                    worker.push(job)

    async def _ask(self, message: Mapping[str, Any], weight: int, deadline: Deadline) -> dict[str, Any]:
        job = _Job(message, weight, deadline, asyncio.get_running_loop().create_future())
        self._home(job.scene_id).push(job)
        self._feed_all()
        reply = await job.future
        if "error" in reply:
            kind = {"UnknownScene": UnknownScene, "EpisodeError": EpisodeError}.get(reply["error"], ScoringFailed)
            raise kind(reply["text"])
        return reply

    def _home(self, scene_id: str) -> _Worker:
        """The worker of a scene: where it was before, else the least loaded one that is ready (or will be)."""
        home = self._homes.get(scene_id)
        able = [worker for worker in self._workers if worker.ready] or self._workers
        if home is None or home not in able:
            if home is not None:
                home.homes -= 1
            home = min(able, key=lambda worker: (worker.queued, worker.homes, worker.index))
            home.homes += 1
            self._homes[scene_id] = home
        self._homes.move_to_end(scene_id)
        if len(self._homes) > HOMES_KEPT:
            self._homes.popitem(last=False)[1].homes -= 1
        return home

    def _feed_all(self) -> None:
        for worker in self._workers:
            self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        """Give a worker messages until it has enough in hand."""
        while worker.ready and worker.writer is not None and len(worker.in_hand) < IN_HAND:
            if any(job.deaths for batch in worker.in_hand for job in batch):
                return  # what may kill it is alone with it
            batch = self._take(worker)
            if not batch:
                return
            if not worker.in_hand:
                worker.since = time.monotonic()
            worker.in_hand.append(batch)
            body = messages.pack({"jobs": [job.message for job in batch]})
            worker.writer.write(LENGTH.pack(len(body)) + body)

    def _take(self, worker: _Worker) -> list[_Job]:
        """The next message for a worker: from its own queue, or from a long one or that of a worker that starts."""
        source = worker
        if not worker.queue and not worker.in_hand:
            source = max(self._workers, key=lambda other: other.queued)
            if source.ready and source.queued < STEAL_FROM:
                return []
        batch: list[_Job] = []
        weight = 0
        while source.queue and weight < CHUNK:
            suspicious = source.queue[0].deaths > 0
            if suspicious and (batch or worker.in_hand):
                break
            job = source.pop()
            if _dropped(job):
                continue
            batch.append(job)
            weight += job.weight
            if suspicious:
                break
        return batch

    async def _live(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        """Read a worker's answers; when it dies, hand on what it had and start it again."""
        while True:
            worker.ready = True
            self._feed_all()
            try:
                await self._read(worker, reader)
            except (asyncio.IncompleteReadError, ConnectionError, messages.MessageError):
                code = await self._bury(worker)
                self.restarts += 1
                self._say(f"scoring worker {worker.index} {describe_exit(code)}; its work goes on, it is started again")
                self._hand_on(worker)
            reader = await self._respawn(worker)

    async def _read(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        while True:
            message = await _read_message(reader)
            batch = worker.in_hand.popleft()
            worker.since = time.monotonic()
            for job, reply in zip(batch, message["replies"], strict=True):
                job.settle(reply)
            self._feed_all()

    def _hand_on(self, worker: _Worker) -> None:
        """Queue what a dead worker had: what was in hand first, to others where there are any."""
        in_hand = [job for batch in worker.in_hand for job in batch]
        worker.in_hand.clear()
        for job in in_hand:
            job.deaths += 1
        waiting = worker.empty()
        for job in reversed(in_hand):
            if job.deaths >= MAX_DEATHS:
                job.settle(ScoringFailed(f"a scoring worker died {job.deaths} times with this in hand"))
            else:
                self._home(job.scene_id).push(job, first=True)
        for job in waiting:
            self._home(job.scene_id).push(job)
        self._feed_all()

    async def _respawn(self, worker: _Worker) -> asyncio.StreamReader:
        pause = 0.1
        while True:
            try:
                return await self._spawn(worker)
            except WorkerFailed as error:
                self._say(f"scoring worker {worker.index} does not start: {error}; trying again in {pause:.1f} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _spawn(self, worker: _Worker) -> asyncio.StreamReader:
        """Start a process and wait until it is warm."""
        ours, theirs = socket.socketpair()
        with theirs:
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "nemo_mtdrive.environment.worker", str(theirs.fileno()), str(os.getpid()),
                 self._spec.to_json()], stdin=subprocess.DEVNULL, stdout=2, pass_fds=(theirs.fileno(),),
                env={**ONE_THREAD, **os.environ})
        reader, worker.writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.timeout(START_S):  # wait_for can lose a cancellation (Python 3.11): `close` would hang
                hello = await _read_message(reader)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            code = await self._bury(worker)
            raise WorkerFailed(f"a scoring worker {describe_exit(code)} before it was ready") from error
        if "failed" in hello:
            await self._bury(worker)
            raise WorkerFailed(hello["failed"])
        return reader

    async def _bury(self, worker: _Worker) -> int:
        """Make sure that a worker's process is gone; returns how it ended."""
        worker.ready = False
        if worker.writer is not None:
            worker.writer.close()
            with suppress(ConnectionError):
                await worker.writer.wait_closed()
            worker.writer = None
        if worker.process is None:
            return 0
        code = worker.process.poll()
        if code is None:
            worker.process.kill()
            code = await asyncio.to_thread(worker.process.wait)
        worker.process = None
        return code

    async def _watch(self) -> None:
        """Kill workers that hang; their end is then handled as any other."""
        while True:
            await asyncio.sleep(min(1.0, self._stuck_s / 4))
            for worker in self._workers:
                if worker.in_hand and worker.process and time.monotonic() - worker.since > self._stuck_s:
                    self._say(f"scoring worker {worker.index} answered nothing for {self._stuck_s:g} s; it is killed")
                    worker.process.kill()


def _dropped(job: _Job) -> bool:
    """Whether nobody wants the job any more; then whoever waits is told."""
    if job.deadline.left_s <= 0:
        job.settle(DeadlinePassed())
    return job.future.done()


async def _read_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = await reader.readexactly(LENGTH.size)
    return messages.unpack_reply(await reader.readexactly(LENGTH.unpack(head)[0]))

