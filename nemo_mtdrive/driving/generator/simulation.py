"""`generate`: one seed, one scene: a road, a situation, an expert that neither collides nor leaves the road."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import shapely

from nemo_mtdrive.driving.generator.priority import (
    Conflict,
    Crossings,
    find_conflicts,
    red_connectors,
    signal_gap,
    yielding_gap,
)
from nemo_mtdrive.driving.generator.roads import Road, build_road
from nemo_mtdrive.driving.generator.situations import EXPERT_BODY, WARM_UP_S, Cast, Casting
from nemo_mtdrive.driving.generator.traffic import STANDSTILL_GAP, STEP_S, Driver, Pedestrian, disks, leader
from nemo_mtdrive.driving.scene import (
    Array,
    Ego,
    Scene,
    SceneError,
    SceneMap,
    Track,
    TrafficLight,
    to_ego_frame,
)
from nemo_mtdrive.driving.trajectory import box_corners, boxes_overlap

ROADS = ("straight", "curve", "crossing")
SITUATIONS = ("free", "lead", "cut_in", "pedestrian")
MIXTURE: Mapping[str, float] = MappingProxyType({
    "straight": 0.28, "curve": 0.27, "crossing": 0.45, "free": 0.25, "lead": 0.35, "cut_in": 0.12, "pedestrian": 0.28})
"""The generator's own mixture of kinds: in about four of five scenes constant velocity is a bad prediction."""
AHEAD_S = 5.0
"""Tracks are recorded this long after t = 0."""
HISTORY_S = (-1.5, -1.0, -0.5, 0.0)
ATTEMPTS = 60
REACTION_STEPS = 2
"""Drivers decide anew every second step (0.2 s)."""
HARDEST_EXPERT_BRAKING = 3.9

_COMMANDS = {"left": "TURN LEFT", "straight": "GO STRAIGHT", "right": "TURN RIGHT"}


def generate(seed: int, kinds: Mapping[str, float]) -> Scene:
    """The scene of a seed; the same seed and kinds give the same scene, byte for byte as JSON.

    Args:
        seed: any number >= 0; it names the scene `p0000123`.
        kinds: weights of the roads (straight, curve, crossing) and of the situations (free, lead, cut_in, pedestrian);
            the two are drawn apart, a name left out has weight 0.

    Raises:
        SceneError: an unknown kind, no weight above 0 among roads or situations, or no sound scene in 60 attempts.
    """
    unknown = sorted(set(kinds) - set(ROADS) - set(SITUATIONS))
    if unknown:
        raise SceneError(f"kinds: got {', '.join(unknown)}, want some of {', '.join(ROADS + SITUATIONS)}")
    choice = np.random.default_rng([seed, 0])
    road_kind = _draw(choice, ROADS, kinds)
    situation = _draw(choice, SITUATIONS, kinds)
    for attempt in range(1, ATTEMPTS + 1):
        rng = np.random.default_rng([seed, attempt])
        road = build_road(road_kind, rng, two_lanes=situation == "cut_in", crosswalk=situation == "pedestrian")
        cast = Casting(road, situation, rng).cast()
        simulate(cast)
        if _sound(cast, road.map):
            return _record(f"p{seed:07d}", f"{road_kind}/{situation}", road, cast, {"seed": seed, "attempt": attempt})
    raise SceneError(f"seed {seed} ({road_kind}/{situation}): no sound scene in {ATTEMPTS} attempts; use another seed")


def _draw(rng: np.random.Generator, names: tuple[str, ...], kinds: Mapping[str, float]) -> str:
    weights = np.array([float(kinds.get(name, 0.0)) for name in names])
    if not (weights >= 0).all() or weights.sum() <= 0:
        raise SceneError(f"kinds: got no weight above 0 among {', '.join(names)}; set at least one of them")
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def simulate(cast: Cast) -> None:
    """Run everybody from the warm-up to `AHEAD_S`; each driver and pedestrian keeps its `trace`, a row every 0.1 s."""
    drivers, walkers = cast.drivers, cast.pedestrians
    conflicts = find_conflicts(drivers, cast.signal)
    crossings = Crossings(drivers, walkers)
    wanted: list[float] = []
    for step in range(_row(AHEAD_S) + 1):
        time = step * STEP_S - WARM_UP_S
        poses = np.array([driver.pose(time) for driver in drivers])
        for driver, pose in zip(drivers, poses.tolist(), strict=True):
            driver.trace.append((pose[0], pose[1], pose[2], driver.speed, driver.acceleration, driver.s))
        for walker in walkers:
            x, y = walker.position.tolist()
            heading = math.atan2(walker.direction[1], walker.direction[0])
            walker.trace.append((x, y, heading, walker.now * math.cos(heading), walker.now * math.sin(heading)))
        if step % REACTION_STEPS == 0:
            wanted = _decisions(cast, conflicts, crossings, poses, time)
        for driver, acceleration in zip(drivers, wanted, strict=True):
            driver.advance(acceleration, time)
        for index, walker in enumerate(walkers):
            walker.advance(time, walker.crossing and crossings.blocks(index, walker, drivers))


def _decisions(cast: Cast, conflicts: list[Conflict], crossings: Crossings, poses: Array, time: float) -> list[float]:
    """The acceleration each driver wants, from the road, its leader, lights, priority and pedestrians."""
    drivers = cast.drivers
    points, radii = disks(drivers, poses)
    speeds = np.array([driver.speed for driver in drivers])
    wanted = []
    for own, driver in enumerate(drivers):
        stops = [signal_gap(driver, cast.signal, time), crossings.gap(own, driver, cast.pedestrians, time)]
        stops += [yielding_gap(c, drivers, cast.signal, time) for c in conflicts if c.first == own]
        follow = driver.car_following(*leader(driver, own, len(drivers), points, radii, poses[:, 2], speeds))
        for stop in stops:
            if stop is not None:
                # a line may be approached closer than a bumper
                follow = min(follow, driver.car_following(stop + STANDSTILL_GAP - 0.4, 0.0))
        wanted.append(driver.free_acceleration() + follow)
    return wanted


def _row(time: float) -> int:
    """Index into a trace of the scene time [s]."""
    return round((time + WARM_UP_S) / STEP_S)


def _trace(driver: Driver) -> Array:
    return np.array(driver.trace)


def center_poses(driver: Driver) -> Array:
    """[n, 3] poses of the box centre over the trace."""
    trace = _trace(driver)
    ahead = driver.body.rear_to_center
    return np.column_stack([trace[:, 0] + ahead * np.cos(trace[:, 2]), trace[:, 1] + ahead * np.sin(trace[:, 2]),
                            trace[:, 2]])


def _sound(cast: Cast, scene_map: SceneMap) -> bool:
    """Whether the expert stays comfortable, on the road and clear of all boxes at every 0.1 s from -1.5 s to 5 s."""
    window = slice(_row(HISTORY_S[0]), _row(AHEAD_S) + 1)
    expert = cast.drivers[0]
    trace = _trace(expert)
    if trace[window, 4].min() < -HARDEST_EXPERT_BRAKING:
        return False
    entry = expert.route.entry
    if entry is not None and trace[_row(0.0), 5] > entry + 2.0:
        return False  # the turn is nearly over: its command would be stale
    corners = box_corners(center_poses(expert)[window], EXPERT_BODY.length, EXPERT_BODY.width, 0.0)
    if not inside(scene_map, corners.reshape(-1, 2)).all():
        return False
    bodies = [box_corners(center_poses(d)[window], d.body.length + 0.2, d.body.width + 0.2, 0.0)
              for d in cast.drivers[1:]]
    bodies += [box_corners(np.array(w.trace)[window, :3], w.size[0] + 0.2, w.size[1] + 0.2, 0.0)
               for w in cast.pedestrians]
    return not any(boxes_overlap(corners, body).any() for body in bodies)


def inside(scene_map: SceneMap, points: Array) -> np.ndarray:
    """Whether points [n, 2] lie in the drivable area (roadblocks, intersections, car parks; as NAVSIM): bool [n]."""
    areas = [b.polygon for b in scene_map.roadblocks if b.kind == "roadblock"]
    areas += [a.polygon for a in scene_map.intersections + scene_map.carparks]
    result = np.zeros(len(points), dtype=bool)
    low, high = points.min(0), points.max(0)
    for area in areas:
        if (area.max(0) < low).any() or (area.min(0) > high).any():
            continue
        polygon = shapely.Polygon(area)
        shapely.prepare(polygon)
        result |= shapely.intersects_xy(polygon, points[:, 0], points[:, 1])
    return result


def _record(scene_id: str, kind: str, road: Road, cast: Cast, notes: Mapping[str, int]) -> Scene:
    expert = cast.drivers[0]
    trace = _trace(expert)
    now = _row(0.0)
    origin = np.array([trace[now, 0], trace[now, 1], math.remainder(trace[now, 2], 2 * math.pi)])
    poses = to_ego_frame(trace[:, :3], origin)
    yaw_rate = (trace[now + 1, 2] - trace[now - 1, 2]) / (2 * STEP_S)
    speed = trace[now, 3]
    return Scene(
        scene_id=scene_id,
        kind=kind,
        ego=Ego(origin, np.array([speed, 0.0]), np.array([trace[now, 4], speed * yaw_rate])),
        map=road.map,
        route_roadblock_ids=expert.route.roadblock_ids,
        traffic_lights=tuple(TrafficLight(lane, red) for lane, red in red_connectors(road, cast.signal)),
        tracks=tuple(_vehicle_track(driver) for driver in cast.drivers[1:])
        + tuple(_pedestrian_track(walker) for walker in cast.pedestrians),
        history=poses[[_row(time) for time in HISTORY_S]],
        command=_COMMANDS[expert.route.movement],
        future=poses[[_row(0.5 * (k + 1)) for k in range(8)]],
        source="nemo_mtdrive generator",
        licence="the project's own",
        extra={"generator": dict(notes)},
    )


_TRACK_TIMES = tuple(0.5 * k for k in range(11))


def _vehicle_track(driver: Driver) -> Track:
    centers = center_poses(driver)
    # the last row has no successor: its velocity is that of the step before
    velocity = np.gradient(centers[:, :2], STEP_S, axis=0)
    rows = [_row(time) for time in _TRACK_TIMES]
    heading = np.arctan2(np.sin(centers[rows, 2]), np.cos(centers[rows, 2]))
    states = np.column_stack([_TRACK_TIMES, centers[rows, :2], heading, velocity[rows]])
    return Track(driver.name, "vehicle", np.array([driver.body.length, driver.body.width, driver.body.height]), states)


def _pedestrian_track(walker: Pedestrian) -> Track:
    trace = np.array(walker.trace)[[_row(time) for time in _TRACK_TIMES]]
    return Track(walker.name, "pedestrian", np.array(walker.size), np.column_stack([_TRACK_TIMES, trace]))
