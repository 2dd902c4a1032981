"""From a camera's picture to the image the model sees, and the content name it has everywhere.

Equal pictures under equal settings have equal keys, on every machine and in every process: observations, episodes, the image
store and both wires name images by it, so an image is resized, sent and kept once however many of the G rollouts and N turns
refer to it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_ASPECT = 200


@dataclass(frozen=True)
class ImageSettings:
    """What Qwen2.5-VL's image processor does before it normalises; the values of its preprocessor_config.json."""

    min_pixels: int = 28 * 28
    """Smaller images are enlarged. The released checkpoints say 56 * 56; no camera is that small, models of tests are."""
    max_pixels: int = 12_845_056
    """Larger images are reduced; as in the released checkpoints."""
    side: int = 28
    """Height and width become multiples of it: patch size x merge size [pixels]."""

    @classmethod
    def of(cls, preprocessor: Mapping[str, Any]) -> ImageSettings:
        """The settings in a model directory's preprocessor_config.json.

        Raises:
            ValueError: a processor that resizes otherwise, with what it says.
        """
        size = preprocessor.get("size") or {}
        least = preprocessor.get("min_pixels") or size.get("shortest_edge") or cls.min_pixels
        most = preprocessor.get("max_pixels") or size.get("longest_edge") or cls.max_pixels
        wanted = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "temporal_patch_size": 2}
        for name, value in wanted.items():
            if preprocessor.get(name, value) != value:
                raise ValueError(f"preprocessor_config.json: {name}={preprocessor[name]}, only {value} is built")
        return cls(int(least), int(most), int(preprocessor.get("patch_size", 14)) * int(preprocessor.get("merge_size", 2)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing: multiples of `side`, the aspect kept nearly, pixels within the bounds.

        Raises:
            ValueError: a side is shorter than `side`, or the image is over 200 times longer than wide.
        """
        short, long = min(height, width), max(height, width)
        if short < self.side or long > _MAX_ASPECT * short:
            wanted = f"sides must be {self.side} or more, and within 1:{_MAX_ASPECT}"
            raise ValueError(f"an image of {width} x {height}: {wanted}")
        rows, columns = (round(length / self.side) * self.side for length in (height, width))
        if rows * columns > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            rows, columns = (math.floor(length / scale / self.side) * self.side for length in (height, width))
        elif rows * columns < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(length * scale / self.side) * self.side for length in (height, width))
        return rows, columns


DEFAULT_SETTINGS = ImageSettings()


def image_key(source: NDArray[np.uint8], settings: ImageSettings = DEFAULT_SETTINGS) -> str:
    """Name an image by its content: 32 hex digits, BLAKE2b-128 over the settings, the source's shape and its bytes.

    The shape is hashed as well, because a 28 x 56 and a 56 x 28 image may have the same bytes; the settings, because they
    decide what the model sees of it.

    Args:
        source: uint8 RGB [H, W, 3] as the camera gave it.
        settings: of the processor.

    Raises:
        ValueError: the array is not uint8 [H, W, 3].
    """
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        raise ValueError(f"an image is uint8 [H, W, 3], got {source.dtype} {list(source.shape)}")
    head = np.array([*source.shape, settings.min_pixels, settings.max_pixels, settings.side], dtype="<i8")
    digest = hashlib.blake2b(head.tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(source).data)
    return digest.hexdigest()


def resized(source: NDArray[np.uint8], settings: ImageSettings = DEFAULT_SETTINGS) -> NDArray[np.uint8]:
    """The uint8 image [H', W', 3] that HF's Qwen2VLImageProcessor normalises: Pillow's bicubic, and nothing where it fits.

    Raises:
        ValueError: see `ImageSettings.size`.
    """
    height, width = settings.size(*source.shape[:2])
    if source.shape[:2] == (height, width):
        return source
    from PIL import Image

    return np.array(Image.fromarray(source).resize((width, height), resample=Image.Resampling.BICUBIC))
