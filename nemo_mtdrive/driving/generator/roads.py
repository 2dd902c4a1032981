"""Road layouts: a multi-lane straight road, a curved road, a four-way crossing; with every route that can be driven."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.generator.geometry import (
    bend,
    heading_vector,
    left_of,
    moved,
    offset,
    straight,
    turn_between,
)
from nemo_mtdrive.driving.generator.mapping import MapBuilder
from nemo_mtdrive.driving.scene import Area, Array, SceneMap

CROSSWALK_WIDTH = 3.0
SHOULDER_M = (0.7, 1.6)
"""Paved width beside the outer lanes of plain roads (a car park in the map's terms: drivable, but no lane)."""
STEP, BEND_STEP = 3.0, 1.5
"""Spacing of the map's vertices on straight lines and in bends [m]."""


@dataclass(frozen=True)
class Route:
    """A drivable line from one edge of the map to another.

    `movement` is straight, left or right at the crossing (straight on plain roads); `approach` is the arm it comes
    from: 0 the ego's, 2 the oncoming traffic's, 1 and 3 the crossing road's. `stop` is the arc length of the stop line,
    `entry` that of the intersection's edge; both None on plain roads.
    """

    line: Array
    roadblock_ids: tuple[str, ...]
    lane: int
    lanes: int
    approach: int
    movement: str
    connector_id: str | None
    stop: float | None
    entry: float | None


@dataclass(frozen=True)
class Crosswalk:
    """Where pedestrians cross: from kerb to kerb [2], and which stretch of street it lies on."""

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
    bend_start: float
    """Arc length along the main road at which the curve begins (0 on other kinds)."""


def build_road(kind: str, rng: np.random.Generator, *, two_lanes: bool, crosswalk: bool) -> Road:
    """A road of `kind` straight, curve or crossing, somewhere in the map frame, turned at random.

    `two_lanes` asks for two or more lanes in the ego's direction; `crosswalk` for one on a plain road.
    """
    origin = rng.uniform(-500.0, 500.0, 2)
    heading = rng.uniform(-math.pi, math.pi)
    if kind == "crossing":
        return _crossing(rng, origin, heading, two_lanes)
    return _plain(kind, rng, origin, heading, two_lanes, crosswalk)


def _plain(kind: str, rng: np.random.Generator, origin: Array, heading: float, two_lanes: bool,
           crosswalk: bool) -> Road:
    lanes = int(rng.integers(2 if two_lanes else 1, 4 if kind == "straight" else 3))
    width = float(rng.uniform(3.4, 3.8))
    limit = float(rng.choice([9.0, 11.0, 13.5, 15.5, 16.5] if kind == "straight" else [9.0, 11.0, 13.5, 15.5]))
    before = 140.0
    if kind == "straight":
        line = straight(np.zeros(2), np.array([380.0, 0.0]), STEP)
    else:
        angle = float(rng.uniform(0.6, 1.7) * rng.choice([-1.0, 1.0]))
        # the radius at the bend's middle; the inside must stay wider than the lanes
        radius = lanes * width + float(rng.uniform(17.0, 60.0))
        arc = moved(bend(abs(angle) * radius * 1.43, angle, BEND_STEP), np.array([before, 0.0]), 0.0)
        tail = straight(arc[-1], arc[-1] + 170.0 * heading_vector(angle), STEP)
        line = np.vstack([straight(np.zeros(2), arc[0], STEP)[:-1], arc[:-1], tail])
    line = moved(line, origin, heading)
    builder = MapBuilder(width, limit)
    forward = builder.add_roadblock("F", line, lanes)
    backward = builder.add_roadblock("B", line[::-1].copy(), lanes)
    shoulder = float(rng.uniform(*SHOULDER_M))
    for name, edge in (("SF", line), ("SB", line[::-1])):
        builder.add_shoulder(name, offset(edge, -lanes * width), shoulder)
    routes = [Route(builder.centerline(lane), (block,), i, lanes, approach, "straight", None, None, None)
              for approach, block, ids in ((0, "F", forward), (2, "B", backward)) for i, lane in enumerate(ids)]
    walks: tuple[Crosswalk, ...] = ()
    if crosswalk:
        along = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)))])
        index = int(np.searchsorted(along, rng.uniform(before, before + 40.0)))
        walks = (_crosswalk(builder, line, index, lanes * width, arm=0),)
    return Road(kind, builder.build(), tuple(routes), walks, limit, width, before if kind == "curve" else 0.0)


def _crosswalk(builder: MapBuilder, line: Array, index: int, half_width: float, arm: int) -> Crosswalk:
    """A crosswalk over the street around `line`, centred on its vertex `index`."""
    point = line[index]
    ahead = line[index + 1] - line[index]
    ahead = ahead / np.hypot(*ahead)
    side, along = left_of(ahead) * half_width, ahead * CROSSWALK_WIDTH / 2
    polygon = np.array([point - along + side, point + along + side, point + along - side, point - along - side])
    builder.crosswalks.append(Area(f"W{arm}", polygon))
    return Crosswalk(point + side, point - side, arm)


def _crossing(rng: np.random.Generator, origin: Array, heading: float, two_lanes: bool) -> Road:
    width = float(rng.uniform(3.4, 3.8))
    limit = float(rng.choice([9.0, 11.0, 13.5]))
    main = int(rng.integers(2 if two_lanes else 1, 3))
    cross = int(rng.integers(1, 3))
    skew = float(rng.uniform(-0.2, 0.2))
    kerb = float(rng.uniform(7.5, 11.0))
    # arm 0 is where the ego comes from; arms go round counter-clockwise: 0 back, 1 right, 2 ahead, 3 left
    out = [heading + math.pi, heading - math.pi / 2 + skew, heading, heading + math.pi / 2 + skew]
    lanes = [main, cross, main, cross]
    near = [(lanes[k - 1] + lanes[k] * abs(math.sin(skew))) * width / math.cos(skew) + kerb for k in range(4)]
    builder = MapBuilder(width, limit)
    inbound, outbound = _arms(builder, origin, out, lanes, near)
    _intersection(builder, origin, out, lanes, near)
    walks = []
    for k in range(4):
        arm_line = straight(origin + near[k] * heading_vector(out[k]), origin + 60 * heading_vector(out[k]), 0.5)
        walks.append(_crosswalk(builder, arm_line, 4, lanes[k] * width, arm=k))
    routes = []
    for a in range(4):
        for b in range(4):
            if a != b:
                routes += _routes(builder, (a, b), inbound, outbound, out)
    return Road("crossing", builder.build(), tuple(routes), tuple(walks), limit, width, 0.0)


def _arms(builder: MapBuilder, origin: Array, out: list[float], lanes: list[int],
          near: list[float]) -> tuple[list[list[str]], list[list[str]]]:
    inbound, outbound = [], []
    for k in range(4):
        unit = heading_vector(out[k])
        line = straight(origin + near[k] * unit, origin + 170.0 * unit, STEP)
        inbound.append(builder.add_roadblock(f"I{k}", line[::-1].copy(), lanes[k]))
        outbound.append(builder.add_roadblock(f"O{k}", line, lanes[k]))
    return inbound, outbound


def _intersection(builder: MapBuilder, origin: Array, out: list[float], lanes: list[int], near: list[float]) -> None:
    """The area between the arms, with rounded kerbs."""
    ring = []
    for k in range(4):
        following = (k + 1) % 4
        unit, next_unit = heading_vector(out[k]), heading_vector(out[following])
        left = origin + near[k] * unit + lanes[k] * builder.lane_width * left_of(unit)
        right = origin + near[following] * next_unit - lanes[following] * builder.lane_width * left_of(next_unit)
        ring.append(turn_between(left, out[k] + math.pi, right, out[following], 0.5))
    builder.intersections.append(Area("X", np.vstack(ring)))


def _routes(builder: MapBuilder, arms: tuple[int, int], inbound: list[list[str]], outbound: list[list[str]],
            out: list[float]) -> list[Route]:
    """The connector from arm a to arm b, and one route for each of its lanes."""
    a, b = arms
    entering, leaving = inbound[a], outbound[b]
    movement = {1: "right", 2: "straight", 3: "left"}[(b - a) % 4]
    pairs = {"left": [(entering[0], leaving[0])], "right": [(entering[-1], leaving[-1])],
             "straight": list(zip(entering, leaving, strict=False))}[movement]
    curves = [turn_between(builder.centerline(before)[-1], out[a] + math.pi, builder.centerline(after)[0], out[b],
                           1.0) for before, after in pairs]
    ids = builder.add_connector(f"C{a}{b}", curves, pairs)
    routes = []
    for connector, curve, (before, after) in zip(ids, curves, pairs, strict=True):
        first = builder.centerline(before)
        length = float(np.hypot(*(first[-1] - first[0])))
        line = np.vstack([first[:-1], curve, builder.centerline(after)[1:]])
        routes.append(Route(line, (f"I{a}", f"C{a}{b}", f"O{b}"), entering.index(before), len(entering), a,
                            movement, connector, length - 2.0 - CROSSWALK_WIDTH / 2 - 0.8, length))
    return routes

