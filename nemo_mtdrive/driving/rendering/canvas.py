"""`Canvas`: polygons of the ego frame, clipped to what the pinhole sees and filled with OpenCV; lamps that glow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.atmosphere import Atmosphere
from nemo_mtdrive.driving.rendering.backdrop import UNIT, Backdrop, Pinhole, backdrop
from nemo_mtdrive.driving.rendering.projection import NEAR_M, SHIFT, WIDE, project_disks, project_faces
from nemo_mtdrive.driving.rendering.terrain import Terrain
from nemo_mtdrive.driving.scene import Array, Camera

Colour = tuple[int, int, int]

_UNIT = 1 << SHIFT


class Canvas:
    """A picture being painted by an upright camera; points are in the ego frame (x forward, y left, z up)."""

    def __init__(self, camera: Camera, air: Atmosphere, terrain: Terrain, heading: float, ground: Colour,
                 seed: int) -> None:
        self.camera, self.air, self.terrain = camera, air, terrain
        self.sun = air.sun_direction(heading)
        """Unit vector towards the sun in the ego frame, which is turned by `heading` against the map."""
        self.focal = float(camera.intrinsics[0, 0])
        self.centre = camera.intrinsics[:2, 2]
        self.position = np.ascontiguousarray(camera.extrinsics[:3, 3])
        self.rotation = np.ascontiguousarray(camera.extrinsics[:3, :3])
        self._pinhole = np.array([self.focal, *self.centre, camera.width, camera.height])
        self.axis = self.rotation[:, 2]
        """The viewing direction in the ego frame."""
        yaw = math.atan2(self.axis[1], self.axis[0])
        pinhole = Pinhole(camera.width, camera.height, self.focal, (float(self.centre[0]), float(self.centre[1])),
                          float(self.position[2]), yaw)
        self._backdrop: Backdrop = backdrop(pinhole, air)
        self._light = self._backdrop.light.copy()
        below = max(camera.height - float(self.centre[1]), 1.0)
        self.nearest_ground = self.focal * float(self.position[2]) / below
        """Depth of the ground at the lower edge of the picture [m]."""
        self._reach = 1.12 * camera.width / 2 / self.focal
        self.image = self._open(ground, seed + round(yaw * self.focal))

    def _open(self, ground: Colour, roll: int) -> NDArray[np.uint8]:
        image = np.empty((self.camera.height, self.camera.width, 3), dtype=np.uint8)
        sky, horizon = self._backdrop.sky, self._backdrop.horizon
        cut = roll % self.camera.width
        image[:horizon, : self.camera.width - cut] = sky[:, cut:]
        image[:horizon, self.camera.width - cut :] = sky[:, :cut]
        # far faster than an assignment, which would go through the three channels one by one
        cv2.rectangle(image, (0, horizon), (self.camera.width, self.camera.height), ground, -1)
        return image

    def shade_ground(self, outlines: list[Array], share: float) -> None:
        """Take light from ground polygons [n, 2]: `share` 0..1 of it is left (before `light_ground`)."""
        daylight = np.add(self.air.ambient, np.multiply(self.air.sun, 0.5))
        for outline in outlines:
            x, y = outline[0].tolist()
            self._fill_light(self._light, outline, share * (daylight + self.air.beam(x, y)))

    def brighten_ground(self, outlines: list[Array], levels: list[float], colour: Colour) -> None:
        """Light ground polygons [n, 2] by lamps of a colour, one over the other; what is brighter stays as it is."""
        if outlines:
            layer = np.zeros_like(self._light)
            for outline, level in zip(outlines, levels, strict=True):
                self._fill_light(layer, outline, np.add(self.air.ambient, level * np.array(colour) / 255.0))
            cv2.max(self._light, layer, dst=self._light)

    def _fill_light(self, layer: NDArray[np.uint8], outline: Array, strength: Array) -> None:
        pixels, found = project_faces(self.terrain.lifted(outline), _FIRST, np.array([len(outline)]), self.position,
                                      self.rotation, self._pinhole)
        if found[0]:
            clear = math.exp(-math.dist(outline[0], self.position[:2]) / self.air.haze_m)
            pixels[:, 1] -= self._backdrop.horizon << SHIFT
            red, green, blue = np.minimum(UNIT * clear * strength, 255.0).astype(int).tolist()
            cv2.fillPoly(layer, [pixels], (red, green, blue), cv2.LINE_AA, SHIFT)

    def light_ground(self) -> None:
        """Turn the flat colours below the horizon into lit, grained, hazy ground."""
        ground = self.image[self._backdrop.horizon :]
        cv2.multiply(ground, self._light, dst=ground, scale=1.0 / UNIT)
        cv2.add(ground, self._backdrop.veil, dst=ground)

    def picture(self, factor: int) -> NDArray[np.uint8]:
        """The finished picture, averaged down by `factor`."""
        if factor == 1:
            return self.image
        size = (self.camera.width // factor, self.camera.height // factor)
        return np.asarray(cv2.resize(self.image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def distance(self, point: Array) -> float:
        """From the camera to a point [3], metres."""
        return math.dist(point, self.position)

    def depth(self, point: Array) -> float:
        """Along the viewing direction to a point [>=2], metres."""
        return float((point[0] - self.position[0]) * self.axis[0] + (point[1] - self.position[1]) * self.axis[1])

    def sees(self, point: Array, radius: float) -> bool:
        """Whether something of `radius` m around a point [>=2] may be in the picture."""
        depth = self.depth(point)
        aside = abs((point[0] - self.position[0]) * self.axis[1] - (point[1] - self.position[1]) * self.axis[0])
        return depth > -radius and aside < self._reach * max(depth, 0.0) + 1.3 * radius

    def pixels_per_metre(self, point: Array) -> float:
        """How large a metre is at a point [>=2] [px]."""
        return self.focal / max(self.depth(point), NEAR_M)

    # --- filling --------------------------------------------------------------------------------------------------

    def paint(self, vertices: Array, counts: NDArray[np.int64], colours: Sequence[Colour]) -> None:
        """Fill polygons one over the other: vertices [sum of counts, 3], a colour each; one projection for all."""
        self.paint_faces(vertices, np.cumsum(counts) - counts, counts, colours)

    def paint_faces(self, vertices: Array, starts: NDArray[np.int64], counts: NDArray[np.int64],
                    colours: Sequence[Colour]) -> None:
        """Fill polygons one over the other: face k has the corners vertices[starts[k] : starts[k] + counts[k]]."""
        pixels, found = project_faces(vertices, starts, counts, self.position, self.rotation, self._pinhole)
        start = 0
        for count, colour in zip(found.tolist(), colours, strict=True):
            if count:
                cv2.fillPoly(self.image, [pixels[start : start + count]], colour, cv2.LINE_AA, SHIFT)
                start += count

    def fill(self, points: Array, colour: Colour) -> None:
        """Fill a polygon [n, 3]."""
        pixels, found = project_faces(points, _FIRST, np.array([len(points)]), self.position, self.rotation, self._pinhole)
        if found[0]:
            cv2.fillPoly(self.image, [pixels], colour, cv2.LINE_AA, SHIFT)

    def fill_ground(self, points: Array, colour: Colour) -> None:
        """Fill a polygon [n, 2] that lies on the ground."""
        self.fill(self.terrain.lifted(points), colour)

    def fill_tiles(self, tiles: Array, colour: Colour) -> None:
        """Fill quadrilaterals [k, 4, 2] on the ground or [k, 4, 3], all in one colour."""
        if not len(tiles):
            return
        corners = tiles.reshape(-1, tiles.shape[2])
        if tiles.shape[2] == 2:
            corners = self.terrain.lifted(corners)
        self.paint_faces(corners, np.arange(0, len(corners), 4), np.full(len(tiles), 4), [colour] * len(tiles))

    def disks(self, centres: Array, radii: Array, colours: Sequence[Colour]) -> None:
        """Fill disks that face the camera, one over the other: centres [n, 3], radii [n] m."""
        circles = project_disks(centres, radii, self.position, self.rotation, self._pinhole).tolist()
        for (across, down, size), colour in zip(circles, colours, strict=True):
            if size:
                cv2.circle(self.image, (across, down), size, colour, -1, cv2.LINE_AA, SHIFT)

    def capsules(self, ends: Array, radii: Array, colours: list[Colour]) -> None:
        """Fill rounded limbs: ends [n, 2, 3], radii [n, 2] m at either end, one over the other."""
        seen = self._seen(ends.reshape(-1, 3))
        if seen[:, 2].min() < NEAR_M or (np.abs(seen[:, :2]) > WIDE * seen[:, 2:]).any():
            return
        scale = self.focal / seen[:, 2]
        middles = (seen[:, :2] * scale[:, None] + self.centre).reshape(-1, 2, 2)
        widths = np.maximum(radii * scale.reshape(-1, 2), 0.4)
        along = middles[:, 1] - middles[:, 0]
        along /= np.maximum(np.sqrt((along**2).sum(1, keepdims=True)), 1e-6)
        side = np.column_stack([-along[:, 1], along[:, 0]])[:, None] * widths[..., None]
        quads = np.stack([middles[:, 0] + side[:, 0], middles[:, 1] + side[:, 1], middles[:, 1] - side[:, 1],
                          middles[:, 0] - side[:, 0]], axis=1)
        fixed = np.rint(quads * _UNIT).astype(np.int32)
        round_ends = np.rint(middles * _UNIT).astype(int).tolist()
        sizes = np.rint(widths * _UNIT).astype(int).tolist()
        for quad, pair, size, colour in zip(fixed, round_ends, sizes, colours, strict=True):
            cv2.fillPoly(self.image, [quad], colour, cv2.LINE_AA, SHIFT)
            for middle, radius in zip(pair, size, strict=True):
                if radius > _UNIT:
                    cv2.circle(self.image, middle, radius, colour, -1, cv2.LINE_AA, SHIFT)

    def glow(self, point: Array, radius: float, colour: Colour, strength: float) -> None:
        """Add light around a lamp [3]: `radius` m wide, `strength` 0..1 of its colour in the middle."""
        x, y, depth = self._seen(point[None])[0].tolist()
        if depth < NEAR_M or abs(x) > WIDE * depth or abs(y) > WIDE * depth:
            return
        scale = self.focal / depth
        size = min(max(2, round(radius * scale)), self.camera.width // 5)
        left, top = round(x * scale + self.centre[0]) - size, round(y * scale + self.centre[1]) - size
        image = self.image[max(top, 0) : max(top + 2 * size + 1, 0), max(left, 0) : max(left + 2 * size + 1, 0)]
        if image.size == 0:
            return
        spot = _spot(size)[max(-top, 0) :, max(-left, 0) :][: image.shape[0], : image.shape[1], None]
        light = (spot * (np.array(colour, dtype=np.float32) * np.float32(strength))).astype(np.uint8)
        cv2.add(image, light, dst=image)

    # --- projection -----------------------------------------------------------------------------------------------

    def _seen(self, points: Array) -> Array:
        seen: Array = (points - self.position) @ self.rotation
        return seen


_FIRST = np.zeros(1, dtype=np.int64)


def raised(point: Array, up: float) -> Array:
    """A point [3], `up` m higher."""
    return np.array([point[0], point[1], point[2] + up])


@lru_cache(maxsize=256)
def _spot(size: int) -> NDArray[np.float32]:
    """A round light that fades to nothing at its rim, [2 size + 1] squared, 1 in the middle."""
    across = np.arange(-size, size + 1) / (size + 0.5)
    far = np.minimum(np.sqrt(across[:, None] ** 2 + across[None] ** 2), 1.0)
    spot: NDArray[np.float32] = ((1.0 - far) ** 2).astype(np.float32)
    return spot
