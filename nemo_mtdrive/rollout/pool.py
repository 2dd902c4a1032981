"""The trainer's side of the control channel: which workers there are, what each has to do, and whether it still lives.

    WorkerPool (ROUTER, bound by training rank 0)  <-- ipc/tcp -->  rollout.worker (DEALER) x n

Tasks go round-robin by their place in the list, so the same tasks always meet the same workers. A worker is lost when
it says so, when its connection stays closed, or when it is silent for too long; then the next call raises WorkerLost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from nemo_mtdrive.rollout import control
from nemo_mtdrive.rollout.control import ControlError, Message
from nemo_mtdrive.types import RolloutTask

PING_S = 1.0
"""How often a worker's connection is tried."""
RECONNECT_S = 5.0
"""How long a closed connection may take to come back before the worker counts as ended."""


class WorkerLost(RuntimeError):
    """A rollout worker failed, ended or fell silent; `worker` is its name and the message says what was seen."""

    def __init__(self, worker: str, reason: str) -> None:
        super().__init__(f"rollout worker {worker} {reason}")
        self.worker = worker


@dataclass
class _Worker:
    seen: float
    """time.monotonic() of its last message."""
    ready: bool = False
    unreachable_since: float | None = None
    version: int | None = None
    """Policy version of its weights."""
    batches: set[int] = field(default_factory=set)
    """Task messages that it has not finished."""
    doing: str = "starting"
    progress: Mapping[str, int] = field(default_factory=dict)


class WorkerPool:
    """Rollout workers by name; for one thread. Call `poll` (or a method that waits) at least now and then."""

    def __init__(self, endpoint: str, workers: Sequence[str], *, heartbeat_timeout_s: float) -> None:
        """Bind `endpoint`; `workers` are the names that will connect. Raises zmq.ZMQError for a busy endpoint."""
        if not workers or len(set(workers)) != len(workers):
            raise ValueError(f"workers={list(workers)}: give at least one name, each once")
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a worker that is gone is an error, not silence
        self._socket.setsockopt(zmq.MAXMSGSIZE, control.LARGEST_MESSAGE)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(endpoint)
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where workers connect; a port of 0 or * has become the real one."""
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._workers = {name: _Worker(seen=time.monotonic()) for name in workers}
        self._batch = 0
        self._pinged = 0.0

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every worker has connected and built its engine; unblocked by their "ready".

        Raises:
            WorkerLost: one failed to start, or was not ready in time.
        """
        self._wait(lambda worker: worker.ready, timeout_s, "was not ready")

    def load_weights(self, version: int, manifest: Mapping[str, Any], timeout_s: float) -> None:
        """Tell every worker to take new weights and wait until all have; unblocked by "weights_loaded".

        `manifest` is what the workers' weight reader wants (where the weights are and what they should be).

        Raises:
            WorkerLost: one failed or did not answer in time.
        """
        for name in self._workers:
            self._send(name, "weights", version=version, manifest=dict(manifest))
        self._wait(lambda worker: worker.version == version, timeout_s, f"did not load weights {version}")

    def start(self, tasks: Sequence[RolloutTask]) -> int:
        """Hand out tasks, task i to worker i modulo their number; returns the batch number. Does not wait."""
        self._batch += 1
        names = list(self._workers)
        for place, name in enumerate(names):
            mine = tasks[place :: len(names)]
            if mine:
                self._send(name, "tasks", batch=self._batch, tasks=control.pack_tasks(mine))
                self._workers[name].batches.add(self._batch)
        return self._batch

    def busy(self, batch: int | None = None) -> bool:
        """Whether a worker has not reported a batch (any, for None) done, as far as the messages that were polled say."""
        return any(worker.batches if batch is None else batch in worker.batches for worker in self._workers.values())

    def poll(self, timeout_s: float = 0.0) -> list[tuple[str, Message]]:
        """Take in what the workers have said, waiting at most `timeout_s` for the first message.

        Returns their progress, done and other messages but heartbeats, with the worker's name.

        Raises:
            WorkerLost: a worker failed, its connection stays closed, or it was silent for `heartbeat_timeout_s`.
            ControlError: a message that does not follow the schema.
        """
        heard = []
        wait_ms = int(timeout_s * 1000)
        while self._socket.poll(wait_ms):
            wait_ms = 0
            identity, frame = self._receive()
            name = identity.decode(errors="replace")
            message = control.decode(frame)
            if name not in self._workers:
                raise ControlError(f"got {message.type} from {name!r}: the workers are {', '.join(self._workers)}")
            self._take(name, message)
            if message.type != "heartbeat":
                heard.append((name, message))
        self._check_alive()
        return heard

    def status(self) -> dict[str, str]:
        """What each worker does, in a few words."""
        return {name: worker.doing for name, worker in self._workers.items()}

    def stop(self, timeout_s: float) -> None:
        """Ask all workers to end and close the socket; workers that are gone are passed over."""
        for name in self._workers:
            try:
                self._send(name, "stop")
            except WorkerLost:
                continue
        self._socket.close(linger=int(timeout_s * 1000))

    def _receive(self) -> tuple[bytes, bytes]:
        frames = self._socket.recv_multipart()
        if len(frames) != 2:
            raise ControlError(f"a control message of {len(frames) - 1} frames: want one")
        return frames[0], frames[1]

    def _take(self, name: str, message: Message) -> None:
        worker = self._workers[name]
        worker.seen = time.monotonic()
        worker.unreachable_since = None
        if message.type == "failed":
            raise WorkerLost(name, f"failed: {message['reason']}")
        if message.type == "ready":
            if worker.ready:
                raise WorkerLost(name, "started again: its episodes and weights are gone")
            worker.ready = True
        elif message.type == "heartbeat":
            worker.doing = message["doing"]
        elif message.type == "done":
            worker.batches.discard(message["batch"])
        elif message.type == "weights_loaded":
            worker.version = message["version"]

    def _wait(self, reached: Callable[[_Worker], bool], timeout_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            missing = [name for name, worker in self._workers.items() if not reached(worker)]
            if not missing:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerLost(missing[0], f"{otherwise} within {timeout_s:g} s (it is {self.status()[missing[0]]})")
            self.poll(min(left, PING_S))

    def _send(self, name: str, kind: str, **fields: Any) -> None:
        try:
            self._socket.send_multipart([name.encode(), control.encode(kind, **fields)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise WorkerLost(name, f"is not connected, so {kind} cannot reach it") from error

    def _check_alive(self) -> None:
        """Called after all waiting messages were read, so that silence is the worker's and not ours."""
        now = time.monotonic()
        if now - self._pinged < PING_S:
            return
        self._pinged = now
        for name, worker in self._workers.items():
            if not worker.ready:
                continue
            try:
                self._send(name, "ping")
                worker.unreachable_since = None
            except WorkerLost as error:
                worker.unreachable_since = worker.unreachable_since or now
                if now - worker.unreachable_since > RECONNECT_S:
                    reason = f"has ended: its connection is closed (it was {worker.doing})"
                    raise WorkerLost(name, reason) from error
            if now - worker.seen > self._heartbeat_timeout_s:
                silent = f"{now - worker.seen:.0f} s"
                raise WorkerLost(name, f"is silent for {silent} (it was {worker.doing}); the limit is "
                                 f"rollout.heartbeat_timeout_s={self._heartbeat_timeout_s:g}")
