"""Replies kept by request id: a request that is sent again, as after a lost reply, is not scored again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from nemo_mtdrive.environment.messages import MessageError
from nemo_mtdrive.environment.worker_pool import Deadline

MAX_REPLIES = 4096
MAX_BYTES = 64 * 2**20
"""Bytes of all kept replies; the oldest go first."""
MAX_AGE_S = 600.0
"""Longer than any client tries [s]."""


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    task: asyncio.Task[bytes]
    deadline: Deadline
    kept_since: float

    @property
    def size(self) -> int:
        return len(self.task.result()) if self.task.done() and not self.task.cancelled() else 0


class KeptReplies:
    """Requests with an id that are being worked on or were answered; failed ones are forgotten at once."""

    def __init__(self, max_replies: int = MAX_REPLIES, max_bytes: int = MAX_BYTES, max_age_s: float = MAX_AGE_S,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._max_replies, self._max_bytes, self._max_age_s = max_replies, max_bytes, max_age_s
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def task(self, request_id: str, body: bytes, deadline: Deadline) -> asyncio.Task[bytes] | None:
        """The work of the earlier request with this id, which goes on until the later of both deadlines.

        Raises:
            MessageError: it had another body.
        """
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        if entry.digest != _digest(body):
            raise MessageError("X-Request-Id: used before with another body; take a new one for each request")
        entry.deadline.extend(deadline)
        return entry.task

    def keep(self, request_id: str, body: bytes, deadline: Deadline, task: asyncio.Task[bytes]) -> None:
        """Remember a request that was begun now."""
        self._entries[request_id] = _Entry(_digest(body), task, deadline, self._clock())
        task.add_done_callback(lambda done: self._ended(request_id, done))

    def _ended(self, request_id: str, task: asyncio.Task[bytes]) -> None:
        entry = self._entries.get(request_id)
        if entry is None or entry.task is not task:
            return
        if task.cancelled() or task.exception() is not None:
            del self._entries[request_id]
            return
        self._bytes += entry.size
        while self._entries:
            oldest, first = next(iter(self._entries.items()))
            old = first.kept_since < self._clock() - self._max_age_s
            if not old and len(self._entries) <= self._max_replies and self._bytes <= self._max_bytes:
                return
            self._bytes -= self._entries.pop(oldest).size


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
