"""Lane markings: what divides lanes, directions and road from verge, stop lines, and arrows before crossings."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Colour
from nemo_mtdrive.driving.rendering.view import View, arc_length, lane_edges, normals, points_at
from nemo_mtdrive.driving.scene import Array, Lane, Roadblock, Scene

WHITE: Colour = (236, 236, 232)
YELLOW: Colour = (232, 184, 44)
LINE_M = 0.16
DASH_M, GAP_M = 3.0, 5.0
SOLID_BEFORE_END_M = 22.0
STOP_LINE_M = 0.45
STOP_BEFORE_WALK_M = 1.0
WALK_WITHIN_M = 12.0
OPPOSITE_WITHIN_M = 1.4
ARROW_BEFORE_END_M = 16.0
TURNS_RAD = 0.5


def paint_markings(view: View, scene: Scene) -> None:
    """All markings of the roadblocks in view."""
    lanes = {lane.id: lane for lane in scene.map.lanes}
    blocks = [(block, [lanes[lane_id] for lane_id in block.lane_ids if lane_id in lanes])
              for block in scene.map.roadblocks if block.kind == "roadblock"]
    blocks = [(block, members) for block, members in blocks
              if members and view.may_be_seen(view.local(block.polygon))]
    opposite = _opposites(blocks)
    controlled = {light.lane_connector_id for light in scene.traffic_lights}
    walks = [view.local(walk.polygon) for walk in scene.map.crosswalks]
    for block, members in blocks:
        _block(view, block, members, opposite.get(block.id))
        for lane in members:
            _lane_end(view, lane, lanes, controlled, walks)


def _opposites(blocks: list[tuple[Roadblock, list[Lane]]]) -> dict[str, str]:
    """Roadblock -> the one of the other direction on the other side of its left edge."""
    edges = [lane_edges(members[0])[0] for _, members in blocks]
    if len(edges) < 2:
        return {}
    samples = []
    for number, edge in enumerate(edges):
        distance = arc_length(edge)
        at = np.arange(0.0, distance[-1], 2.0)
        samples.append(np.column_stack([points_at(edge, distance, at), np.full(len(at), number)]))
    points = np.vstack(samples)
    found = {}
    for number, edge in enumerate(edges):
        distance = arc_length(edge)
        middle = points_at(edge, distance, np.array([distance[-1] / 2]))[0]
        far = ((points[:, :2] - middle) ** 2).sum(1)
        far[points[:, 2] == number] = np.inf
        nearest = int(far.argmin())
        other = int(points[nearest, 2])
        against = (edge[-1] - edge[0]) @ (edges[other][-1] - edges[other][0]) < 0.0
        if far[nearest] < OPPOSITE_WITHIN_M**2 and against:
            found[blocks[number][0].id] = blocks[other][0].id
    return found


def _block(view: View, block: Roadblock, members: list[Lane], opposite: str | None) -> None:
    for index, lane in enumerate(members):
        left, right = (view.local(edge) for edge in lane_edges(lane))
        if index == 0:
            _centre_line(view, block.id, left, opposite, single=len(members) == 1)
        if index == len(members) - 1:
            view.ribbon(right + 0.18 * normals(right), LINE_M / 2, WHITE)
        else:
            _divider(view, right, WHITE, solid_end=bool(lane.outgoing))


def _centre_line(view: View, block_id: str, left: Array, opposite: str | None, single: bool) -> None:
    """Yellow: broken between single lanes, double between more; one line where no traffic comes towards."""
    if opposite is None:
        view.ribbon(left - 0.18 * normals(left), LINE_M / 2, YELLOW)
    elif not single:
        view.ribbon(left - 0.14 * normals(left), LINE_M / 2, YELLOW)
    elif block_id < opposite:
        # one of the two directions draws the line of both
        view.dashes(left, LINE_M / 2, YELLOW, DASH_M, GAP_M)


def _divider(view: View, line: Array, colour: Colour, solid_end: bool) -> None:
    distance = arc_length(line)
    split = distance[-1] - SOLID_BEFORE_END_M if solid_end else distance[-1]
    if split > DASH_M:
        broken = np.vstack([line[distance < split], points_at(line, distance, np.array([split]))])
        view.dashes(broken, LINE_M / 2, colour, DASH_M, GAP_M)
    if solid_end:
        start = max(split, 0.0)
        view.ribbon(np.vstack([points_at(line, distance, np.array([start])), line[distance > start]]), LINE_M / 2, colour)


def _lane_end(view: View, lane: Lane, lanes: Mapping[str, Lane], controlled: set[str], walks: list[Array]) -> None:
    """The stop line before a light, and the arrow that tells where the lane leads."""
    if not controlled.intersection(lane.outgoing):
        return
    left, right = (view.local(edge) for edge in lane_edges(lane))
    at = stop_line_at(view.local(lane.centerline), walks)
    ends = []
    for edge in (left, right):
        distance = arc_length(edge)
        # edges of a bend differ in length: measure from the end
        from_end = distance[-1] - at
        if from_end < 1.0:
            return
        ends.append(points_at(edge, distance, np.array([from_end, from_end + STOP_LINE_M])))
    bar = np.concatenate([ends[0], ends[1][::-1]])
    if view.may_be_seen(bar):
        view.canvas.fill_ground(bar, WHITE)
    _arrows(view, lane, lanes, at)


def stop_line_at(centre: Array, walks: list[Array]) -> float:
    """How far before the end of a centreline [n, 2] its stop line lies [m]: before a crosswalk that crosses its end."""
    distance = arc_length(centre)
    length = float(distance[-1])
    back = np.arange(0.0, min(WALK_WITHIN_M, length), 0.25)
    points = points_at(centre, distance, length - back)
    at = 0.3
    for walk in walks:
        low, high = walk.min(0), walk.max(0)
        if not ((points >= low) & (points <= high)).all(1).any():
            continue
        inside = _inside(walk, points)
        if inside.any():
            at = max(at, float(back[inside].max()) + STOP_BEFORE_WALK_M)
    return at + STOP_LINE_M


def _inside(ring: Array, points: Array) -> np.ndarray:
    """Whether points [n, 2] lie in a ring [m, 2] (even-odd rule)."""
    after = np.roll(ring, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    spans = (ring[:, 1] > y) != (after[:, 1] > y)
    rise = np.where(after[:, 1] == ring[:, 1], 1.0, after[:, 1] - ring[:, 1])
    crosses = x < (after[:, 0] - ring[:, 0]) * (y - ring[:, 1]) / rise + ring[:, 0]
    return (spans & crosses).sum(1) % 2 == 1


def turn_of(connector: Lane) -> float:
    """How far a connector turns [rad], left positive."""
    first, last = connector.centerline[1] - connector.centerline[0], connector.centerline[-1] - connector.centerline[-2]
    return math.atan2(first[0] * last[1] - first[1] * last[0], float(first @ last))


def _arrows(view: View, lane: Lane, lanes: Mapping[str, Lane], stop: float) -> None:
    turns = {_side(turn_of(lanes[key])) for key in lane.outgoing if key in lanes and len(lanes[key].centerline) > 1}
    centre = view.local(lane.centerline)
    distance = arc_length(centre)
    at = distance[-1] - stop - ARROW_BEFORE_END_M
    if at < 6.0 or not turns:
        return
    tail, nose = points_at(centre, distance, np.array([at, at + 1.0]))
    if not 1.0 < view.canvas.depth(tail) < 60.0 or not view.canvas.sees(tail, 5.0):
        return
    along = (nose - tail) / math.hypot(*(nose - tail))
    frame = np.stack([along, [-along[1], along[0]]])
    for outline in _SHAFT, *(_HEADS[turn] for turn in sorted(turns)):
        view.canvas.fill_ground(tail + outline @ frame, WHITE)


def _side(turn: float) -> int:
    return 0 if abs(turn) < TURNS_RAD else 1 if turn > 0 else -1


_SHAFT = np.array([[0.0, 0.1], [0.0, -0.1], [2.4, -0.1], [2.4, 0.1]])
_BRANCH = np.array([[1.7, 0.1], [1.45, -0.05], [2.05, 0.75], [1.75, 0.85], [2.6, 1.25], [2.75, 0.45], [2.4, 0.6]])
_HEADS = {0: np.array([[2.3, 0.35], [2.3, -0.35], [3.6, 0.0]]), 1: _BRANCH, -1: _BRANCH * [1.0, -1.0]}
