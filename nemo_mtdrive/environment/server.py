"""The environment server: one process for HTTP and episodes, and scoring workers behind it.

    clients ── HTTP, msgpack ──> server: token, bounded queue, deadlines, episodes     (`service`, `served`)
                                   └── sockets ──> scoring workers, scenes by id       (`worker_pool`, `worker`)

The endpoints, their fields and errors are in `service`; docs/environment.md shows them in use. The port is taken first, so
/health answers while the workers compile their kernels and /ready says when they are done. SIGTERM drains: new work gets
503, what is in hand is finished within `DRAIN_S`, and the exit code is 0; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from nemo_mtdrive.environment.service import EnvironmentService
from nemo_mtdrive.environment.worker import WorkerSpec
from nemo_mtdrive.environment.worker_pool import ScoringPool, WorkerFailed
from nemo_mtdrive.process import die_with_parent

KEEP_ALIVE_S = 75
"""How long an idle connection stays open [s]; longer than the client keeps it, so the client closes first."""
DRAIN_S = 8.0
"""How long what is in hand may take after SIGTERM [s]; a launcher that kills waits longer."""
CLOSE_S = 1
"""How long the last replies may take to leave [s]."""


class _Server(uvicorn.Server):
    """uvicorn, but SIGTERM and SIGINT drain it first, and end it with exit code 0."""

    def __init__(self, service: EnvironmentService) -> None:
        super().__init__(uvicorn.Config(
            service.app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=CLOSE_S))
        self._service = service
        self._drained_by = float("inf")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        previous = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain; a second signal ends the server at once."""
        self.should_exit = self.force_exit = self._service.draining
        self._service.draining = True
        self._drained_by = min(self._drained_by, time.monotonic() + DRAIN_S)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        if self._service.draining and (self._service.idle or time.monotonic() > self._drained_by):
            self.should_exit = True
        ends: bool = await super().on_tick(counter)
        return ends


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; `port` 0 takes a free one. A `shared` port may be reserved by `process.reserve_port`.

    Raises:
        OSError: the port is busy, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each reply waits 40 ms to be acknowledged
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def serve(spec: WorkerSpec, *, workers: int, queue_items: int, max_turns: int, host: str, port: int, token: str,
          with_parent: bool = True, shared_port: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; call it from the main thread of a process of its own. Prints nothing on stdout.

    Args:
        spec: how each scoring worker makes its scenes and reviewer.
        workers: scoring processes.
        queue_items: episodes and trajectories that may wait or be in hand; more are refused with 503 and Retry-After.
        max_turns: of an episode.
        host, port: where to listen; keep to loopback unless the network is trusted, the token is not encrypted.
        token: the secret that clients must send.
        with_parent: end when the process that started this one ends, however that ends.
        shared_port: whoever started this one keeps the port reserved (`process.reserve_port`).

    Returns:
        The exit code: 0 after a signal, 1 when the workers do not start, 2 when the request was wrong.
    """
    parent = os.getppid()
    if with_parent:
        die_with_parent()
        if os.getppid() != parent:  # it ended before we asked to be told
            return 1
    try:
        service = EnvironmentService(token, queue_items)
        pool = ScoringPool(spec, workers, say)
        listener = listen(host, port, shared=shared_port)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        say(f"cannot listen on {host}:{port}: {reason}; set another host or port")
        return 2
    with listener:
        return asyncio.run(_serve(service, pool, max_turns, listener))


async def _serve(service: EnvironmentService, pool: ScoringPool, max_turns: int, listener: socket.socket) -> int:
    server = _Server(service)

    async def make_ready() -> None:
        try:
            await pool.start()
        except WorkerFailed:
            server.should_exit = True
            raise
        service.start(pool, max_turns)
        say(f"ready on {_address(listener)}")

    starting = asyncio.create_task(make_ready())
    try:
        await server.serve(sockets=[listener])
    finally:
        starting.cancel()
        [failure] = await asyncio.gather(starting, return_exceptions=True)
        await pool.close()
    if isinstance(failure, WorkerFailed):
        say(f"cannot start: {failure}")
        return 1
    if isinstance(failure, Exception):
        raise failure
    return 0


def say(text: str) -> None:
    """A line on stderr."""
    print("environment server:", " ".join(text.split()), file=sys.stderr, flush=True)


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"
