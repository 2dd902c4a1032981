"""The map around the ego as flat arrays, and in which of its areas a car stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Ego, SceneMap
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.pdm.rings import Rings, bin_of, inside_bin, make_rings
from nemo_mtdrive.pdm.simulate import X, Y

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

MAP_RADIUS_M = 100.0
"""Map elements that meet a square of this half side around the ego's centre are known to the scorer (as in NAVSIM)."""

ROADBLOCK, LANE, INTERSECTION, CARPARK = range(4)
"""Kinds of a polygon. All but lanes are drivable area; lane connectors are lanes, roadblock connectors are left out."""

_CORNERS, _CENTER, _REAR_AXLE = 0b1111, 1 << 4, 1 << 5
"""Points of a car as bits."""


@dataclass(frozen=True)
class DrivableMap:
    """P polygons near the ego."""

    ids: tuple[str, ...]
    kinds: Indices
    """[P]"""
    polygons: NDArray[np.object_]
    """[P] shapely polygons, for set-up work."""
    rings: Rings
    """The same for compiled code."""


@dataclass(frozen=True)
class EgoAreas:
    """Where the ego's box is, [B, T] each."""

    multiple_lanes: Flags
    """Corners in more than one lane, and no lane holds all four."""
    non_drivable: Flags
    """At least one corner is in no drivable polygon."""
    oncoming: Flags
    """The box centre is in no lane of the route."""
    intersection: Flags
    """The rear axle is in an intersection."""


def ego_center(ego: Ego) -> Array:
    """[2] centre of the ego's box at t = 0."""
    x, y, heading = ego.rear_axle_pose
    return np.array([x, y]) + ego.vehicle.rear_axle_to_center * np.array([np.cos(heading), np.sin(heading)])


def polygon_of(ring: Array) -> shapely.Polygon:
    """A shapely polygon of a ring [n, 2]; an empty one where the ring has fewer than three vertices."""
    return shapely.Polygon(ring) if len(ring) >= 3 else shapely.Polygon()


def square_around(point: Array, half_side: float) -> shapely.Polygon:
    """The axis-aligned square in which map elements are looked up."""
    return shapely.box(point[0] - half_side, point[1] - half_side, point[0] + half_side, point[1] + half_side)


@kernel
def _vertices_in_square(ring: Array, x: float, y: float, half_side: float) -> tuple[bool, bool]:
    """Whether a vertex of a ring [n, 2] is in the square around a point, and whether the ring's bounds miss it."""
    left = right = below = above = True
    for i in range(len(ring)):
        dx, dy = ring[i, 0] - x, ring[i, 1] - y
        if abs(dx) < half_side and abs(dy) < half_side:
            return True, False
        left, right = left and dx < -half_side, right and dx > half_side
        below, above = below and dy < -half_side, above and dy > half_side
    return False, left or right or below or above


def meets_square(ring: Array, point: Array, half_side: float) -> bool:
    """Whether the polygon of a ring [n, 2] and the square around a point share a point; the vertices mostly tell."""
    if len(ring) < 3:
        return False
    inside, apart = _vertices_in_square(np.array(ring), point[0], point[1], half_side)
    return inside or (not apart and bool(polygon_of(ring).intersects(square_around(point, half_side))))


def drivable_map(scene_map: SceneMap, ego: Ego) -> DrivableMap:
    """The polygons near the ego, in NAVSIM's order: roadblocks, their lanes, lane connectors, intersections, car parks.

    Lanes that no roadblock lists, which NAVSIM's maps do not have, come last.
    """
    center = ego_center(ego)
    lanes = {lane.id: lane for lane in scene_map.lanes}
    near = [block for block in scene_map.roadblocks if meets_square(block.polygon, center, MAP_RADIUS_M)]
    blocks = [block for block in near if block.kind == "roadblock"]
    connectors = [block for block in near if block.kind != "roadblock"]
    entries = [(block.id, ROADBLOCK, block.polygon) for block in blocks]
    entries += [(lane_id, LANE, lanes[lane_id].polygon) for block in blocks + connectors for lane_id in block.lane_ids
                if lane_id in lanes]
    for kind, areas in ((INTERSECTION, scene_map.intersections), (CARPARK, scene_map.carparks)):
        entries += [(area.id, kind, area.polygon) for area in areas if meets_square(area.polygon, center, MAP_RADIUS_M)]
    listed = {lane_id for block in scene_map.roadblocks for lane_id in block.lane_ids}
    entries += [(lane.id, LANE, lane.polygon) for lane in scene_map.lanes
                if lane.id not in listed and meets_square(lane.polygon, center, MAP_RADIUS_M)]
    return map_of_rings(entries)


def map_of_rings(entries: Sequence[tuple[str, int, Array]]) -> DrivableMap:
    """The map of (id, kind, ring [n, 2]); rings are closed where they are not, those of fewer than 3 vertices left out."""
    entries = [entry for entry in entries if len(entry[2]) >= 3]
    rings = [ring if np.array_equal(ring[0], ring[-1]) else np.vstack([ring, ring[:1]]) for _, _, ring in entries]
    return DrivableMap(
        ids=tuple(name for name, _, _ in entries),
        kinds=np.array([kind for _, kind, _ in entries], dtype=np.int64),
        polygons=np.array([polygon_of(ring) for _, _, ring in entries], dtype=object),
        rings=make_rings(rings),
    )


@kernel
def _box_bounds(corners: Array, bounds: Array) -> None:
    """Fill bounds [T + 1, 4], min x, min y, max x, max y, of boxes with corners [T, 5, 2]; the last one is of all."""
    bounds[-1, :2], bounds[-1, 2:] = np.inf, -np.inf
    for t in range(len(corners)):
        for k in range(2):
            first, second = corners[t, 0, k], corners[t, 1, k]
            third, fourth = corners[t, 2, k], corners[t, 3, k]
            low, high = min(min(first, second), min(third, fourth)), max(max(first, second), max(third, fourth))
            bounds[t, k], bounds[t, 2 + k] = low, high
            bounds[-1, k], bounds[-1, 2 + k] = min(bounds[-1, k], low), max(bounds[-1, 2 + k], high)


@kernel
def _points_inside(
    rings: Rings, p: int, states: Array, corners: Array, bounds: Array, inside: NDArray[np.uint8]
) -> None:
    """Fill inside [T] with which points of a car lie in polygon p, one bit each: corners, centre, rear axle."""
    low_x, low_y, high_x, high_y = rings.bounds[p, 0], rings.bounds[p, 1], rings.bounds[p, 2], rings.bounds[p, 3]
    upright, per_metre, first_bin = rings.upright[p], rings.per_metre[p], rings.first_bin[p]
    bins, low = rings.first_bin[p + 1] - first_bin, low_y if upright else low_x
    edges, first_edge, clear = rings.edges, rings.first_edge, rings.clear
    for t in range(len(states)):
        inside[t] = 0
        if low_x > bounds[t, 2] or high_x < bounds[t, 0] or low_y > bounds[t, 3] or high_y < bounds[t, 1]:
            continue
        found = 0
        for i in range(6):
            x, y = (corners[t, i, 0], corners[t, i, 1]) if i < 5 else (states[t, X], states[t, Y])
            if low_x < x < high_x and low_y < y < high_y:
                across, along = (x, y) if upright else (y, x)
                k = first_bin + bin_of(along, low, per_metre, bins)
                if clear[k, 1] < across < clear[k, 2] or (clear[k, 0] <= across <= clear[k, 3]
                      and inside_bin(edges, first_edge[k], first_edge[k + 1], across, along)):
                    found |= 1 << i
        inside[t] = found


@kernel
def classify(rings: Rings, kinds: Indices, on_route: Flags, states: Array, corners: Array, areas: Flags) -> None:
    """Where one car is: fill areas [4, T] in the order of `EgoAreas`.

    Args:
        rings: the map's P polygons.
        kinds: [P]
        on_route: [P] lanes of the route.
        states: [T, 11]
        corners: [T, 5, 2] its boxes with their centres.
        areas: [4, T] what is filled.
    """
    steps = len(states)
    bounds, inside = np.empty((steps + 1, 4)), np.empty(steps, dtype=np.uint8)
    covered, lanes_touched = np.zeros(steps, dtype=np.uint8), np.zeros(steps, dtype=np.uint8)
    in_one_lane = np.zeros(steps, dtype=np.bool_)
    _box_bounds(corners, bounds)
    areas[2], areas[3] = True, False
    for p in range(len(kinds)):
        if (rings.bounds[p, 0] > bounds[-1, 2] or rings.bounds[p, 2] < bounds[-1, 0]
                or rings.bounds[p, 1] > bounds[-1, 3] or rings.bounds[p, 3] < bounds[-1, 1]):
            continue
        _points_inside(rings, p, states, corners, bounds, inside)
        for t in range(steps):
            in_box = inside[t] & _CORNERS
            if kinds[p] == LANE:
                lanes_touched[t] += in_box != 0
                in_one_lane[t] |= in_box == _CORNERS
                areas[2, t] &= not (on_route[p] and inside[t] & _CENTER)
            else:
                covered[t] |= in_box
                areas[3, t] |= kinds[p] == INTERSECTION and inside[t] & _REAR_AXLE != 0
    for t in range(steps):
        areas[0, t] = lanes_touched[t] > 1 and not in_one_lane[t]
        areas[1, t] = covered[t] != _CORNERS
