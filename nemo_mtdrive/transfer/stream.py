"""Inter-Process Streaming Serialization (IPSS, Section 3.4), worker side.

Serialises and sends finished episodes in a thread pool while others generate. Needs neither torch nor Lightning, so a
rollout worker starts fast; `callbacks.ipss` wraps it for a Lightning trainer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer.link import EpisodeSender
from nemo_mtdrive.types import Episode


@dataclass(frozen=True)
class StreamMetrics:
    """One rollout's transfer as the worker saw it."""

    episodes: int
    wire_bytes: int
    """On sockets, all receivers together."""
    overlapped_s: float
    """Thread seconds of serialising and sending that ended while the rollout still ran: hidden behind generation."""
    exposed_s: float
    """Seconds that the worker waited at the end of the rollout until everything was taken: pure overhead."""
    blocked_s: float
    """Seconds that generation waited in `on_episode_end` because too much was in flight."""


class EpisodeStream:
    """Hands each finished episode to a thread pool that serialises and sends it.

    With the baseline sender the same calls wait for all instead: `on_rollout_end` does all the work, exposed.

    Args:
        sender: where episodes go; belongs to the stream from now on.
        threads: size of the pool.
        in_flight: episodes handed in and not yet sent before `on_episode_end` waits.
        flush_timeout_s: how long `on_rollout_end` waits for the training ranks.
    """

    def __init__(self, sender: EpisodeSender, *, threads: int, in_flight: int, flush_timeout_s: float) -> None:
        if threads < 1 or in_flight < 1:
            raise ValueError(f"transfer.threads={threads}, transfer.in_flight={in_flight}: set both to 1 or more")
        self._sender = sender
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ipss")
        self._slots = threading.BoundedSemaphore(in_flight)
        self._flush_timeout_s = flush_timeout_s
        self._futures: list[Future[float]] = []
        self._failed: Future[float] | None = None
        self._blocked_s = 0.0
        self._bytes_before = 0

    def on_episode_end(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Take a finished episode and return at once, unless `in_flight` others wait (unblocked by the pool).

        Args:
            episode: it will not change any more.
            images: uint8 [H, W, 3] for each of its `image_keys`.

        Raises:
            TransferError: an earlier episode could not be sent.
        """
        self._raise_failures()
        start = time.perf_counter()
        with span("wait"):
            self._slots.acquire()
        self._blocked_s += time.perf_counter() - start
        future = self._pool.submit(self._send, episode, dict(images))
        future.add_done_callback(self._note_failure)
        self._futures.append(future)

    def on_rollout_end(self) -> StreamMetrics:
        """Wait until the training ranks have taken every episode of this rollout.

        Raises:
            TransferError: an episode could not be sent, or a training rank is lost or too slow.
        """
        start = time.perf_counter()
        futures, self._futures = self._futures, []
        overlapped_s = sum(future.result() for future in futures if future.done())
        with span("transfer"):
            for future in futures:
                future.result()
            self._sender.flush(self._flush_timeout_s)
        sent = self._sender.wire_bytes
        metrics = StreamMetrics(
            episodes=len(futures), wire_bytes=sent - self._bytes_before, overlapped_s=overlapped_s,
            exposed_s=time.perf_counter() - start, blocked_s=self._blocked_s,
        )
        self._bytes_before, self._blocked_s = sent, 0.0
        return metrics

    def close(self) -> None:
        """End the pool and the link; what was not flushed is dropped. Safe to call again."""
        self._sender.close()  # first: a thread that waits for a slot in the link gets its error
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> float:
        start = time.perf_counter()
        try:
            with span("serialise"):
                self._sender.send(episode, images)
        finally:
            self._slots.release()
        return time.perf_counter() - start

    def _note_failure(self, future: Future[float]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self._failed = self._failed or future

    def _raise_failures(self) -> None:
        if self._failed is not None:
            self._failed.result()
