"""The trainer's side of the control channel: which workers there are, what each has to do, and whether it still lives.

    WorkerPool (ROUTER, bound by training rank 0)  <-- ipc/tcp -->  rollout.worker (DEALER) x n

A worker is lost when it says that it failed, when its connection stays closed, when it is silent or makes no headway for
too long, or when another process of its name reports ready. What it had in hand goes to others, or waits until it is
started again; whoever starts it (the launcher) is told by `on_lost`. One that comes back gets the weights and joins in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from nemo_mtdrive.rollout import control
from nemo_mtdrive.rollout.control import ControlError, Message
from nemo_mtdrive.rollout.shares import Shares
from nemo_mtdrive.transfer.curve import CurveKeys, secure_server
from nemo_mtdrive.types import RolloutTask

PING_S = 1.0
"""How often a worker's connection is tried."""
RECONNECT_S = 5.0
"""How long a closed connection may take to come back before the worker counts as ended."""
VERSIONS_KEPT = 8
"""Manifests that are remembered: tasks of an older policy version are played with its weights."""


class WorkerLost(RuntimeError):
    """Rollout workers did not start, or did not come back, in time; the message says which and what was seen."""


@dataclass(frozen=True)
class PoolLimits:
    """When a worker counts as lost."""

    heartbeat_s: float
    """Longest silence [s]."""
    stuck_s: float
    """Longest time with work in hand and without headway, heartbeats or not [s]."""
    losses: int
    """Workers that one share of the tasks may take down before the job fails."""


@dataclass
class _Worker:
    seen: float
    """time.monotonic() of its last message."""
    pid: int = 0
    """Of its process; 0 before it is ready."""
    identity: bytes = b""
    """Of its connection; that of the last one of its name that was heard, before it is ready."""
    ready: bool = False
    unreachable_since: float | None = None
    version: int = -1
    """The newest policy version that it has loaded."""
    sent_version: int | None = None
    """Policy version of its weights once it has done all that was sent."""
    loading: int = 0
    """Weights that were sent and are not loaded yet."""
    headway: float = 0.0
    """When it last got anywhere, on the pool's own clock."""
    doing: str = "starting"
    loss: str = ""
    """Why the one of its name before it was lost, until it is ready; a process that dies still says what it does."""


class WorkerPool:
    """Rollout workers by name; for one thread. Call `poll` (or a method that waits) at least now and then.

    Args:
        endpoint: to bind.
        workers: the names that will connect.
        limits: when a worker counts as lost.
        on_lost: called with a lost worker's name, its process id (0: unknown) and what was seen; should see to it that
            this process ends and another one of that name starts.
        keys: let only workers in that have these, encrypted. None: in clear.
    """

    def __init__(self, endpoint: str, workers: Sequence[str], *, limits: PoolLimits,
                 on_lost: Callable[[str, int, str], None], keys: CurveKeys | None = None) -> None:
        """Raises zmq.ZMQError for a busy endpoint."""
        if not workers or len(set(workers)) != len(workers):
            raise ValueError(f"workers={list(workers)}: give at least one name, each once")
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a worker that is gone is an error, not silence
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # one that connects anew keeps its identity
        self._socket.setsockopt(zmq.MAXMSGSIZE, control.LARGEST_MESSAGE)
        self._socket.setsockopt(zmq.LINGER, 1000)
        secure_server(self._socket, keys)
        self._socket.bind(endpoint)
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where workers connect; a port of 0 or * has become the real one."""
        self.lost = 0
        """Workers lost so far."""
        self.replayed_groups = 0
        """Groups that were handed out again."""
        self._limits = limits
        self._on_lost = on_lost
        self._workers = {name: _Worker(seen=time.monotonic()) for name in workers}
        self._shares = Shares(workers, limits.losses)
        self._manifests: dict[int, dict[str, Any]] = {}
        self._pinged = 0.0
        self._clock = 0.0  # runs only while we listen: a trainer that trains must not take its workers for stuck
        self._listened = time.monotonic()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every worker has connected and built its engine; unblocked by their "ready".

        Raises:
            WorkerLost: one was not ready in time.
        """
        self._wait(lambda: [name for name, worker in self._workers.items() if not worker.ready], timeout_s, "was not ready")

    def load_weights(self, version: int, manifest: Mapping[str, Any], timeout_s: float) -> None:
        """Tell the workers to take new weights and wait until all that live have; unblocked by "weights_loaded".

        `manifest` is what the workers' weight reader wants (where the weights are and what they should be). A worker
        that is lost meanwhile is not waited for, unless none is left.

        Raises:
            WorkerLost: one did not answer in time, or none came back.
        """
        self._manifests[version] = dict(manifest)
        for old in sorted(self._manifests)[:-VERSIONS_KEPT]:
            del self._manifests[old]
        for name in self._living():
            self._send_weights(name, version)

        def missing() -> list[str]:
            behind = [name for name in self._living() if self._workers[name].version < version]
            return behind or ([] if self._living() else list(self._workers))

        self._wait(missing, timeout_s, f"did not load weights {version}")

    def start(self, tasks: Sequence[RolloutTask]) -> int:
        """Hand out tasks, task i to worker i modulo their number; returns the batch number. Does not wait.

        All tasks have one policy version, which was loaded before.
        """
        batch = self._shares.cut(tasks)
        self._hand_out()
        return batch

    def busy(self, batch: int | None = None) -> bool:
        """Whether a batch (any, for None) is not done, as far as the messages that were polled say."""
        return self._shares.unfinished(batch)

    def poll(self, timeout_s: float = 0.0) -> list[tuple[str, Message]]:
        """Take in what the workers have said, waiting at most `timeout_s` for the first message.

        Returns their progress, done and other messages but heartbeats, with the worker's name.

        Raises:
            SharesError: the same tasks took down too many workers.
            ControlError: a message that does not follow the schema.
        """
        heard = []
        wait_ms = int(timeout_s * 1000)
        now = time.monotonic()
        self._clock, self._listened = self._clock + min(now - self._listened, 2 * PING_S), now
        while self._socket.poll(wait_ms):
            wait_ms = 0
            identity, frame = self._receive()
            name = control.name_of(identity)
            message = control.decode(frame)
            if name not in self._workers:
                raise ControlError(f"got {message.type} from {name!r}: the workers are {', '.join(self._workers)}")
            if self._take(name, identity, message) and message.type != "heartbeat":
                heard.append((name, message))
        self._check_alive()
        self._hand_out()
        return heard

    def status(self) -> dict[str, str]:
        """What each worker does, in a few words."""
        return {name: worker.doing + (f"; lost before, as it {worker.loss}" if worker.loss else "")
                for name, worker in self._workers.items()}

    def stop(self, timeout_s: float) -> None:
        """Ask all workers to end and close the socket; workers that are gone are passed over."""
        for name in self._workers:
            self._send(name, "stop")
        self._socket.close(linger=int(timeout_s * 1000))

    def _living(self) -> list[str]:
        return [name for name, worker in self._workers.items() if worker.ready]

    def _receive(self) -> tuple[bytes, bytes]:
        frames = self._socket.recv_multipart()
        if len(frames) != 2:
            raise ControlError(f"a control message of {len(frames) - 1} frames: want one")
        return frames[0], frames[1]

    def _take(self, name: str, identity: bytes, message: Message) -> bool:
        """Note what a worker said; False for one that counts as lost, or is not ready while another of its name lives."""
        worker = self._workers[name]
        if message.type == "ready" and worker.ready:
            self._lose(name, "was started again")
            worker = self._workers[name]
        if worker.ready and worker.identity != identity:
            return False
        worker.seen, worker.identity = time.monotonic(), identity
        worker.unreachable_since = None
        if message.type == "ready":
            worker.ready, worker.pid, worker.headway, worker.doing = True, message["pid"], self._clock, "idle"
            worker.loss = ""
            if self._manifests:
                self._send_weights(name, max(self._manifests))
            return True
        if message.type == "failed":
            if worker.pid in (0, message["pid"]):  # else what a process said that has been replaced
                worker.pid = message["pid"]
                self._lose(name, f"failed: {message['reason']}")
            return True
        if not worker.ready:
            worker.doing = message["doing"] if message.type == "heartbeat" else worker.doing
            return False
        if message.type == "heartbeat":
            worker.doing = message["doing"]
            return True
        worker.headway = self._clock
        if message.type == "done":
            self._shares.done(message["batch"])
        elif message.type == "weights_loaded":
            worker.version = max(worker.version, message["version"])
            worker.loading -= 1
        return True

    def _lose(self, name: str, reason: str) -> None:
        """Forget a worker until one of its name is ready, and take back what it had in hand."""
        pid, self._workers[name] = self._workers[name].pid, _Worker(seen=time.monotonic(), loss=reason)
        self.lost += 1
        self._on_lost(name, pid, reason)
        self.replayed_groups += self._shares.take_back(name)

    def _hand_out(self) -> None:
        """Give waiting shares to workers with room, until none waits or all are busy or gone."""
        while given := self._shares.hand_out(self._living()):
            for share in given:
                if share.worker is None:  # it was lost with the share before
                    continue
                worker = self._workers[share.worker]
                if worker.sent_version != share.version and share.version in self._manifests:
                    self._send_weights(share.worker, share.version)
                if share.worker is not None:
                    self._give_work(share.worker, "tasks", batch=share.number, tasks=control.pack_tasks(share.tasks))

    def _has_work(self, name: str) -> bool:
        return self._workers[name].loading > 0 or bool(self._shares.held_by(name))

    def _send_weights(self, name: str, version: int) -> None:
        self._workers[name].sent_version = version
        self._workers[name].loading += 1
        self._give_work(name, "weights", version=version, manifest=self._manifests[version])

    def _give_work(self, name: str, kind: str, **fields: Any) -> None:
        """Send what the worker must not miss; one that cannot be reached is lost."""
        if not self._send(name, kind, **fields):
            self._lose(name, f"is not connected, so {kind} cannot reach it (it was {self._workers[name].doing})")

    def _wait(self, missing: Callable[[], list[str]], timeout_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + timeout_s
        while late := missing():
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerLost(f"rollout worker {late[0]} {otherwise} within {timeout_s:g} s "
                                 f"(it is {self.status()[late[0]]})")
            self.poll(min(left, PING_S))

    def _send(self, name: str, kind: str, **fields: Any) -> bool:
        """Send a message; False when the worker is not connected, which `_check_alive` follows up."""
        try:
            self._socket.send_multipart([self._workers[name].identity, control.encode(kind, **fields)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            worker = self._workers[name]
            worker.unreachable_since = worker.unreachable_since or time.monotonic()
            return False
        return True

    def _check_alive(self) -> None:
        """Called after all waiting messages were read, so that silence is the worker's and not ours."""
        now = time.monotonic()
        if now - self._pinged < PING_S:
            return
        self._pinged = now
        for name in self._living():
            worker = self._workers[name]
            if not self._has_work(name):
                worker.headway = self._clock
            if self._send(name, "ping"):
                worker.unreachable_since = None
            if worker.unreachable_since is not None and now - worker.unreachable_since > RECONNECT_S:
                self._lose(name, f"has ended: its connection is closed (it was {worker.doing})")
            elif now - worker.seen > self._limits.heartbeat_s:
                self._lose(name, f"is silent for {now - worker.seen:.0f} s (it was {worker.doing}); the limit is "
                                 f"rollout.heartbeat_timeout_s={self._limits.heartbeat_s:g}")
            elif self._has_work(name) and self._clock - worker.headway > self._limits.stuck_s:
                self._lose(name, f"got nowhere for {self._clock - worker.headway:.0f} s (it was {worker.doing}); the limit "
                                 f"is rollout.stuck_timeout_s={self._limits.stuck_s:g}")
