"""The content name of an image, and its size for the model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nemo_mtdrive.image_key import ImageSettings, image_key, resized
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators


def test_the_key_is_blake2b_128_of_shape_settings_and_bytes() -> None:
    image = np.arange(28 * 56 * 3, dtype=np.uint8).reshape(28, 56, 3)
    head = (28, 56, 3, 28 * 28, 12_845_056, 28)
    content = b"".join(value.to_bytes(8, "little") for value in head) + image.tobytes()
    assert image_key(image) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_other_settings_make_another_key() -> None:
    image = np.zeros((28, 56, 3), np.uint8)
    settings = [ImageSettings(), ImageSettings(min_pixels=56 * 56), ImageSettings(max_pixels=10**6), ImageSettings(side=32)]
    assert len({image_key(image, each) for each in settings}) == 4


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


def test_sizes_are_those_of_the_image_processor() -> None:
    declare_torchvision_operators()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    for settings in (ImageSettings(), ImageSettings(56 * 56, 1_003_520), ImageSettings(4 * 28 * 28, 16 * 28 * 28)):
        for height, width in [(1080, 1920), (28, 5600), (42, 70), *rng.integers(28, 3000, (200, 2)).tolist()]:
            if max(height, width) <= 200 * min(height, width):
                expected = smart_resize(height, width, 28, settings.min_pixels, settings.max_pixels)
                assert settings.size(height, width) == expected, (height, width, settings)


def test_an_image_that_fits_is_not_touched() -> None:
    image = np.zeros((56, 84, 3), np.uint8)
    assert resized(image) is image


@pytest.mark.parametrize("height, width", [(27, 56), (28, 28 * 201)])
def test_images_that_no_processor_takes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"an image of {width} x {height}: sides must be 28 or more, and within 1:200"):
        resized(np.zeros((height, width, 3), np.uint8))


def test_settings_come_from_the_preprocessor_config() -> None:
    assert ImageSettings.of({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}) == (
        ImageSettings(min_pixels=3136))
    assert ImageSettings.of({"size": {"shortest_edge": 784, "longest_edge": 10**6}}) == ImageSettings(784, 10**6)
    with pytest.raises(ValueError, match="resample=2, only 3 is built"):
        ImageSettings.of({"resample": 2})
