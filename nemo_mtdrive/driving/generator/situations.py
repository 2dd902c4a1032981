"""Situations: who is where, and who does what, so that the expert meets it around t = 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.generator.geometry import Path
from nemo_mtdrive.driving.generator.priority import Signal
from nemo_mtdrive.driving.generator.roads import Crosswalk, Road, Route
from nemo_mtdrive.driving.generator.traffic import Body, Driver, Pedestrian, Script, Style
from nemo_mtdrive.driving.scene import Vehicle

WARM_UP_S = 4.0
EXPERT_BODY = Body(Vehicle().length, Vehicle().width, Vehicle().height, Vehicle().rear_axle_to_center)
EXPERT_LATERAL_ACCELERATION = 2.0
TRAFFIC_LATERAL_ACCELERATION = 2.4


@dataclass
class Cast:
    """Everybody in a scene, at the start of the warm-up; the expert is `drivers[0]`."""

    drivers: list[Driver]
    pedestrians: list[Pedestrian]
    signal: Signal | None


class Casting:
    """Builds the cast of one situation on one road."""

    def __init__(self, road: Road, situation: str, rng: np.random.Generator) -> None:
        self.road = road
        self.situation = situation
        self.rng = rng
        self.route = self._choose_route()
        self.signal = self._choose_signal()
        self.speed = road.speed_limit * float(rng.uniform(0.75, 1.0))
        self.style = Style(self.speed, float(rng.uniform(1.2, 1.8)), float(rng.uniform(1.2, 1.8)),
                           float(rng.uniform(1.6, 2.2)))
        self.path = Path(self.route.line, EXPERT_LATERAL_ACCELERATION, 1.5)
        self._paths: dict[int, Path] = {}
        self.script = Script()
        self.drivers: list[Driver] = []
        self.pedestrians: list[Pedestrian] = []

    def cast(self) -> Cast:
        """The cast with the expert, the situation's own people and other traffic."""
        start, speed = self._start()
        expert = Driver("expert", self.path, self.route, EXPERT_BODY, self.style, start, speed)
        self.drivers = [expert]
        if self.situation == "lead":
            self._add_lead(expert)
        elif self.situation == "cut_in":
            self._add_cut_in(expert)
        elif self.situation == "pedestrian":
            self._add_crossing_pedestrian(expert)
        expert.script = self.script
        self._add_traffic(expert)
        self._add_strollers(expert)
        return Cast(self.drivers, self.pedestrians, self.signal)

    # --- the expert -----------------------------------------------------------------------------------------------

    def _choose_route(self) -> Route:
        mine = [route for route in self.road.routes if route.approach == 0]
        if self.road.kind != "crossing":
            return mine[int(self.rng.integers(len(mine)))]
        weights = {"straight": 0.24, "left": 0.38, "right": 0.38}
        if self.situation == "pedestrian":
            weights["straight"] = 0.1
        movement = str(self.rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values())))
        fitting = [route for route in mine if route.movement == movement]
        return fitting[int(self.rng.integers(len(fitting)))]

    def _choose_signal(self) -> Signal | None:
        straight_over_people = self.situation == "pedestrian" and self.route.movement == "straight"
        if self.road.kind != "crossing" or straight_over_people or self.rng.random() < 0.3:
            return None
        draw = self.rng.random()
        red, turning = (0.0, 0.2) if self.situation == "pedestrian" else (0.2, 0.45)
        if draw < red:
            return Signal(main_green_from=60.0)
        if draw < turning:
            return Signal(main_green_from=float(self.rng.uniform(-1.8, 0.0)))
        return Signal(main_green_from=-60.0)

    def _start(self) -> tuple[float, float]:
        """Arc length of the rear axle and speed at the beginning of the warm-up."""
        rng, road, route = self.rng, self.road, self.route
        if route.stop is not None:
            if self.signal is not None and self.signal.main_green_from > -60.0:
                speed = self.speed * float(rng.uniform(0.4, 0.9))
                ahead = float(rng.uniform(4.0, 12.0)) if self.signal.main_green_from <= 0.0 else float(
                    rng.uniform(0.0, 40.0)) + 1.5 * speed
                speed = min(speed, math.sqrt(4.0 * ahead))
            else:
                speed = self.speed * float(rng.uniform(0.5, 1.0))
                ahead = speed * WARM_UP_S * 0.85 + float(rng.uniform(-4.0, 24.0))
            start = route.stop - EXPERT_BODY.front - ahead
        else:
            speed = self.speed * float(rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.7, 1.05)], p=[0.2, 0.8]))
            at_zero = road.bend_start + float(rng.uniform(-35.0, 25.0)) if road.kind == "curve" else float(
                rng.uniform(115.0, 150.0))
            start = at_zero - speed * WARM_UP_S
            if self.situation == "free" and rng.random() < (0.1 if road.kind == "curve" else 0.2):
                self.script = Script(hold_until=float(rng.uniform(-1.6, -0.2)))
                start, speed = at_zero, 0.0
        return start, min(speed, float(self.path.speed[self.path.index(start)]))

    # --- the situations -------------------------------------------------------------------------------------------

    def _add_lead(self, expert: Driver) -> None:
        rng = self.rng
        mode = str(rng.choice(["follow", "brake", "stopped", "starting"], p=[0.2, 0.35, 0.3, 0.15]))
        body = self._body()
        rear = body.length - body.front
        gap = 3.0 + expert.speed * float(rng.uniform(1.2, 2.2))
        speed, script = expert.speed * float(rng.uniform(0.75, 1.0)), Script()
        wish = self.speed * float(rng.uniform(0.55, 0.95))
        if mode == "brake":
            script = Script(brake_from=float(rng.uniform(-1.2, 1.5)), brake_with=float(rng.uniform(2.0, 3.3)),
                            brake_to=float(rng.choice([0.0, 0.0, 2.5])))
        elif mode == "stopped":
            speed, script = 0.0, Script(hold_until=60.0)
            gap = 6.0 + expert.speed * float(rng.uniform(4.0, 8.0))
        elif mode == "starting":
            expert.speed, speed, gap = 0.0, 0.0, float(rng.uniform(2.5, 6.0))
            script, wish = Script(hold_until=float(rng.uniform(-1.5, 0.8))), self.speed
        style = Style(max(wish, 2.0), 1.3, 1.5, 2.0)
        self._add(expert.nose + gap + rear, speed, self.route, style, body, script)

    def _add_cut_in(self, expert: Driver) -> None:
        rng, route = self.rng, self.route
        sides = [side for side, there in ((1.0, route.lane > 0), (-1.0, route.lane < route.lanes - 1)) if there]
        side = sides[int(rng.integers(len(sides)))]
        body = self._body()
        start = float(rng.uniform(-1.2, 1.0))
        speed = expert.speed * float(rng.uniform(0.7, 0.95))
        # far enough ahead when it begins that nobody has to brake hard
        gap = float(rng.uniform(3.0, 8.0)) + 0.45 * expert.speed + (expert.speed - speed) * (WARM_UP_S + start)
        script = Script(lateral=(side * self.road.lane_width, start, float(rng.uniform(2.2, 3.2))))
        style = Style(max(speed, 2.5), 1.2, 1.2, 2.0)
        self._add(expert.nose + gap + body.length - body.front, speed, route, style, body, script)

    def _add_crossing_pedestrian(self, expert: Driver) -> None:
        rng, route = self.rng, self.route
        walk = self._ego_crosswalk()
        at = min(range(0, len(self.path.s), 2),
                 key=lambda k: float(np.hypot(*(self.path.points[k] - (walk.start + walk.end) / 2))))
        if route.stop is None:
            expert.s = at * self.path.SPACING - expert.body.front - 4.0 - expert.speed * float(rng.uniform(4.6, 7.0))
        lane = self.path.points[min(at, len(self.path.points) - 1)]
        for k in range(int(rng.integers(1, 4))):
            begin, end = (walk.start, walk.end) if rng.random() < 0.5 else (walk.end, walk.start)
            direction = (end - begin) / np.hypot(*(end - begin))
            begin = begin - direction * float(rng.uniform(1.2, 2.8))
            speed = float(rng.uniform(1.0, 1.7))
            to_lane = float((lane - begin) @ direction) - 1.6
            reaches = float(rng.uniform(-0.5, 3.5)) + 1.2 * k
            begins = reaches - max(to_lane, 0.5) / speed
            side = np.array([-direction[1], direction[0]]) * float(rng.uniform(-1.0, 1.0))
            total = float(np.hypot(*(end - begin))) + float(rng.uniform(2.0, 6.0))
            walker = Pedestrian(f"person{k}", self._person(), begin + side, direction, total, speed, begins, True, walk.arm)
            if begins < -WARM_UP_S:
                walker.walked, walker.now = (-WARM_UP_S - begins) * speed, speed
            self.pedestrians.append(walker)

    def _ego_crosswalk(self) -> Crosswalk:
        """The crosswalk that the expert will drive over: behind the turn or, without lights, maybe before it."""
        if self.route.stop is None:
            return self.road.crosswalks[0]
        leaving = {"right": 1, "straight": 2, "left": 3}[self.route.movement]
        arm = 0 if self.signal is None and self.rng.random() < 0.5 else leaving
        return next(walk for walk in self.road.crosswalks if walk.arm == arm)

    # --- the others -----------------------------------------------------------------------------------------------

    def _add_traffic(self, expert: Driver) -> None:
        """Cars on the other lanes, and now and then one behind; nobody is put within 9 m of another."""
        rng = self.rng
        wanted = int(rng.integers(2, 8))
        for _ in range(3 * wanted):
            if len(self.drivers) >= wanted + 2:
                return
            route = self.road.routes[int(rng.integers(len(self.road.routes)))]
            style = Style(self.road.speed_limit * float(rng.uniform(0.65, 1.05)), float(rng.uniform(1.1, 1.8)),
                          float(rng.uniform(1.2, 1.8)), 2.0)
            s = self._traffic_place(route, expert)
            if s is None:
                continue
            body = self._body()
            if self._free_place(route, s, body):
                speed = min(style.speed, float(self._path(route).speed[self._path(route).index(s)]))
                self._add(s, speed * float(rng.uniform(0.7, 1.0)), route, style, body, Script())

    def _traffic_place(self, route: Route, expert: Driver) -> float | None:
        """An arc length for traffic on `route`; None where it would spoil the situation."""
        rng = self.rng
        if route.entry is not None and route.stop is not None:
            if route.approach == 0:
                if route.lane == self.route.lane or self.situation == "cut_in":
                    return None
                return float(expert.s + rng.uniform(-25.0, 40.0)) if expert.s + 40.0 < route.stop else None
            return float(rng.choice([route.stop - rng.uniform(8.0, 75.0), route.entry + rng.uniform(40.0, 90.0)],
                                    p=[0.85, 0.15]))
        if route.approach == 0:
            if route.lane == self.route.lane:
                return expert.s - float(rng.uniform(14.0, 40.0))
            if self.situation == "cut_in":
                return None
            return expert.s + float(rng.uniform(-30.0, 80.0))
        length = self._path(route).length
        return max(10.0, length - expert.s - float(rng.uniform(-10.0, 190.0)))

    def _free_place(self, route: Route, s: float, body: Body) -> bool:
        x, y, _ = self._path(route).pose(s + body.rear_to_center)
        for other in self.drivers:
            ox, oy, _ = other.path.pose(other.s + other.body.rear_to_center)
            # neighbours on another lane of the road may be closer than followers
            needed = 12.0 if other.route.lane == route.lane and other.route.approach == route.approach else 3.0
            if math.hypot(x - ox, y - oy) < needed + (body.length + other.body.length) / 4:
                return False
        return s > 2.0

    def _add_strollers(self, expert: Driver) -> None:
        """People on the pavement who do not cross: not everybody at the roadside is a reason to brake."""
        rng, path = self.rng, self.path
        for _ in range(int(rng.integers(0, 4))):
            s = expert.s + float(rng.uniform(25.0, 110.0))
            if self.route.stop is not None and s > self.route.stop - 6.0:
                continue
            x, y, heading = path.pose(s)
            right = (self.route.lanes - self.route.lane - 0.5) * self.road.lane_width + float(rng.uniform(2.0, 4.0))
            start = np.array([x + math.sin(heading) * right, y - math.cos(heading) * right])
            direction = float(rng.choice([-1.0, 1.0])) * np.array([math.cos(heading), math.sin(heading)])
            # on a curve a straight walk would lead off the pavement
            speed = 0.0 if self.road.kind == "curve" or rng.random() < 0.3 else float(rng.uniform(0.8, 1.5))
            name = f"person{len(self.pedestrians)}"
            self.pedestrians.append(Pedestrian(name, self._person(), start, direction, 30.0, speed, -60.0, False))

    def _path(self, route: Route) -> Path:
        key = id(route)
        if key not in self._paths:
            self._paths[key] = Path(route.line, TRAFFIC_LATERAL_ACCELERATION, 1.8)
        return self._paths[key]

    def _person(self) -> tuple[float, float, float]:
        rng = self.rng
        return float(rng.uniform(0.45, 0.7)), float(rng.uniform(0.5, 0.75)), float(rng.uniform(1.5, 1.92))

    def _body(self) -> Body:
        rng = self.rng
        if rng.random() < 0.12:
            length, width, height = rng.uniform(7.0, 9.5), rng.uniform(2.3, 2.5), rng.uniform(2.9, 3.5)
        else:
            length, width, height = rng.uniform(4.1, 5.0), rng.uniform(1.75, 2.0), rng.uniform(1.45, 1.9)
        return Body(float(length), float(width), float(height), 0.28 * float(length))

    def _add(self, s: float, speed: float, route: Route, style: Style, body: Body, script: Script) -> None:
        self.drivers.append(Driver(f"car{len(self.drivers)}", self._path(route), route, body, style, s, speed, script))
