"""`Land`: how far every place around the ego is from the road, and where scenery may stand."""

from __future__ import annotations

import zlib
from functools import cached_property

import cv2
import numpy as np

from nemo_mtdrive.driving.scene import Array, Scene

CELL_M = 0.5
SIDE_M = 240.0
STYLES = ("city", "suburb", "country")
_CELLS = int(SIDE_M / CELL_M)


class Land:
    """A grid of the map frame around the ego. Its cells are multiples of `CELL_M`, so that a place keeps its clearance
    while the ego drives by, and scenery does not come and go.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._corner = (np.floor(scene.ego.rear_axle_pose[:2] / CELL_M) - _CELLS / 2) * CELL_M
        free = np.full((_CELLS, _CELLS), 255, dtype=np.uint8)
        scene_map = scene.map
        rings = [block.polygon for block in scene_map.roadblocks if block.kind == "roadblock"]
        rings += [area.polygon for area in scene_map.intersections + scene_map.carparks]
        for ring in rings:
            cells = (ring - self._corner) / CELL_M
            if (cells.max(0) > 0).all() and (cells.min(0) < _CELLS).all():
                cv2.fillPoly(free, [np.rint(cells * 16).astype(np.int32)], 0, cv2.LINE_8, 4)
        self._clear = cv2.distanceTransform(free, cv2.DIST_L2, 3) * CELL_M
        self._taken = np.zeros((_CELLS, _CELLS), dtype=np.uint8)

    def clearance(self, places: Array) -> Array:
        """Metres from places [n, 2] of the map frame to the nearest road (0 on it; 0 outside the grid)."""
        cells = np.floor((places - self._corner) / CELL_M).astype(int)
        inside = ((cells >= 0) & (cells < _CELLS)).all(1)
        found = np.zeros(len(places))
        found[inside] = self._clear[cells[inside, 1], cells[inside, 0]]
        return found

    def take(self, outline: Array, points: Array, clearance: float) -> bool:
        """Whether something with this outline [n, 2] may stand: all `points` [m, 2] are `clearance` m off the road and
        free of what was taken before; if so, it is taken now.
        """
        if self.clearance(points).min() < clearance:
            return False
        cells = np.floor((points - self._corner) / CELL_M).astype(int)
        if self._taken[cells[:, 1], cells[:, 0]].any():
            return False
        cv2.fillPoly(self._taken, [np.rint((outline - self._corner) / CELL_M).astype(np.int32)], 1)
        return True

    @cached_property
    def islands(self) -> list[tuple[Array, float]]:
        """Round islands that roads run around: middle [2] in the map frame and the radius of what is free [m]."""
        count, _, stats, middles = cv2.connectedComponentsWithStats((self._clear[::2, ::2] > 0.0).astype(np.uint8))
        found = []
        for label in range(1, count):
            left, top, width, height, area = stats[label].tolist()
            touches = left == 0 or top == 0 or left + width >= _CELLS // 2 or top + height >= _CELLS // 2
            middle = self._corner + 2.0 * CELL_M * (middles[label] + 0.5)
            radius = float(self.clearance(middle[None])[0])
            # round, and not the strip between two roads
            if not touches and radius > 3.5 and area * (2.0 * CELL_M) ** 2 < 6.0 * radius**2:
                found.append((middle, radius))
        return found

    @cached_property
    def style(self) -> str:
        """city, suburb or country: the map decides, so all scenes of a log look alike."""
        lanes = self._scene.map.lanes
        if not lanes:
            return "country"
        limit = lanes[0].speed_limit_mps
        seed = zlib.crc32(f"{lanes[0].id} {lanes[0].centerline[0, 0]:.1f} {len(lanes)}".encode()) % 100
        # slow roads are town roads more often
        town = 55 if limit is None or limit < 12.0 else 35
        return STYLES[0] if seed < town else STYLES[1] if seed < town + 30 else STYLES[2]
