"""The ground's height: flat unless the scene brings a grid of heights (`extra["ground"]`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np

from nemo_mtdrive.driving.scene import Array, Scene

STEEPEST = 0.07
PLANE_M = 6.0
"""The ego's ground plane leans as the ground does over this length before and behind it."""


class Terrain:
    """Heights in the ego frame, whose plane z = 0 lies on the ground under the ego and leans with it."""

    def __init__(self, scene: Scene) -> None:
        self._pose = scene.ego.rear_axle_pose
        ground = scene.extra.get("ground")
        self.flat = not isinstance(ground, Mapping)
        self._plane = np.zeros(3)
        if isinstance(ground, Mapping):
            self._corner = np.asarray(ground["origin"], dtype=np.float64)
            self._step = float(ground["step"])
            # surveys have holes and roofs in them: a median over neighbours takes out what is no ground
            self._grid = cv2.medianBlur(np.asarray(ground["heights"], dtype=np.float32), 5).astype(np.float64)
            self._plane = self._fit()

    def heights(self, points: Array) -> Array:
        """z [n] of ground points [n, >=2] of the ego frame."""
        if self.flat:
            return np.zeros(len(points))
        over = self._heights(points) - self._plane[0] - points[:, 0] * self._plane[1] - points[:, 1] * self._plane[2]
        # no street leaves the plane under the ego faster than this
        most = STEEPEST * np.sqrt((points[:, :2] ** 2).sum(1))
        heights: Array = np.clip(over, -most, most)
        return heights

    def lifted(self, points: Array) -> Array:
        """Ground points [n, 2] of the ego frame with their heights, [n, 3]."""
        placed = np.zeros((len(points), 3))
        placed[:, :2] = points
        if not self.flat:
            placed[:, 2] = self.heights(points)
        return placed

    def _fit(self) -> Array:
        along = np.array([[-PLANE_M, 0.0], [PLANE_M, 0.0], [0.0, -1.5], [0.0, 1.5], [0.0, 0.0]])
        rear, front, right, left, here = self._heights(along).tolist()
        return np.array([here, (front - rear) / (2 * PLANE_M), (left - right) / 3.0])

    def _heights(self, points: Array) -> Array:
        """Bilinear over the grid of the map frame; outside it the nearest cell's."""
        cos, sin = math.cos(self._pose[2]), math.sin(self._pose[2])
        x = self._pose[0] + cos * points[:, 0] - sin * points[:, 1]
        y = self._pose[1] + sin * points[:, 0] + cos * points[:, 1]
        rows, columns = self._grid.shape
        u = np.clip((x - self._corner[0]) / self._step, 0.0, columns - 1.001)
        v = np.clip((y - self._corner[1]) / self._step, 0.0, rows - 1.001)
        i, j = v.astype(int), u.astype(int)
        across, up = u - j, v - i
        grid = self._grid
        low = grid[i, j] * (1 - across) + grid[i, j + 1] * across
        high = grid[i + 1, j] * (1 - across) + grid[i + 1, j + 1] * across
        heights: Array = low * (1 - up) + high * up
        return heights
