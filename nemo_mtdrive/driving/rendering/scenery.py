"""What stands beside the roads: buildings, trees, street lamps. The map alone decides where, never the scene's story."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.rendering.buildings import Building
from nemo_mtdrive.driving.rendering.chance import Draws
from nemo_mtdrive.driving.rendering.land import Land
from nemo_mtdrive.driving.rendering.view import View, arc_length, lane_edges, normals, points_at
from nemo_mtdrive.driving.scene import Array, Scene

TREE_FAR_M, LAMP_FAR_M, HOUSE_FAR_M = 95.0, 110.0, 125.0
LAMP_EVERY_M = 30.0


@dataclass(frozen=True)
class Habit:
    """How a style of land is built over: ranges in metres."""

    gap: tuple[float, float]
    front: tuple[float, float]
    deep: tuple[float, float]
    tall: tuple[float, float]
    setback: tuple[float, float]
    tree_every: float
    tree_off: tuple[float, float]
    tree_tall: tuple[float, float]


HABITS = {
    "city": Habit((0.0, 5.0), (12.0, 24.0), (10.0, 14.0), (7.0, 21.0), (5.2, 7.5), 17.0, (2.0, 2.6), (4.5, 6.5)),
    "suburb": Habit((7.0, 18.0), (9.0, 13.0), (8.0, 10.0), (4.2, 6.0), (8.0, 13.0), 12.0, (3.4, 8.0), (4.5, 9.0)),
    "country": Habit((50.0, 120.0), (10.0, 16.0), (9.0, 12.0), (4.0, 6.0), (11.0, 20.0), 11.0, (4.5, 22.0), (5.0, 11.0)),
}


@dataclass(frozen=True)
class Tree:
    """A tree at a place [2] of the ego frame: height [m] and a number that decides its form."""

    place: Array
    height: float
    seed: int


@dataclass(frozen=True)
class Lamp:
    """A street lamp: its foot [2] in the ego frame and the unit vector [2] to the road."""

    foot: Array
    toward: Array


@dataclass(frozen=True)
class Scenery:
    """All of it that may be seen."""

    buildings: list[Building]
    trees: list[Tree]
    lamps: list[Lamp]


def scenery(view: View, scene: Scene, land: Land) -> Scenery:
    """The scenery along all roadblocks near the ego."""
    habit = HABITS[land.style]
    lanes = {lane.id: lane for lane in scene.map.lanes}
    found = Scenery([], [], [])
    verges = []
    for block in scene.map.roadblocks:
        if block.kind != "roadblock" or block.lane_ids[-1] not in lanes:
            continue
        right, left = lane_edges(lanes[block.lane_ids[-1]])[1], lane_edges(lanes[block.lane_ids[0]])[0][::-1]
        for edge in (right, left):
            along, across = view.depths(view.local(edge))
            if along.max() < 0.0 or along.min() > HOUSE_FAR_M or np.abs(across).min() > HOUSE_FAR_M:
                continue
            # the left edge has a verge only where no traffic comes towards
            if edge is left and not _has_verge(land, edge):
                continue
            verges.append((edge, zlib.crc32(f"{block.id} {edge[0, 0]:.1f} {edge[0, 1]:.1f}".encode())))
    for middle, _ in land.islands:
        found.trees.append(Tree(view.local(middle[None])[0], 4.2, zlib.crc32(f"{middle[0]:.0f}".encode()) % 4096))
    for edge, seed in verges:
        _build(view, land, habit, edge, Draws(seed), found.buildings)
    for edge, seed in verges:
        draws = Draws(seed + 1)
        if land.style != "country":
            _light(view, land, edge, found.lamps)
        _plant(view, land, habit, edge, draws, found.trees)
    return found


def _has_verge(land: Land, edge: Array) -> bool:
    """Whether there is free land to the right of the middle of an edge [n, 2]."""
    distance = arc_length(edge)
    at = np.array([0.35, 0.5, 0.65]) * distance[-1]
    return bool((land.clearance(points_at(edge, distance, at) - 3.0 * _left(edge, distance, at)) > 1.5).any())


def _build(view: View, land: Land, habit: Habit, edge: Array, draws: Draws,
           found: list[Building]) -> None:
    distance = arc_length(edge)
    count = int(distance[-1] / (habit.front[0] + habit.gap[0])) + 1
    front, deep, tall, setback, gap = (draws.uniform(*span, count) for span in
                                       (habit.front, habit.deep, habit.tall, habit.setback, habit.gap))
    seeds = draws.uniform(0.0, 1 << 30, count).astype(int)
    at = float(draws.uniform(0.0, habit.gap[1], 1)[0]) + np.cumsum(front + gap) - front - gap
    start, end = points_at(edge, distance, at), points_at(edge, distance, at + front)
    along = end - start
    length = np.sqrt((along**2).sum(1))
    right = np.column_stack([along[:, 1], -along[:, 0]]) / np.maximum(length, 1e-6)[:, None]
    near, far = setback[:, None] * right, (setback + deep)[:, None] * right
    corners = np.stack([start + near, start + far, end + far, end + near], axis=1)
    local = view.local(corners.reshape(-1, 2))
    depth, across = (values.reshape(-1, 4) for values in view.depths(local))
    keep = (length > 6.0) & (at < distance[-1] - 6.0) & (depth.max(1) > 0.5) & (depth.min(1) < HOUSE_FAR_M)
    keep &= np.abs(across).min(1) < 0.75 * depth.max(1) + 3.0
    share = np.linspace(0.0, 1.0, 4)[:-1, None]
    for index in np.flatnonzero(keep).tolist():
        outline = corners[index]
        ring = (outline[:, None] + share * (np.roll(outline, -1, axis=0) - outline)[:, None]).reshape(-1, 2)
        if land.take(outline, np.vstack([ring, outline.mean(0)]), 3.6):
            found.append(Building(local[4 * index : 4 * index + 4], float(tall[index]), land.style != "city",
                                  int(seeds[index])))


def _plant(view: View, land: Land, habit: Habit, edge: Array, draws: Draws, found: list[Tree]) -> None:
    distance = arc_length(edge)
    at = np.arange(3.0, distance[-1], habit.tree_every)
    at = at + draws.uniform(0.0, 0.8 * habit.tree_every, len(at))
    off, tall = draws.uniform(*habit.tree_off, len(at)), draws.uniform(*habit.tree_tall, len(at))
    seeds = draws.uniform(0.0, 1 << 20, len(at)).astype(int)
    keep = at < distance[-1] - 0.5
    if not keep.any():
        return
    places = points_at(edge, distance, at) - off[:, None] * _left(edge, distance, at)
    local = view.local(places)
    along, across = view.depths(local)
    keep &= (along > 2.5) & (along < TREE_FAR_M) & (np.abs(across) < 0.7 * along + 5.0)
    keep &= land.clearance(places) > min(habit.tree_off[0] - 0.4, 2.5)
    for index in np.flatnonzero(keep).tolist():
        reach = 0.7 if habit.tree_off[0] < 3.0 else 1.5
        ring = places[index] + reach * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [0, 0]])
        if land.take(ring[:4], ring, 0.5):
            found.append(Tree(local[index], float(tall[index]), int(seeds[index])))


def _light(view: View, land: Land, edge: Array, found: list[Lamp]) -> None:
    distance = arc_length(edge)
    at = np.arange(9.0, distance[-1] - 2.0, LAMP_EVERY_M)
    if not len(at):
        return
    left = _left(edge, distance, at)
    places = points_at(edge, distance, at) - 1.3 * left
    local, toward = view.local(places), view.local(places + left) - view.local(places)
    along, across = view.depths(local)
    keep = (along > 2.0) & (along < LAMP_FAR_M) & (np.abs(across) < 0.7 * along + 4.0) & (land.clearance(places) > 0.4)
    for index in np.flatnonzero(keep).tolist():
        ring = places[index] + 0.6 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [0, 0]])
        if land.take(ring[:4], ring[4:], 0.4):
            found.append(Lamp(local[index], toward[index]))


def _left(line: Array, distance: Array, at: Array) -> Array:
    """Unit vectors [n, 2] to the left of a polyline at arc lengths [n]."""
    sides = normals(line)
    return np.stack([np.interp(at, distance, sides[:, 0]), np.interp(at, distance, sides[:, 1])], axis=-1)
