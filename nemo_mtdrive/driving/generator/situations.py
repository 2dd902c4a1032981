"""Situations on open roads: what the expert meets there around t = 0. Each puts the expert and its own people on a stage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nemo_mtdrive.driving.generator.geometry import left_of
from nemo_mtdrive.driving.generator.records import BICYCLE, NEVER, WARM_UP_S
from nemo_mtdrive.driving.generator.roads import PARKING_M
from nemo_mtdrive.driving.generator.stage import Stage

BUS_BODY = (12.0, 2.5, 3.1)
BICYCLE_BODY = (1.8, 0.62, 1.75)


def open_start(stage: Stage) -> float:
    """Arc length for the expert at t = 0 on a road without a crossing."""
    return stage.uniform(*stage.road.focus)


def free(stage: Stage) -> None:
    """Nothing in the way; now and then from standstill or slowly."""
    draw = stage.rng.random()
    if draw < 0.15 and not stage.route.ends:
        stage.place_expert(open_start(stage), speed=0.0, hold_until=stage.uniform(-1.8, 0.2))
    elif draw < 0.4:
        stage.place_expert(open_start(stage), speed=stage.road.speed_limit * stage.uniform(0.3, 0.7))
    else:
        stage.place_expert(open_start(stage))
    stage.keep_clear.append((-8.0, 130.0))
    if stage.road.kind in ("merge", "lane_drop"):
        _add_merging(stage)


def _add_merging(stage: Stage) -> None:
    """One to three cars in the lane that the expert's lane meets, abreast of it."""
    left, right = stage.road.neighbours.get(stage.line, (-1, -1))
    ending = next(i for i, route in enumerate(stage.road.routes) if route.ends)
    other = left if stage.route.ends else (ending if stage.route.lane == stage.route.lanes - 2 else right)
    if other < 0:
        return
    here = stage.lines.beside(stage.line, stage.at_zero, 0.0)
    s = stage.lines.nearest(other, here)
    speed = stage.speed * stage.uniform(0.85, 1.05)
    first = stage.uniform(-22.0, 12.0)
    for k in range(int(stage.rng.integers(1, 4))):
        start = s + first + k * (6.0 + speed * stage.uniform(1.0, 1.8)) - speed * WARM_UP_S
        if start > 3.0:
            stage.add_driver(other, start, speed, changes=0)


def lead(stage: Stage) -> None:
    """A car ahead that drives more slowly, brakes, stands, or starts."""
    draw = stage.rng.random()
    if draw < 0.15:
        stage.place_expert(open_start(stage), speed=0.0)
        stage.add_ahead(stage.uniform(2.5, 6.0), 0.0, hold_until=stage.uniform(-1.5, 0.8), wish=stage.road.speed_limit)
        return
    stage.place_expert(open_start(stage))
    speed = stage.speed
    if draw < 0.45:
        stage.add_ahead(6.0 + speed * stage.uniform(5.0, 8.5), 0.0, hold_until=60.0)
    elif draw < 0.75:
        stage.add_ahead(3.0 + speed * stage.uniform(1.4, 2.2), speed * stage.uniform(0.85, 1.0),
                        brake_from=stage.uniform(-1.2, 1.5), brake_with=stage.uniform(1.8, 3.2),
                        brake_to=float(stage.rng.choice([0.0, 0.0, 2.5])))
    else:
        slow = speed * stage.uniform(0.4, 0.85)
        stage.add_ahead(3.0 + speed * stage.uniform(1.3, 2.0) + (speed - slow) * stage.uniform(1.0, 4.0), slow)


def hard_brake(stage: Stage) -> None:
    """The car ahead brakes as hard as it can."""
    stage.place_expert(open_start(stage), headway=stage.uniform(1.5, 1.9))
    speed = stage.speed
    stage.add_ahead(3.0 + speed * stage.uniform(1.7, 2.3), speed * stage.uniform(0.93, 1.0),
                    brake_from=stage.uniform(-0.5, 1.0), brake_with=4.0 + stage.uniform(0.0, 1.0 + 2.5 * stage.difficulty))


def cut_in(stage: Stage) -> None:
    """A slower car of the next lane moves over close ahead."""
    stage.place_expert(open_start(stage), changes=0)
    sides = [side for side in stage.road.neighbours[stage.line] if side >= 0]
    other = sides[int(stage.rng.integers(len(sides)))]
    speed = stage.speed
    begins = stage.uniform(-1.2, 1.0)
    slow = speed * stage.uniform(0.6, 0.92)
    body = stage.car_body()
    # far enough ahead when it begins that nobody has to brake hard
    gap = stage.uniform(3.0, 8.0 - 3.0 * stage.difficulty) + 0.45 * speed + (speed - slow) * (WARM_UP_S + begins)
    place = stage.lines.beside(stage.line, stage.nose + gap + 0.22 * body[0], 0.0)
    stage.add_driver(other, stage.lines.nearest(other, place), slow, body, change_at=begins, change_to=stage.line,
                     changes=0, passes=0)
    stage.keep_clear.append((-10.0, gap + 40.0))


def park_cars(stage: Stage, first: float, last: float, share: float, sides: tuple[int, ...] = (1, -1),
              leave: tuple[float, float] = (0.0, 0.0)) -> None:
    """Cars in the parking strips, right (1) and left (-1) of the road, between two arc lengths; `leave` stays empty."""
    width = stage.road.lane_width
    for side in sides:
        offset = stage.kerb() - PARKING_M / 2
        if side < 0:
            offset = (stage.route.lanes + stage.route.lane + 0.5) * width + PARKING_M / 2
        s = first + stage.uniform(0.0, 5.0)
        while s < last:
            body = stage.car_body()
            body = body if body[0] < 6.5 else (4.6, 1.85, 1.5)
            middle = s + body[0] / 2
            if stage.chance(share) and not (side > 0 and leave[0] - 4.0 < middle < leave[1] + 4.0):
                stage.add_thing("vehicle", (body[0], min(body[1], 2.0), body[2]), stage.line, middle,
                                offset + stage.uniform(-0.1, 0.1), 0.0 if side > 0 else math.pi)
            s += body[0] + stage.uniform(0.9, 2.2)


def parked(stage: Stage) -> None:
    """A row of parked cars; one stands out into the lane, or its door is open."""
    stage.use_right_lane()
    stage.place_expert(open_start(stage))
    at = stage.at_zero + stage.speed * stage.uniform(0.6, 3.2) + 4.0
    _add_intruder(stage, at)
    park_cars(stage, stage.at_zero - 40.0, stage.at_zero + 90.0, 0.75, leave=(at - 3.0, at + 4.0))
    stage.keep_clear.append((-10.0, 90.0))


def _add_intruder(stage: Stage, at: float) -> None:
    edge = stage.kerb()
    if stage.chance(0.35):
        # a door: thin, across, hinged at the car's side
        reach = stage.uniform(0.75, 0.95)
        stage.add_thing("vehicle", (4.5, 1.85, 1.5), stage.line, at, edge - PARKING_M / 2 + 0.15)
        stage.add_thing("generic_object", (0.12, reach, 1.1), stage.line, at + 0.4, edge - PARKING_M / 2 + 1.05 + reach / 2)
        return
    body = (stage.uniform(4.4, 5.6), stage.uniform(1.8, 2.05), stage.uniform(1.5, 2.3))
    out = stage.uniform(0.55, 1.15)
    hazard = ("left", "right") if stage.chance(0.6) else ("left",)
    stage.add_thing("vehicle", body, stage.line, at, edge - PARKING_M / 2 + out, stage.uniform(-0.06, 0.1), signals=hazard)


def oncoming(stage: Stage) -> None:
    """A car stands in the expert's lane, or in the oncoming one, and somebody comes towards it."""
    stage.place_expert(open_start(stage))
    other = stage.oncoming_line()
    assert other is not None
    at = stage.at_zero + stage.speed * stage.uniform(1.2, 3.5) + 6.0
    mine = stage.chance(0.6)
    width, body = stage.road.lane_width, (stage.uniform(4.3, 5.4), stage.uniform(1.75, 2.0), stage.uniform(1.5, 2.2))
    offset = (stage.kerb() + 0.5 * body[1] - stage.uniform(0.2, 0.6)) if mine else (
        1.5 * width - 0.5 * body[1] + stage.uniform(0.2, 0.6))
    stage.add_thing("vehicle", body, stage.line, at, offset, 0.0 if mine else math.pi, signals=("left", "right"))
    speed = stage.road.speed_limit * stage.uniform(0.75, 1.0)
    meets = stage.uniform(-1.0, 4.0)
    place = stage.lines.nearest(other, stage.lines.beside(stage.line, at, 0.0)) - speed * (WARM_UP_S + meets)
    if place > 2.0:
        stage.add_driver(other, place, speed)
    park_cars(stage, stage.at_zero - 40.0, stage.at_zero + 90.0, 0.6, leave=(at - 4.0, at + 4.0))
    stage.keep_clear.append((-10.0, 90.0))


def work_zone(stage: Stage) -> None:
    """Cones and barriers close the right lane; the sign stands before them."""
    stage.use_right_lane()
    stage.place_expert(open_start(stage))
    width = stage.road.lane_width
    first = stage.at_zero + stage.speed * stage.uniform(1.2, 4.5) + 16.0
    taper, length = stage.uniform(12.0, 22.0), stage.uniform(20.0, 45.0)
    inner = 0.5 * width - 0.25
    for share in np.linspace(0.0, 1.0, max(5, round(taper / 3.0))):
        _cone(stage, first + share * taper, -inner + share * 2.0 * inner)
    for along in np.arange(taper + 3.0, taper + length, 4.0):
        if stage.chance(0.5):
            stage.add_thing("barrier", (1.8, 0.4, 1.0), stage.line, first + along, inner)
        else:
            _cone(stage, first + along, inner)
    stage.add_thing("barrier", (0.4, 2.2, 1.0), stage.line, first + taper + 5.0, -0.3)
    stage.add_thing("czone_sign", (0.3, 0.9, 1.6), stage.line, first - stage.uniform(3.0, 14.0), stage.kerb() - 0.9)
    if stage.chance(0.5):
        stage.add_thing("vehicle", (6.4, 2.1, 2.6), stage.line, first + taper + 14.0, 0.0, signals=("left", "right"))
    stage.keep_clear.append((-12.0, first + taper + length + 20.0 - stage.at_zero))


def _cone(stage: Stage, s: float, offset: float) -> None:
    stage.add_thing("traffic_cone", (0.38, 0.38, 0.75), stage.line, s, offset)


def bus(stage: Stage) -> None:
    """A bus of 12 m: at its stop at the roadside, pulling out of it, or going ahead slowly."""
    stage.use_right_lane()
    stage.place_expert(open_start(stage))
    draw = stage.rng.random()
    edge = stage.kerb()
    offset = edge - PARKING_M / 2
    at = stage.at_zero + stage.speed * stage.uniform(1.0, 3.5) + 10.0
    if draw < 0.45:
        stage.add_thing("vehicle", BUS_BODY, stage.line, at, offset + stage.uniform(0.2, 0.95), signals=("right",))
        _waiting_people(stage, at, edge)
    elif draw < 0.75:
        begins = stage.uniform(-1.0, 1.2)
        room = stage.speed**2 / 5.0 + stage.uniform(4.0, 16.0)
        s = stage.at_zero + stage.speed * max(begins, 0.0) + room + 0.22 * BUS_BODY[0]
        stage.add_driver(stage.line, s, 0.0, BUS_BODY, hold_until=begins, offset_from=offset + 0.3, offset_to=0.0,
                         shift_start=s, shift_length=16.0, wish=stage.road.speed_limit * 0.8, power=1.1, changes=0, passes=0)
        stage.signals[len(stage.drivers) - 1] = ("left",)
        _waiting_people(stage, s + 6.0, edge)
    else:
        slow = stage.speed * stage.uniform(0.35, 0.7)
        gap = 3.0 + stage.speed * stage.uniform(1.2, 1.8) + (stage.speed - slow) * stage.uniform(2.0, 4.5)
        stage.add_ahead(gap, slow, BUS_BODY)
    stage.keep_clear.append((-10.0, 80.0))


def _waiting_people(stage: Stage, s: float, edge: float) -> None:
    for _ in range(int(stage.rng.integers(1, 5))):
        place = stage.lines.beside(stage.line, s + stage.uniform(-5.0, 7.0), edge - PARKING_M - stage.uniform(0.8, 2.2))
        stage.add_walker(place, np.array([1.0, 0.0]), 1.0, 0.0, 0.0, crosses=0)


def cyclist(stage: Stage) -> None:
    """Somebody rides ahead at the right edge of the lane."""
    stage.use_right_lane()
    stage.place_expert(open_start(stage))
    add_cyclist(stage)


def add_cyclist(stage: Stage) -> None:
    """Somebody on a bicycle whom the expert reaches some time after t = 0."""
    speed = stage.speed
    slow = min(stage.uniform(3.2, 6.0), max(0.8 * speed, 2.0))
    gap = max(4.0 + 0.6 * speed, (speed - slow) * (WARM_UP_S + stage.uniform(-0.5, 3.0)) + 6.0)
    aside = -0.5 * stage.road.lane_width + stage.uniform(0.45, 0.8)
    stage.add_ahead(gap, slow, BICYCLE_BODY, type=BICYCLE, offset_from=aside, offset_to=aside, passes=0, power=0.8,
                    to_center=0.5)
    stage.keep_clear.append((-10.0, gap + 60.0))


def jaywalker(stage: Stage) -> None:
    """Somebody steps onto the road where there is no crossing."""
    stage.place_expert(open_start(stage), changes=0)
    speed, edge = stage.speed, stage.kerb()
    for k in range(1 if stage.chance(0.75) else 2):
        pace = stage.uniform(1.1, 2.2)
        begins = stage.uniform(-1.0, 1.2)
        # the expert can just stop when the other sets off
        s = stage.at_zero + speed * begins + speed**2 / 5.6 + stage.uniform(4.0, 14.0 - 6.0 * stage.difficulty)
        right = k == 0 and stage.chance(0.75)
        side = edge - stage.uniform(0.4, 1.4) if right else (
            (stage.route.lanes + stage.route.lane + 0.5) * stage.road.lane_width + stage.uniform(0.4, 1.4))
        _cross_road(stage, s, side, pace, begins)
    stage.keep_clear.append((-12.0, 90.0))


def _cross_road(stage: Stage, s: float, side: float, pace: float, begins: float, hidden_until: float = -NEVER) -> None:
    """Somebody walks straight over the road from an offset beside the expert's line."""
    heading = stage.lines.pose(stage.line, s)[2]
    across = left_of(np.array([math.cos(heading), math.sin(heading)])) * (1.0 if side < 0 else -1.0)
    # cars are parked on the other side as well
    distance = 2.0 * stage.route.lanes * stage.road.lane_width + (1.0 if stage.road.parking else 3.5)
    stage.add_walker(stage.lines.beside(stage.line, s, side), across, distance, pace, begins,
                     crosses=2 if stage.chance(0.8) else 1, hidden_until=hidden_until)


def occluded(stage: Stage) -> None:
    """Somebody comes out from behind a van or a bus that stands at the roadside."""
    stage.use_right_lane()
    stage.place_expert(open_start(stage), changes=0)
    speed, edge = stage.speed, stage.kerb()
    body = (stage.uniform(5.2, 6.4), stage.uniform(1.95, 2.1), stage.uniform(2.2, 2.7)) if stage.chance(0.6) else BUS_BODY
    out = stage.uniform(-0.1, 0.15)
    seen_at = stage.uniform(-0.5, 1.8)
    pace = stage.uniform(1.0, 1.9)
    # seen when the walker's front passes the side of the van; then the expert can stop, but must brake at once
    s = stage.at_zero + speed * seen_at + speed**2 / 5.2 + stage.uniform(4.5, 12.0 - 5.0 * stage.difficulty)
    middle = edge - PARKING_M / 2 + out
    start = middle - 0.2
    hidden = 0.5 * body[1] + 0.1
    stage.add_thing("vehicle", body, stage.line, s - 0.9 - body[0] / 2, middle,
                    signals=("right",) if body is BUS_BODY else ())
    _cross_road(stage, s, start, pace, seen_at - hidden / pace - 0.3, hidden_until=hidden)
    park_cars(stage, stage.at_zero - 40.0, stage.at_zero + 90.0, 0.7, leave=(s - 3.0 - body[0], s + 4.0))
    stage.keep_clear.append((-12.0, 90.0))


def fast_behind(stage: Stage) -> None:
    """Somebody comes up from behind much faster; often there is a slow car ahead as well."""
    stage.place_expert(open_start(stage), speed=stage.road.speed_limit * stage.uniform(0.7, 0.95))
    speed = stage.speed
    if stage.chance(0.65):
        slow = speed * stage.uniform(0.3, 0.7)
        stage.add_ahead(4.0 + speed * stage.uniform(1.3, 1.8) + (speed - slow) * stage.uniform(1.5, 4.0), slow)
    fast = speed * stage.uniform(1.25, 1.6) + 1.5
    left = stage.road.neighbours.get(stage.line, (-1, -1))[0]
    line = left if left >= 0 and stage.chance(0.65) else stage.line
    # where it is at t = 0, behind the expert's tail
    gap = stage.uniform(6.0, 32.0) if line != stage.line else stage.uniform(14.0, 34.0)
    s = stage.at_zero - 6.0 - gap - fast * WARM_UP_S
    if s > 3.0:
        stage.add_driver(line, s, fast, wish=fast * 1.05, headway=0.9)


def pedestrian(stage: Stage) -> None:
    """People on a crosswalk of an open road."""
    stage.place_expert(open_start(stage), changes=0)
    walk = stage.road.crosswalks[0]
    at = stage.lines.nearest(stage.line, 0.5 * (walk.start + walk.end))
    reach = stage.speed * (WARM_UP_S + stage.uniform(0.8, 3.4))
    stage.expert["s"] = at - 4.0 - stage.expert["to_center"] - 0.5 * stage.expert["length"] - reach
    cross_walk(stage, walk.start, walk.end)
    stage.keep_clear.append((-12.0, 90.0))


def cross_walk(stage: Stage, start: np.ndarray, end: np.ndarray) -> None:
    """One to three people who cross between two kerbs, so that they reach the expert's lane around t = 0."""
    at = stage.lines.nearest(stage.line, 0.5 * (start + end))
    lane = stage.lines.beside(stage.line, at, 0.0)
    for k in range(int(stage.rng.integers(1, 4))):
        begin, goal = (start, end) if stage.chance(0.5) else (end, start)
        direction = (goal - begin) / np.hypot(*(goal - begin))
        begin = begin - direction * stage.uniform(1.0, 2.6)
        pace = stage.uniform(1.0, 1.7)
        to_lane = float((lane - begin) @ direction) - 1.6
        begins = stage.uniform(-0.5, 3.5) + 1.2 * k - max(to_lane, 0.5) / pace
        side = np.array([-direction[1], direction[0]]) * ((k - 1) * 0.95 + stage.uniform(-0.15, 0.15))
        total = float(np.hypot(*(goal - begin))) + stage.uniform(2.0, 6.0)
        stage.add_walker(begin + side, direction, total, pace, begins, crosses=1)


OPEN_ROAD: dict[str, Callable[[Stage], None]] = {
    "free": free, "lead": lead, "hard_brake": hard_brake, "cut_in": cut_in, "parked": parked, "oncoming": oncoming,
    "work_zone": work_zone, "bus": bus, "cyclist": cyclist, "jaywalker": jaywalker, "occluded": occluded,
    "fast_behind": fast_behind, "pedestrian": pedestrian}
"""Situations of roads without a crossing."""
