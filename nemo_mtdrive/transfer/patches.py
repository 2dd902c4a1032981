"""The compiled loop that makes pixel rows on a CPU; apart, so that only who uses it imports numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_PATCH, _MERGE = 14, 2


@njit(cache=True, nogil=True)
def write_patches(image: NDArray[np.uint8], table: NDArray[np.float32], rows: NDArray[np.float32]) -> None:
    """Write an image's patches as Qwen2.5-VL orders them: tokens row by row, the 2 x 2 patches of a token, and in a patch
    channel, frame, row, column. Both frames are the image.

    Args:
        image: [H, W, 3], C-contiguous, sides multiples of 28.
        table: [768] the value of byte v in channel c at 256 * c + v.
        rows: [H/14 * W/14, 1176] to be written.
    """
    area = _PATCH * _PATCH
    row = 0
    for token_y in range(image.shape[0] // (_PATCH * _MERGE)):
        for token_x in range(image.shape[1] // (_PATCH * _MERGE)):
            for patch in range(_MERGE * _MERGE):
                top = (token_y * _MERGE + patch // _MERGE) * _PATCH
                left = (token_x * _MERGE + patch % _MERGE) * _PATCH
                for channel in range(3):
                    at = 2 * channel * area
                    for y in range(top, top + _PATCH):
                        for x in range(left, left + _PATCH):
                            value = table[256 * channel + image[y, x, channel]]
                            rows[row, at] = value
                            rows[row, at + area] = value
                            at += 1
                row += 1
