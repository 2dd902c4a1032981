"""From a simulated stage to the `Scene` that is recorded: tracks, route, command, appearance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_mtdrive.driving.generator.geometry import arc_length
from nemo_mtdrive.driving.generator.mixture import LEFT, RIGHT, STRAIGHT
from nemo_mtdrive.driving.generator.records import BICYCLE, STEP_S, TRACE, Rows
from nemo_mtdrive.driving.generator.simulation import box_poses, row_at
from nemo_mtdrive.driving.generator.stage import Lights, Stage
from nemo_mtdrive.driving.scene import Array, Ego, Scene, Track, TrafficLight, to_ego_frame

HISTORY_S = (-1.5, -1.0, -0.5, 0.0)
TRACK_TIMES = tuple(0.5 * k for k in range(11))
COMMAND_AHEAD_M, COMMAND_SIDE_M = 20.0, 2.0
BRAKE_LIGHT_MPS2, STANDING_MPS = -0.4, 0.3
INDICATE_M = 35.0
WEATHER = ("clear", "cloudy", "rain", "fog")
TIMES_OF_DAY = ("day", "dawn", "dusk", "night")
X, Y, HEADING, SPEED, ACCELERATION, S, LINE, OFFSET, SHIFTING, GAP = range(len(TRACE))


@dataclass(frozen=True)
class Take:
    """A simulated stage: its drivers, their traces [STEPS, n, 10] and the walkers' [STEPS, m, 3]."""

    stage: Stage
    drivers: Rows
    walkers: Rows
    traces: Array
    walks: Array

    @property
    def line_now(self) -> int:
        """The route the expert is on at t = 0: the nearest of its line and the lanes beside it."""
        road, now = self.stage.road, self.traces[row_at(0.0), 0]
        line = int(now[LINE])
        if abs(now[OFFSET]) < 0.5 * road.lane_width:
            return line
        side = road.neighbours.get(line, (-1, -1))[0 if now[OFFSET] > 0 else 1]
        return side if side >= 0 else line


def route_command(line: Array, pose: Array) -> str:
    """NAVSIM's command: where the route's centreline [n, 2] lies 20 m further on than the ego at pose [3].

    More than 2 m to its left or right is a turn. Nothing that is driven later matters.
    """
    distance = arc_length(line)
    step = np.diff(line, axis=0)
    share = ((pose[:2] - line[:-1]) * step).sum(1) / np.maximum((step**2).sum(1), 1e-12)
    foot = line[:-1] + np.clip(share, 0.0, 1.0)[:, None] * step
    nearest = int(np.argmin(((foot - pose[:2]) ** 2).sum(1)))
    at = distance[nearest] + float(np.hypot(*(foot[nearest] - line[nearest]))) + COMMAND_AHEAD_M
    ahead = np.array([np.interp(at, distance, line[:, 0]), np.interp(at, distance, line[:, 1]), 0.0])
    side = float(to_ego_frame(ahead, pose)[1])
    return LEFT if side >= COMMAND_SIDE_M else RIGHT if side <= -COMMAND_SIDE_M else STRAIGHT


def ego_pose(take: Take) -> Array:
    """The expert's rear axle [x, y, heading] at t = 0."""
    now = take.traces[row_at(0.0), 0]
    return np.array([now[X], now[Y], math.remainder(now[HEADING], 2 * math.pi)])


def record(scene_id: str, kind: str, take: Take, notes: Mapping[str, Any]) -> Scene:
    """The scene of a take."""
    stage = take.stage
    route = stage.road.routes[take.line_now]
    expert = take.traces[:, 0]
    now = row_at(0.0)
    origin = ego_pose(take)
    poses = to_ego_frame(expert[:, :3], origin)
    yaw_rate = (expert[now + 1, HEADING] - expert[now - 1, HEADING]) / (2 * STEP_S)
    speed = expert[now, SPEED]
    tracks, signals = _tracks(take)
    return Scene(
        scene_id=scene_id,
        kind=kind,
        ego=Ego(origin, np.array([speed, 0.0]), np.array([expert[now, ACCELERATION], speed * yaw_rate])),
        map=stage.road.map,
        route_roadblock_ids=route.roadblock_ids,
        traffic_lights=_lights(stage),
        tracks=tuple(tracks),
        history=poses[[row_at(time) for time in HISTORY_S]],
        command=route_command(route.line, origin),
        future=poses[[row_at(0.5 * (k + 1)) for k in range(8)]],
        source="nemo_mtdrive generator",
        licence="the project's own",
        extra={"generator": dict(notes), "appearance": _appearance(stage) | {"signals": signals}},
    )


def _lights(stage: Stage) -> tuple[TrafficLight, ...]:
    lights: Lights = stage.lights
    return tuple(TrafficLight(route.connector_id, not lights.green_from[route.light] <= 0.0 < lights.green_to[route.light])
                 for route in stage.road.routes if route.light >= 0 and route.connector_id is not None)


def _tracks(take: Take) -> tuple[list[Track], dict[str, list[str]]]:
    """Everybody but the expert and everything that stands, and the lights they show at t = 0 by token."""
    rows = [row_at(time) for time in TRACK_TIMES]
    boxes = box_poses(take.traces, take.drivers)
    # the last row has no successor: its velocity is that of the step before
    velocity = np.gradient(boxes[:, :, :2], STEP_S, axis=0)
    tracks, signals = [], {}
    for i, body in enumerate(take.drivers[1:], start=1):
        bicycle = body["type"] == BICYCLE
        token = f"{'bicycle' if bicycle else 'vehicle'}{i}"
        heading = boxes[rows, i, 2]
        states = np.column_stack([TRACK_TIMES, boxes[rows, i, :2], np.arctan2(np.sin(heading), np.cos(heading)),
                                  velocity[rows, i]])
        tracks.append(Track(token, "bicycle" if bicycle else "vehicle",
                            np.array([body["length"], body["width"], body["height"]]), states))
        shown = [] if bicycle else _signals(take, i)
        if shown:
            signals[token] = shown
    for i, walker in enumerate(take.walkers):
        walk = take.walks[rows, i]
        faces = np.full(len(rows), math.atan2(walker["dy"], walker["dx"]))
        states = np.column_stack([TRACK_TIMES, walk[:, :2], faces, walk[:, 2] * walker["dx"],
                                  walk[:, 2] * walker["dy"]])
        size = np.array([walker["length"], walker["width"], walker["height"]])
        tracks.append(Track(f"pedestrian{i}", "pedestrian", size, states))
    for i, thing in enumerate(take.stage.things):
        token = f"{thing.type}_s{i}"
        states = np.column_stack([TRACK_TIMES, np.tile(thing.pose, (len(rows), 1)), np.zeros((len(rows), 2))])
        tracks.append(Track(token, thing.type, np.array(thing.size), states))
        if thing.signals:
            signals[token] = list(thing.signals)
    return tracks, signals


def _signals(take: Take, index: int) -> list[str]:
    """Brake lights and indicators of a driver at t = 0; lane changes are shown a second ahead."""
    stage, trace = take.stage, take.traces[:, index]
    now = trace[row_at(0.0)]
    shown = []
    if now[ACCELERATION] < BRAKE_LIGHT_MPS2 or now[SPEED] < STANDING_MPS:
        shown.append("brake")
    for side in stage.signals.get(index, ()):
        shown.append(side)
    route = stage.road.routes[int(now[LINE])]
    shifts = trace[row_at(0.0):row_at(1.0), SHIFTING]
    if (shifts != 0).any():
        shown.append("left" if shifts[shifts != 0][0] > 0 else "right")
    elif route.entry is not None and route.leave is not None and route.movement != "straight":
        front = now[S] + take.drivers["to_center"][index] + 0.5 * take.drivers["length"][index]
        if route.entry - INDICATE_M < front and now[S] < route.leave:
            shown.append(route.movement)
    elif route.ends and now[S] > route.change[1] - INDICATE_M:
        shown.append("left")
    return list(dict.fromkeys(shown))


def _appearance(stage: Stage) -> dict[str, str]:
    """Weather and time of day; bad ones are likelier in difficult scenes."""
    bad = 0.1 + 0.3 * stage.difficulty
    weather = _pick(stage, WEATHER, (1.0 - bad) * np.array([0.65, 0.35, 0.0, 0.0]) + bad * np.array([0.0, 0.2, 0.5, 0.3]))
    time = _pick(stage, TIMES_OF_DAY, (1.0 - bad) * np.array([0.8, 0.1, 0.1, 0.0]) + bad * np.array([0.1, 0.2, 0.3, 0.4]))
    return {"weather": weather, "time_of_day": time}


def _pick(stage: Stage, names: Sequence[str], shares: Array) -> str:
    return names[int(stage.rng.choice(len(names), p=shares / shares.sum()))]
