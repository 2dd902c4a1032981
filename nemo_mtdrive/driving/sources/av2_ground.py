"""The ground height of an Argoverse 2 log, and the piece of it that a scene keeps.

A scene's `extra["ground"]` is a coarse grid of the map frame for the camera: `{"origin": [x, y], "step": metres,
"heights": rows}`; `heights[i][j]` [m] is the ground at x = origin[0] + j * step, y = origin[1] + i * step. Heights count
from the source's own zero; a camera takes them relative to the ground under the ego.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from nemo_mtdrive.driving.scene import Array, SceneError

STEP_M, HALF_M = 4.0, 80.0


@dataclass(frozen=True)
class Ground:
    """A raster of heights [rows, columns] m without holes; a city point p lies at pixel `scale * (rotation p + offset)`."""

    heights: Array
    rotation: Array
    offset: Array
    scale: float

    def at(self, points: Array) -> Array:
        """Heights [n] under city points [n, 2]; beyond the raster its edge's."""
        pixels = np.rint(self.scale * (points @ self.rotation.T + self.offset)).astype(int)
        columns = np.clip(pixels[:, 0], 0, self.heights.shape[1] - 1)
        rows = np.clip(pixels[:, 1], 0, self.heights.shape[0] - 1)
        found: Array = self.heights[rows, columns]
        return found

    def around(self, place: Array) -> dict[str, Any]:
        """The grid for a scene whose ego is at `place` [2]; see the module's docstring."""
        count = 2 * round(HALF_M / STEP_M) + 1
        origin = STEP_M * np.round(place / STEP_M) - HALF_M
        x, y = np.meshgrid(origin[0] + STEP_M * np.arange(count), origin[1] + STEP_M * np.arange(count))
        heights = self.at(np.column_stack([x.ravel(), y.ravel()])).reshape(count, count)
        return {"origin": origin.tolist(), "step": STEP_M, "heights": np.round(heights, 2).tolist()}


def read_ground(folder: Path) -> Ground | None:
    """The ground of a log's map folder; None where it has none.

    Raises:
        SceneError: the raster is there, but not what says where it lies, or it holds no height.
    """
    rasters = sorted(folder.glob("*_ground_height_surface____*.npy"))
    if not rasters:
        return None
    places = sorted(folder.glob("*___img_Sim2_city.json"))
    if not places:
        raise SceneError(f"{folder}: {rasters[0].name} without *___img_Sim2_city.json; is the log whole?")
    try:
        heights = np.load(rasters[0], allow_pickle=False).astype(np.float64)
        place = json.loads(places[0].read_text())
        rotation = np.asarray(place["R"], dtype=np.float64).reshape(2, 2)
        offset = np.asarray(place["t"], dtype=np.float64).reshape(2)
        scale = float(place["s"])
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{folder}: its ground height cannot be read: {error}") from error
    known = np.isfinite(heights)
    if heights.ndim != 2 or not known.any():
        raise SceneError(f"{rasters[0]}: no ground height in it")
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return Ground(heights[tuple(nearest)], rotation, offset, scale)
