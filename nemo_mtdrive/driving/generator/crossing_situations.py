"""Situations at crossings and roundabouts: lights, priority, people on the crosswalks."""

from __future__ import annotations

from collections.abc import Callable

from nemo_mtdrive.driving.generator.mixture import LEFT, RIGHT
from nemo_mtdrive.driving.generator.records import NEVER, WARM_UP_S
from nemo_mtdrive.driving.generator.situations import add_cyclist, cross_walk
from nemo_mtdrive.driving.generator.stage import EGO, Lights, Stage

EGO_GREEN = Lights((-NEVER, NEVER), (NEVER, NEVER))


def crossing_start(stage: Stage) -> float:
    """Arc length for the expert at t = 0: where the command by NAVSIM's rule is the one asked for."""
    route = stage.route
    assert route.entry is not None and route.leave is not None
    if stage.road.kind == "roundabout":
        if stage.command == LEFT:
            return stage.uniform(route.entry + 17.0, max(route.leave - 30.0, route.entry + 20.0))
        if stage.command == RIGHT:
            return stage.uniform(route.entry - 3.0, route.entry + 8.0)
        return route.entry - stage.uniform(19.0, 34.0)
    if stage.command == LEFT:
        return stage.uniform(route.entry - 2.0, route.entry + 9.0)
    if stage.command == RIGHT:
        return stage.uniform(route.entry - 10.5, route.entry + 5.0)
    if route.movement == "straight":
        return stage.uniform(route.entry - 38.0, route.entry + 4.0)
    return stage.uniform(route.entry - 38.0, route.entry - 19.0)


def green_light(stage: Stage) -> None:
    """The light is green: over or around, giving way to those who go first."""
    stage.lights = EGO_GREEN
    stage.place_expert(crossing_start(stage))
    stage.keep_clear.append((-10.0, 70.0))


def red_light(stage: Stage) -> None:
    """Standing at the red light, which may turn green, or coming up to it."""
    stop = stage.route.stop
    assert stop is not None
    draw = stage.rng.random()
    turns = stage.command in (LEFT, RIGHT)
    at_line = stop - EGO.front_length - stage.uniform(0.3, 1.0)
    if draw < 0.65 or turns:
        green = stage.uniform(-0.3, 2.6) if draw < 0.25 else NEVER
        stage.lights = Lights((green, -NEVER), (NEVER, green - 3.0))
        speed = stage.uniform(2.0, 6.0)
        stage.place_expert(at_line, speed=speed)
        stage.expert["s"] = at_line - stage.uniform(0.0, 0.6) - speed**2 / 2.4
    else:
        stage.lights = Lights((NEVER, -NEVER), (NEVER, NEVER))
        stage.place_expert(at_line, slower=-stage.uniform(8.0, 60.0))
        if stage.chance(0.3):
            stage.add_driver(stage.line, stop - 5.0, 0.0, hold_until=-WARM_UP_S, changes=0)
    stage.keep_clear.append((-10.0, 90.0))


def unprotected_turn(stage: Stage) -> None:
    """The expert must give way: to oncoming traffic at green, or to a road with priority."""
    has_lights = any(route.light >= 0 for route in stage.road.routes)
    if has_lights:
        stage.lights = EGO_GREEN
    start = crossing_start(stage)
    stage.place_expert(start)
    route = stage.route
    assert route.entry is not None
    routes = stage.road.routes
    others = [i for i, other in enumerate(routes) if other.approach != route.approach and other.rank < route.rank
              and not (has_lights and other.light != route.light)]
    arrives = (route.entry - stage.at_zero) / max(stage.road.speed_limit * 0.5, 3.0)
    for k in range(int(stage.rng.integers(1, 4)) if others else 0):
        line = others[int(stage.rng.integers(len(others)))]
        entry = routes[line].entry
        assert entry is not None
        speed = stage.road.speed_limit * stage.uniform(0.75, 1.0)
        s = entry - speed * (WARM_UP_S + max(arrives, 0.0) + stage.uniform(-1.5, 3.0) + 2.2 * k)
        if s > 2.0:
            stage.add_driver(line, s, speed, changes=0)
    stage.keep_clear.append((-10.0, 70.0))


def pedestrian(stage: Stage) -> None:
    """People on the crosswalk behind the turn, or before the crossing where there are no lights."""
    has_lights = any(route.light >= 0 for route in stage.road.routes)
    if has_lights:
        stage.lights = EGO_GREEN
    stage.place_expert(crossing_start(stage))
    leaving = {"right": 1, "straight": 2, "left": 3}[stage.route.movement]
    near = not has_lights and stage.command not in (LEFT, RIGHT)
    arm = 0 if near or (not has_lights and stage.chance(0.3)) else leaving
    walk = next(walk for walk in stage.road.crosswalks if walk.arm == arm)
    cross_walk(stage, walk.start, walk.end)
    stage.keep_clear.append((-10.0, 70.0))


def lead(stage: Stage) -> None:
    """A car ahead over the crossing or into the roundabout."""
    if any(route.light >= 0 for route in stage.road.routes):
        stage.lights = EGO_GREEN
    stage.place_expert(crossing_start(stage))
    speed = stage.speed
    draw = stage.rng.random()
    gap = 3.0 + speed * stage.uniform(1.2, 2.0)
    if draw < 0.3:
        stage.add_ahead(gap + speed * stage.uniform(2.5, 5.0), 0.0, hold_until=60.0)
    elif draw < 0.6:
        stage.add_ahead(gap, speed * stage.uniform(0.8, 1.0), brake_from=stage.uniform(-1.2, 1.5),
                        brake_with=stage.uniform(1.8, 3.2), brake_to=float(stage.rng.choice([0.0, 2.0])))
    else:
        stage.add_ahead(gap, speed * stage.uniform(0.6, 0.95), wish=stage.road.speed_limit * stage.uniform(0.5, 0.9))


def free(stage: Stage) -> None:
    """Nobody special: lights green, priority, or an empty way into the roundabout."""
    if any(route.light >= 0 for route in stage.road.routes):
        stage.lights = EGO_GREEN
    stage.place_expert(crossing_start(stage))
    stage.keep_clear.append((-10.0, 60.0))


def cyclist(stage: Stage) -> None:
    """Somebody rides ahead into the roundabout."""
    stage.place_expert(crossing_start(stage))
    add_cyclist(stage)


CROSSINGS: dict[str, Callable[[Stage], None]] = {
    "green_light": green_light, "red_light": red_light, "unprotected_turn": unprotected_turn, "pedestrian": pedestrian,
    "lead": lead, "free": free, "cyclist": cyclist}
"""Situations of crossings, junctions and roundabouts."""
