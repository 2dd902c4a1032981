"""The ground of the picture: pavement, kerbs, worn asphalt, crosswalks, read off the map's polygons."""

from __future__ import annotations

import math
import zlib

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Colour
from nemo_mtdrive.driving.rendering.chance import Draws
from nemo_mtdrive.driving.rendering.land import Land
from nemo_mtdrive.driving.rendering.markings import WHITE, paint_markings
from nemo_mtdrive.driving.rendering.view import View, arc_length, dense, normals, points_at, stripe
from nemo_mtdrive.driving.scene import Array, Scene

ASPHALT: Colour = (88, 89, 92)
WORN: Colour = (80, 81, 84)
PATCHES: tuple[Colour, ...] = ((74, 75, 78), (96, 97, 99))
IRON: Colour = (62, 60, 58)
PAVEMENT: Colour = (170, 166, 158)
KERB: Colour = (206, 202, 194)
PAVEMENT_M = {"city": 6.0, "suburb": 2.6, "country": 1.2}
KERB_M = 0.2
TYRES_M = 0.85
WEAR_UP_TO_M = 70.0
_RING = np.array([[math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)] for k in range(16)])


GRASS: dict[str, Colour] = {"city": (112, 124, 92), "suburb": (104, 128, 74), "country": (118, 128, 76)}


def base_colour(land: Land) -> Colour:
    """What the ground is where no road is."""
    return GRASS[land.style]


def paint_ground(view: View, scene: Scene, land: Land) -> None:
    """Everything flat, from below upwards, in plain colours; `Canvas.light_ground` lights it."""
    canvas, scene_map = view.canvas, scene.map
    areas = [block.polygon for block in scene_map.roadblocks if block.kind == "roadblock"]
    areas += [area.polygon for area in scene_map.intersections + scene_map.carparks]
    rings = [ring for ring in map(view.local, areas) if view.may_be_seen(ring)]
    stretches = [stretch for ring in rings for stretch in view.stretches(np.vstack([ring, ring[:1]]))]
    for colour, half_width in ((PAVEMENT, PAVEMENT_M[land.style]), (KERB, KERB_M)):
        for stretch in stretches:
            canvas.fill_ground(stripe(stretch, half_width), colour)
    for ring in rings:
        # over hills a long edge must bend with the ground
        canvas.fill_ground(ring if canvas.terrain.flat else dense(np.vstack([ring, ring[:1]]), 3.0), ASPHALT)
    for middle, radius in land.islands:
        canvas.fill_ground(view.local(middle + (radius - 1.2) * _RING), GRASS["suburb"])
    _wear(view, scene)
    paint_markings(view, scene)
    for walk in scene_map.crosswalks:
        _zebra(view, view.local(walk.polygon))


def _wear(view: View, scene: Scene) -> None:
    """Darker tracks of tyres, mended patches and manhole covers; the map alone decides where."""
    for lane in scene.map.lanes:
        if lane.kind != "lane" or len(lane.centerline) < 2:
            continue
        line = view.local(lane.centerline)
        if not view.may_be_seen(line):
            continue
        near = line if len(line) < 4 else line[np.hypot(line[:, 0], line[:, 1]) < WEAR_UP_TO_M]
        if len(near) < 2:
            continue
        side = TYRES_M * normals(near)
        for track in (near + side, near - side):
            view.ribbon(track, 0.24, WORN)
        _patches(view, line, zlib.crc32(f"{lane.id}{lane.centerline[0, 0]:.1f}".encode()))


def _patches(view: View, line: Array, seed: int) -> None:
    canvas = view.canvas
    distance = arc_length(line)
    count = int(min(distance[-1], 400.0) / 28.0)
    if not count:
        return
    draws = Draws(seed)
    at, aside = draws.uniform(0.0, distance[-1], count), draws.uniform(-1.0, 1.0, count)
    long, wide = draws.uniform(0.6, 3.2, count), draws.uniform(0.3, 0.8, count)
    kinds = draws.uniform(0.0, 3.0, count).astype(int)
    places, ahead = points_at(line, distance, at), points_at(line, distance, at + 0.5)
    depth, across = view.depths(places)
    for index in np.flatnonzero((depth > 2.0) & (depth < 45.0) & (np.abs(across) < 0.7 * depth + 3.0)).tolist():
        along = ahead[index] - places[index]
        length = math.hypot(*along)
        if length < 0.1:
            continue
        frame = np.array([along, [-along[1], along[0]]]) / length
        middle = places[index] + aside[index] * frame[1]
        if kinds[index] == 2:
            canvas.fill_ground(middle + 0.33 * (_RING @ frame), IRON)
        else:
            half, y = wide[index], long[index]
            canvas.fill_ground(middle + np.array([[y, half], [y, -half], [-y, -half], [-y, half]]) @ frame,
                               PATCHES[kinds[index]])


def _zebra(view: View, corners: Array) -> None:
    """Bars across a crosswalk, laid between its two long sides; no lane marking runs through it."""
    if not view.may_be_seen(corners):
        return
    view.canvas.fill_ground(corners, ASPHALT)
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


