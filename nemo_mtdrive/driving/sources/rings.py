"""Polygons of real maps as the simple rings that a scene file asks for."""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from nemo_mtdrive.driving.scene import Array

_SMALL_M = 0.01


def simple_ring(geometry: BaseGeometry) -> Array:
    """The outline [P, 2] of a polygon; of one that crosses itself or comes in parts, that of its largest whole part.

    What has no area becomes a triangle of a centimetre at its first point, so that its id stays.
    """
    if not geometry.is_valid:
        geometry = shapely.make_valid(geometry)
    parts = [part for part in shapely.get_parts(geometry).tolist() if isinstance(part, shapely.Polygon) and part.area > 0]
    if not parts:
        corner = shapely.get_coordinates(geometry)[0] if not geometry.is_empty else np.zeros(2)
        return corner + _SMALL_M * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    largest = max(parts, key=lambda part: part.area)
    # a scene file keeps micrometres: the outline must be simple after rounding too
    rounded = shapely.Polygon(np.round(np.asarray(largest.exterior.coords)[:, :2], 6))
    if not rounded.is_valid and largest.area > _SMALL_M:
        return simple_ring(rounded)
    return np.asarray((rounded if rounded.is_valid else largest.convex_hull).exterior.coords, dtype=np.float64)[:-1]
