"""`generate`: one seed, one scene: a road, a situation, an expert that neither collides nor leaves the road."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import shapely

from nemo_mtdrive.driving.generator.checks import comfortable, crash, on_road, tracked, unsafe
from nemo_mtdrive.driving.generator.crossing_situations import CROSSINGS
from nemo_mtdrive.driving.generator.crossings import build_crossing, build_t_junction
from nemo_mtdrive.driving.generator.mixture import COMMAND_SHARES, draw, joint_shares, weights_of
from nemo_mtdrive.driving.generator.ramps import build_lane_drop, build_merge
from nemo_mtdrive.driving.generator.recording import (
    ACCELERATION,
    HEADING,
    HISTORY_S,
    LINE,
    OFFSET,
    SPEED,
    S,
    Take,
    ego_pose,
    record,
    route_command,
)
from nemo_mtdrive.driving.generator.records import STEP_S
from nemo_mtdrive.driving.generator.roads import Road, Wish, build_curve, build_narrow, build_straight
from nemo_mtdrive.driving.generator.roundabout import build_roundabout
from nemo_mtdrive.driving.generator.simulation import box_poses, row_at, simulate
from nemo_mtdrive.driving.generator.situations import OPEN_ROAD
from nemo_mtdrive.driving.generator.stage import EGO, Stage
from nemo_mtdrive.driving.generator.traffic import add_strollers, add_traffic
from nemo_mtdrive.driving.scene import Array, Scene, SceneError

ATTEMPTS = 80
COMMAND_ATTEMPTS = 60
"""After so many attempts any command is taken: a sound scene of the kind matters more."""
RECORDED_ROWS = 5
"""Of the simulation, between two recorded points."""
CRASH_RADIUS_M = 70.0
"""Nobody of the traffic may crash so near to the expert."""
_OPEN = {"straight": build_straight, "curve": build_curve, "narrow_street": build_narrow, "merge": build_merge,
         "lane_drop": build_lane_drop}
_PARKED = frozenset({"parked", "bus", "occluded", "oncoming"})
_TOWN = frozenset({"parked", "bus", "occluded", "jaywalker", "pedestrian", "cyclist"})


def generate(seed: int, kinds: Mapping[str, float], difficulty: float = 0.5,
             commands: Mapping[str, float] | None = None) -> Scene:
    """The scene of a seed; the same arguments give the same scene, byte for byte as JSON.

    Args:
        seed: any number >= 0; it names the scene `p0000123`.
        kinds: weights as for `mixture.weights_of`, e.g. `MIXTURE`, {"curve/lead": 1} or {"crossing": 1, "lead": 1}.
        difficulty: 0 to 1: more traffic, harder braking, less time, worse weather.
        commands: shares of TURN LEFT, GO STRAIGHT, TURN RIGHT; None for `COMMAND_SHARES`.

    Raises:
        SceneError: a bad number or name, or no sound scene in 80 attempts.
    """
    if seed < 0 or not 0.0 <= difficulty <= 1.0:
        raise SceneError(f"generate: got seed={seed} difficulty={difficulty}; set seed to 0 or more, difficulty to 0 to 1")
    shares = COMMAND_SHARES if commands is None else commands
    names, table = _joint(tuple(kinds.items()), tuple(shares.items()))
    kind, command = draw(np.random.default_rng([seed, 0]), names, table)
    for attempt in range(1, ATTEMPTS + 1):
        take = perform(kind, command, difficulty, np.random.default_rng([seed, attempt]))
        strict = attempt <= COMMAND_ATTEMPTS
        if (not strict or command_of(take) == command) and sound(take):
            return record(f"p{seed:07d}", kind, take, {"seed": seed, "attempt": attempt, "difficulty": difficulty})
    raise SceneError(f"seed {seed} ({kind}, {command}): no sound scene in {ATTEMPTS} attempts; use another seed")


@lru_cache(maxsize=32)
def _joint(kinds: tuple[tuple[str, float], ...], shares: tuple[tuple[str, float], ...]) -> tuple[tuple[str, ...], Array]:
    return joint_shares(weights_of(dict(kinds)), dict(shares))


def build_road(kind: str, command: str, rng: np.random.Generator) -> Road:
    """The road of a kind `road/situation`."""
    road, situation = kind.split("/")
    wish = Wish(lanes=2 if situation in ("cut_in", "work_zone") else 1, parking=situation in _PARKED,
                crosswalk=situation == "pedestrian", command=command, slow=situation in _TOWN)
    if road in _OPEN:
        return _OPEN[road](rng, wish)
    if road == "roundabout":
        return build_roundabout(rng, wish)
    lights = situation in ("red_light", "green_light") or (
        situation in ("lead", "pedestrian", "unprotected_turn") and bool(rng.random() < 0.5))
    return (build_crossing if road == "crossing" else build_t_junction)(rng, wish, lights=lights)


def perform(kind: str, command: str, difficulty: float, rng: np.random.Generator) -> Take:
    """Build a road, put everybody on it and simulate."""
    situation = kind.split("/")[1]
    stage = Stage(build_road(kind, command, rng), situation, command, difficulty, rng)
    (OPEN_ROAD if stage.route.entry is None else CROSSINGS)[situation](stage)
    add_traffic(stage)
    add_strollers(stage)
    world, drivers, walkers = stage.world()
    traces, walks = simulate(world, drivers, walkers)
    return Take(stage, drivers, walkers, traces, walks)


def command_of(take: Take) -> str:
    """The command at t = 0, from the route."""
    return route_command(take.stage.road.routes[take.line_now].line, ego_pose(take))


def sound(take: Take) -> bool:
    """Whether the expert stays comfortable, on the road, and clear and foresighted of all, from -1.5 s to 4 s.

    After t = 0 that is asked of where NAVSIM's simulated car gets to when it follows the recorded points.
    """
    stage, now = take.stage, row_at(0.0)
    expert = take.traces[:, 0]
    route = stage.road.routes[int(expert[now, LINE])]
    if route.leave is not None and expert[now, S] > route.leave - 2.0:
        return False  # the crossing is over: the kind would be stale
    window = slice(row_at(HISTORY_S[0]), row_at(4.0) + 1)
    if not comfortable(expert[window, SPEED], expert[window, ACCELERATION], expert[window, HEADING], STEP_S):
        return False
    points = expert[now : row_at(4.0) + 1 : RECORDED_ROWS, :3]
    share = np.arange(0.0, len(points) - 1 + 1e-9, 1.0 / RECORDED_ROWS)
    between = np.column_stack([np.interp(share, np.arange(len(points)), points[:, k]) for k in range(3)])
    poses = np.vstack([expert[window.start : now, :3], tracked(between, expert[now : window.stop, SPEED], EGO.wheel_base)])
    if not on_road(stage.road.map, poses, EGO.length, EGO.width, EGO.rear_axle_to_center):
        return False
    others, sizes = _everybody_else(take)
    moving = len(take.drivers) - 1
    if crash(others[now::RECORDED_ROWS], sizes, moving, moving + len(take.walkers), expert[now, :2].copy(), CRASH_RADIUS_M):
        return False
    return not unsafe(poses, expert[window, SPEED], _careful(take, poses, window), EGO.length, EGO.width,
                      EGO.rear_axle_to_center, others[window.start : window.stop + 9], sizes)


def _everybody_else(take: Take) -> tuple[Array, Array]:
    """Box middles [STEPS, n, 3] and sizes [n, 2] of everybody and everything but the expert."""
    boxes = box_poses(take.traces, take.drivers)[:, 1:]
    headings = np.arctan2(take.walkers["dy"], take.walkers["dx"])
    walks = np.dstack([take.walks[:, :, :2], np.broadcast_to(headings, take.walks.shape[:2])])
    things = take.stage.things
    still = np.broadcast_to(np.array([thing.pose for thing in things]).reshape(1, -1, 3), (len(boxes), len(things), 3))
    sizes = np.array([*zip(take.drivers["length"][1:], take.drivers["width"][1:], strict=True),
                      *zip(take.walkers["length"], take.walkers["width"], strict=True),
                      *(thing.size[:2] for thing in things)]).reshape(-1, 2)
    return np.ascontiguousarray(np.concatenate([boxes, walks, still], axis=1)), sizes


def _careful(take: Take, poses: Array, window: slice) -> np.ndarray:
    """Where bodies at the side count for TTC: between lanes, or in a crossing."""
    room = 0.5 * (take.stage.road.lane_width - EGO.width) - 0.1
    careful = np.abs(take.traces[window, 0, OFFSET]) > room
    for area in take.stage.road.map.intersections:
        careful |= shapely.contains_xy(shapely.Polygon(area.polygon), poses[:, 0], poses[:, 1])
    return careful
