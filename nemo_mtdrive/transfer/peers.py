"""The sending half of a link: one thread that owns the sockets, keeps what is not yet safe, and notices lost peers.

Delivery is at least once: what a receiver has not called safe goes to it again after a reconnect, and `collect` drops
doubles. So a receiver may die in the middle of a step and another take its place; see `messages` for what is said.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from nemo_mtdrive.transfer.curve import CurveKeys, secure_client
from nemo_mtdrive.transfer.messages import Message, pack, unpack
from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.transfer.wire import Frame, WireError

_LOG = logging.getLogger(__name__)
_TICK_MS = 200
_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 30_000


@dataclass
class _Delivery:
    """One message on its way, with the images that its receivers may ask for."""

    message: list[Frame]
    images: Mapping[str, NDArray[np.uint8]]
    waiting: int
    """Receivers that have not taken it yet."""


@dataclass
class _Peer:
    """A receiver, as this sender sees it."""

    endpoint: str
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    pending: dict[int, _Delivery] = field(default_factory=dict)
    """By number: sent and not taken."""
    taken: dict[int, _Delivery] = field(default_factory=dict)
    """By number: taken, and not yet safe there."""
    connected: bool = False
    was_connected: bool = False
    away_since: float = field(default_factory=time.monotonic)


class Outbox:
    """Posts messages to several receivers and waits for each one's acknowledgement; safe for threads.

    Args:
        endpoints: the receivers' addresses.
        run_id: goes with each message; receivers of another run refuse it.
        in_flight: deliveries that may be unacknowledged before `post` waits.
        lost_after_s: a receiver that is disconnected this long with deliveries waiting for it is lost.
        keys: encrypt with these; the receivers' own.
    """

    def __init__(self, endpoints: Sequence[str], run_id: str, in_flight: int, lost_after_s: float,
                 keys: CurveKeys | None = None) -> None:
        self.wire_bytes = 0
        self.refused = 0
        """Answers that were no message of this protocol."""
        self._run_id = run_id
        self._in_flight = in_flight
        self._lost_after_s = lost_after_s
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, _Delivery]] = deque()
        self._numbered = 0
        self._open = 0
        self._failure: Exception | None = None
        self._closing = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers = [self._connect(endpoint, keys) for endpoint in endpoints]
        self._thread = threading.Thread(target=self._run, name="episode-link", daemon=True)
        self._thread.start()

    def post(
        self, kind: str, values: Sequence[Any], frames: Sequence[Frame], images: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        """Send a message to all receivers; waits while `in_flight` deliveries are open.

        Args:
            kind: of the message, see `messages`; its number is added.
            values: what stands in its envelope behind the number.
            frames: what follows the envelope.
            images: what its receivers may ask for.

        Raises:
            TransferError: the link has failed or is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._open < self._in_flight or self._failure or self._closing)
            self._raise_failure()
            number, self._numbered = self._numbered, self._numbered + 1
            message = [pack(kind, self._run_id, number, *values), *frames]
            self._open += 1
            self._queue.append((number, _Delivery(message, images, len(self._peers))))
            self._wake()

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is acknowledged by all receivers.

        Raises:
            TransferError: the link has failed or is closed, or the time is over.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: not self._open or self._failure or self._closing, timeout_s)
            self._raise_failure()
            if not done:
                slow = ", ".join(f"{peer.endpoint} ({len(peer.pending)})" for peer in self._peers if peer.pending)
                raise TransferError(f"{self._open} deliveries not taken within {timeout_s:g} s; open at {slow}: is the "
                                    "training rank busy or stuck? raise the timeout if it is only busy")

    def close(self) -> None:
        """Stop the thread and free the sockets, at once."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._wake()
            self._changed.notify_all()
        self._thread.join()
        os.close(self._wake_read)  # nobody writes to it any more: `post` refuses before it wakes
        os.close(self._wake_write)

    def _connect(self, endpoint: str, keys: CurveKeys | None) -> _Peer:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)  # bounded by in_flight
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)  # answered by the peer's I/O thread even while it trains
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        secure_client(socket, keys)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.disable_monitor()
            self._context.destroy(linger=0)
            raise ValueError(f"endpoint {endpoint!r}: {error}; set it to tcp://HOST:PORT or ipc://PATH") from error
        return _Peer(endpoint, socket, monitor)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_write, b"\0")

    def _raise_failure(self) -> None:
        if self._failure:
            raise TransferError(str(self._failure)) from self._failure
        if self._closing:
            raise TransferError("the link is closed")

    def _run(self) -> None:
        """The thread: everything below runs in it alone."""
        try:
            poller = zmq.Poller()
            poller.register(self._wake_read, zmq.POLLIN)
            for peer in self._peers:
                poller.register(peer.socket, zmq.POLLIN)
                poller.register(peer.monitor, zmq.POLLIN)
            while not self._closing:
                ready = dict(poller.poll(_TICK_MS))
                if self._wake_read in ready:
                    os.read(self._wake_read, 1 << 16)
                self._post_queued()
                for peer in self._peers:
                    if peer.monitor in ready:
                        self._follow(peer)
                    if peer.socket in ready:
                        self._answer(peer, peer.socket.recv_multipart())
                    self._check_alive(peer)
        except Exception as error:  # nothing may die unseen in a thread: post and flush raise it
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            for peer in self._peers:
                peer.socket.disable_monitor()
            self._context.destroy(linger=0)

    def _post_queued(self) -> None:
        while self._queue:
            number, delivery = self._queue.popleft()
            for peer in self._peers:
                peer.pending[number] = delivery
                self._send(peer, delivery.message)

    def _send(self, peer: _Peer, message: Sequence[Frame]) -> None:
        peer.socket.send_multipart(message, copy=False)
        self.wire_bytes += sum(memoryview(frame).nbytes for frame in message)

    def _follow(self, peer: _Peer) -> None:
        """Note that the peer went or came; what it has not taken goes again when it comes back."""
        event: dict[str, Any] = dict(recv_monitor_message(peer.monitor))
        if event["event"] == zmq.EVENT_DISCONNECTED:
            peer.connected, peer.away_since = False, time.monotonic()
            return
        if peer.was_connected:
            for delivery in (*peer.taken.values(), *peer.pending.values()):
                self._send(peer, delivery.message)
        peer.connected = peer.was_connected = True

    def _answer(self, peer: _Peer, frames: list[bytes]) -> None:
        try:
            message = unpack(frames[0])
        except WireError as error:
            self.refused += 1
            if "version" in str(error):
                raise TransferError(f"training rank at {peer.endpoint}: {error}") from error
            _LOG.warning("refused from %s: %s", peer.endpoint, error)
            return
        self._follow_answer(peer, message)

    def _follow_answer(self, peer: _Peer, message: Message) -> None:
        if message.kind == "refused":
            raise TransferError(f"{peer.endpoint} refuses: {message.values[0]}")
        if message.kind == "need":
            for key in message.values[0]:
                self._send_image(peer, key)
        elif message.kind == "taken":
            self._note_taken(peer, message.values[0])
        elif message.kind == "safe":
            for number in message.values[0]:
                self._note_taken(peer, number)
                peer.taken.pop(number, None)

    def _note_taken(self, peer: _Peer, number: int) -> None:
        delivery = peer.pending.pop(number, None)
        if delivery is None:  # it was sent again after a reconnect
            return
        peer.taken[number] = delivery
        delivery.waiting -= 1
        if not delivery.waiting:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _send_image(self, peer: _Peer, key: str) -> None:
        """Send an image of any delivery that is not safe there; what is safe needs none any more."""
        for delivery in (*peer.pending.values(), *peer.taken.values()):
            if key in delivery.images:
                image = np.ascontiguousarray(delivery.images[key])
                pixels = image.reshape(-1).data
                self._send(peer, [pack("image", self._run_id, key, list(image.shape), zlib.crc32(pixels)), pixels])
                return

    def _check_alive(self, peer: _Peer) -> None:
        away_s = time.monotonic() - peer.away_since
        if not peer.connected and peer.pending and away_s > self._lost_after_s:
            state = "lost" if peer.was_connected else "never reached"
            raise TransferError(f"training rank at {peer.endpoint} {state} for {away_s:.0f} s with {len(peer.pending)} "
                                "deliveries waiting: did it end?")
