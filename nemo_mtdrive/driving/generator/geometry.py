"""Plane curves of the generator: polylines [n, 2], offsets, smooth turns, arcs."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.scene import Array

RAMP = 0.3
"""Share of a turn's length in which curvature rises (and again falls), as on a clothoid."""


def heading_vector(heading: float) -> Array:
    """Unit vector [2] of a heading [rad]."""
    return np.array([math.cos(heading), math.sin(heading)])


def left_of(vector: Array) -> Array:
    """The vector [2] turned 90 degrees to the left."""
    return np.array([-vector[1], vector[0]])


def straight(start: Array, end: Array, step: float) -> Array:
    """Points from start to end, about `step` apart."""
    count = max(2, math.ceil(float(np.hypot(*(end - start))) / step) + 1)
    return start + np.linspace(0.0, 1.0, count)[:, None] * (end - start)


def normals(line: Array) -> Array:
    """Unit normals [n, 2] of a line's vertices, to the left."""
    tangent = np.empty_like(line)
    tangent[1:-1] = line[2:] - line[:-2]
    tangent[0], tangent[-1] = line[1] - line[0], line[-1] - line[-2]
    tangent /= np.sqrt((tangent**2).sum(1, keepdims=True))
    return np.column_stack([-tangent[:, 1], tangent[:, 0]])


def offset(line: Array, distance: float | Array) -> Array:
    """The line shifted to the left (positive) or right (negative) along its vertex normals; distance may vary [n]."""
    return line + np.broadcast_to(np.asarray(distance, dtype=np.float64), len(line))[:, None] * normals(line)


def arc_length(line: Array) -> Array:
    """Arc length [n] of a line's vertices."""
    return np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)))])


def bend(length: float, angle: float, step: float) -> Array:
    """A curve from the origin along +x that turns by `angle` [rad] over `length` [m] with ramped curvature."""
    count = max(8, math.ceil(length / step) + 1)
    middle = (np.arange(count - 1) + 0.5) / (count - 1)
    peak = 1.0 / (1.0 - RAMP)
    rising = peak * middle**2 / (2 * RAMP)
    flat = peak * (middle - RAMP / 2)
    falling = 1.0 - peak * (1.0 - middle) ** 2 / (2 * RAMP)
    share = np.where(middle < RAMP, rising, np.where(middle > 1.0 - RAMP, falling, flat))
    step_length = length / (count - 1)
    steps = step_length * np.column_stack([np.cos(angle * share), np.sin(angle * share)])
    return np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])


def moved(line: Array, origin: Array, heading: float) -> Array:
    """The line turned by `heading` and shifted to `origin`."""
    cos, sin = math.cos(heading), math.sin(heading)
    return origin + line @ np.array([[cos, sin], [-sin, cos]])


def turn_between(start: Array, start_heading: float, end: Array, end_heading: float, step: float) -> Array:
    """A smooth curve between two directed points whose tangents meet: straight, a ramped bend, straight."""
    angle = math.remainder(end_heading - start_heading, 2 * math.pi)
    if abs(angle) < 1e-6:
        return straight(start, end, step)
    ahead, behind = heading_vector(start_heading), heading_vector(end_heading)
    first, last = np.linalg.solve(np.column_stack([ahead, behind]), end - start)
    unit = bend(1.0, angle, 0.02)[-1]
    tangent = abs(unit[1] / math.sin(angle))  # distance from the bend's start to the corner, for length 1
    short = min(first, last)
    curve = moved(bend(short / tangent, angle, step), start + (first - short) * ahead, start_heading)
    pieces = [curve]
    if first - short > 0.05:
        pieces.insert(0, straight(start, curve[0], step)[:-1])
    if last - short > 0.05:
        pieces.append(straight(curve[-1], end, step)[1:])
    return np.vstack(pieces)


def arc(radius: float, first: float, last: float, step: float) -> Array:
    """Points of a circle around the origin from angle `first` to `last` [rad], either way round."""
    count = max(3, math.ceil(abs(last - first) * radius / step) + 1)
    angles = np.linspace(first, last, count)
    return radius * np.column_stack([np.cos(angles), np.sin(angles)])


def resampled(line: Array, spacing: float) -> Array:
    """The line with a vertex about every `spacing` m, ends kept."""
    distance = arc_length(line)
    keep = np.concatenate([[True], np.diff(distance) > 1e-9])
    at = np.linspace(0.0, distance[-1], max(2, round(distance[-1] / spacing) + 1))
    return np.column_stack([np.interp(at, distance[keep], line[keep, k]) for k in (0, 1)])


def softened(line: Array, width: float, spacing: float) -> Array:
    """The line with corners and steps of curvature spread over about `width` m (two running means); ends stay."""
    even = resampled(line, 0.25)
    taps = 2 * round(width / 0.25 / 2) + 1
    for _ in range(2):
        pad = taps // 2
        first, last = even[0] - even[1], even[-1] - even[-2]
        reach = np.arange(pad, 0, -1)[:, None]
        padded = np.vstack([even[0] + reach * first, even, even[-1] + reach[::-1] * last])
        total = np.cumsum(np.vstack([np.zeros(2), padded]), axis=0)
        even = (total[taps:] - total[:-taps]) / taps
    return resampled(even, spacing)


def ease(share: Array) -> Array:
    """0 to 1 with rest at both ends (quintic); shares outside 0..1 are clipped."""
    share = np.clip(share, 0.0, 1.0)
    return share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
