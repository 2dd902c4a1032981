"""`Road`, what every layout gives, and the plain layouts: straight road, curve, narrow street."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nemo_mtdrive.driving.generator.geometry import (
    bend,
    heading_vector,
    left_of,
    moved,
    offset,
    straight,
)
from nemo_mtdrive.driving.generator.mapping import MapBuilder
from nemo_mtdrive.driving.scene import Area, Array, SceneMap

CROSSWALK_WIDTH = 3.0
STOP_LINE_BEFORE_END_M = 4.3
"""Stop lines lie this far before the end of a lane that leads into a crossing: behind the crosswalk."""
STEP, BEND_STEP = 3.0, 1.5
"""Spacing of the map's vertices on straight lines and in bends [m]."""
PARKING_M = 2.3
EGO_SIDE, RIGHT_SIDE, ONCOMING_SIDE, LEFT_SIDE = range(4)
"""`Route.approach`: where a route comes from, seen by the ego."""


@dataclass(frozen=True)
class Route:
    """A line from one edge of the map to another, as its lanes lead.

    `movement` is straight, left or right; `lane` counts from the left among `lanes` parallel ones. `rank` decides who
    gives way where two lines meet: the higher one. `stop` is the arc length of the stop line, `entry` that of the
    crossing's edge, `leave` where the crossing ends (None on plain roads); `light` is the group of signals, -1 without.
    `change` is the stretch on which lanes may be changed; `ends` tells that the lane merges into another.
    """

    line: Array
    roadblock_ids: tuple[str, ...]
    lane: int
    lanes: int
    approach: int
    movement: str = "straight"
    rank: int = 0
    connector_id: str | None = None
    stop: float | None = None
    entry: float | None = None
    leave: float | None = None
    light: int = -1
    change: tuple[float, float] = (0.0, 1e9)
    ends: bool = False
    circles: bool = False
    """Who is in the roundabout goes first there, whatever the rank."""


@dataclass(frozen=True)
class Crosswalk:
    """Where pedestrians cross: from kerb to kerb [2], and which arm of a crossing it lies on (0: the ego's)."""

    start: Array
    end: Array
    arm: int


@dataclass(frozen=True)
class Road:
    """A layout in the map frame."""

    kind: str
    map: SceneMap
    routes: tuple[Route, ...]
    crosswalks: tuple[Crosswalk, ...]
    speed_limit: float
    lane_width: float
    focus: tuple[float, float]
    """Arc lengths of the ego's routes between which its rear axle may be at t = 0; crossings have their stop line."""
    parking: float = 0.0
    """Width of the parking strip to the right of the outer lanes [m]."""
    bend: tuple[float, float] = (0.0, 0.0)
    """Arc length at which a curve starts, and its angle [rad]."""
    neighbours: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Index of the routes to the left and right of a route, -1 for none; missing ones have none."""


@dataclass(frozen=True)
class Wish:
    """What a situation needs of its road."""

    lanes: int = 1
    """At least so many lanes in the ego's direction."""
    parking: bool = False
    crosswalk: bool = False
    command: str = "GO STRAIGHT"
    slow: bool = False
    """A street of the town, not a fast road."""


def side_by_side(routes: list[Route]) -> dict[int, tuple[int, int]]:
    """Neighbours of routes: those on the same roadblocks one lane to the left and to the right."""
    at = {(route.roadblock_ids, route.lane): index for index, route in enumerate(routes)}
    return {index: (at.get((route.roadblock_ids, route.lane - 1), -1), at.get((route.roadblock_ids, route.lane + 1), -1))
            for index, route in enumerate(routes)}


def build_straight(rng: np.random.Generator, wish: Wish) -> Road:
    """A straight road with one to three lanes a direction."""
    limits = [9.0, 11.0, 13.5] if wish.slow else [9.0, 11.0, 13.5, 16.5, 20.0]
    lanes = int(rng.integers(wish.lanes, max(wish.lanes, 3) + 1))
    limit = float(rng.choice(limits))
    line = straight(np.zeros(2), np.array([460.0, 0.0]), STEP)
    return _plain("straight", rng, line, lanes, limit, (170.0, 215.0), wish)


def build_curve(rng: np.random.Generator, wish: Wish) -> Road:
    """A road with a bend of 35 to 100 degrees to the side that the command asks for."""
    lanes = int(rng.integers(wish.lanes, max(wish.lanes, 2) + 1))
    limit = float(rng.choice([9.0, 11.0, 13.5, 15.5]))
    side = {"TURN LEFT": 1.0, "TURN RIGHT": -1.0}.get(wish.command) or float(rng.choice([-1.0, 1.0]))
    angle = side * float(rng.uniform(0.6, 1.7))
    # the inside of the bend must stay wider than the lanes
    radius = lanes * 3.6 + float(rng.uniform(16.0, 55.0))
    before = 190.0
    curve = moved(bend(abs(angle) * radius * 1.43, angle, BEND_STEP), np.array([before, 0.0]), 0.0)
    tail = straight(curve[-1], curve[-1] + 190.0 * heading_vector(angle), STEP)
    line = np.vstack([straight(np.zeros(2), curve[0], STEP)[:-1], curve[:-1], tail])
    length = abs(angle) * radius * 1.43
    focus = (before - 45.0, before - 22.0) if wish.command == "GO STRAIGHT" else (before + 1.0, before + 0.5 * length)
    return _plain("curve", rng, line, lanes, limit, focus, wish, bend_at=(before, angle))


def build_narrow(rng: np.random.Generator, wish: Wish) -> Road:
    """A street of one lane a direction between parked cars."""
    line = straight(np.zeros(2), np.array([330.0, 0.0]), STEP)
    limit = float(rng.choice([7.0, 8.3, 9.5]))
    return _plain("narrow_street", rng, line, 1, limit, (110.0, 150.0), wish)


def _plain(kind: str, rng: np.random.Generator, line: Array, lanes: int, limit: float, focus: tuple[float, float],
           wish: Wish, bend_at: tuple[float, float] = (0.0, 0.0)) -> Road:
    narrow = kind == "narrow_street"
    width = float(rng.uniform(3.2, 3.35) if narrow else rng.uniform(3.3, 3.7))
    line = moved(line, rng.uniform(-500.0, 500.0, 2), float(rng.uniform(-math.pi, math.pi)))
    builder = MapBuilder(width, limit)
    forward = builder.add_roadblock("F", line, lanes)
    backward = builder.add_roadblock("B", line[::-1].copy(), lanes)
    parking = PARKING_M if narrow or wish.parking else 0.0
    shoulder = parking or float(rng.uniform(0.8, 1.6))
    for name, edge in (("SF", line), ("SB", line[::-1])):
        builder.add_shoulder(name, offset(edge, -lanes * width), shoulder)
    routes = [Route(builder.centerline(lane), (block,), i, lanes, approach, rank=approach)
              for approach, block, ids in ((EGO_SIDE, "F", forward), (ONCOMING_SIDE, "B", backward))
              for i, lane in enumerate(ids)]
    walks: tuple[Crosswalk, ...] = ()
    if wish.crosswalk:
        index = int(rng.uniform(focus[1] + 5.0, focus[1] + 30.0) / STEP)
        walks = (add_crosswalk(builder, line, index, lanes * width + (shoulder if parking else 0.0), EGO_SIDE),)
    return Road(kind, builder.build(), tuple(routes), walks, limit, width, focus, parking, bend_at, side_by_side(routes))


def add_crosswalk(builder: MapBuilder, line: Array, index: int, half_width: float, arm: int) -> Crosswalk:
    """A crosswalk over the street around `line`, centred on its vertex `index`."""
    point = line[index]
    ahead = line[index + 1] - line[index]
    ahead = ahead / np.hypot(*ahead)
    side, along = left_of(ahead) * half_width, ahead * CROSSWALK_WIDTH / 2
    polygon = np.array([point - along + side, point + along + side, point + along - side, point - along - side])
    builder.crosswalks.append(Area(f"W{arm}", polygon))
    return Crosswalk(point + side, point - side, arm)
