"""The HD map of an Argoverse 2 log as a `SceneMap`.

Lanes of one direction side by side become a roadblock, lanes inside intersections roadblock connectors, and their
union the intersections. The log's drivable areas become car parks, and everything else is cut to them: so "inside the
drivable area" means exactly inside AV2's. Bike lanes are drivable there but are no lanes here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from nemo_mtdrive.driving.scene import Area, Array, Lane, Roadblock, SceneError, SceneMap
from nemo_mtdrive.driving.sources.rings import simple_ring

CENTERLINE_STEP_M = 1.0
_LANE_TYPES = ("VEHICLE", "BUS")
_SMALLEST_M2 = 1.0


def read_map(folder: Path) -> SceneMap:
    """The map of a log from its `log_map_archive_*.json`.

    Raises:
        SceneError: the file is missing or lacks a key.
    """
    files = sorted(folder.glob("log_map_archive_*.json"))
    if not files:
        raise SceneError(f"{folder}: no log_map_archive_*.json in it; set the path to an AV2 sensor log")
    data = json.loads(files[0].read_text())
    try:
        return _scene_map(data)
    except KeyError as error:
        raise SceneError(f"{files[0]}: key {error.args[0]!r} is missing") from error


def _scene_map(data: Mapping[str, Any]) -> SceneMap:
    segments = {str(key): value for key, value in data["lane_segments"].items() if value["lane_type"] in _LANE_TYPES}
    areas = [_points(area["area_boundary"]) for area in data["drivable_areas"].values()]
    drivable = shapely.union_all([shapely.Polygon(ring).buffer(0) for ring in areas])
    blocks = _blocks(segments)
    block_of = {lane: name for name, members in blocks.items() for lane in members}
    lanes = tuple(_lane(key, segment, block_of[key], segments) for key, segment in segments.items())
    polygons = {lane.id: lane.polygon for lane in lanes}
    roadblocks = tuple(_roadblock(name, members, segments, polygons, block_of, drivable)
                       for name, members in blocks.items())
    inside = [shapely.Polygon(polygons[key]).buffer(0) for key in segments if segments[key]["is_intersection"]]
    crossings = [part for part in _parts(shapely.union_all(inside).intersection(drivable)) if part.area > _SMALLEST_M2]
    return SceneMap(
        roadblocks, lanes,
        intersections=tuple(Area(f"intersection{k}", simple_ring(part)) for k, part in enumerate(crossings)),
        carparks=tuple(Area(f"drivable{k}", simple_ring(shapely.Polygon(ring))) for k, ring in enumerate(areas)),
        crosswalks=tuple(Area(f"crosswalk{key}", simple_ring(_between(walk["edge1"], walk["edge2"])))
                         for key, walk in data["pedestrian_crossings"].items()),
    )


def _between(first: list[Mapping[str, float]], second: list[Mapping[str, float]]) -> shapely.Polygon:
    """The area between two edges, whichever way the second one runs."""
    there, back = _points(first), _points(second)
    crossing = shapely.Polygon(np.vstack([there, back[::-1]]))
    return crossing if crossing.is_valid else shapely.Polygon(np.vstack([there, back]))


def _points(rows: list[Mapping[str, float]]) -> Array:
    return np.array([[row["x"], row["y"]] for row in rows])


def _resampled(line: Array, count: int) -> Array:
    distance = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)))])
    at = np.linspace(0.0, distance[-1], count)
    return np.column_stack([np.interp(at, distance, line[:, 0]), np.interp(at, distance, line[:, 1])])


def _length(line: Array) -> float:
    return float(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)).sum())


def _lane(key: str, segment: Mapping[str, Any], block: str, segments: Mapping[str, Any]) -> Lane:
    left, right = _points(segment["left_lane_boundary"]), _points(segment["right_lane_boundary"])
    count = max(2, int(np.ceil(max(_length(left), _length(right)) / CENTERLINE_STEP_M)) + 1)
    left, right = _resampled(left, count), _resampled(right, count)
    return Lane(key, "lane_connector" if segment["is_intersection"] else "lane", block,
                simple_ring(shapely.Polygon(np.vstack([left, right[::-1]]))), (left + right) / 2, None,
                tuple(str(k) for k in segment["predecessors"] if str(k) in segments),
                tuple(str(k) for k in segment["successors"] if str(k) in segments))


def _blocks(segments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Roadblock id -> its lanes from left to right.

    Two lanes belong together when each names the other as its neighbour on opposite sides (lanes of the other
    direction name each other on the same side) and both are, or are not, in an intersection.
    """
    def right_of(key: str) -> str | None:
        other = segments[key]["right_neighbor_id"]
        if other is None or str(other) not in segments:
            return None
        back = segments[str(other)]["left_neighbor_id"]
        same = segments[str(other)]["is_intersection"] == segments[key]["is_intersection"]
        return str(other) if same and back is not None and str(back) == key else None

    rights = {key: right_of(key) for key in segments}
    followers = {other for other in rights.values() if other is not None}
    blocks = {}
    for key in segments:
        if key in followers:
            continue
        members, at = [key], rights[key]
        while at is not None:
            members.append(at)
            at = rights[at]
        blocks[f"block{key}"] = members
    return blocks


def _roadblock(name: str, members: list[str], segments: Mapping[str, Any], polygons: Mapping[str, Array],
               block_of: Mapping[str, str], drivable: BaseGeometry) -> Roadblock:
    union = shapely.union_all([shapely.Polygon(polygons[key]).buffer(0.01) for key in members]).intersection(drivable)
    # a lane wholly off the drivable area keeps its id, with no area to speak of
    ring = simple_ring(shapely.Point(polygons[members[0]][0]) if union.is_empty else union)

    def neighbours(direction: str) -> tuple[str, ...]:
        found = (block_of[str(k)] for key in members for k in segments[key][direction] if str(k) in block_of)
        return tuple(dict.fromkeys(found))

    kind = "roadblock_connector" if segments[members[0]]["is_intersection"] else "roadblock"
    return Roadblock(name, kind, ring, tuple(members), neighbours("predecessors"), neighbours("successors"))


def _parts(geometry: BaseGeometry) -> list[shapely.Polygon]:
    return [part for part in shapely.get_parts(geometry).tolist() if isinstance(part, shapely.Polygon)]
