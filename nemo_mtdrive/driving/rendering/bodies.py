"""What stands on the ground, gathered, shadowed and painted from the far to the near."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from nemo_mtdrive.driving.rendering.buildings import paint_building
from nemo_mtdrive.driving.rendering.canvas import Canvas
from nemo_mtdrive.driving.rendering.land import Land
from nemo_mtdrive.driving.rendering.order import Item, paint_order, spot
from nemo_mtdrive.driving.rendering.people import paint_cyclist, paint_pedestrian
from nemo_mtdrive.driving.rendering.plants import paint_street_lamp, paint_tree
from nemo_mtdrive.driving.rendering.scenery import Scenery, scenery
from nemo_mtdrive.driving.rendering.signals import masts, paint_mast
from nemo_mtdrive.driving.rendering.solid import Pose
from nemo_mtdrive.driving.rendering.things import paint_thing
from nemo_mtdrive.driving.rendering.vehicles import LightBoard, look_seed, paint_vehicle
from nemo_mtdrive.driving.rendering.view import View
from nemo_mtdrive.driving.scene import Array, Scene, Track, to_ego_frame
from nemo_mtdrive.driving.trajectory import box_corners

FAR_M = 140.0
SHADE = 0.72
CONTACT = 0.45
"""Share of the light left in a shadow, and right under a body."""
POOL = (0.07, 0.14, 0.22, 0.3)
"""How much light a street lamp throws on the road, from the rim of its pool inwards."""


def gather(view: View, scene: Scene, land: Land) -> tuple[list[Item], Callable[[], None]]:
    """Everything upright that may be seen, and a function that shades the ground under it."""
    canvas = view.canvas
    beside = scenery(view, scene, land)
    items = [Item(building.corners, partial(paint_building, canvas, building)) for building in beside.buildings]
    items += [Item(spot(tree.place), partial(paint_tree, canvas, tree.place, tree.height, tree.seed))
              for tree in beside.trees]
    items += [Item(spot(lamp.foot), partial(paint_street_lamp, canvas, lamp.foot, lamp.toward)) for lamp in beside.lamps]
    for mast in masts(view, scene, land):
        place = mast.foot if mast.arm is None else np.mean([head.middle for head in mast.heads], axis=0)
        items.append(Item(spot(place), partial(paint_mast, canvas, mast)))
    board = LightBoard(scene, canvas.air.lamps_on)
    boxes: list[tuple[Array, float, bool]] = []
    for track in scene.tracks:
        rows = np.flatnonzero(np.abs(track.states[:, 0]) < 1e-6)
        if not len(rows):
            continue
        x, y, heading = to_ego_frame(track.states[rows[0], 1:4], scene.ego.rear_axle_pose).tolist()
        reach = 0.5 * float(np.hypot(track.size[0], track.size[1])) + 0.5
        if math.dist((x, y), canvas.position[:2]) > FAR_M or not canvas.sees(np.array([x, y]), reach):
            continue
        length, width = max(float(track.size[0]), 0.2), max(float(track.size[1]), 0.2)
        corners = box_corners(np.array([[x, y, heading]]), length, width, 0.0)[0]
        # footprints run counter-clockwise
        area = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        items.append(Item(corners if area > 0 else corners[::-1], _painter(canvas, board, track, (x, y, heading),
                                                                           track.states[rows[0]])))
        boxes.append((corners, float(track.size[2]), track.type not in ("pedestrian", "bicycle")))
    return items, partial(_shade, canvas, boxes, beside)


def paint_items(canvas: Canvas, items: list[Item]) -> None:
    """Paint items so that the near cover the far."""
    if items:
        for index in paint_order(np.array([item.footprint for item in items]), canvas.position[:2]):
            items[index].paint()


def _painter(canvas: Canvas, board: LightBoard, track: Track, pose: Pose, state: Array) -> Callable[[], None]:
    seed = look_seed(track)
    speed = math.hypot(state[4], state[5])
    if track.type == "vehicle":
        return partial(paint_vehicle, canvas, pose, track.size, track.token, seed, board.lights(track))
    if track.type == "pedestrian":
        return partial(paint_pedestrian, canvas, pose, track.size, speed, seed)
    if track.type == "bicycle":
        return partial(paint_cyclist, canvas, pose, track.size, speed, seed, canvas.air.lamps_on)
    return partial(paint_thing, canvas, pose, track.size, track.type, seed)


def _shade(canvas: Canvas, boxes: list[tuple[Array, float, bool]], beside: Scenery) -> None:
    """Shadows: cast by the sun where it shines, and the dark right under each body always."""
    air = canvas.air
    if air.night:
        pools: list[Array] = []
        for lamp in beside.lamps:
            middle = lamp.foot + 2.4 * lamp.toward
            pools += [_round(middle, radius) for radius in (7.0, 5.8, 4.6, 3.2)]
        canvas.brighten_ground(pools, list(POOL) * len(beside.lamps), (255, 214, 150))
    elif air.casts_shadows:
        # a low sun would throw shadows across everything
        away = -canvas.sun[:2] / max(float(canvas.sun[2]), 0.55)
        outlines = [_cast(corners, away * height) for corners, height, _ in boxes]
        outlines += [_cast(building.corners, away * min(building.height, 9.0)) for building in beside.buildings]
        outlines += [_round(tree.place + 0.6 * away * tree.height, 0.27 * tree.height) for tree in beside.trees]
        canvas.shade_ground(outlines, SHADE)
    canvas.shade_ground([_cast(corners, np.zeros(2), 0.1) for corners, _, solid in boxes if solid], CONTACT)
    canvas.shade_ground([_round(corners.sum(0) / 4.0, 0.3) for corners, _, solid in boxes if not solid], 0.7)


def _cast(corners: Array, away: Array, margin: float = 0.0) -> Array:
    """The outline [n, 2] of a footprint and its copy moved by `away`."""
    middle = corners.mean(0)
    grown = corners + margin * np.sign(corners - middle)
    if not away.any():
        return grown
    hull: Array = cv2.convexHull(np.vstack([grown, grown + away]).astype(np.float32)).reshape(-1, 2).astype(np.float64)
    return hull


_ANGLES = np.linspace(0.0, 2 * math.pi, 19)[:-1]


def _round(middle: Array, radius: float) -> Array:
    return middle + radius * np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])
