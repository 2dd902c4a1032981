"""Roads that lose a lane: a motorway's on-ramp, and a road whose right lane ends."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.generator.geometry import arc_length, bend, ease, moved, offset, straight
from nemo_mtdrive.driving.generator.mapping import MapBuilder
from nemo_mtdrive.driving.generator.roads import BEND_STEP, EGO_SIDE, ONCOMING_SIDE, STEP, Road, Route, Wish
from nemo_mtdrive.driving.scene import Array

RAMP_APPROACH = 1
"""`Route.approach` of the lane that comes in from the side."""


def build_merge(rng: np.random.Generator, wish: Wish) -> Road:
    """A carriageway of two or three lanes with an on-ramp, an acceleration lane, and its end."""
    lanes = int(rng.integers(2, 4))
    limit = float(rng.choice([16.5, 19.5, 22.0, 25.0]))
    return _losing_a_lane("merge", rng, lanes + 1, limit, ramp=True)


def build_lane_drop(rng: np.random.Generator, wish: Wish) -> Road:
    """A road of two or three lanes a direction that loses its right lane."""
    lanes = int(rng.integers(2, 4))
    limit = float(rng.choice([11.0, 13.5, 16.5, 20.0]))
    return _losing_a_lane("lane_drop", rng, lanes, limit, ramp=False)


def _losing_a_lane(kind: str, rng: np.random.Generator, lanes: int, limit: float, ramp: bool) -> Road:
    """Blocks in order: (M, the main road before the ramp's lane joins it,) A with all lanes, T the taper, E the rest."""
    width = float(rng.uniform(3.4, 3.7))
    builder = MapBuilder(width, limit)
    origin, heading = rng.uniform(-500.0, 500.0, 2), float(rng.uniform(-math.pi, math.pi))

    def along(first: float, last: float) -> Array:
        return moved(straight(np.array([first, 0.0]), np.array([last, 0.0]), STEP), origin, heading)

    joins = 200.0
    tapers = joins + float(rng.uniform(75.0, 110.0) if ramp else rng.uniform(30.0, 90.0))
    taper_m = max(45.0, 3.2 * limit)
    all_lanes = builder.add_roadblock("A", along(joins if ramp else 0.0, tapers), lanes)
    taper = _add_taper(builder, along(tapers, tapers + taper_m), lanes)
    rest = builder.add_roadblock("E", along(tapers + taper_m, tapers + taper_m + 330.0), lanes - 1)
    for i in range(lanes):
        builder.link(all_lanes[i], taper[i])
        builder.link(taper[i], rest[min(i, lanes - 2)])
    before: list[str | None] = [None] * lanes
    if ramp:
        main = builder.add_roadblock("M", along(0.0, joins), lanes - 1)
        before[:-1] = main
        before[-1] = _add_ramp(builder, rng, builder.centerline(all_lanes[-1])[0], heading)
        for i, lane_id in enumerate(before):
            assert lane_id is not None
            builder.link(lane_id, all_lanes[i])
    routes = []
    for i in range(lanes):
        ids = [lane_id for lane_id in (before[i], all_lanes[i], taper[i], rest[min(i, lanes - 2)]) if lane_id]
        line = builder.line(*ids)
        start = float(arc_length(builder.centerline(ids[0]))[-1]) if ramp and i == lanes - 1 else 0.0
        ends = i == lanes - 1
        end = start + (tapers - joins if ramp and ends else tapers)
        routes.append(Route(line, tuple(lane.split(".")[0] for lane in ids), i, lanes, RAMP_APPROACH if ends and ramp
                            else EGO_SIDE, rank=int(ends), change=(start, end + 12.0) if ends else (0.0, 1e9), ends=ends))
    neighbours = {i: (i - 1, -1 if i >= lanes - 2 else i + 1) for i in range(lanes)}
    if not ramp:
        back = along(0.0, tapers + taper_m + 330.0)[::-1].copy()
        for i, lane_id in enumerate(builder.add_roadblock("B", back, lanes - 1)):
            routes.append(Route(builder.centerline(lane_id), ("B",), i, lanes - 1, ONCOMING_SIDE, rank=2))
            neighbours[lanes + i] = (lanes + i - 1 if i else -1, lanes + i + 1 if i < lanes - 2 else -1)
        builder.add_shoulder("SB", offset(back, -(lanes - 1) * width), 1.0)
    right = along(0.0, tapers)
    builder.add_shoulder("SA", offset(right[-40:], -lanes * width), 1.5)
    after = along(tapers, tapers + taper_m + 330.0)
    builder.add_shoulder("SE", offset(after, -(lanes - 1) * width), width + 1.0)
    return Road(kind, builder.build(), tuple(routes), (), limit, width, (tapers - 75.0, tapers + 5.0),
                neighbours=neighbours)


def _add_taper(builder: MapBuilder, left_edge: Array, lanes: int) -> list[str]:
    """Block T: the last lane moves into the one to its left."""
    width = builder.lane_width
    distance = arc_length(left_edge)
    moved_left = width * ease(distance / distance[-1])
    shaped = []
    for i in range(lanes):
        shift = moved_left if i == lanes - 1 else np.zeros(len(left_edge))
        shaped.append((offset(left_edge, shift - width * i), offset(left_edge, shift - width * (i + 1)),
                       offset(left_edge, shift - width * (i + 0.5))))
    return builder.add_shaped("T", shaped)


def _add_ramp(builder: MapBuilder, rng: np.random.Generator, end: Array, heading: float) -> str:
    """Block R: a lane that comes from the right and ends at a point, parallel to the road."""
    angle = float(rng.uniform(0.16, 0.3))
    # drawn backwards: from the join away from the road, then straight
    curve = bend(float(rng.uniform(70.0, 110.0)), angle, BEND_STEP)
    last = curve[-1]
    way = np.vstack([curve[:-1], straight(last, last + 110.0 * np.array([math.cos(angle), math.sin(angle)]), STEP)])
    center = moved(way, end, heading + math.pi)[::-1].copy()
    half = builder.lane_width / 2
    builder.add_shoulder("SR", offset(center, -half), 1.2)
    return builder.add_shaped("R", [(offset(center, half), offset(center, -half), center)])[0]
