"""`Stage`: a road with its lines, and who is put on it, before the simulation begins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.generator.geometry import arc_length
from nemo_mtdrive.driving.generator.mixture import LEFT, RIGHT
from nemo_mtdrive.driving.generator.priority import find_conflicts, find_meetings
from nemo_mtdrive.driving.generator.records import (
    CONFLICT,
    DRIVER,
    NEVER,
    SPACING,
    STEP_S,
    WALKER,
    WARM_UP_S,
    Rows,
    World,
    driver,
    walker,
)
from nemo_mtdrive.driving.generator.roads import EGO_SIDE, ONCOMING_SIDE, Road, Route
from nemo_mtdrive.driving.scene import Array, Vehicle

LATERAL_ACCELERATION, CURVE_BRAKING = 2.0, 1.5
OVERRUN_M = 150.0
"""Lines go straight on for so long after the map ends: whoever leaves it keeps going."""
EGO = Vehicle()
EGO_BODY = (EGO.length, EGO.width, EGO.height)
MOVEMENTS = {LEFT: "left", RIGHT: "right"}


@dataclass(frozen=True)
class Thing:
    """Something that stands for the whole scene: a track's type and size (l, w, h), its middle [x, y, heading]."""

    type: str
    size: tuple[float, float, float]
    pose: tuple[float, float, float]
    signals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lights:
    """Times between which the groups of a crossing's lights (0: the ego's road, 1: the other) are green."""

    green_from: tuple[float, float] = (-NEVER, NEVER)
    green_to: tuple[float, float] = (NEVER, NEVER)


class Lines:
    """The routes of a road as `World` has them: a vertex every 0.5 m, heading, largest speed."""

    def __init__(self, routes: Iterable[Route]) -> None:
        pieces, self.length = [], []
        for route in routes:
            last = route.line[-1] - route.line[-2]
            line = np.vstack([route.line, route.line[-1] + OVERRUN_M * last / np.hypot(*last)])
            distance = arc_length(line)
            at = np.arange(0.0, distance[-1], SPACING)
            x, y = np.interp(at, distance, line[:, 0]), np.interp(at, distance, line[:, 1])
            heading = np.empty(len(at))
            heading[:-1] = np.unwrap(np.arctan2(np.diff(y), np.diff(x)))
            heading[-1] = heading[-2]
            heading = _running_mean(np.concatenate([heading[:1], 0.5 * (heading[1:] + heading[:-1])]), 5)
            curvature = _running_mean(np.abs(np.gradient(heading, SPACING)), 7)
            pieces.append((x, y, heading, _speed_profile(curvature)))
            self.length.append(float(distance[-1]) - OVERRUN_M)
        self.starts = np.cumsum([0] + [len(piece[0]) for piece in pieces])
        self.x, self.y, self.heading, self.cap = (np.concatenate([piece[k] for piece in pieces]) for k in range(4))

    def pose(self, line: int, s: float) -> tuple[float, float, float]:
        """x, y, heading of the vertex before arc length s."""
        index = self.vertex(line, s)
        return float(self.x[index]), float(self.y[index]), float(self.heading[index])

    def vertex(self, line: int, s: float) -> int:
        """Index of the vertex at or before arc length s."""
        return int(min(max(self.starts[line] + int(s / SPACING), self.starts[line]), self.starts[line + 1] - 1))

    def beside(self, line: int, s: float, offset: float) -> Array:
        """The point [2] `offset` m to the left of a line."""
        x, y, heading = self.pose(line, s)
        return np.array([x - math.sin(heading) * offset, y + math.cos(heading) * offset])

    def nearest(self, line: int, point: Array) -> float:
        """Arc length of the vertex of a line that is nearest to a point."""
        part = slice(self.starts[line], self.starts[line + 1])
        return SPACING * float(np.argmin((self.x[part] - point[0]) ** 2 + (self.y[part] - point[1]) ** 2))


def _running_mean(values: Array, width: int) -> Array:
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1.0 / width), mode="valid")


def _speed_profile(curvature: Array) -> Array:
    """Largest speed at each vertex from which every later curve can be met by gentle braking (a backward pass)."""
    square = LATERAL_ACCELERATION / np.maximum(curvature, 1e-4)
    s = SPACING * np.arange(len(square))
    # v(s)^2 = min over s' >= s of v_curve(s')^2 + 2 b (s' - s)
    reach = np.minimum.accumulate((square + 2 * CURVE_BRAKING * s)[::-1])[::-1] - 2 * CURVE_BRAKING * s
    return np.sqrt(np.maximum(reach, 0.25))


class Stage:
    """A road, what was asked for, and everybody who was put on it so far; the expert is `drivers[0]`."""

    def __init__(self, road: Road, situation: str, command: str, difficulty: float, rng: np.random.Generator) -> None:
        self.road, self.situation, self.command = road, situation, command
        self.difficulty, self.rng = difficulty, rng
        self.lines = Lines(road.routes)
        self.line = self._choose_line()
        self.route = road.routes[self.line]
        self.lights = Lights()
        self.drivers: list[Rows] = []
        self.walkers: list[Rows] = []
        self.things: list[Thing] = []
        self.signals: dict[int, tuple[str, ...]] = {}
        """Signals of drivers that their motion does not show (a bus at its stop)."""
        self.keep_clear: list[tuple[float, float]] = []
        """Stretches of the ego's lane where no other traffic is put."""

    # --- small draws ------------------------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        """A number between two others."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def car_body(self) -> tuple[float, float, float]:
        """Length, width, height of a car, a van or now and then a lorry."""
        draw = self.rng.random()
        if draw < 0.06:
            return self.uniform(7.6, 10.5), self.uniform(2.35, 2.5), self.uniform(3.0, 3.6)
        if draw < 0.16:
            return self.uniform(5.0, 6.2), self.uniform(1.95, 2.1), self.uniform(2.0, 2.6)
        return self.uniform(4.0, 4.95), self.uniform(1.72, 1.95), self.uniform(1.42, 1.75)

    def person_size(self) -> tuple[float, float, float]:
        """Length, width, height of somebody on foot."""
        return self.uniform(0.45, 0.7), self.uniform(0.5, 0.75), self.uniform(1.5, 1.92)

    # --- the expert -------------------------------------------------------------------------------------------------

    def _choose_line(self) -> int:
        routes = self.road.routes
        mine = [i for i, route in enumerate(routes) if route.approach == EGO_SIDE]
        if self.road.kind == "merge" and self.chance(0.5):
            mine = [i for i, route in enumerate(routes) if route.ends]
        elif self.road.kind == "lane_drop" and self.chance(0.65):
            mine = [i for i in mine if routes[i].ends]
        movements = {routes[i].movement for i in mine}
        movement = MOVEMENTS.get(self.command, "straight")
        if len(movements) > 1 or movement != "straight":
            far_turn = self.command not in MOVEMENTS and (self.chance(0.25) or "straight" not in movements)
            if self.road.kind == "roundabout":
                # circling is a turn to the left whichever way one leaves; so is every entry one to the right
                mine = [i for i in mine if movement != "left" or routes[i].movement != "right"] or mine
            elif not far_turn:
                mine = [i for i in mine if routes[i].movement == movement] or mine
        return mine[int(self.rng.integers(len(mine)))]

    def place_expert(self, at_zero: float, *, speed: float | None = None, slower: float = 0.0, **values: float) -> None:
        """Put the expert on its line so that, left alone, its rear axle is at arc length `at_zero` at t = 0.

        Args:
            at_zero: arc length [m].
            speed: at the start of the warm-up; by default its desired one, or what the curves ahead allow.
            slower: how much shorter the way may be because something will hold it up [m].
            values: further fields of its record.
        """
        wish = self.road.speed_limit * self.uniform(0.88, 1.0)
        s, start = at_zero + slower, min(wish, speed if speed is not None else wish)
        for _ in range(round(WARM_UP_S / STEP_S)):
            s -= STEP_S * min(start if speed is not None else wish, self._cap(s))
        values = {"headway": self.uniform(1.2, 1.7), "power": self.uniform(1.5, 2.0), "braking": self.uniform(1.8, 2.2),
                  "changes": 1, "passes": 1, "to_center": EGO.rear_axle_to_center, "wish": wish} | values
        self.drivers = [driver(self.line, s, min(start, self._cap(s)), EGO_BODY, **values)]

    def _cap(self, s: float) -> float:
        return float(self.lines.cap[self.lines.vertex(self.line, s + 2.0)])

    def use_right_lane(self) -> None:
        """Put the expert on the rightmost lane of its side; to be called before `place_expert`."""
        routes = self.road.routes
        self.line = max((i for i, route in enumerate(routes) if route.roadblock_ids == self.route.roadblock_ids),
                        key=lambda i: routes[i].lane)
        self.route = routes[self.line]

    @property
    def expert(self) -> Rows:
        """The expert's record [1]."""
        return self.drivers[0]

    @property
    def speed(self) -> float:
        """The expert's speed at the start of the warm-up."""
        return float(self.expert["speed"][0])

    @property
    def nose(self) -> float:
        """The expert's front bumper at the start of the warm-up."""
        return float(self.expert["s"][0]) + EGO.front_length

    @property
    def at_zero(self) -> float:
        """About where the expert's front bumper is at t = 0 when nothing holds it up."""
        return self.nose + self.speed * WARM_UP_S

    # --- the others -------------------------------------------------------------------------------------------------

    def add_driver(self, line: int, s: float, speed: float, body: tuple[float, float, float] | None = None,
                   **values: float) -> int:
        """Put somebody on a line; returns the index. Traffic changes lanes and passes things unless told otherwise."""
        shape = body or self.car_body()
        defaults = {"headway": self.uniform(1.1, 1.7), "power": self.uniform(1.2, 1.9), "braking": self.uniform(1.8, 2.4),
                    "changes": 1, "passes": 1, "wish": max(speed, 2.0)}
        allowed = float(self.lines.cap[self.lines.vertex(line, s)])
        self.drivers.append(driver(line, s, min(speed, allowed), shape, **(defaults | values)))
        return len(self.drivers) - 1

    def add_ahead(self, gap: float, speed: float, body: tuple[float, float, float] | None = None, **values: float) -> int:
        """Put somebody on the expert's line, `gap` m before its bumper."""
        shape = body or self.car_body()
        rear = 0.5 * shape[0] - 0.28 * shape[0]
        return self.add_driver(self.line, self.nose + gap + rear, speed, shape, **({"changes": 0} | values))

    def add_walker(self, start: Array, direction: Array, distance: float, speed: float, begins: float, *, crosses: int,
                   hidden_until: float = -NEVER) -> None:
        """Put somebody on foot."""
        self.walkers.append(walker(start, direction, self.person_size(), distance, speed, begins, crosses=crosses,
                                   hidden_until=hidden_until))

    def add_thing(self, kind: str, size: tuple[float, float, float], line: int, s: float, offset: float, turned: float = 0.0,
                  signals: tuple[str, ...] = ()) -> None:
        """Put something that stands with its middle `offset` m to the left of a line, turned against it."""
        x, y = self.lines.beside(line, s, offset).tolist()
        heading = self.lines.pose(line, s)[2] + turned
        self.things.append(Thing(kind, size, (x, y, math.remainder(heading, 2 * math.pi)), signals))

    def kerb(self) -> float:
        """Offset of the right edge of the lanes from the expert's line (negative)."""
        return -(self.route.lanes - self.route.lane - 0.5) * self.road.lane_width

    def lines_of(self, approach: int) -> list[int]:
        """Lines that come from a side."""
        return [i for i, route in enumerate(self.road.routes) if route.approach == approach]

    def oncoming_line(self) -> int | None:
        """A line of the oncoming traffic: straight on, next to the middle."""
        found = [i for i in self.lines_of(ONCOMING_SIDE) if self.road.routes[i].movement == "straight"]
        return min(found, key=lambda i: self.road.routes[i].lane) if found else None

    # --- the world --------------------------------------------------------------------------------------------------

    def world(self) -> tuple[World, Rows, Rows]:
        """What `simulate` takes: the world, the drivers [n] and the walkers [m]."""
        lines, routes = self.lines, self.road.routes
        drivers = np.concatenate(self.drivers)
        walkers = np.concatenate(self.walkers) if self.walkers else np.zeros(0, dtype=WALKER)
        pairs = [self.road.neighbours.get(i, (-1, -1)) for i in range(len(routes))]
        used = {int(i) for i in drivers["line"]}
        used |= {side for i in list(used) for side in pairs[i] if side >= 0}
        used |= {int(i) for i in drivers["change_to"] if i >= 0}
        conflicts = find_conflicts(list(routes), sorted(used), lines.starts, lines.x, lines.y, lines.heading)
        meet_s, meet_walked = find_meetings(walkers, lines.starts, lines.x, lines.y)
        still = _disks(self.things)
        world = World(
            lines.starts, lines.x, lines.y, lines.heading, lines.cap,
            np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]),
            np.array([route.change[0] for route in routes]), np.array([route.change[1] for route in routes]),
            np.array([int(route.ends) for route in routes]),
            np.array([NEVER if route.stop is None else route.stop for route in routes]),
            np.array([route.light for route in routes]),
            np.array(self.lights.green_from), np.array(self.lights.green_to),
            conflicts if len(conflicts) else np.zeros(0, dtype=CONFLICT), meet_s, meet_walked,
            np.ascontiguousarray(still[:, 0]), np.ascontiguousarray(still[:, 1]), np.ascontiguousarray(still[:, 2]))
        assert drivers.dtype == DRIVER
        return world, drivers, walkers


def _disks(things: list[Thing]) -> Array:
    """Disks [k, 3] (x, y, radius) that cover the things' boxes."""
    rows = []
    for thing in things:
        long, short = max(thing.size[:2]), max(min(thing.size[:2]), 0.3)
        turned = thing.pose[2] + (0.0 if thing.size[0] >= thing.size[1] else math.pi / 2)
        number = max(1, math.ceil(long / short - 0.25))
        reach = max(0.0, 0.5 * (long - short))
        for along in np.linspace(-reach, reach, number) if number > 1 else [0.0]:
            rows.append((thing.pose[0] + along * math.cos(turned), thing.pose[1] + along * math.sin(turned), short / 2))
    return np.array(rows).reshape(-1, 3)
