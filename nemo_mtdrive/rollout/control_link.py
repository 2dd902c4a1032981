"""The worker's end of the control channel: a thread that owns the socket and sends heartbeats."""

from __future__ import annotations

import math
import queue
import threading
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

from nemo_mtdrive.rollout import control
from nemo_mtdrive.rollout.control import ControlError, Message
from nemo_mtdrive.transfer.curve import CurveKeys, secure_client

FLUSH_S = 2.0
"""How long `close` waits for the last messages to leave."""


class TrainerGone(RuntimeError):
    """The connection to the trainer stayed closed for too long."""


class ControlLink:
    """Messages to and from the trainer. `send` and `receive` are for one thread, the one that made the link."""

    def __init__(self, endpoint: str, name: str, heartbeat_s: float, trainer_timeout_s: float,
                 keys: CurveKeys | None = None) -> None:
        self.doing = "starting"
        """What the worker does, in a few words; goes along with heartbeats."""
        self._endpoint, self._name = endpoint, name
        self._heartbeat_s = heartbeat_s
        self._trainer_timeout_s = trainer_timeout_s
        self._inbox: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        inner = f"inproc://control-{id(self)}"
        self._outbox: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._outbox.bind(inner)
        self._thread = threading.Thread(target=self._run, args=(inner, keys), name="control", daemon=True)
        self._thread.start()

    def send(self, kind: str, **fields: object) -> None:
        """Send a message soon; does not wait. Raises ControlError for fields that the schema does not have."""
        self._outbox.send(control.encode(kind, **fields))

    def receive(self) -> Message:
        """The next message of the trainer, pings left out; waits for it without limit.

        Raises:
            TrainerGone: the connection was closed for `trainer_timeout_s`.
            ControlError: a message that does not follow the schema.
        """
        found = self._inbox.get()
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Send what is waiting, close the sockets, end the thread."""
        self._outbox.send(b"")
        self._thread.join(FLUSH_S + 1.0)
        self._outbox.close(linger=0)

    def _run(self, inner: str, keys: CurveKeys | None) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        outbox = context.socket(zmq.PAIR)
        outbox.connect(inner)
        trainer = context.socket(zmq.DEALER)
        trainer.setsockopt(zmq.IDENTITY, control.new_identity(self._name))
        trainer.setsockopt(zmq.MAXMSGSIZE, control.LARGEST_MESSAGE)
        trainer.setsockopt(zmq.HEARTBEAT_IVL, 5000)  # a trainer whose machine vanished closes no connection
        trainer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30000)
        secure_client(trainer, keys)
        monitor = trainer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        trainer.connect(self._endpoint)
        poller = zmq.Poller()
        for item in (outbox, trainer, monitor):
            poller.register(item, zmq.POLLIN)
        disconnected: float | None = time.monotonic()
        heartbeat = time.monotonic()
        while True:
            now = time.monotonic()
            ready = dict(poller.poll(max(0, math.ceil(1000 * (heartbeat - now)))))
            if outbox in ready:
                frame = outbox.recv()
                if not frame:
                    break
                trainer.send(frame)
            if trainer in ready:
                self._take(trainer.recv())
            if monitor in ready:
                event = recv_monitor_message(monitor)["event"]
                disconnected = time.monotonic() if event == zmq.EVENT_DISCONNECTED else None
            now = time.monotonic()
            if now >= heartbeat:
                heartbeat = now + self._heartbeat_s
                if disconnected is None:  # else they would wait in the queue and come all at once
                    trainer.send(control.encode("heartbeat", doing=self.doing))
                elif now - disconnected > self._trainer_timeout_s:
                    self._inbox.put(
                        TrainerGone(f"has no connection to the trainer at {self._endpoint} since "
                                    f"{now - disconnected:.0f} s")
                    )
                    disconnected = now
        trainer.disable_monitor()
        trainer.close(linger=int(1000 * FLUSH_S))
        outbox.close(linger=0)

    def _take(self, frame: bytes) -> None:
        try:
            message = control.decode(frame)
        except ControlError as error:
            self._inbox.put(error)
            return
        if message.type != "ping":
            self._inbox.put(message)
