"""Whether a simulated scene may be recorded: the expert stays comfortable, on the road, clear of all and foresighted."""

from __future__ import annotations

import math

import numpy as np
import shapely
from numba import njit

from nemo_mtdrive.driving.scene import Array, SceneMap
from nemo_mtdrive.driving.trajectory import box_corners

HARDEST_BRAKING, HARDEST_TURN = 3.7, 3.2
"""Of the expert [m/s^2]: along and across."""
SIDE_MARGIN, FRONT_MARGIN, ROAD_MARGIN = 0.12, 0.3, 0.12
"""By which the expert's box is widened on each side and end to be clear of others, and all round to be on the road [m]."""
_SAMPLES = (0, 3, 6, 9)
_HORIZON, _HEADING_WEIGHT, _STEERING_SHARE = 10, 10.0, 0.67
_AHEAD, _BEHIND = math.radians(33.0), math.radians(145.0)


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


def comfortable(speed: Array, acceleration: Array, heading: Array, step_s: float) -> bool:
    """Whether a drive [n] every `step_s` stays inside NAVSIM's comfort bounds, with something to spare."""
    yaw_rate = np.gradient(heading, step_s)
    if acceleration.min() < -HARDEST_BRAKING or np.abs(speed * yaw_rate).max() > HARDEST_TURN:
        return False
    # NAVSIM looks through smoothing filters: a step of 0.5 s does that here
    yaw_acceleration = (yaw_rate[5:] - yaw_rate[:-5]) / (5 * step_s)
    return bool(np.abs(yaw_rate).max() < 0.85 and np.abs(yaw_acceleration).max() < 1.7)


def on_road(scene_map: SceneMap, poses: Array, length: float, width: float, rear_to_center: float) -> bool:
    """Whether boxes at rear-axle poses [n, 3] are on the road, with a margin."""
    corners = box_corners(poses, length + 2 * ROAD_MARGIN, width + 2 * ROAD_MARGIN, rear_to_center)
    return bool(inside(scene_map, corners.reshape(-1, 2)).all())


@njit(cache=True)
def tracked(reference: Array, speed: Array, wheel_base: float) -> Array:
    """Where a car gets to that is told to follow a drive but starts with its wheels straight, as NAVSIM simulates it.

    Who is in a bend at t = 0 is carried outwards by up to a metre before the steering has caught up; a scene must leave
    room for that. Steering is a linear-quadratic regulator over one second on lateral and heading error.

    Args:
        reference: [T, 3] rear-axle poses every 0.1 s, headings continuous.
        speed: [T].
        wheel_base: of the car [m].

    Returns:
        [T, 3] its poses.
    """
    poses = reference.copy()
    curvature = np.zeros(len(reference))
    for t in range(len(reference)):
        a, b = max(t - 3, 0), min(t + 3, len(reference) - 1)
        way = 0.0
        for k in range(a, b):
            way += 0.1 * max(speed[k], 0.0)
        if way > 0.3:
            curvature[t] = (reference[b, 2] - reference[a, 2]) / way
    x, y, heading, steering = reference[0, 0], reference[0, 1], reference[0, 2], 0.0
    for t in range(len(reference) - 1):
        cos, sin = math.cos(reference[t, 2]), math.sin(reference[t, 2])
        error = -sin * (x - reference[t, 0]) + cos * (y - reference[t, 1])
        turned = heading - reference[t, 2]
        # where the errors end after a second with the wheels as they are, and what a unit of steering rate adds
        error_b, turned_b, steering_b = 0.0, 0.0, 0.0
        for k in range(_HORIZON):
            later = min(t + k, len(reference) - 1)
            step = 0.1 * speed[later]
            error, error_b = error + step * turned, error_b + step * turned_b
            turned += step * (steering / wheel_base - curvature[later])
            turned_b += step * steering_b / wheel_base
            steering_b += 0.1
        rate = -(error_b * error + _HEADING_WEIGHT * turned_b * turned) / (
            error_b**2 + _HEADING_WEIGHT * turned_b**2 + 1.0)
        x += 0.1 * speed[t] * math.cos(heading)
        y += 0.1 * speed[t] * math.sin(heading)
        heading += 0.1 * speed[t] * math.tan(steering) / wheel_base
        steering = min(max(steering + 0.1 * rate * _STEERING_SHARE, -1.0), 1.0)
        poses[t + 1, 0], poses[t + 1, 1], poses[t + 1, 2] = x, y, heading
    return poses


@njit(cache=True)
def _overlap(ax: float, ay: float, ah: float, al: float, aw: float, bx: float, by: float, bh: float, bl: float,
             bw: float) -> bool:
    """Whether two boxes (middle, heading, half length, half width) overlap."""
    dx, dy = bx - ax, by - ay
    turned = bh - ah
    c, s = abs(math.cos(turned)), abs(math.sin(turned))
    ca, sa, cb, sb = math.cos(ah), math.sin(ah), math.cos(bh), math.sin(bh)
    return (abs(dx * ca + dy * sa) <= al + bl * c + bw * s and abs(-dx * sa + dy * ca) <= aw + bl * s + bw * c
            and abs(dx * cb + dy * sb) <= bl + al * c + aw * s and abs(-dx * sb + dy * cb) <= bw + al * s + aw * c)


@njit(cache=True)
def unsafe(ego: Array, speed: Array, careful: np.ndarray, length: float, width: float, to_center: float, others: Array,
           sizes: Array) -> bool:
    """Whether the expert touches somebody, or would within 0.9 s if it went straight on at its speed (as NAVSIM's TTC).

    Args:
        ego: [T, 3] rear-axle poses every 0.1 s.
        speed: [T].
        careful: [T] where bodies at the side count too: between lanes, in crossings.
        length, width, to_center: of its body.
        others: [T + 9, n, 3] box middles of everybody and everything else.
        sizes: [n, 2] lengths and widths.
    """
    half_length, half_width = 0.5 * length + FRONT_MARGIN, 0.5 * width + SIDE_MARGIN
    radius = math.hypot(half_length, half_width)
    for t in range(len(ego)):
        x, y, heading = ego[t, 0], ego[t, 1], ego[t, 2]
        cos, sin = math.cos(heading), math.sin(heading)
        for after in _SAMPLES:
            if after > 0 and speed[t] < 0.05:
                continue
            way = to_center + 0.1 * after * speed[t]
            mx, my = x + way * cos, y + way * sin
            for n in range(others.shape[1]):
                ox, oy, oh = others[t + after, n, 0], others[t + after, n, 1], others[t + after, n, 2]
                reach = radius + 0.5 * math.hypot(sizes[n, 0], sizes[n, 1])
                if (ox - mx) ** 2 + (oy - my) ** 2 > reach * reach:
                    continue
                if not _overlap(mx, my, heading, half_length, half_width, ox, oy, oh, 0.5 * sizes[n, 0],
                                0.5 * sizes[n, 1]):
                    continue
                if after == 0:
                    return True
                angle = math.acos(min(1.0, max(-1.0, ((ox - x) * cos + (oy - y) * sin) / max(
                    math.hypot(ox - x, oy - y), 1e-6))))
                if angle < _AHEAD or (careful[t] and angle < _BEHIND):
                    return True
    return False


@njit(cache=True)
def crash(boxes: Array, sizes: Array, moving: int, fixed: int, place: Array, radius: float) -> bool:
    """Whether a car of the traffic drives into another, or into something that stands, near a place.

    Args:
        boxes: [T, n, 3] box middles: first the `moving` cars, then people, from index `fixed` on things that stand.
        sizes: [n, 2] lengths and widths.
        moving, fixed: see boxes.
        place: [2].
        radius: how far from it crashes matter [m].
    """
    for t in range(len(boxes)):
        for i in range(moving):
            x, y, heading = boxes[t, i, 0], boxes[t, i, 1], boxes[t, i, 2]
            if (x - place[0]) ** 2 + (y - place[1]) ** 2 > radius * radius:
                continue
            for j in range(boxes.shape[1]):
                if j <= i or moving <= j < fixed:
                    continue
                reach = 0.5 * (sizes[i, 0] + sizes[j, 0]) + 2.0
                if (boxes[t, j, 0] - x) ** 2 + (boxes[t, j, 1] - y) ** 2 < reach * reach and _overlap(
                        x, y, heading, 0.5 * sizes[i, 0] - 0.05, 0.5 * sizes[i, 1] - 0.05, boxes[t, j, 0], boxes[t, j, 1],
                        boxes[t, j, 2], 0.5 * sizes[j, 0], 0.5 * sizes[j, 1]):
                    return True
    return False
