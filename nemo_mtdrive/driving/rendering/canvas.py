"""`Canvas`: polygons of the ego frame, clipped to what the pinhole sees, filled with OpenCV; a backdrop; haze."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Array, Camera

Colour = tuple[int, int, int]

SKY_TOP, SKY_LOW, HAZE = (112, 158, 214), (204, 220, 234), (200, 212, 222)
MEADOW_FAR, MEADOW_NEAR = (150, 166, 132), (98, 124, 74)
NEAR_M = 0.5
WIDE = 3.0
"""Half the clipping wedge's width per metre of depth; the view itself is 0.62."""
HAZE_M = 260.0
_SHIFT = 4  # fractional bits of OpenCV's fixed-point vertices


class Canvas:
    """A picture being painted by a camera that looks straight ahead; points are in the ego frame (x forward, z up)."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.focal = float(camera.intrinsics[0, 0])
        self.centre = camera.intrinsics[:2, 2]
        self.position = camera.extrinsics[:3, 3]
        below = max(camera.height - float(self.centre[1]), 1.0)
        self.nearest_ground = float(self.position[0]) + self.focal * float(self.position[2]) / below
        """x of the ground at the lower edge of the picture [m]."""
        self.image = _backdrop(camera.width, camera.height, float(self.centre[1])).copy()

    def picture(self, factor: int) -> NDArray[np.uint8]:
        """The finished picture, averaged down by `factor`."""
        if factor == 1:
            return self.image
        size = (self.camera.width // factor, self.camera.height // factor)
        return np.asarray(cv2.resize(self.image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def distance(self, point: Array) -> float:
        """From the camera to a point [3], metres."""
        return math.dist(point, self.position)

    def sees(self, point: Array, margin: float) -> bool:
        """Whether something of radius `margin` m around a point [>=2] may be in the picture."""
        depth = point[0] - self.position[0]
        return depth > -margin and abs(point[1]) < 0.8 * max(depth, 0.0) + margin + 1.0

    def fill(self, points: Array, colour: Colour) -> None:
        """Fill a polygon [n, 3]."""
        self._fill_seen(self._seen(points), colour)

    def fill_all(self, polygons: list[Array], colours: list[Colour]) -> None:
        """Fill polygons [n, 3] one over the other, each in its colour; one projection for all of them."""
        seen = self._seen(np.concatenate(polygons))
        ends = np.cumsum([len(polygon) for polygon in polygons]).tolist()
        if not _whole(seen):
            for start, end, colour in zip([0, *ends[:-1]], ends, colours, strict=True):
                self._fill_seen(seen[start:end], colour)
            return
        pixels = self._pixels(seen)
        for start, end, colour in zip([0, *ends[:-1]], ends, colours, strict=True):
            cv2.fillPoly(self.image, [pixels[start:end]], colour, cv2.LINE_AA, _SHIFT)

    def fill_tiles(self, tiles: Array, colour: Colour) -> None:
        """Fill quadrilaterals [k, 4, 2] that lie on the ground and do not overlap, all in one colour."""
        if not len(tiles):
            return
        flat = tiles.reshape(-1, 2)
        seen = self._seen(np.column_stack([flat, np.zeros(len(flat))])).reshape(-1, 4, 3)
        depth, side = seen[..., 2], np.abs(seen[..., 0])
        whole = (depth >= NEAR_M).all(1) & (side <= WIDE * depth).all(1)
        if whole.any():
            pixels = self._pixels(seen[whole].reshape(-1, 3)).reshape(-1, 4, 2)
            cv2.fillPoly(self.image, list(pixels), colour, cv2.LINE_AA, _SHIFT)
        for tile in seen[~whole]:
            self._fill_seen(tile, colour)

    def _seen(self, points: Array) -> Array:
        # the same as (points - position) @ rotation for a camera that looks straight ahead, in a third of the time
        seen = np.empty((len(points), 3))
        np.subtract(self.position[1], points[:, 1], out=seen[:, 0])
        np.subtract(self.position[2], points[:, 2], out=seen[:, 1])
        np.subtract(points[:, 0], self.position[0], out=seen[:, 2])
        return seen

    def _pixels(self, seen: Array) -> NDArray[np.int32]:
        scaled = seen[:, :2] * (self.focal / seen[:, 2:3])
        scaled += self.centre
        scaled *= 2**_SHIFT
        return np.rint(scaled).astype(np.int32)

    def _fill_seen(self, seen: Array, colour: Colour) -> None:
        if not _whole(seen):
            seen = _clip(seen)
            if len(seen) < 3:
                return
        cv2.fillPoly(self.image, [self._pixels(seen)], colour, cv2.LINE_AA, _SHIFT)

    def fill_ground(self, points: Array, colour: Colour) -> None:
        """Fill a polygon [n, 2] that lies on the ground."""
        self.fill(np.column_stack([points, np.zeros(len(points))]), colour)

    def disk(self, centre: Array, radius: float, colour: Colour) -> None:
        """Fill a disk that faces the camera: centre [3], radius [m]."""
        depth = float(centre[0] - self.position[0])
        if depth < NEAR_M:
            return
        scale = self.focal / depth * 2**_SHIFT
        across = round(float(self.centre[0]) * 2**_SHIFT - float(centre[1] - self.position[1]) * scale)
        down = round(float(self.centre[1]) * 2**_SHIFT - float(centre[2] - self.position[2]) * scale)
        size = round(radius * scale)
        cv2.circle(self.image, (across, down), max(size, 2**_SHIFT // 2), colour, -1, cv2.LINE_AA, _SHIFT)

    def hazy(self, colour: Colour, distance: float, light: float = 1.0) -> Colour:
        """The colour under `light`, faded by the haze of `distance` m."""
        clear = math.exp(-distance / HAZE_M)
        red, green, blue = (int(min(255.0, c * light) * clear + h * (1.0 - clear))
                            for c, h in zip(colour, HAZE, strict=True))
        return red, green, blue


def _whole(seen: Array) -> bool:
    """Whether all points [n, 3] of the camera frame lie in the clipping wedge."""
    depth = seen[:, 2]
    return bool(depth.min() >= NEAR_M and (np.abs(seen[:, 0]) <= WIDE * depth).all())


def _clip(points: Array) -> Array:
    """Cut a polygon in the camera frame [n, 3] to the wedge z >= NEAR_M, |x| <= WIDE z (Sutherland-Hodgman)."""
    for plane in ((0.0, 1.0, NEAR_M), (1.0, WIDE, 0.0), (-1.0, WIDE, 0.0)):
        if not len(points):
            break
        inside = points[:, 0] * plane[0] + points[:, 2] * plane[1] - plane[2]
        kept = inside >= 0.0
        if kept.all():
            continue
        after, after_inside = np.concatenate([points[1:], points[:1]]), np.concatenate([inside[1:], inside[:1]])
        crosses = kept != (after_inside >= 0.0)
        if not crosses.any():
            return points[:0]
        share = np.where(crosses, inside / np.where(crosses, inside - after_inside, 1.0), 0.0)
        cuts = points + share[:, None] * (after - points)
        # each vertex gives itself if it is inside, then the cut of the edge that follows it
        both = np.stack([points, cuts], axis=1).reshape(-1, 3)
        points = both[np.stack([kept, crosses], axis=1).reshape(-1)]
    return points


@lru_cache(maxsize=8)
def _backdrop(width: int, height: int, horizon: float) -> NDArray[np.uint8]:
    rows = np.arange(height) + 0.5
    up = np.clip((horizon - rows) / max(horizon, 1.0), 0.0, 1.0)[:, None] ** 0.7
    down = np.clip((rows - horizon) / max(height - horizon, 1.0), 0.0, 1.0)[:, None] ** 0.5
    sky = np.array(SKY_LOW) + up * (np.array(SKY_TOP) - np.array(SKY_LOW))
    meadow = np.array(MEADOW_FAR) + down * (np.array(MEADOW_NEAR) - np.array(MEADOW_FAR))
    column = np.where((rows < horizon)[:, None], sky, meadow)
    return np.ascontiguousarray(np.broadcast_to(np.round(column).astype(np.uint8)[:, None], (height, width, 3)))
