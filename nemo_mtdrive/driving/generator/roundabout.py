"""A roundabout of one lane with three or four arms."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.generator.geometry import arc, arc_length, heading_vector, left_of, moved, softened, straight
from nemo_mtdrive.driving.generator.mapping import MapBuilder
from nemo_mtdrive.driving.generator.roads import STEP, Road, Route, Wish, add_crosswalk
from nemo_mtdrive.driving.scene import Area, Array

ARM_M = 170.0
_SOFT_M = 6.0


def build_roundabout(rng: np.random.Generator, wish: Wish) -> Road:
    """Arms at right angles (one may be missing); traffic circles counter-clockwise and goes before who enters."""
    width = float(rng.uniform(3.5, 3.7))
    limit = float(rng.choice([9.0, 11.0, 13.5]))
    circle = _Circle(width, float(rng.uniform(14.0, 19.0)), float(rng.uniform(14.0, 20.0)))
    origin, heading = rng.uniform(-500.0, 500.0, 2), float(rng.uniform(-math.pi, math.pi))
    arms = (0, 1, 2, 3) if rng.random() < 0.7 else tuple(sorted({0, 1, 2, 3} - {int(rng.integers(1, 4))}))
    out = [math.pi + heading + k * math.pi / 2 for k in range(4)]
    builder = MapBuilder(width, limit)
    walks = []
    for k in arms:
        unit = heading_vector(out[k])
        line = straight(origin + circle.edge * unit, origin + ARM_M * unit, STEP)
        builder.add_roadblock(f"I{k}", line[::-1].copy(), 1)
        builder.add_roadblock(f"O{k}", line, 1)
        walks.append(add_crosswalk(builder, straight(origin + circle.edge * unit, origin + 60 * unit, 0.5), 12,
                                   width, arm=k))
    _add_areas(builder, circle, origin, out, arms)
    routes = []
    for a in arms:
        for b in arms:
            if a != b:
                routes.append(_route(builder, circle, origin, out[a], (a, b)))
    return Road("roundabout", builder.build(), tuple(routes), tuple(walks), limit, width, (0.0, 0.0))


class _Circle:
    """Radii of a roundabout: `lane` of the circling line, `fillet` of the curves into and out of it."""

    def __init__(self, width: float, lane: float, fillet: float) -> None:
        self.width, self.lane, self.fillet = width, lane, fillet
        # centre of the entry's fillet, seen from the circle's centre with the arm along +x
        self.fillet_y = width / 2 + fillet
        self.fillet_x = math.sqrt((lane + fillet) ** 2 - self.fillet_y**2)
        self.join = math.atan2(self.fillet_y, self.fillet_x)
        self.edge = self.fillet_x + _SOFT_M
        self.half = width / 2 + 1.3
        """Half the width of the circling carriageway."""

    def entry(self) -> Array:
        """From the arm's lane (arm along +x, driving along -x) onto the circle."""
        first = arc(self.fillet, -math.pi / 2, self.join - math.pi, 0.5) + np.array([self.fillet_x, self.fillet_y])
        return np.vstack([straight(np.array([self.edge, self.width / 2]), first[0], 0.5)[:-1], first])

    def way(self, angle: float) -> Array:
        """From the lane of the arm at angle 0 through the circle to that of the arm at `angle` [rad], softened."""
        leaving = moved(self.entry()[::-1] * np.array([1.0, -1.0]), np.zeros(2), angle)
        turn = arc(self.lane, self.join, angle - self.join, 0.5)
        return softened(np.vstack([self.entry()[:-1], turn[:-1], leaving]), _SOFT_M, 1.0)


def _route(builder: MapBuilder, circle: _Circle, origin: Array, out: float, arms: tuple[int, int]) -> Route:
    a, b = arms
    quarters = (b - a) % 4
    way = moved(circle.way(quarters * math.pi / 2), origin, out)
    before, after = f"I{a}.0", f"O{b}.0"
    connector = builder.add_connector(f"C{a}{b}", [way], [(before, after)])[0]
    line = builder.line(before, connector, after)
    entry = float(arc_length(builder.centerline(before))[-1])
    yield_line = entry + _SOFT_M + 0.45 * circle.fillet * (math.pi / 2 - circle.join)
    return Route(line, (f"I{a}", f"C{a}{b}", f"O{b}"), 0, 1, a, {1: "right", 2: "straight", 3: "left"}[quarters],
                 0, connector, yield_line, entry, entry + float(arc_length(way)[-1]), change=(0.0, 0.0), circles=True)


def _add_areas(builder: MapBuilder, circle: _Circle, origin: Array, out: list[float], arms: tuple[int, ...]) -> None:
    """The carriageway around the island in four overlapping pieces, and a flare for each arm's mouth."""
    inner, outer = circle.lane - circle.half, circle.lane + circle.half
    for k in range(4):
        first, last = k * math.pi / 2 - 0.02, (k + 1) * math.pi / 2 + 0.02
        ring = np.vstack([arc(outer, first, last, 1.0), arc(inner, first, last, 1.0)[::-1]])
        builder.intersections.append(Area(f"X{k}", moved(ring, origin, out[0])))
    for k in arms:
        side = circle.width / 2 + 0.5
        entering = softened(circle.entry(), _SOFT_M, 0.5)
        edge = entering + side * np.array([left_of(row) for row in _unit_steps(entering)]) * np.array([-1.0, -1.0])
        edge[0] = [circle.edge, circle.width]
        middle = np.array([[circle.lane, 0.0]])
        mouth = np.vstack([edge, [(circle.lane) * heading_vector(circle.join)], middle,
                           [circle.lane * heading_vector(-circle.join)], (edge * np.array([1.0, -1.0]))[::-1]])
        builder.intersections.append(Area(f"X{k + 4}", moved(mouth, origin, out[k])))


def _unit_steps(line: Array) -> Array:
    step = np.gradient(line, axis=0)
    return step / np.sqrt((step**2).sum(1, keepdims=True))
