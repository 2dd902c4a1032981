"""Episodes over a socket, images through shared memory: one copy a node, mapped by every process that needs it.

A receiver on another node does not find the key in its node's store, and asks for the pixels as with `zmq`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.transfer.curve import CurveKeys
from nemo_mtdrive.transfer.images import ImageStore
from nemo_mtdrive.transfer.segments import RunFolder
from nemo_mtdrive.transfer.zmq import ZmqSender


class ShmSender(ZmqSender):
    """`link.EpisodeSender` with images in shared memory. Arguments as `link.open_sender`."""

    def __init__(
        self, endpoints: Sequence[str], run_id: str, in_flight: int, lost_after_s: float, root: Path, budget_bytes: int,
        keys: CurveKeys | None = None,
    ) -> None:
        self._folder = RunFolder(root, run_id)
        self._store = ImageStore(self._folder, budget_bytes)
        super().__init__(endpoints, run_id, in_flight, lost_after_s, keys)

    def close(self) -> None:
        """See `link.EpisodeSender.close`."""
        super().close()
        self._store.close()
        self._folder.close()

    def _hold(self, images: Mapping[str, NDArray[np.uint8]]) -> Mapping[str, NDArray[np.uint8]]:
        """Views of shared memory: they keep the images from eviction until all receivers have mapped them."""
        return {key: self._store.share(key, image) for key, image in images.items()}
