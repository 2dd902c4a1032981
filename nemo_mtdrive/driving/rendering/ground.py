"""The ground of the picture: pavement, asphalt, crosswalks, stop lines, lane markings, read off the map's polygons."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.scene import Array, Lane, Scene, SceneMap

ASPHALT: Colour = (84, 86, 90)
PAVEMENT: Colour = (168, 164, 156)
KERB: Colour = (206, 202, 194)
WHITE: Colour = (232, 232, 228)
YELLOW: Colour = (226, 178, 42)
FAR_M = 110.0
LINE_M = 0.18
DASH_M, GAP_M = 3.0, 5.0
STOP_LINE_BEFORE_END_M = 4.3
"""Where the stop line crosses a lane that leads into a crossing: the generator's crosswalk lies behind it."""


def paint_ground(canvas: Canvas, scene: Scene) -> None:
    """Everything flat, from below upwards."""
    view = _View(canvas, scene)
    scene_map = scene.map
    areas = [block.polygon for block in scene_map.roadblocks if block.kind == "roadblock"]
    areas += [area.polygon for area in scene_map.intersections + scene_map.carparks]
    rings = [ring for ring in map(view.local, areas) if view.may_be_seen(ring)]
    stretches = [stretch for ring in rings for stretch in view.stretches(np.vstack([ring, ring[:1]]))]
    for colour, half_width in ((PAVEMENT, 2.6), (KERB, 0.22)):
        for stretch in stretches:
            canvas.fill_ground(_stripe(stretch, half_width), colour)
    for ring in rings:
        canvas.fill_ground(ring, ASPHALT)
    for walk in scene_map.crosswalks:
        _zebra(view, view.local(walk.polygon))
    _markings(view, scene_map)


class _View:
    """The canvas with the way from the map frame to the ego frame."""

    def __init__(self, canvas: Canvas, scene: Scene) -> None:
        self.canvas = canvas
        x, y, heading = scene.ego.rear_axle_pose.tolist()
        self._origin = np.array([x, y])
        cos, sin = math.cos(heading), math.sin(heading)
        self._turn = np.array([[cos, -sin], [sin, cos]])

    def local(self, points: Array) -> Array:
        """Map-frame points [n, 2] in the ego frame."""
        local: Array = (points - self._origin) @ self._turn
        return local

    def may_be_seen(self, points: Array) -> bool:
        """Whether the points' bounding box reaches into the view."""
        low, high = points.min(0), points.max(0)
        return bool(high[0] > 1.0 and low[0] < FAR_M and low[1] < 0.7 * FAR_M and high[1] > -0.7 * FAR_M)

    def stretches(self, line: Array) -> list[Array]:
        """The parts of a polyline [n, 2] that lie ahead, each [m, 2] with a vertex at least every 3 m."""
        line = _dense(line, 2.0)
        x, y = line[:, 0], line[:, 1]
        ahead = (x > self.canvas.nearest_ground - 0.3) & (x < FAR_M) & (np.abs(y) < x + 12.0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ahead, [False]]).astype(np.int8))).tolist()
        found = [line[max(start - 1, 0) : stop + 1] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        return [stretch for stretch in found if len(stretch) > 1]

    def ribbon(self, line: Array, half_width: float, colour: Colour) -> None:
        """A stripe along a polyline [n, 2]."""
        for stretch in self.stretches(line):
            self.canvas.fill_ground(_stripe(stretch, half_width), colour)


def _dense(line: Array, step: float) -> Array:
    """The polyline with extra vertices so that no segment is longer than about `step`."""
    distance = _arc_length(line)
    if np.diff(distance).max() <= 1.5 * step:
        return line
    return _points_at(line, distance, np.union1d(distance, np.arange(0.0, distance[-1], step)))


def _stripe(line: Array, half_width: float) -> Array:
    tangent = np.empty_like(line)
    tangent[1:-1] = line[2:] - line[:-2]
    tangent[0], tangent[-1] = line[1] - line[0], line[-1] - line[-2]
    tangent *= half_width / (np.sqrt((tangent**2).sum(1, keepdims=True)) + 1e-9)
    side = np.column_stack([-tangent[:, 1], tangent[:, 0]])
    return np.concatenate([line + side, (line - side)[::-1]])


def _zebra(view: _View, corners: Array) -> None:
    """Bars across a crosswalk, laid between its two long sides."""
    if not view.may_be_seen(corners):
        return
    first, second = _long_sides(corners)
    bars = max(2, int(math.dist(first[0], first[1]) / 1.1))
    share = ((np.arange(bars)[:, None] + np.array([0.2, 0.75])) / bars)[..., None]
    near, far = first[0] + share * (first[1] - first[0]), second[0] + share * (second[1] - second[0])
    view.canvas.fill_tiles(np.concatenate([near, far[:, ::-1]], axis=1), WHITE)


def _long_sides(corners: Array) -> tuple[Array, Array]:
    """The two long sides of a crosswalk, run in the same direction: each [2, 2].

    A polygon of more than four corners is two polylines, one forth and one back, of which the ends are taken.
    """
    if len(corners) > 4:
        half = len(corners) // 2
        corners = np.array([corners[0], corners[half - 1], corners[half], corners[-1]])
    if np.hypot(*(corners[1] - corners[0])) >= np.hypot(*(corners[2] - corners[1])):
        return corners[[0, 1]], corners[[3, 2]]
    return corners[[1, 2]], corners[[0, 3]]


def lane_edges(lane: Lane) -> tuple[Array, Array]:
    """(left, right) boundary [n, 2] of a lane in driving direction, from its polygon's two halves."""
    half = len(lane.polygon) // 2
    return lane.polygon[:half], lane.polygon[half:][::-1]


def _markings(view: _View, scene_map: SceneMap) -> None:
    lanes = {lane.id: lane for lane in scene_map.lanes}
    connectors = {lane.id for lane in scene_map.lanes if lane.kind == "lane_connector"}
    for block in scene_map.roadblocks:
        if block.kind != "roadblock" or not view.may_be_seen(view.local(block.polygon)):
            continue
        members = [lanes[lane_id] for lane_id in block.lane_ids if lane_id in lanes]
        for index, lane in enumerate(members):
            left, right = (view.local(edge) for edge in lane_edges(lane))
            if index == 0:
                view.ribbon(left, LINE_M / 2, YELLOW)
            if index == len(members) - 1:
                view.ribbon(right, LINE_M / 2, WHITE)
            else:
                _dashes(view, right)
            if connectors.intersection(lane.outgoing):
                _stop_line(view, left, right)


def _dashes(view: _View, line: Array) -> None:
    distance = _arc_length(line)
    starts = np.arange(0.0, distance[-1], DASH_M + GAP_M)
    at = np.stack([starts, np.minimum(starts + DASH_M, distance[-1])], axis=1)
    dash = _points_at(line, distance, at)
    dash = dash[(dash[:, 0, 0] > 0.5) & (dash[:, 0, 0] < FAR_M) & (np.abs(dash[:, 0, 1]) < dash[:, 0, 0] + 4.0)]
    ahead = dash[:, 1] - dash[:, 0]
    ahead = ahead * (LINE_M / 2 / (np.sqrt((ahead**2).sum(1, keepdims=True)) + 1e-9))
    side = np.column_stack([-ahead[:, 1], ahead[:, 0]])[:, None]
    view.canvas.fill_tiles(np.concatenate([dash + side, (dash - side)[:, ::-1]], axis=1), WHITE)


def _arc_length(line: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)))])


def _points_at(line: Array, distance: Array, at: Array) -> Array:
    """Points [..., 2] of a polyline at arc lengths [...]."""
    return np.stack([np.interp(at, distance, line[:, 0]), np.interp(at, distance, line[:, 1])], axis=-1)


def _stop_line(view: _View, left: Array, right: Array) -> None:
    ends = []
    for edge in (left, right):
        distance = _arc_length(edge)
        at = distance[-1] - STOP_LINE_BEFORE_END_M
        if at < 1.0:
            return
        ends.append(_points_at(edge, distance, np.array([at, at + 0.4])))
    bar = np.concatenate([ends[0], ends[1][::-1]])
    if view.may_be_seen(bar):
        view.canvas.fill_ground(bar, WHITE)
