"""Plane curves of the generator: polylines [n, 2], offsets, smooth turns, and `Path`, a curve by arc length."""

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


def offset(line: Array, distance: float) -> Array:
    """The line shifted to the left (positive) or right (negative) by `distance` along its vertex normals."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.sqrt((tangent**2).sum(1, keepdims=True))
    return line + distance * np.column_stack([-tangent[:, 1], tangent[:, 0]])


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


class Path:
    """A driven line by arc length s [m] at a fixed spacing, with heading, curvature and a speed profile.

    Args:
        line: [n, 2] vertices in driving direction.
        lateral_acceleration: bound on v^2 * curvature [m/s^2], from which `speed_limit_at` comes.
        braking: deceleration [m/s^2] with which slow places are approached.
    """

    SPACING = 0.5

    def __init__(self, line: Array, lateral_acceleration: float, braking: float) -> None:
        step = np.sqrt((np.diff(line, axis=0) ** 2).sum(1))
        line = line[np.concatenate([[True], step > 1e-6])]
        # 150 m of straight road past the end: whoever leaves the map keeps going
        final = line[-1] - line[-2]
        line = np.vstack([line, line[-1] + 150.0 * final / np.hypot(*final)])
        distance = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)))])
        self.s = np.arange(0.0, distance[-1], self.SPACING)
        self.points = np.column_stack([np.interp(self.s, distance, line[:, k]) for k in (0, 1)])
        tangent = np.gradient(self.points, axis=0)
        self.heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
        self.heading = _smooth(self.heading, 5)
        self.curvature = np.gradient(self.heading, self.SPACING)
        self.length = float(distance[-1]) - 150.0
        self.speed = _speed_profile(self.curvature, self.SPACING, lateral_acceleration, braking)

    def pose(self, s: float) -> tuple[float, float, float]:
        """(x, y, heading) at arc length s; beyond the ends the end's value."""
        position = min(max(s / self.SPACING, 0.0), len(self.s) - 1.001)
        index = int(position)
        share = position - index
        x, y = self.points[index] + share * (self.points[index + 1] - self.points[index])
        return x, y, self.heading[index] + share * (self.heading[index + 1] - self.heading[index])

    def index(self, s: float) -> int:
        """Index of the vertex at or before arc length s."""
        return min(max(int(s / self.SPACING), 0), len(self.s) - 1)


def _smooth(values: Array, width: int) -> Array:
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1.0 / width), mode="valid")


def _speed_profile(curvature: Array, spacing: float, lateral_acceleration: float, braking: float) -> Array:
    """Largest speed at each vertex from which every later curve can be met by gentle braking (a backward pass)."""
    square = lateral_acceleration / np.maximum(np.abs(_smooth(curvature, 7)), 1e-4)
    s = spacing * np.arange(len(square))
    # v(s)^2 = min over s' >= s of v_curve(s')^2 + 2 b (s' - s)
    reach = np.minimum.accumulate((square + 2 * braking * s)[::-1])[::-1] - 2 * braking * s
    return np.sqrt(np.maximum(reach, 0.25))
