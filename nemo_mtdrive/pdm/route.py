"""The route to be followed: which lanes it is made of, and the centreline along which progress counts.

As nuPlan's PDM planners do it: the given roadblocks are corrected (a start off the route, gaps, loops), the ego's lane
is chosen among theirs, and a shortest path through them gives the centreline. A scene without a usable route follows
the nearest lane and its straightest successors; without lanes, the ego's heading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Lane, Roadblock, Scene, SceneMap
from nemo_mtdrive.pdm.drivable import DrivableMap, ego_center, meets_square, polygon_of
from nemo_mtdrive.pdm.geometry import box_corners, wrap_angle

Array = NDArray[np.float64]

_NEAR_M = 1.0
_MAX_HEADING_ERROR, _MAX_DISPLACEMENT_M = np.pi / 4, 3.0
_BACKWARD_DEPTH, _FORWARD_DEPTH, _PLANNED_BLOCKS, _REJOIN_BLOCKS = 15, 30, 30, 3
_LOOP_AREA_M2 = 1.0
_FREE_ROUTE_M = 200.0
_FREE_BEHIND_M = 20.0


@dataclass(frozen=True)
class Route:
    """What the ego is to follow."""

    lane_ids: tuple[str, ...]
    """Lanes of the route, in its order; empty where there are none."""
    centerline: Array
    """[n, 3] x, y, heading of each segment's start."""
    speed_limit_mps: float | None
    """Of the lane where the ego starts."""


def lane_path(lane: Lane) -> Array:
    """[n, 3] vertices of a lane's centreline with the heading to the next one; the last repeats the one before it."""
    steps = np.diff(lane.centerline, axis=0)
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    return np.column_stack([lane.centerline, np.append(heading, heading[-1:])])


class _RoadGraph:
    """Lanes and roadblocks of a scene by id; unknown ids in the map's lists are passed over."""

    def __init__(self, scene_map: SceneMap) -> None:
        self.lanes = {lane.id: lane for lane in scene_map.lanes if len(lane.centerline) >= 2}
        self.blocks = {block.id: block for block in scene_map.roadblocks}
        self.paths = {lane_id: lane_path(lane) for lane_id, lane in self.lanes.items()}

    def lanes_of(self, block: Roadblock) -> list[Lane]:
        return [self.lanes[lane_id] for lane_id in block.lane_ids if lane_id in self.lanes]

    def route(self, lane_ids: Sequence[str], followed: Sequence[str]) -> Route:
        """A route over lanes whose centreline is that of the lanes followed, one after another."""
        centerline = np.concatenate([self.paths[lane_id] for lane_id in followed])
        return Route(tuple(lane_ids), centerline, self.lanes[followed[0]].speed_limit_mps)

    def nearest(self, lane_id: str, pose: Array) -> tuple[float, float]:
        """Distance [m] and heading error [rad] of the pose to the nearest vertex of a lane's centreline."""
        path = self.paths[lane_id]
        distances = np.hypot(path[:, 0] - pose[0], path[:, 1] - pose[1])
        index = int(np.argmin(distances))
        return float(distances[index]), abs(float(wrap_angle(path[index, 2] - pose[2])))


def _trace(parents: Mapping[tuple[str, int], str | None], end: str, length: int) -> list[str]:
    """The path of `length` ids that ends at `end`."""
    path = [end]
    for depth in range(length, 1, -1):
        parent = parents[path[-1], depth]
        assert parent is not None, "only the start, at depth 1, has no parent"
        path.append(parent)
    return path[::-1]


def _search_blocks(
    graph: _RoadGraph, start: str, targets: Sequence[str], depth: int, *, forward: bool
) -> list[str] | None:
    """Breadth-first path of roadblock ids from start to any target, at most `depth` long, in the search's order."""
    parents: dict[tuple[str, int], str | None] = {(start, 1): None}
    level = deque([start])
    for length in range(1, depth + 1):
        following: dict[str, None] = {}
        for block in level:
            if block in targets:
                return _trace(parents, block, length)
            record = graph.blocks[block]
            for after in record.outgoing if forward else record.incoming:
                if after in graph.blocks:
                    parents[after, length + 1] = block
                    following[after] = None
        level = deque(following)
        if not level:
            break
    return None


def _starting_blocks(graph: _RoadGraph, pose: Array, route: Sequence[str]) -> tuple[str, list[str]]:
    """The roadblock where the ego most likely is, and all candidates of its rank; those of the route rank first."""
    point = shapely.Point(pose[:2])
    kinds = [[b for b in graph.blocks.values() if (b.kind == "roadblock") == plain] for plain in (True, False)]
    near = [b for blocks in kinds for b in blocks if meets_square(b.polygon, pose[:2], _NEAR_M)]
    if not near:
        near = [min(blocks, key=lambda b: polygon_of(b.polygon).distance(point)) for blocks in kinds if blocks]
    on_route: list[tuple[float, str]] = []
    off_route: list[tuple[float, str]] = []
    displacements = []
    for block in near:
        errors = [graph.nearest(lane.id, pose) for lane in graph.lanes_of(block)]
        displacements.append(min((distance for distance, _ in errors), default=np.inf))
        fitting = [(d, block.id) for d, heading in errors if heading < _MAX_HEADING_ERROR and d < _MAX_DISPLACEMENT_M]
        (on_route if block.id in route else off_route).extend(fitting)
    candidates = on_route or off_route
    if candidates:
        return min(candidates, key=lambda pair: pair[0])[1], [block_id for _, block_id in candidates]
    return near[int(np.argmin(displacements))].id, [block.id for block in near]


def _join_route(graph: _RoadGraph, pose: Array, route: list[str]) -> list[str]:
    """A route that starts where the ego is: led up to from behind, or left for a way to one of its first blocks."""
    start, candidates = _starting_blocks(graph, pose, route)
    if start in route:
        return route
    backward = _search_blocks(graph, route[0], candidates, _BACKWARD_DEPTH, forward=False)
    if backward is not None:
        return backward[:0:-1] + route
    onward = _search_blocks(graph, start, route[:_REJOIN_BLOCKS], _FORWARD_DEPTH, forward=True)
    if onward is not None:
        return onward + route[route.index(onward[-1]) + 1:]
    return route


def _fill_gaps(graph: _RoadGraph, route: list[str]) -> list[str]:
    """The route with missing roadblocks put between those that are not linked."""
    filled: list[str] = []
    for block, after in zip(route, [*route[1:], ""], strict=True):
        filled.append(block)
        if not after or block in graph.blocks[after].incoming:
            continue
        link = _search_blocks(graph, block, [after], _FORWARD_DEPTH, forward=True)
        if link is not None and len(link) >= 3:
            filled.extend(link[1:-1])
    return filled


def _cut_loops(graph: _RoadGraph, route: list[str]) -> list[str]:
    """The route up to the first roadblock connector that crosses an earlier one."""
    passed: list[shapely.Polygon] = []
    for index, block_id in enumerate(route):
        block = graph.blocks[block_id]
        if block.kind == "roadblock":
            continue
        polygon = polygon_of(block.polygon).buffer(0.0)
        if any(polygon.intersection(earlier).area > _LOOP_AREA_M2 for earlier in passed):
            return route[:index]
        passed.append(polygon)
    return route


def _starting_lane(graph: _RoadGraph, scene: Scene, drivable: DrivableMap, lane_ids: Sequence[str]) -> str:
    """The lane of the route under the rear axle, best heading first; else the one the box is in or nearest to."""
    pose, vehicle = scene.ego.rear_axle_pose, scene.ego.vehicle
    tree = shapely.STRtree(drivable.polygons, node_capacity=10)
    known = set(lane_ids)
    under = [drivable.ids[i] for i in tree.query(shapely.Point(pose[:2]), predicate="intersects")]
    on = [lane_id for lane_id in under if lane_id in known]
    if on:
        return on[int(np.argmin([graph.nearest(lane_id, pose)[1] for lane_id in on]))]
    center = ego_center(scene.ego)
    box = shapely.Polygon(box_corners(center, pose[2], vehicle.length, vehicle.width))
    best, best_distance = lane_ids[0], np.inf
    for lane_id in lane_ids:
        polygon = polygon_of(graph.lanes[lane_id].polygon)
        if polygon.contains(shapely.Point(center)):
            return lane_id
        distance = polygon.distance(box)
        if distance < best_distance:
            best, best_distance = lane_id, distance
    return best


def _shortest_lanes(graph: _RoadGraph, start: str, allowed: Sequence[str], goal_block: str) -> list[str]:
    """Dijkstra over lanes, a lane's length its cost; without a way to the goal, the path with the most lanes."""
    known = set(allowed)
    parents: dict[str, str | None] = {start: None}
    frontier: dict[str, tuple[float, int]] = {start: (1.0, 1)}
    expanded: dict[str, tuple[float, int]] = {}
    end = ""
    while frontier:
        lane_id = min(frontier, key=lambda name: frontier[name][0])
        cost, depth = frontier.pop(lane_id)
        if graph.lanes[lane_id].roadblock_id == goal_block:
            end = lane_id
            break
        expanded[lane_id] = (cost, depth)
        for after in graph.lanes[lane_id].outgoing:
            if after not in known or after not in graph.lanes or after in expanded:
                continue
            longer = cost + float(np.linalg.norm(np.diff(graph.lanes[after].centerline, axis=0), axis=1).sum())
            if after not in frontier or longer < frontier[after][0]:
                parents[after] = lane_id
                frontier[after] = (longer, depth + 1)
    if not end:
        deepest = max(depth for _, depth in expanded.values())
        end = min((name for name in expanded if expanded[name][1] == deepest), key=lambda name: expanded[name][0])
    path: list[str] = []
    at: str | None = end
    while at is not None:
        path.append(at)
        at = parents[at]
    return path[::-1]


def _given_route(graph: _RoadGraph, scene: Scene, drivable: DrivableMap, blocks: list[str]) -> Route | None:
    corrected = _cut_loops(graph, _fill_gaps(graph, _join_route(graph, scene.ego.rear_axle_pose, blocks)))
    route_blocks = list(dict.fromkeys(corrected))
    lane_ids = [lane.id for block_id in route_blocks for lane in graph.lanes_of(graph.blocks[block_id])]
    if not lane_ids:
        return None
    start = _starting_lane(graph, scene, drivable, lane_ids)
    block = graph.lanes[start].roadblock_id
    first = route_blocks.index(block) if block in route_blocks else 0
    goal = route_blocks[first:first + _PLANNED_BLOCKS][-1]
    return graph.route(lane_ids, _shortest_lanes(graph, start, lane_ids, goal))


def _nearest_lane_route(graph: _RoadGraph, pose: Array) -> Route:
    """The nearest lane that runs the ego's way, and its straightest successors for some 200 m."""
    aligned = [lane_id for lane_id in graph.lanes if graph.nearest(lane_id, pose)[1] < _MAX_HEADING_ERROR]
    point = shapely.Point(pose[:2])
    lines = {name: shapely.LineString(graph.lanes[name].centerline) for name in aligned or graph.lanes}
    distances = {name: line.distance(point) for name, line in lines.items()}
    names, length = [min(distances, key=lambda name: distances[name])], 0.0
    while length < _FREE_ROUTE_M:
        path = graph.paths[names[-1]]
        length += float(np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1).sum())
        following = [after for after in graph.lanes[names[-1]].outgoing if after in graph.lanes and after not in names]
        if not following:
            break
        names.append(min(following, key=lambda after: abs(float(wrap_angle(graph.paths[after][-1, 2] - path[-1, 2])))))
    return graph.route(names, names)


def _straight_ahead(pose: Array) -> Route:
    way = np.arange(-_FREE_BEHIND_M, _FREE_ROUTE_M + 1.0, 2.0)[:, None]
    line = pose[:2] + way * np.array([np.cos(pose[2]), np.sin(pose[2])])
    return Route((), np.column_stack([line, np.full(len(line), pose[2])]), None)


def find_route(scene: Scene, drivable: DrivableMap) -> Route:
    """The route of a scene; see the module's docstring for what happens where it is wrong or missing."""
    graph = _RoadGraph(scene.map)
    blocks: Mapping[str, None] = {name: None for name in scene.route_roadblock_ids if name in graph.blocks}
    route = _given_route(graph, scene, drivable, list(blocks)) if blocks else None
    if route is not None:
        return route
    pose = scene.ego.rear_axle_pose
    return _nearest_lane_route(graph, pose) if graph.lanes else _straight_ahead(pose)
