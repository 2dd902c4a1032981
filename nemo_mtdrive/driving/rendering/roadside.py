"""Traffic lights over the lanes they rule, and trees along the roads."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import shapely

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.rendering.ground import lane_edges
from nemo_mtdrive.driving.scene import Array, Scene, to_ego_frame

HEAD_HEIGHT_M = 5.0
BEHIND_ENTRY_M = 12.0
"""The heads hang this far behind the edge of the crossing, where somebody at the stop line still sees them."""
FACING_RAD = 0.9
TREE_EVERY_M = 14.0

POLE: Colour = (92, 96, 100)
HOUSING: Colour = (24, 24, 26)
LAMP_RED, LAMP_GREEN, LAMP_DARK = (255, 40, 30), (40, 240, 120), (58, 56, 52)
LEAVES: tuple[Colour, ...] = ((60, 98, 46), (76, 112, 50), (50, 86, 58))
BARK: Colour = (88, 70, 54)


@dataclass(frozen=True)
class SignalHead:
    """One signal head in the ego frame: its middle [3], the foot of its pole [2], its state."""

    head: Array
    foot: Array
    red: bool


def signals(scene: Scene) -> list[SignalHead]:
    """The heads that face the ego, one an entry lane; lights are known by lane connector."""
    lanes = {lane.id: lane for lane in scene.map.lanes}
    heads: dict[tuple[int, int], SignalHead] = {}
    for light in scene.traffic_lights:
        lane = lanes.get(light.lane_connector_id)
        if lane is None or len(lane.centerline) < 2:
            continue
        start = lane.centerline[0]
        ahead = lane.centerline[1] - start
        heading = math.atan2(ahead[1], ahead[0])
        x, y, turned = to_ego_frame(np.array([start[0], start[1], heading]), scene.ego.rear_axle_pose).tolist()
        key = (round(x), round(y))
        if key in heads or abs(turned) > FACING_RAD or x < 0.0 or x > 90.0:
            continue
        along = np.array([math.cos(turned), math.sin(turned)])
        right = np.array([along[1], -along[0]])
        over = np.array([x, y]) + BEHIND_ENTRY_M * along
        heads[key] = SignalHead(np.append(over, HEAD_HEIGHT_M), over + 4.5 * right, light.is_red)
    return list(heads.values())


def paint_signal(canvas: Canvas, signal: SignalHead) -> None:
    """The pole, its arm and the head with one lamp lit: red above, green below."""
    foot, head = signal.foot, signal.head
    distance = canvas.distance(head)
    pole = canvas.hazy(POLE, distance)
    arm = np.array([np.append(foot, 5.9), np.append(foot, 6.05), np.append(head[:2], 6.05), np.append(head[:2], 5.9)])
    canvas.fill_all([_card(np.append(foot, 3.0), 0.09, 3.0), arm, _card(head, 0.42, 0.98)], [pole, pole, HOUSING])
    for up, lit, colour in ((0.55, signal.red, LAMP_RED), (0.0, False, LAMP_DARK), (-0.55, not signal.red, LAMP_GREEN)):
        lamp = head + np.array([-0.05, 0.0, up])
        canvas.disk(lamp, 0.34 if lit else 0.24, colour if lit else LAMP_DARK)


def _card(centre: Array, half_width: float, half_height: float) -> Array:
    """An upright rectangle across the view, [4, 3]."""
    y, z = half_width, half_height
    return centre + np.array([[0.0, -y, -z], [0.0, y, -z], [0.0, y, z], [0.0, -y, z]])


def trees(scene: Scene) -> list[tuple[Array, float]]:
    """Places [2] in the ego frame and heights [m] of trees beside the roads; the map alone decides them."""
    candidates, sizes = [], []
    lanes = {lane.id: lane for lane in scene.map.lanes}
    for block in scene.map.roadblocks:
        if block.kind != "roadblock" or block.lane_ids[-1] not in lanes:
            continue
        edge = lane_edges(lanes[block.lane_ids[-1]])[1]
        distance = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(edge, axis=0) ** 2).sum(1)))])
        draws = np.random.default_rng(zlib.crc32(f"{block.id}{edge[0, 0]:.1f}".encode()))
        start = np.arange(4.0, distance[-1], TREE_EVERY_M)
        at = start + draws.uniform(0.0, 8.0, len(start))
        ends = np.stack([np.stack([np.interp(at + d, distance, edge[:, k]) for k in range(2)], -1) for d in (0.0, 1.0)])
        ahead = ends[1] - ends[0]
        length = np.sqrt((ahead**2).sum(1, keepdims=True))
        right = np.column_stack([ahead[:, 1], -ahead[:, 0]]) / np.maximum(length, 1e-6)
        places = ends[0] + right * draws.uniform(5.0, 10.0, len(start))[:, None]
        # past the end of the edge there is no direction, and no tree
        candidates.append(places[length[:, 0] > 0.5])
        sizes.append(draws.uniform(4.0, 8.0, len(start))[length[:, 0] > 0.5])
    if not candidates:
        return []
    return _off_road(scene, np.concatenate(candidates), np.concatenate(sizes).tolist())


def _off_road(scene: Scene, places: Array, sizes: list[float]) -> list[tuple[Array, float]]:
    local = to_ego_frame(np.column_stack([places, np.zeros(len(places))]), scene.ego.rear_axle_pose)[:, :2]
    ahead = (local[:, 0] > 4.0) & (local[:, 0] < 90.0) & (np.abs(local[:, 1]) < 0.7 * local[:, 0] + 6.0)
    indices = np.flatnonzero(ahead)
    if not len(indices):
        return []
    points = shapely.points(places[indices])
    clear = np.ones(len(indices), dtype=bool)
    areas = [b.polygon for b in scene.map.roadblocks if b.kind == "roadblock"]
    areas += [a.polygon for a in scene.map.intersections + scene.map.carparks]
    for area in areas:
        # a crown is wide: keep its trunk 3 m off the road
        low, high = area.min(0) - 3.0, area.max(0) + 3.0
        near = clear & (places[indices] > low).all(1) & (places[indices] < high).all(1)
        if near.any():
            clear[near] &= shapely.distance(shapely.Polygon(area), points[near]) > 3.0
    return [(local[index], sizes[index]) for index in indices[clear]]


def paint_tree(canvas: Canvas, place: Array, height: float) -> None:
    """A trunk and a crown of four disks."""
    distance = canvas.distance(np.append(place, 0.0))
    canvas.fill(_card(np.append(place, 0.25 * height), 0.16, 0.25 * height), canvas.hazy(BARK, distance))
    leaves = LEAVES[int(height * 10) % len(LEAVES)]
    for side, up, radius, light in ((0.0, 0.66, 0.27, 0.85), (-0.15, 0.6, 0.2, 1.0), (0.15, 0.72, 0.2, 1.1),
                                    (0.02, 0.84, 0.16, 1.2)):
        canvas.disk(np.array([place[0], place[1] + side * height, up * height]), radius * height,
                    canvas.hazy(leaves, distance, light))
