"""The honest baseline that IPSS is measured against (`transfer.ipss=false`): Section 3.4's "naive approach".

As verl's first path: rollout results wait until the entire batch is there, then each rollout's float32 pixel_values are
made and serialised with it, however many rollouts share the image, and the whole goes out as one message. It is kinder
than the original: raw frames instead of pickle, and one dispatch instead of one through a driver.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.curve import CurveKeys
from nemo_mtdrive.transfer.images import patchify
from nemo_mtdrive.transfer.peers import Outbox
from nemo_mtdrive.types import Episode


class BaselineSender:
    """`link.EpisodeSender` that keeps the batch until `flush`. Arguments as `link.open_sender`."""

    def __init__(self, endpoints: Sequence[str], run_id: str, lost_after_s: float, keys: CurveKeys | None = None) -> None:
        self._outbox = Outbox(endpoints, run_id, 1, lost_after_s, keys)
        self._batch: list[tuple[Episode, Mapping[str, NDArray[np.uint8]]]] = []
        self._mutex = threading.Lock()
        patchify([])  # imports torch now: its seconds are no part of the first batch's transfer

    @property
    def wire_bytes(self) -> int:
        """Bytes put on sockets so far, all receivers together."""
        return self._outbox.wire_bytes

    def send(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Keep the episode; nothing is serialised yet."""
        with self._mutex:
            self._batch.append((episode, dict(images)))

    def flush(self, timeout_s: float) -> None:
        """Serialise the whole batch, send it and wait until all receivers have taken it; see `link.EpisodeSender`."""
        with self._mutex:
            batch, self._batch = self._batch, []
        if not batch:
            return
        frames: list[wire.Frame] = []
        counts: list[int] = []
        with span("serialise"):
            for episode, images in batch:
                pixels = {key: patchify([images[key]])[0].numpy() for key in episode.image_keys}
                encoded = wire.encode(episode, pixels)
                counts.append(len(encoded))
                frames += encoded
        self._outbox.post("batch", [counts], frames, {})
        self._outbox.flush(timeout_s)

    def close(self) -> None:
        """See `link.EpisodeSender.close`."""
        self._outbox.close()
