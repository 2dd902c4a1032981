"""Crossings of four and of three arms, with lights or a road that has priority."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.generator.geometry import arc_length, heading_vector, left_of, straight, turn_between
from nemo_mtdrive.driving.generator.mapping import MapBuilder
from nemo_mtdrive.driving.generator.roads import (
    STEP,
    STOP_LINE_BEFORE_END_M,
    Road,
    Route,
    Wish,
    add_crosswalk,
    side_by_side,
)
from nemo_mtdrive.driving.scene import Area

ARM_M = 190.0
_MOVEMENTS = {1: "right", 2: "straight", 3: "left"}
_ORDER = {"straight": 0, "right": 1, "left": 2}


def build_crossing(rng: np.random.Generator, wish: Wish, *, lights: bool) -> Road:
    """Four arms; without lights the ego's road has priority, or gives way (half each)."""
    minor = frozenset({1, 3}) if rng.random() < 0.5 else frozenset({0, 2})
    return _crossing("crossing", rng, wish, (0, 1, 2, 3), lights, minor)


def build_t_junction(rng: np.random.Generator, wish: Wish, *, lights: bool) -> Road:
    """Three arms; the one that ends here gives way. The ego's command says which arm may be missing."""
    missing = {"TURN LEFT": (1, 2), "TURN RIGHT": (2, 3)}.get(wish.command, (1, 3))
    gone = int(rng.choice(missing))
    arms = tuple(k for k in range(4) if k != gone)
    return _crossing("t_junction", rng, wish, arms, lights, frozenset({(gone + 2) % 4}))


class _Plan:
    """The arms of a crossing: headings outward, lanes a direction, distance of the edge from the middle."""

    def __init__(self, rng: np.random.Generator, wish: Wish, arms: tuple[int, ...]) -> None:
        self.arms = arms
        self.width = float(rng.uniform(3.3, 3.7))
        self.origin = rng.uniform(-500.0, 500.0, 2)
        heading = float(rng.uniform(-math.pi, math.pi))
        skew = float(rng.uniform(-0.2, 0.2))
        # arm 0 is where the ego comes from; arms go round counter-clockwise: 0 back, 1 right, 2 ahead, 3 left
        self.out = [heading + math.pi, heading - math.pi / 2 + skew, heading, heading + math.pi / 2 + skew]
        main, cross = int(rng.integers(wish.lanes, 3)), int(rng.integers(1, 3))
        self.lanes = [main, cross, main, cross]
        kerb = float(rng.uniform(7.5, 11.0))
        self.near = [(self.lanes[k - 1] + self.lanes[k] * abs(math.sin(skew))) * self.width / math.cos(skew) + kerb
                     for k in range(4)]


def _crossing(kind: str, rng: np.random.Generator, wish: Wish, arms: tuple[int, ...], lights: bool,
              minor: frozenset[int]) -> Road:
    plan = _Plan(rng, wish, arms)
    limit = float(rng.choice([9.0, 11.0, 13.5]))
    builder = MapBuilder(plan.width, limit)
    inbound, outbound = {}, {}
    for k in arms:
        unit = heading_vector(plan.out[k])
        line = straight(plan.origin + plan.near[k] * unit, plan.origin + ARM_M * unit, STEP)
        inbound[k] = builder.add_roadblock(f"I{k}", line[::-1].copy(), plan.lanes[k])
        outbound[k] = builder.add_roadblock(f"O{k}", line, plan.lanes[k])
    _add_intersection(builder, plan)
    walks = []
    for k in arms:
        unit = heading_vector(plan.out[k])
        arm_line = straight(plan.origin + plan.near[k] * unit, plan.origin + 60 * unit, 0.5)
        walks.append(add_crosswalk(builder, arm_line, 4, plan.lanes[k] * plan.width, arm=k))
    routes = []
    for a in arms:
        for b in arms:
            if a != b:
                routes += _routes(builder, plan, (a, b), (inbound[a], outbound[b]), lights, a in minor)
    return Road(kind, builder.build(), tuple(routes), tuple(walks), limit, plan.width, (0.0, 0.0),
                neighbours=side_by_side(routes))


def _add_intersection(builder: MapBuilder, plan: _Plan) -> None:
    """The area between the arms, with rounded kerbs; straight over where an arm is missing."""
    ring = []
    for position, k in enumerate(plan.arms):
        following = plan.arms[(position + 1) % len(plan.arms)]
        unit, next_unit = heading_vector(plan.out[k]), heading_vector(plan.out[following])
        left = plan.origin + plan.near[k] * unit + plan.lanes[k] * plan.width * left_of(unit)
        right = plan.origin + plan.near[following] * next_unit - plan.lanes[following] * plan.width * left_of(next_unit)
        if (following - k) % 4 == 2:
            ring.append(straight(left, right, 1.0))
        else:
            ring.append(turn_between(left, plan.out[k] + math.pi, right, plan.out[following], 0.5))
    builder.intersections.append(Area("X", np.vstack(ring)))


def _routes(builder: MapBuilder, plan: _Plan, arms: tuple[int, int], lanes: tuple[list[str], list[str]], lights: bool,
            minor: bool) -> list[Route]:
    """The connector from one arm to another, and a route for each of its lanes."""
    a, b = arms
    entering, leaving = lanes
    movement = _MOVEMENTS[(b - a) % 4]
    pairs = {"left": [(entering[0], leaving[0])], "right": [(entering[-1], leaving[-1])],
             "straight": list(zip(entering, leaving, strict=False))}[movement]
    curves = [turn_between(builder.centerline(before)[-1], plan.out[a] + math.pi, builder.centerline(after)[0],
                           plan.out[b], 1.0) for before, after in pairs]
    ids = builder.add_connector(f"C{a}{b}", curves, pairs)
    routes = []
    for connector, curve, (before, after) in zip(ids, curves, pairs, strict=True):
        length = float(arc_length(builder.centerline(before))[-1])
        rank = _ORDER[movement] + (3 if minor and not lights else 0)
        routes.append(Route(builder.line(before, connector, after), (f"I{a}", f"C{a}{b}", f"O{b}"),
                            entering.index(before), len(entering), a, movement, rank, connector,
                            length - STOP_LINE_BEFORE_END_M, length, length + float(arc_length(curve)[-1]),
                            a % 2 if lights else -1, change=(0.0, length - 45.0)))
    return routes


