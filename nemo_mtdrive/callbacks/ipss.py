"""IPSS as a Lightning callback (Section 3.4): both ends of the episode stream, tied to the trainer's life.

A training rank gives `open_receiver` and calls `collect`; a process that also rolls out (an embedded engine) gives
`open_stream` and calls `on_episode_end` and `on_rollout_end`. Rollout workers of their own use `transfer.stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.callbacks.base import Callback
from nemo_mtdrive.transfer.collect import Collected, EpisodeCollector
from nemo_mtdrive.transfer.link import EpisodeReceiver, Received
from nemo_mtdrive.transfer.stream import EpisodeStream, StreamMetrics
from nemo_mtdrive.types import Episode, RolloutTask


class IPSS(Callback):
    """Opens the link when the trainer sets up and closes it however the run ends.

    Args:
        open_receiver: opens this rank's receiver, e.g. a partial of `link.open_receiver`; None without one.
        open_stream: opens a stream to the training ranks; None where no rollout runs in this process.
    """

    def __init__(
        self,
        open_receiver: Callable[[], EpisodeReceiver] | None = None,
        open_stream: Callable[[], EpisodeStream] | None = None,
    ) -> None:
        self._open_receiver = open_receiver
        self._open_stream = open_stream
        self._collector: EpisodeCollector | None = None
        self._stream: EpisodeStream | None = None

    @property
    def collector(self) -> EpisodeCollector:
        """This rank's collector; opened at the first use."""
        if self._collector is None:
            if self._open_receiver is None:
                raise ValueError("IPSS has no receiver: give open_receiver on training ranks")
            self._collector = EpisodeCollector(self._open_receiver())
        return self._collector

    @property
    def stream(self) -> EpisodeStream:
        """This process's stream; opened at the first use."""
        if self._stream is None:
            if self._open_stream is None:
                raise ValueError("IPSS has no stream: give open_stream where episodes are rolled out")
            self._stream = self._open_stream()
        return self._stream

    def collect(
        self,
        tasks: Sequence[RolloutTask],
        *,
        deadline_s: float,
        on_arrival: Callable[[Received, int, int], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Collected:
        """See `EpisodeCollector.collect`."""
        return self.collector.collect(tasks, deadline_s=deadline_s, on_arrival=on_arrival, on_wait=on_wait)

    def on_episode_end(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """See `EpisodeStream.on_episode_end`."""
        self.stream.on_episode_end(episode, images)

    def on_rollout_end(self) -> StreamMetrics:
        """See `EpisodeStream.on_rollout_end`."""
        return self.stream.on_rollout_end()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning: open what this process has, so that a busy port is reported before training starts."""
        if self._open_receiver is not None:
            _ = self.collector
        if self._open_stream is not None:
            _ = self.stream

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning: the run ended, or failed."""
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Lightning: free sockets and images at once; workers get a clear error."""
        self.close()

    def close(self) -> None:
        """Close both ends. Safe to call again."""
        if self._stream is not None:
            self._stream.close()
        if self._collector is not None:
            self._collector.close()
        self._stream = self._collector = None
