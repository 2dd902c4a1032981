"""Everybody else: cars on the other lanes and arms, cyclists, people on the pavement, parked cars."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.generator.records import BICYCLE, WARM_UP_S
from nemo_mtdrive.driving.generator.roads import EGO_SIDE, ONCOMING_SIDE, Route
from nemo_mtdrive.driving.generator.situations import BICYCLE_BODY, BUS_BODY, park_cars
from nemo_mtdrive.driving.generator.stage import Stage

TRIES = 3
IN_LANE_GAP_M, BESIDE_GAP_M = 12.0, 3.0


def add_traffic(stage: Stage) -> None:
    """Three to some twenty cars (more where it is difficult), where they do not spoil the situation."""
    wanted = int(stage.rng.integers(3, 8 + round(12 * stage.difficulty)))
    routes = stage.road.routes
    weights = np.array([_weight(stage, route) for route in routes])
    lines = stage.rng.choice(len(routes), size=TRIES * wanted, p=weights / weights.sum())
    placed = 0
    for line in lines.tolist():
        if placed >= wanted:
            return
        s = _place(stage, line)
        body = BUS_BODY if stage.chance(0.02) else stage.car_body()
        if s is None or not _is_free(stage, line, s, body[0]):
            continue
        wish = stage.road.speed_limit * stage.uniform(0.7, 1.05)
        if stage.chance(0.04) and stage.road.speed_limit < 15.0:
            aside = -0.5 * stage.road.lane_width + 0.6
            stage.add_driver(line, s, stage.uniform(3.0, 5.5), BICYCLE_BODY, type=BICYCLE, offset_from=aside,
                             offset_to=aside, changes=0, passes=0, power=0.8, to_center=0.5)
        else:
            stage.add_driver(line, s, min(wish * stage.uniform(0.75, 1.0), _stoppable(stage, line, s, body[0])), body,
                             wish=wish)
        placed += 1


def _weight(stage: Stage, route: Route) -> float:
    return 0.4 if route.approach == EGO_SIDE and route.entry is not None else 1.0


def _place(stage: Stage, line: int) -> float | None:
    """An arc length at the start of the warm-up, None where somebody would spoil the situation."""
    route, here = stage.road.routes[line], float(stage.expert["s"][0])
    way = stage.road.speed_limit * WARM_UP_S
    if route.entry is not None:
        assert route.stop is not None
        if route.approach == EGO_SIDE:
            if route.lane == stage.route.lane:
                s = here - stage.uniform(14.0, 60.0)
            else:
                s = here + stage.uniform(-30.0, 50.0)
                if s > route.stop - 8.0:
                    return None
        elif stage.chance(0.8):
            s = route.stop - stage.uniform(8.0, 60.0 + 0.8 * way)
        else:
            s = route.entry + stage.uniform(25.0, 80.0)
    elif line == stage.line:
        s = here - stage.uniform(14.0, 70.0) if stage.chance(0.6) else here + stage.uniform(70.0, 150.0)
    elif route.approach == ONCOMING_SIDE:
        s = stage.lines.length[line] - here - way - stage.uniform(-60.0, 190.0)
    else:
        there = stage.lines.nearest(line, stage.lines.beside(stage.line, here, 0.0))
        s = there + stage.uniform(-50.0, 110.0)
    return s if s > 3.0 else None


def _stoppable(stage: Stage, line: int, s: float, length: float) -> float:
    """The largest speed at which somebody who starts at s can still stop at a light that is red already."""
    route = stage.road.routes[line]
    if route.stop is None or route.light < 0 or stage.lights.green_from[route.light] <= -WARM_UP_S < stage.lights.green_to[
            route.light]:
        return 99.0
    gap = route.stop - s - 0.78 * length
    return 99.0 if gap < -1.0 else math.sqrt(3.5 * max(gap - 1.0, 0.0))


def _is_free(stage: Stage, line: int, s: float, length: float) -> bool:
    route = stage.road.routes[line]
    x, y, heading = stage.lines.pose(line, s + 0.22 * length)
    ego_x, ego_y, ego_heading = stage.lines.pose(stage.line, stage.at_zero - stage.speed * WARM_UP_S)
    if route.approach == EGO_SIDE and line == stage.line:
        along = (x - ego_x) * math.cos(ego_heading) + (y - ego_y) * math.sin(ego_heading)
        reach = stage.speed * WARM_UP_S
        if any(first - 4.0 < along < last + reach for first, last in stage.keep_clear):
            return False
    for other in stage.drivers:
        row = other[0]
        ox, oy, there = stage.lines.pose(int(row["line"]), float(row["s"] + row["to_center"]))
        same = math.cos(heading - there) > 0.5 and abs(-math.sin(heading) * (ox - x) + math.cos(heading) * (oy - y)) < 2.0
        needed = (IN_LANE_GAP_M if same else BESIDE_GAP_M) + 0.5 * (length + float(row["length"])) * (1.0 if same else 0.6)
        if math.hypot(ox - x, oy - y) < needed:
            return False
    return all(math.hypot(thing.pose[0] - x, thing.pose[1] - y) > 0.5 * (length + thing.size[0])
               or abs(-math.sin(heading) * (thing.pose[0] - x) + math.cos(heading) * (thing.pose[1] - y)) > 2.2
               for thing in stage.things)


def add_strollers(stage: Stage) -> None:
    """People on the pavement who do not cross: not everybody at the roadside is a reason to brake."""
    if stage.road.kind == "merge":
        return
    if stage.road.parking and not stage.things:
        park_cars(stage, stage.at_zero - 30.0, stage.at_zero + 80.0, 0.5)
    outside = stage.kerb() - max(stage.road.parking, 1.6)
    for _ in range(int(stage.rng.integers(0, 5))):
        s = stage.at_zero + stage.uniform(5.0, 90.0)
        if stage.route.stop is not None and s > stage.route.stop - 6.0:
            continue
        side = outside - stage.uniform(0.8, 2.4)
        if stage.chance(0.35):
            side = (stage.route.lanes + stage.route.lane + 0.5) * stage.road.lane_width + stage.uniform(2.6, 4.5)
        heading = stage.lines.pose(stage.line, s)[2] + (math.pi if stage.chance(0.5) else 0.0)
        # on a curve a straight walk would lead off the pavement
        pace = 0.0 if stage.road.kind == "curve" or stage.chance(0.3) else stage.uniform(0.8, 1.5)
        direction = np.array([math.cos(heading), math.sin(heading)])
        stage.add_walker(stage.lines.beside(stage.line, s, side), direction, 30.0, pace, -WARM_UP_S, crosses=0)
