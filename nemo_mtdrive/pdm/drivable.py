"""The map around the ego as flat arrays, and in which of its areas a car stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Ego, SceneMap, Vehicle
from nemo_mtdrive.pdm.geometry import ego_corners, inside_ring
from nemo_mtdrive.pdm.simulate import HEADING, X, Y

Array = NDArray[np.float64]

MAP_RADIUS_M = 100.0
"""Map elements that meet a square of this half side around the ego's centre are known to the scorer (as in NAVSIM)."""

ROADBLOCK, LANE, INTERSECTION, CARPARK = range(4)
"""Kinds of a polygon. All but lanes are drivable area; lane connectors are lanes, roadblock connectors are left out."""


@dataclass(frozen=True)
class DrivableMap:
    """P polygons near the ego: rings one after another in `vertices`, ring p at [starts[p], starts[p + 1])."""

    ids: tuple[str, ...]
    kinds: NDArray[np.int64]
    """[P]"""
    polygons: NDArray[np.object_]
    """[P] shapely polygons, for set-up work."""
    vertices: Array
    """[V, 2] closed rings."""
    starts: NDArray[np.int64]
    """[P + 1]"""
    bounds: Array
    """[P, 4] min x, min y, max x, max y."""


@dataclass(frozen=True)
class EgoAreas:
    """Where the ego's box is, [B, T] each."""

    multiple_lanes: NDArray[np.bool_]
    """Corners in more than one lane, and no lane holds all four."""
    non_drivable: NDArray[np.bool_]
    """At least one corner is in no drivable polygon."""
    oncoming: NDArray[np.bool_]
    """The box centre is in no lane of the route."""
    intersection: NDArray[np.bool_]
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


def drivable_map(scene_map: SceneMap, ego: Ego) -> DrivableMap:
    """The polygons near the ego, in NAVSIM's order: roadblocks, their lanes, lane connectors, intersections, car parks.

    Lanes that no roadblock lists, which NAVSIM's maps do not have, come last.
    """
    square = square_around(ego_center(ego), MAP_RADIUS_M)
    lanes = {lane.id: lane for lane in scene_map.lanes}
    near = [block for block in scene_map.roadblocks if polygon_of(block.polygon).intersects(square)]
    blocks = [block for block in near if block.kind == "roadblock"]
    connectors = [block for block in near if block.kind != "roadblock"]
    entries = [(block.id, ROADBLOCK, block.polygon) for block in blocks]
    entries += [(lane_id, LANE, lanes[lane_id].polygon) for block in blocks + connectors for lane_id in block.lane_ids
                if lane_id in lanes]
    for kind, areas in ((INTERSECTION, scene_map.intersections), (CARPARK, scene_map.carparks)):
        entries += [(area.id, kind, area.polygon) for area in areas if polygon_of(area.polygon).intersects(square)]
    listed = {lane_id for block in scene_map.roadblocks for lane_id in block.lane_ids}
    entries += [(lane.id, LANE, lane.polygon) for lane in scene_map.lanes
                if lane.id not in listed and polygon_of(lane.polygon).intersects(square)]
    return map_of_rings(entries)


def map_of_rings(entries: Sequence[tuple[str, int, Array]]) -> DrivableMap:
    """The map of (id, kind, ring [n, 2]); rings are closed where they are not, those of fewer than 3 vertices left out."""
    entries = [entry for entry in entries if len(entry[2]) >= 3]
    rings = [ring if np.array_equal(ring[0], ring[-1]) else np.vstack([ring, ring[:1]]) for _, _, ring in entries]
    return DrivableMap(
        ids=tuple(name for name, _, _ in entries),
        kinds=np.array([kind for _, kind, _ in entries], dtype=np.int64),
        polygons=np.array([polygon_of(ring) for _, _, ring in entries], dtype=object),
        vertices=np.ascontiguousarray(np.concatenate(rings)) if rings else np.zeros((0, 2)),
        starts=np.cumsum([0] + [len(ring) for ring in rings]),
        bounds=np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in rings]).reshape(len(rings), 4),
    )


@njit(cache=True, error_model="numpy")
def _classify(
    states: Array, half_length: float, half_width: float, to_center: float, vertices: Array, starts: NDArray[np.int64],
    bounds: Array, kinds: NDArray[np.int64], on_route: NDArray[np.bool_], areas: NDArray[np.bool_], corners: Array,
) -> None:
    """Fill areas [4, B, T] (order of `EgoAreas`) and corners [B, T, 5, 2] (four corners, then the centre)."""
    for b in range(states.shape[0]):
        for t in range(states.shape[1]):
            x, y = states[b, t, X], states[b, t, Y]
            box = corners[b, t]
            ego_corners(x, y, states[b, t, HEADING], half_length, half_width, to_center, box)
            low_x, low_y, high_x, high_y = x, y, x, y
            for i in range(4):
                low_x, high_x = min(low_x, box[i, 0]), max(high_x, box[i, 0])
                low_y, high_y = min(low_y, box[i, 1]), max(high_y, box[i, 1])
            covered = 0
            lanes_touched, in_one_lane, on_any_route_lane, in_intersection = 0, False, False, False
            for p in range(len(kinds)):
                if bounds[p, 0] > high_x or bounds[p, 2] < low_x or bounds[p, 1] > high_y or bounds[p, 3] < low_y:
                    continue
                ring = vertices[starts[p]:starts[p + 1]]
                inside = 0
                for i in range(4):
                    if inside_ring(box[i, 0], box[i, 1], ring):
                        inside += 1
                        if kinds[p] != LANE:
                            covered |= 1 << i
                if kinds[p] == LANE:
                    lanes_touched += inside > 0
                    in_one_lane |= inside == 4
                    if on_route[p] and not on_any_route_lane:
                        on_any_route_lane = inside_ring(box[4, 0], box[4, 1], ring)
                elif kinds[p] == INTERSECTION and not in_intersection:
                    in_intersection = inside_ring(x, y, ring)
            areas[0, b, t] = lanes_touched > 1 and not in_one_lane
            areas[1, b, t] = covered != 0b1111
            areas[2, b, t] = not on_any_route_lane
            areas[3, b, t] = in_intersection


def ego_areas(
    states: Array, vehicle: Vehicle, drivable: DrivableMap, on_route: NDArray[np.bool_]
) -> tuple[EgoAreas, Array]:
    """Classify where a car is.

    Args:
        states: [B, T, 11] simulated states.
        vehicle: its body.
        drivable: the map near the scene's ego.
        on_route: [P] polygons that are lanes of the route.

    Returns:
        The areas, and the corners [B, T, 5, 2] of the box with its centre last.
    """
    areas = np.zeros((4, *states.shape[:2]), dtype=bool)
    corners = np.empty((*states.shape[:2], 5, 2))
    _classify(states, 0.5 * vehicle.length, 0.5 * vehicle.width, vehicle.rear_axle_to_center, drivable.vertices,
              drivable.starts, drivable.bounds, drivable.kinds, on_route, areas, corners)
    return EgoAreas(*areas), corners
