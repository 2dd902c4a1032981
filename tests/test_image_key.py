"""The content name of an image."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nemo_mtdrive.image_key import image_key


def test_the_key_is_blake2b_128_of_shape_and_bytes() -> None:
    image = np.arange(28 * 56 * 3, dtype=np.uint8).reshape(28, 56, 3)
    content = b"".join(side.to_bytes(8, "little") for side in image.shape) + image.tobytes()
    assert image_key(image) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_equal_pixels_have_equal_keys_whatever_the_memory_layout() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    doubled = np.repeat(image, 2, axis=1)
    assert image_key(doubled[:, ::2]) == image_key(np.asfortranarray(image)) == image_key(image)


def test_shape_and_any_pixel_change_the_key() -> None:
    image = np.zeros((28, 56, 3), np.uint8)
    other = image.copy()
    other[27, 55, 2] = 1
    assert len({image_key(image), image_key(other), image_key(image.reshape(56, 28, 3))}) == 3


@pytest.mark.parametrize("wrong", [np.zeros((28, 28, 3), np.float32), np.zeros((28, 28), np.uint8),
                                   np.zeros((28, 28, 4), np.uint8)])
def test_what_is_no_image_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\], got"):
        image_key(wrong)
