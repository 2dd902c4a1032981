"""What a learned agent sees of a plan: numbers about its motion, the road under it and the road users beside it.

No rule of the PDM score is in here: the car is put where the plan says, not simulated; nothing is classified, and no
threshold is applied. Everything is in the car's own frame, so the numbers do not depend on where a scene lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Vehicle, to_map_frame
from nemo_mtdrive.pdm.cache import PreparedScene
from nemo_mtdrive.pdm.closed import FALLBACK_SPEED
from nemo_mtdrive.pdm.drivable import LANE
from nemo_mtdrive.pdm.feedback import POINT_STEPS
from nemo_mtdrive.pdm.geometry import box_corners, progress_along, wrap_angle
from nemo_mtdrive.pdm.simulate import STEP_S
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

OBJECTS = 6
"""Road users described beside each point: those that come nearest within the next second."""

WHOLE, POINT, PAIR = 45, 17, 21
"""Numbers that describe a whole plan, one of its points, and one point with one object."""

NOBODY = -1
"""Index of an object that is not there."""

_CLEARANCE_LIMIT_M = 4.0
_NEARBY_M = 60.0
_LOOK_AHEAD_S = (0.5, 0.9)
_FAR_AWAY = 1e6


@dataclass(frozen=True)
class Features:
    """B plans of one scene, or of many joined by `join`."""

    whole: Float32
    """[B, WHOLE]"""
    points: Float32
    """[B, 8, POINT]"""
    pairs: Float32
    """[B, 8, OBJECTS, PAIR]; zeros where there is nobody."""
    objects: NDArray[np.int64]
    """[B, 8, OBJECTS] indices into the observation's tracks, or `NOBODY`."""


@dataclass(frozen=True)
class _Motion:
    """Plans [B, 8, 3] as motion; each array [B, 8]."""

    speed: Array
    sideways: Array
    acceleration: Array
    jerk: Array
    yaw_rate: Array
    curving: Array


def _motion(plans: Array, speed_now: float) -> _Motion:
    poses = np.concatenate([np.zeros((len(plans), 1, 3)), plans], axis=1)
    steps, heading = np.diff(poses[..., :2], axis=1), np.unwrap(poses[..., 2], axis=1)
    cos, sin = np.cos(heading[:, :-1]), np.sin(heading[:, :-1])
    speed = (cos * steps[..., 0] + sin * steps[..., 1]) / TRAJECTORY_STEP_S
    sideways = (-sin * steps[..., 0] + cos * steps[..., 1]) / TRAJECTORY_STEP_S
    yaw_rate = np.diff(heading, axis=1) / TRAJECTORY_STEP_S

    def rate(values: Array, first: float) -> Array:
        return np.diff(values, axis=1, prepend=first) / TRAJECTORY_STEP_S

    acceleration = rate(speed, speed_now)
    return _Motion(speed, sideways, acceleration, rate(acceleration, 0.0), yaw_rate, rate(yaw_rate, 0.0))


def _clearances(prepared: PreparedScene, corners: Array) -> Array:
    """How far inside the drivable area points [..., 2] are [m], negative outside, both cut at 4 m."""
    drivable = prepared.drivable
    area = shapely.union_all(shapely.make_valid(drivable.polygons[drivable.kinds != LANE]))
    center = prepared.scene.ego.rear_axle_pose[:2]
    reach = _NEARBY_M + np.hypot(*np.moveaxis(corners - center, -1, 0)).clip(max=200.0).max(initial=0.0)
    near = shapely.intersection(area, shapely.box(*(center - reach), *(center + reach)))
    if near.is_empty:
        return np.full(corners.shape[:-1], -_CLEARANCE_LIMIT_M)
    points = shapely.points(corners)
    shapely.prepare(near)
    distance = np.minimum(shapely.distance(near.boundary, points), _CLEARANCE_LIMIT_M)
    signed: Array = np.where(shapely.contains_properly(near, points), distance, -distance)
    return signed


def _whole(prepared: PreparedScene, plans: Array, motion: _Motion, centers: Array) -> Array:
    ego, line = prepared.scene.ego, prepared.centerline
    start = progress_along(line, *ego.rear_axle_pose[:2])
    progress = np.array([progress_along(line, *row[-1]) - start for row in centers])
    limit = prepared.route.speed_limit_mps or FALLBACK_SPEED
    lead = _room_ahead(prepared)
    few = np.column_stack([
        np.broadcast_to([ego.velocity[0] / 10, ego.acceleration[0] / 3, ego.acceleration[1] / 3, limit / 10, lead / 30],
                        (len(plans), 5)),
        progress / 30, progress / (4.0 * limit), plans[:, -1, 0] / 30, plans[:, -1, 1] / 10,
        np.abs(motion.acceleration).max(axis=1) / 4, np.abs(motion.jerk).max(axis=1) / 8,
        np.abs(motion.yaw_rate).max(axis=1), np.abs(motion.curving).max(axis=1) / 2,
    ])
    return np.concatenate([few, motion.speed / 10, motion.acceleration / 4, motion.jerk / 8, motion.yaw_rate * 2], axis=1)


def _room_ahead(prepared: PreparedScene) -> float:
    """Way to the nearest road user in the ego's path at t = 0 [m], 60 where there is none."""
    seen, (x, y, heading) = prepared.observation, prepared.scene.ego.rear_axle_pose
    offset = seen.centers[0][seen.present[0]] - [x, y]
    along = np.cos(heading) * offset[:, 0] + np.sin(heading) * offset[:, 1]
    aside = np.abs(-np.sin(heading) * offset[:, 0] + np.cos(heading) * offset[:, 1])
    return float(along[(along > 0.0) & (aside < 2.0)].min(initial=_NEARBY_M))


def _pairs(prepared: PreparedScene, centers: Array, headings: Array, speed: Array) -> tuple[Array, NDArray[np.int64]]:
    """[B, 8, OBJECTS, PAIR] and [B, 8, OBJECTS]: the objects that come nearest, in the car's frame at each point."""
    seen, vehicle = prepared.observation, prepared.scene.ego.vehicle
    count = len(seen.tracks)
    features = np.zeros((*centers.shape[:2], OBJECTS, PAIR))
    indices = np.full(features.shape[:3], NOBODY)
    if not count:
        return features, indices
    sizes = np.array([track.size for track in seen.tracks])
    before, after = POINT_STEPS - 1, POINT_STEPS + 1
    known = (seen.present[before] & seen.present[after])[..., None]
    velocity = np.where(known, (seen.centers[after] - seen.centers[before]) / (2 * STEP_S), 0.0)
    cos, sin = np.cos(headings)[..., None], np.sin(headings)[..., None]

    def turned(vectors: Array) -> Array:
        return np.stack([cos * vectors[..., 0] + sin * vectors[..., 1],
                         -sin * vectors[..., 0] + cos * vectors[..., 1]], axis=-1)

    offset = turned(seen.centers[POINT_STEPS][None] - centers[:, :, None])
    moving = turned(np.broadcast_to(velocity[None], offset.shape)) - np.stack([speed, 0 * speed], axis=-1)[:, :, None]
    angle = wrap_angle(seen.headings[POINT_STEPS][None] - headings[..., None])
    gaps = [_gaps(offset + seconds * moving, angle, sizes, vehicle) for seconds in (0.0, *_LOOK_AHEAD_S)]
    apart = np.stack([gap.max(axis=-1) for gap in gaps], axis=-1)
    nearness = np.where(seen.present[POINT_STEPS][None], apart.min(axis=-1), _FAR_AWAY)
    described = np.concatenate([
        offset / 20, moving / 10, np.cos(angle)[..., None], np.sin(angle)[..., None],
        np.broadcast_to(sizes[:, :2] / 5, (*offset.shape[:3], 2)), np.clip(apart, -3, 10) / 3,
        np.clip(gaps[0], -3, 10) / 3, np.broadcast_to(seen.is_agent[:, None], (*offset.shape[:3], 1)),
        np.broadcast_to(seen.is_stopped[:, None], (*offset.shape[:3], 1)), np.clip(gaps[2][..., :2], -3, 10) / 3,
        np.hypot(moving[..., 0], moving[..., 1])[..., None] / 10, np.ones((*offset.shape[:3], 1)),
    ], axis=-1)
    order = np.argsort(nearness, axis=-1, kind="stable")[..., :OBJECTS]
    chosen = np.take_along_axis(described, order[..., None], axis=2)
    there = np.take_along_axis(nearness, order, axis=2) < _FAR_AWAY
    features[:, :, :order.shape[2]] = np.where(there[..., None], np.clip(chosen, -20.0, 20.0), 0.0)
    indices[:, :, :order.shape[2]] = np.where(there, order, NOBODY)
    return features, indices


def _gaps(offset: Array, angle: Array, sizes: Array, vehicle: Vehicle) -> Array:
    """Room [..., 4] between the car and boxes along the car's axes, then the box's; the largest below 0: they overlap."""
    half_length, half_width = 0.5 * sizes[:, 0], 0.5 * sizes[:, 1]
    cos, sin = np.cos(angle), np.sin(angle)
    across, along = np.abs(sin), np.abs(cos)
    own = (0.5 * vehicle.length, 0.5 * vehicle.width)
    return np.stack([
        np.abs(offset[..., 0]) - own[0] - along * half_length - across * half_width,
        np.abs(offset[..., 1]) - own[1] - across * half_length - along * half_width,
        np.abs(cos * offset[..., 0] + sin * offset[..., 1]) - half_length - along * own[0] - across * own[1],
        np.abs(-sin * offset[..., 0] + cos * offset[..., 1]) - half_width - across * own[0] - along * own[1],
    ], axis=-1)


def describe(prepared: PreparedScene, plans: Array) -> Features:
    """Describe checked plans [B, 8, 3] in the ego frame of a prepared scene."""
    scene = prepared.scene
    plans = np.clip(plans, -1e3, 1e3)
    plans[..., 2] = wrap_angle(plans[..., 2])
    motion = _motion(plans, float(scene.ego.velocity[0]))
    poses = to_map_frame(plans, scene.ego.rear_axle_pose)
    headings = poses[..., 2]
    ahead = scene.ego.vehicle.rear_axle_to_center * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    centers = poses[..., :2] + ahead
    corners = box_corners(centers, headings, scene.ego.vehicle.length, scene.ego.vehicle.width)
    clearance = _clearances(prepared, corners) / 2
    worst = clearance.min(axis=-1)
    shape = (*plans.shape[:2], 1)
    points = np.concatenate([
        np.broadcast_to(np.linspace(0.125, 1.0, TRAJECTORY_POINTS)[:, None], shape), plans[..., :2] / 20,
        np.cos(plans[..., 2:]), np.sin(plans[..., 2:]), motion.speed[..., None] / 10, motion.sideways[..., None],
        motion.acceleration[..., None] / 4, motion.yaw_rate[..., None] * 2, clearance, worst[..., None],
        np.concatenate([worst[:, :1], worst[:, :-1]], axis=1)[..., None],
        np.concatenate([worst[:, 1:], worst[:, -1:]], axis=1)[..., None], worst.min(axis=1)[:, None, None] + np.zeros(shape),
    ], axis=-1)
    pairs, objects = _pairs(prepared, centers, headings, motion.speed)
    whole = _whole(prepared, plans, motion, centers)
    return Features(_plain(whole), _plain(points), _plain(pairs), objects)


def _plain(values: Array) -> Float32:
    return np.clip(values, -20.0, 20.0).astype(np.float32)


def join(parts: list[Features]) -> Features:
    """The plans of several scenes one after another; the objects' indices stay those of their own scenes."""
    return Features(*(np.concatenate([getattr(part, name) for part in parts])
                      for name in ("whole", "points", "pairs", "objects")))
