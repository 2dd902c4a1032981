"""A bird's-eye picture of a scene: map, road users with their ways, the ego, and trajectories over it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Array, Scene, to_ego_frame
from nemo_mtdrive.driving.trajectory import box_corners

Colour = tuple[int, int, int]

GRASS: Colour = (222, 228, 214)
ASPHALT: Colour = (120, 122, 126)
LANE_LINE: Colour = (240, 240, 240)
CROSSWALK: Colour = (190, 190, 196)
ROUTE: Colour = (126, 138, 160)
EGO: Colour = (24, 92, 200)
HUMAN: Colour = (40, 150, 60)
PLANNED: Colour = (225, 80, 20)
BODIES: dict[str, Colour] = {"vehicle": (60, 60, 66), "pedestrian": (200, 30, 110), "bicycle": (140, 60, 180)}
OBJECT: Colour = (230, 150, 30)
_SHIFT = 4  # fractional bits of OpenCV's fixed-point vertices


class _Sheet:
    """The picture and the way from the ego frame to its pixels: forward is up."""

    def __init__(self, size_px: int, metres: float) -> None:
        self.image = np.full((size_px, size_px, 3), GRASS, dtype=np.uint8)
        self.scale = size_px / metres
        self.centre = np.array([size_px / 2, size_px * 0.68])

    def pixels(self, points: Array) -> NDArray[np.int32]:
        flat = np.column_stack([self.centre[0] - points[:, 1] * self.scale, self.centre[1] - points[:, 0] * self.scale])
        return np.round(np.clip(flat, -20000, 20000) * 2**_SHIFT).astype(np.int32)

    def fill(self, points: Array, colour: Colour) -> None:
        cv2.fillPoly(self.image, [self.pixels(points)], colour, cv2.LINE_AA, _SHIFT)

    def line(self, points: Array, colour: Colour, thickness: int, closed: bool = False) -> None:
        cv2.polylines(self.image, [self.pixels(points)], closed, colour, thickness, cv2.LINE_AA, _SHIFT)

    def dot(self, point: Array, radius: int, colour: Colour) -> None:
        x, y = self.pixels(point[None])[0]
        cv2.circle(self.image, (int(x), int(y)), radius << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)


def draw(scene: Scene, trajectory: Array | None, size_px: int, metres: float) -> NDArray[np.uint8]:
    """The scene from above, uint8 RGB [size_px, size_px, 3], `metres` wide, forward up, the ego below the middle.

    Blue: the ego. Green: what the human or the expert drove. Orange: `trajectory` [8, 3] in the ego frame, with the
    ego's box at its end. Road users have a thin line to where they are after 4 s.
    """
    sheet = _Sheet(size_px, metres)
    _draw_map(sheet, scene)
    for track in scene.tracks:
        now = track.states[np.abs(track.states[:, 0]) < 1e-6]
        later = track.states[track.states[:, 0] <= 4.0 + 1e-6]
        if not len(now):
            continue
        way = to_ego_frame(later[:, 1:4], scene.ego.rear_axle_pose)
        colour = BODIES.get(track.type, OBJECT)
        sheet.line(way[:, :2], colour, 1)
        sheet.fill(box_corners(way[:1], max(track.size[0], 0.5), max(track.size[1], 0.5), 0.0)[0], colour)
    vehicle = scene.ego.vehicle
    body = box_corners(np.zeros((1, 3)), vehicle.length, vehicle.width, vehicle.rear_axle_to_center)[0]
    sheet.fill(body, EGO)
    if scene.history is not None:
        sheet.line(scene.history[:, :2], EGO, 1)
    for poses, colour in ((scene.future, HUMAN), (trajectory, PLANNED)):
        if poses is None:
            continue
        sheet.line(np.vstack([np.zeros(2), poses[:, :2]]), colour, 2)
        for pose in poses:
            sheet.dot(pose[:2], 3, colour)
        last = box_corners(poses[-1:], vehicle.length, vehicle.width, vehicle.rear_axle_to_center)[0]
        sheet.line(last, colour, 1, closed=True)
    return sheet.image


def _draw_map(sheet: _Sheet, scene: Scene) -> None:
    def local(points: Array) -> Array:
        return to_ego_frame(np.column_stack([points, np.zeros(len(points))]), scene.ego.rear_axle_pose)[:, :2]

    scene_map = scene.map
    for area in scene_map.intersections + scene_map.carparks:
        sheet.fill(local(area.polygon), ASPHALT)
    roads = [block for block in scene_map.roadblocks if block.kind == "roadblock"]
    for block in roads:
        sheet.fill(local(block.polygon), ASPHALT)
    route = set(scene.route_roadblock_ids)
    for lane in scene_map.lanes:
        if lane.roadblock_id in route:
            sheet.fill(local(lane.polygon), ROUTE)
    for walk in scene_map.crosswalks:
        sheet.fill(local(walk.polygon), CROSSWALK)
    for lane in scene_map.lanes:
        if lane.kind == "lane":
            sheet.line(local(lane.polygon), LANE_LINE, 1, closed=True)
    red = {light.lane_connector_id: light.is_red for light in scene.traffic_lights}
    for lane in scene_map.lanes:
        if lane.id in red:
            sheet.dot(local(lane.centerline[:1])[0], max(3, int(0.5 * sheet.scale)),
                      (220, 30, 30) if red[lane.id] else (30, 190, 60))


