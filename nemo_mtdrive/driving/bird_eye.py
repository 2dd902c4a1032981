"""A bird's-eye picture of a scene: map, lights and stop lines, road users with their ways, the ego, and trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.markings import stop_line_at
from nemo_mtdrive.driving.rendering.view import arc_length, lane_edges, points_at
from nemo_mtdrive.driving.scene import Array, Scene, Track, to_ego_frame
from nemo_mtdrive.driving.trajectory import box_corners

Colour = tuple[int, int, int]

GRASS: Colour = (233, 237, 228)
KERB: Colour = (178, 184, 180)
ASPHALT: Colour = (148, 153, 160)
ROUTE: Colour = (150, 176, 206)
LINE: Colour = (250, 250, 250)
CENTRE: Colour = (238, 196, 70)
EGO: Colour = (18, 92, 214)
HUMAN: Colour = (16, 150, 84)
PLANNED: tuple[Colour, ...] = ((232, 84, 20), (150, 60, 190), (20, 150, 170), (200, 150, 0))
BODIES: dict[str, Colour] = {"vehicle": (72, 80, 92), "pedestrian": (214, 34, 116), "bicycle": (140, 62, 190),
                             "traffic_cone": (246, 122, 20), "barrier": (206, 52, 40), "czone_sign": (246, 122, 20)}
OBJECT: Colour = (140, 116, 84)
HEAVY: Colour = (46, 60, 96)
RED, GREEN = (226, 40, 34), (26, 176, 84)
INK: Colour = (44, 50, 58)
HEAVY_M = 7.5
_UNIT = 16  # OpenCV's fixed-point vertices have four fractional bits
_FINE = 2
"""Drawn this much larger, then averaged down."""


class _Sheet:
    """The picture and the way from the ego frame to its pixels: forward is up."""

    def __init__(self, width: int, height: int, metres: float) -> None:
        self.image = np.full((height, width, 3), GRASS, dtype=np.uint8)
        self.scale = width / metres
        self.centre = np.array([width / 2, height * 0.72])

    def pixels(self, points: Array) -> NDArray[np.int32]:
        flat = np.column_stack([self.centre[0] - points[:, 1] * self.scale, self.centre[1] - points[:, 0] * self.scale])
        return np.round(np.clip(flat, -20000, 20000) * _UNIT).astype(np.int32)

    def fill(self, points: Array, colour: Colour) -> None:
        cv2.fillPoly(self.image, [self.pixels(points)], colour, cv2.LINE_AA, 4)

    def line(self, points: Array, colour: Colour, metres: float, closed: bool = False) -> None:
        """A line `metres` wide, at least one pixel of the finished picture."""
        width = max(round(metres * self.scale), _FINE)
        cv2.polylines(self.image, [self.pixels(points)], closed, colour, width, cv2.LINE_AA, 4)

    def dashes(self, points: Array, colour: Colour, metres: float, dash: float, gap: float) -> None:
        distance = arc_length(points)
        for start in np.arange(0.0, distance[-1], dash + gap).tolist():
            ends = np.linspace(start, min(start + dash, distance[-1]), 3)
            self.line(points_at(points, distance, ends), colour, metres)

    def dot(self, point: Array, metres: float, colour: Colour) -> None:
        x, y = self.pixels(point[None])[0].tolist()
        cv2.circle(self.image, (x, y), max(round(metres * self.scale * _UNIT), 2 * _UNIT), colour, -1, cv2.LINE_AA, 4)


def draw(scene: Scene, trajectories: Array | Sequence[Array] | None, size_px: int | tuple[int, int],
         metres: float) -> NDArray[np.uint8]:
    """The scene from above: uint8 RGB, forward up, the ego below the middle.

    Blue: the ego, what it drove, and its route. Green: what the human or the expert drove. Orange and further colours:
    `trajectories`, each with the ego's box at its end. Stop lines have the colour of their light, connectors too. Road
    users have a line to where they are after 4 s. A bar tells the scale.

    Args:
        scene: what to draw.
        trajectories: one [n, 3] in the ego frame, several, or None.
        size_px: side of a square picture, or (width, height).
        metres: width of the picture in metres.
    """
    width, height = (size_px, size_px) if isinstance(size_px, int) else size_px
    sheet = _Sheet(width * _FINE, height * _FINE, metres)
    _draw_map(sheet, scene)
    for track in scene.tracks:
        _draw_track(sheet, scene, track)
    if scene.history is not None:
        sheet.line(scene.history[:, :2], EGO, 0.25)
    given = [] if trajectories is None else [trajectories] if isinstance(trajectories, np.ndarray) else list(trajectories)
    if scene.future is not None:
        _draw_plan(sheet, scene, scene.future, HUMAN)
    for number, poses in enumerate(given):
        _draw_plan(sheet, scene, np.asarray(poses, dtype=np.float64), PLANNED[number % len(PLANNED)])
    vehicle = scene.ego.vehicle
    _draw_car(sheet, np.array([vehicle.rear_axle_to_center, 0.0, 0.0]), vehicle.length, vehicle.width, EGO)
    _draw_scale(sheet)
    return np.asarray(cv2.resize(sheet.image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _draw_plan(sheet: _Sheet, scene: Scene, poses: Array, colour: Colour) -> None:
    """A trajectory [n, 3] with its points and the ego's box at its end."""
    path = np.vstack([np.zeros(2), poses[:, :2]])
    sheet.line(path, (255, 255, 255), 0.75)
    sheet.line(path, colour, 0.45)
    for pose in poses:
        sheet.dot(pose[:2], 0.5, (255, 255, 255))
        sheet.dot(pose[:2], 0.34, colour)
    vehicle = scene.ego.vehicle
    sheet.line(box_corners(poses[-1:], vehicle.length, vehicle.width, vehicle.rear_axle_to_center)[0], colour, 0.18,
               closed=True)


def _draw_track(sheet: _Sheet, scene: Scene, track: Track) -> None:
    now = np.flatnonzero(np.abs(track.states[:, 0]) < 1e-6)
    if not len(now):
        return
    later = track.states[track.states[:, 0] <= 4.0 + 1e-6]
    way = to_ego_frame(later[:, 1:4], scene.ego.rear_axle_pose)
    colour = BODIES.get(track.type, OBJECT)
    if track.type == "vehicle" and track.size[0] > HEAVY_M:
        colour = HEAVY
    pale = tuple(int(0.5 * c + 0.5 * 255) for c in colour)
    sheet.line(way[:, :2], (pale[0], pale[1], pale[2]), 0.3)
    length, width = max(float(track.size[0]), 0.6), max(float(track.size[1]), 0.6)
    if track.type == "vehicle":
        _draw_car(sheet, way[0], length, width, colour)
    elif track.type == "pedestrian":
        sheet.dot(way[0, :2], 0.65, (255, 255, 255))
        sheet.dot(way[0, :2], 0.5, colour)
    else:
        sheet.fill(box_corners(way[:1], length, width, 0.0)[0], colour)


def _draw_car(sheet: _Sheet, pose: Array, length: float, width: float, colour: Colour) -> None:
    """A body with round corners, its windscreen towards where it drives."""
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    frame = np.array([[cos, sin], [-sin, cos]])
    # a superellipse has the corners of a car
    angles = np.linspace(0.0, 2 * math.pi, 33)[:-1]
    along, across = np.cos(angles), np.sin(angles)
    outline = np.column_stack([np.sign(along) * np.abs(along) ** 0.4 * length / 2,
                               np.sign(across) * np.abs(across) ** 0.4 * width / 2])
    sheet.fill(pose[:2] + 1.08 * outline @ frame, (255, 255, 255))
    sheet.fill(pose[:2] + outline @ frame, colour)
    front = min(0.2 * length, 1.0)
    pane = np.array([[front, .36], [front, -.36], [front + 0.16 * min(length, 5.0), -.42],
                     [front + 0.16 * min(length, 5.0), .42]]) * [1.0, width]
    pane[:, 0] += length / 2 - 0.42 * min(length, 5.0)
    pale = tuple(int(0.35 * c + 0.65 * 255) for c in colour)
    sheet.fill(pose[:2] + (pane - [front * 0.9, 0.0]) @ frame, (pale[0], pale[1], pale[2]))


def _draw_map(sheet: _Sheet, scene: Scene) -> None:
    def local(points: Array) -> Array:
        return to_ego_frame(np.column_stack([points, np.zeros(len(points))]), scene.ego.rear_axle_pose)[:, :2]

    scene_map = scene.map
    areas = [block.polygon for block in scene_map.roadblocks if block.kind == "roadblock"]
    areas += [area.polygon for area in scene_map.intersections + scene_map.carparks]
    for polygon in areas:
        sheet.line(local(polygon), KERB, 0.7, closed=True)
    for polygon in areas:
        sheet.fill(local(polygon), ASPHALT)
    route = set(scene.route_roadblock_ids)
    for lane in scene_map.lanes:
        if lane.roadblock_id in route:
            sheet.fill(local(lane.polygon), ROUTE)
    lanes = {lane.id: lane for lane in scene_map.lanes}
    for block in scene_map.roadblocks:
        members = [lanes[key] for key in block.lane_ids if key in lanes]
        if block.kind != "roadblock" or not members:
            continue
        sheet.line(local(lane_edges(members[0])[0]), CENTRE, 0.16)
        sheet.line(local(lane_edges(members[-1])[1]), LINE, 0.14)
        for lane in members[:-1]:
            sheet.dashes(local(lane_edges(lane)[1]), LINE, 0.14, 2.5, 3.0)
    for walk in scene_map.crosswalks:
        _draw_walk(sheet, local(walk.polygon))
    red = {light.lane_connector_id: light.is_red for light in scene.traffic_lights}
    walks = [local(walk.polygon) for walk in scene_map.crosswalks]
    for lane in scene_map.lanes:
        if lane.id in red:
            sheet.line(local(lane.centerline), RED if red[lane.id] else GREEN, 0.22)
    for lane in scene_map.lanes:
        states = [red[key] for key in lane.outgoing if key in red]
        if states:
            left, right = (local(edge) for edge in lane_edges(lane))
            _draw_stop_line(sheet, left, right, stop_line_at(local(lane.centerline), walks), states)


def _draw_stop_line(sheet: _Sheet, left: Array, right: Array, before: float, states: Sequence[bool]) -> None:
    """Across the lane, in the colours of its lights: one part for each connector."""
    ends = []
    for edge in (left, right):
        distance = arc_length(edge)
        ends.append(points_at(edge, distance, np.array([max(distance[-1] - before, 0.0)]))[0])
    for number, is_red in enumerate(states):
        parts = ends[0] + np.array([[number], [number + 1]]) / len(states) * (ends[1] - ends[0])
        sheet.line(parts, RED if is_red else GREEN, 0.7)


def _draw_walk(sheet: _Sheet, ring: Array) -> None:
    """White bars between the long sides, told by the ring's longest edge."""
    sides = np.sqrt(((np.roll(ring, -1, axis=0) - ring) ** 2).sum(1))
    first = int(sides.argmax())
    a, b = ring[first], ring[(first + 1) % len(ring)]
    middle = ring.mean(0)
    along = (b - a) / max(float(sides[first]), 1e-6)
    across = 2.0 * ((middle - a) - ((middle - a) @ along) * along)
    for start in np.arange(0.2, sides[first] - 0.5, 1.2).tolist():
        corner = a + start * along
        sheet.fill(np.array([corner, corner + 0.6 * along, corner + 0.6 * along + across, corner + across]), LINE)


def _draw_scale(sheet: _Sheet) -> None:
    """A bar of 10 m (or 5, 20, 50) in the lower left corner."""
    height, width = sheet.image.shape[:2]
    metres = min((5, 10, 20, 50, 100), key=lambda bar: abs(bar * sheet.scale - 0.16 * width))
    left, bottom = round(0.035 * width), round(height - 0.035 * width)
    right = left + round(metres * sheet.scale)
    thick = max(round(0.004 * width), _FINE)
    tick = 3 * thick
    for start, end in (((left, bottom), (right, bottom)), ((left, bottom - tick), (left, bottom + tick)),
                       ((right, bottom - tick), (right, bottom + tick))):
        cv2.line(sheet.image, start, end, INK, thick, cv2.LINE_AA)
    size = 0.00105 * width
    cv2.putText(sheet.image, f"{metres} m", (left + thick * 2, bottom - 2 * tick), cv2.FONT_HERSHEY_DUPLEX, size, INK,
                max(1, round(1.3 * size)), cv2.LINE_AA)
