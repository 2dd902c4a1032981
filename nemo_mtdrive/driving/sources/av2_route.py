"""The route of a recorded drive: the roadblocks under the ego's way, joined and prolonged along the lane graph."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from nemo_mtdrive.driving.scene import Array, Lane, SceneMap

AHEAD_M = 120.0
_LARGEST_DETOUR = 4


def lanes_under(scene_map: SceneMap, poses: Array) -> tuple[str | None, ...]:
    """The lane under each of the poses [n, 3] (rear axle, city frame), None off the lanes."""
    shapes = {lane.id: shapely.Polygon(lane.polygon) for lane in scene_map.lanes}
    return tuple(_lane_at(scene_map.lanes, shapes, pose) for pose in poses)


def driven_route(scene_map: SceneMap, driven: Sequence[str | None]) -> tuple[str, ...]:
    """Roadblock ids along the lanes that were driven (`lanes_under`) and 120 m further along the straightest ones."""
    lanes = {lane.id: lane for lane in scene_map.lanes}
    under: list[str] = []
    for found in driven:
        if found is not None and (not under or under[-1] != found):
            under += _between(lanes, under[-1], found) if under else []
            under.append(found)
    if not under:
        return ()
    under += _onward(lanes, under[-1])
    blocks = [lanes[lane_id].roadblock_id for lane_id in under]
    return tuple(block for k, block in enumerate(blocks) if k == 0 or blocks[k - 1] != block)


def _lane_at(lanes: Iterable[Lane], shapes: dict[str, shapely.Polygon], pose: Array) -> str | None:
    """The lane that holds the pose and agrees best with its place and heading."""
    best, best_cost = None, math.inf
    for lane in lanes:
        low, high = lane.polygon.min(0), lane.polygon.max(0)
        if (pose[:2] < low).any() or (pose[:2] > high).any() or not shapely.intersects_xy(shapes[lane.id], *pose[:2]):
            continue
        offsets = np.sqrt(((lane.centerline - pose[:2]) ** 2).sum(1))
        nearest = min(int(np.argmin(offsets)), len(lane.centerline) - 2)
        step = lane.centerline[nearest + 1] - lane.centerline[nearest]
        turned = abs(math.remainder(math.atan2(step[1], step[0]) - pose[2], 2 * math.pi))
        cost = float(offsets.min()) + 2.0 * turned
        if turned < 1.0 and cost < best_cost:
            best, best_cost = lane.id, cost
    return best


def _between(lanes: dict[str, Lane], start: str, end: str) -> list[str]:
    """Lanes strictly between two lanes along successors, [] when they join or no short way is found."""
    queue: deque[tuple[str, tuple[str, ...]]] = deque([(start, ())])
    while queue:
        lane_id, way = queue.popleft()
        for after in lanes[lane_id].outgoing:
            if after == end:
                return list(way)
            if after in lanes and len(way) < _LARGEST_DETOUR:
                queue.append((after, (*way, after)))
    return []


def _onward(lanes: dict[str, Lane], start: str) -> list[str]:
    way, length, lane_id = [], 0.0, start
    while length < AHEAD_M:
        choices = [after for after in lanes[lane_id].outgoing if after in lanes and after not in way]
        if not choices:
            break
        lane_id = min(choices, key=lambda after: abs(_turn(lanes[after])))
        way.append(lane_id)
        length += float(np.sqrt((np.diff(lanes[lane_id].centerline, axis=0) ** 2).sum(1)).sum())
    return way


def _turn(lane: Lane) -> float:
    """By how much a lane's heading changes from its start to its end [rad]."""
    first, last = lane.centerline[1] - lane.centerline[0], lane.centerline[-1] - lane.centerline[-2]
    return math.remainder(math.atan2(last[1], last[0]) - math.atan2(first[1], first[0]), 2 * math.pi)
