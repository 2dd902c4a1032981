"""The content name of an image: equal pixels have equal keys, on every machine and in every process.

Observations, episodes, the image store and both wires name images by this key, so an image is sent and kept once
however many of the G rollouts and N turns refer to it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def image_key(image: NDArray[np.uint8]) -> str:
    """Name an image by its content: 32 hex digits, BLAKE2b-128 over the shape and the bytes.

    The shape is hashed as well, because a 28 x 56 and a 56 x 28 image may have the same bytes.

    Args:
        image: uint8 RGB [H, W, 3].

    Raises:
        ValueError: the array is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    digest = hashlib.blake2b(np.array(image.shape, dtype="<i8").tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
