"""Rain: streaks before the camera, and lamps mirrored in the wet road."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.canvas import Canvas


def paint_rain(canvas: Canvas, seed: int) -> None:
    """Falling drops over the whole picture, other ones for another seed."""
    image = canvas.image
    streaks = _streaks(image.shape[0], image.shape[1])
    cut = seed % image.shape[1]
    for target, source in ((image[:, : image.shape[1] - cut], streaks[:, cut:]),
                           (image[:, image.shape[1] - cut :], streaks[:, :cut])):
        if target.size:
            cv2.add(target, source, dst=target)


@lru_cache(maxsize=8)
def _streaks(height: int, width: int) -> NDArray[np.uint8]:
    draws = np.random.default_rng(21)
    layer = np.zeros((height, width, 3), dtype=np.uint8)
    for _ in range(260):
        x, y = draws.uniform(0.0, width), draws.uniform(-0.1, 1.0) * height
        long = draws.uniform(0.02, 0.06) * height
        start = (round(x * 16), round(y * 16))
        end = (round((x - 0.16 * long) * 16), round((y + long) * 16))
        level = int(draws.integers(22, 60))
        cv2.line(layer, start, end, (level, level, level), max(1, round(width / 1400)), cv2.LINE_AA, 4)
    return layer
