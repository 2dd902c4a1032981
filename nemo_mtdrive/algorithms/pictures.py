"""What the phases of a step read of the images: pixels, or visual embeddings that stand for them, once an image.

The rollouts of a scene show one image, and a scene may fill several micro-batches. So images are kept by content, one by
one, and not with the micro-batches: an image is decoded, uploaded and (frozen tower) encoded once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor

from nemo_mtdrive.algorithms.batch import Payload
from nemo_mtdrive.algorithms.policy import MicroBatch
from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer.images import pixel_values
from nemo_mtdrive.types import Episode

Encode = Callable[[Tensor, Tensor], Tensor]
"""(pixel_values of one image, its grid [1, 3]) -> visual embeddings [cells, hidden]."""


class KeyedCache(Protocol):
    """IPTC (`transfer.tensors.TensorCache`), or nothing of it."""

    def get(self, key: tuple[str, str], build: Callable[[], MicroBatch]) -> MicroBatch:
        """The tensors of a key on the device."""

    def drop(self, key: tuple[str, str]) -> None:
        """Forget a key."""


class Pictures:
    """The image inputs of micro-batches.

    Args:
        cache: keeps them until the step ends.
        images: how to get at the images of some episodes, by key; with IPTC off it decodes anew with each call.
        device: where the phases compute.
    """

    def __init__(self, cache: KeyedCache, images: Callable[[Sequence[Episode]], Callable[[str], Payload]],
                 device: torch.device) -> None:
        self._cache = cache
        self._images = images
        self._device = device
        self.encode: Encode | None = None
        """The frozen vision tower, where embeddings are to stand for pixels (`Qwen25VLModel.encode_images`)."""
        self._seen: set[str] = set()

    def of(self, episodes: Sequence[Episode]) -> MicroBatch:
        """pixel_values [N, 1176] or image_features [cells, hidden] of the different images of the episodes, in order of
        first use, and image_ids [n]; nothing where there is no image."""
        grids = {key: grid for e in episodes for key, grid in zip(e.image_keys, e.image_grids, strict=True)}
        if not grids:
            return {}
        self._seen |= grids.keys()
        decoded: list[Callable[[str], Payload]] = []

        def build(key: str) -> MicroBatch:
            if not decoded:
                decoded.append(self._images(episodes))
            return {"": pixel_values([decoded[0](key)], self._device)}

        def pixels(key: str) -> Tensor:
            return self._cache.get(("pixels", key), lambda: build(key))[""]

        def embed(key: str, grid: tuple[int, int, int], encode: Encode) -> MicroBatch:
            rows = pixels(key)
            with span("log_prob"):  # the tower's run is computing, in whichever phase it falls
                features = encode(rows, torch.tensor([grid]))
            self._cache.drop(("pixels", key))
            return {"": features}

        ids = torch.tensor([image_id(key) for key in grids], device=self._device)
        if self.encode is None:
            parts = [pixels(key) for key in grids]
            return {"pixel_values": parts[0] if len(parts) == 1 else torch.cat(parts), "image_ids": ids}
        encode = self.encode
        parts = [self._cache.get(("embeddings", key), partial(embed, key, grid, encode))[""] for key, grid in grids.items()]
        return {"image_features": parts[0] if len(parts) == 1 else torch.cat(parts), "image_ids": ids}

    def prefetch(self, key: str, payload: Payload) -> None:
        """An image has arrived while others are still rolled out: decode and upload it now, in their shadow.

        Embeddings are not computed here: tensor-parallel ranks would have to do so in the same order.
        """
        self._cache.get(("pixels", key), lambda: {"": pixel_values([payload], self._device)})

    def collect(self) -> dict[str, float]:
        """`vision/images`: different images in this rank's micro-batches since the last call."""
        seen, self._seen = self._seen, set()
        return {"vision/images": float(len(seen))}


def image_id(key: str) -> int:
    """An image's key as a number below 2**63."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
