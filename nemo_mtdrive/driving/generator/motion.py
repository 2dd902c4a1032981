"""How one driver moves: its pose on a line, the Intelligent Driver Model, what is ahead of it. Compiled."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nemo_mtdrive.driving.generator.records import NEVER, SPACING, STEP_S, Row, Rows, World
from nemo_mtdrive.driving.scene import Array

STANDSTILL_GAP = 2.0
SIDE_MARGIN = 0.3
"""Kept free beside a body that is passed [m]."""
HARDEST_BRAKING = 7.0
EXPONENT = 6.0
"""Of the free-road term: how late the acceleration fades before the desired speed."""


@njit(cache=True)
def vertex(world: World, line: int, s: float) -> int:
    """Index of the vertex of a line at or before arc length s."""
    first, last = world.starts[line], world.starts[line + 1] - 2
    return min(max(first + int(s / SPACING), first), last)


@njit(cache=True)
def offset_at(driver: Row, s: float) -> tuple[float, float]:
    """Lateral offset at arc length s and its slope."""
    share = (s - driver.shift_start) / driver.shift_length
    if share <= 0.0:
        return driver.offset_from, 0.0
    if share >= 1.0:
        return driver.offset_to, 0.0
    change = driver.offset_to - driver.offset_from
    eased = share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
    slope = 30.0 * share**2 * (1.0 - share) ** 2
    return driver.offset_from + change * eased, change * slope / driver.shift_length


@njit(cache=True)
def pose_of(world: World, driver: Row) -> tuple[float, float, float]:
    """x, y, heading of the rear axle."""
    index = vertex(world, driver.line, driver.s)
    share = driver.s / SPACING - (index - world.starts[driver.line])
    x = world.x[index] + share * (world.x[index + 1] - world.x[index])
    y = world.y[index] + share * (world.y[index + 1] - world.y[index])
    heading = world.heading[index] + share * (world.heading[index + 1] - world.heading[index])
    offset, slope = offset_at(driver, driver.s)
    return x - math.sin(heading) * offset, y + math.cos(heading) * offset, heading + math.atan(slope)


@njit(cache=True)
def project(world: World, line: int, x: float, y: float) -> tuple[float, float]:
    """Arc length of the vertex of a line nearest to a point, and the point's offset to the left of the line there."""
    first, last = world.starts[line], world.starts[line + 1]
    best, at = 1e18, first
    step = 8
    for k in range(first, last, step):
        d = (world.x[k] - x) ** 2 + (world.y[k] - y) ** 2
        if d < best:
            best, at = d, k
    for k in range(max(first, at - step), min(last, at + step + 1)):
        d = (world.x[k] - x) ** 2 + (world.y[k] - y) ** 2
        if d < best:
            best, at = d, k
    cos, sin = math.cos(world.heading[at]), math.sin(world.heading[at])
    dx, dy = x - world.x[at], y - world.y[at]
    return (at - first) * SPACING + cos * dx + sin * dy, -sin * dx + cos * dy


@njit(cache=True)
def free_road(driver: Row, cap_ahead: float) -> float:
    """Acceleration towards the desired speed [m/s^2], and down to `cap_ahead`, the largest speed a moment ahead."""
    free = driver.power * (1.0 - (driver.speed / max(driver.wish, 0.1)) ** EXPONENT)
    free = min(free, (cap_ahead - driver.speed) / 0.6)
    return max(free, -1.25 * driver.braking)


@njit(cache=True)
def following(driver: Row, gap: float, leader_speed: float) -> float:
    """IDM's interaction term [m/s^2, <= 0] for a leader `gap` m before the bumper.

    IDM alone panics when somebody cuts in at a short gap but equal speed; so it never asks for much more than the
    closing speed makes necessary (the idea of the constant-acceleration heuristic).
    """
    if gap > 200.0:
        return 0.0
    speed = driver.speed
    closing = speed * (speed - leader_speed) / (2.0 * math.sqrt(driver.power * driver.braking))
    wanted = STANDSTILL_GAP + max(0.0, speed * driver.headway + closing)
    needed = max(0.0, speed - leader_speed) ** 2 / (2.0 * max(gap - 1.5, 0.3))
    free = max(0.0, driver.power * (1.0 - (speed / max(driver.wish, 0.1)) ** EXPONENT))
    # a leader that stands will not brake harder: no more than it takes
    most = 0.3 + 1.08 * needed if leader_speed < 0.3 else 1.0 + 1.5 * needed
    return -min(driver.power * (wanted / max(gap, 0.3)) ** 2, free + most)


@njit(cache=True)
def can_stop_within(driver: Row, gap: float) -> bool:
    """Whether braking at 3.3 m/s^2 is enough."""
    return driver.speed**2 / 6.6 <= max(gap, 0.0)


@njit(cache=True)
def nose(driver: Row) -> float:
    """Arc length of the front bumper."""
    return driver.s + driver.to_center + 0.5 * driver.length


@njit(cache=True)
def tail(driver: Row) -> float:
    """Arc length of the rear bumper."""
    return driver.s + driver.to_center - 0.5 * driver.length


@njit(cache=True)
def place_disks(drivers: Rows, poses: Array, disks: Array) -> int:
    """Fill disks [n, 4] (x, y, radius, driver) that cover every driver's box; returns how many."""
    count = 0
    for i in range(len(drivers)):
        d = drivers[i]
        number = max(1, math.ceil(d.length / d.width - 0.25))
        reach = 0.5 * (d.length - d.width)
        cos, sin = math.cos(poses[i, 2]), math.sin(poses[i, 2])
        for k in range(number):
            along = d.to_center if number == 1 else d.to_center - reach + 2.0 * reach * k / (number - 1)
            disks[count, 0], disks[count, 1] = poses[i, 0] + along * cos, poses[i, 1] + along * sin
            disks[count, 2], disks[count, 3] = 0.5 * d.width, i
            count += 1
    return count


@njit(cache=True)
def look_ahead(world: World, drivers: Rows, own: int, shape: Row, poses: Array, disks: Array,
               reach: float) -> tuple[float, float, int]:
    """The nearest body in the strip that a driver is about to sweep.

    Args:
        world, drivers, poses, disks: everything there is; `poses` [n, 3] rear axles, `disks` from `place_disks`.
        own: whose own disks are passed over.
        shape: a driver record whose line, s and offsets give the strip (that of `own`, or of where it thinks of going).
        reach: how far it looks [m].

    Returns:
        Gap from the bumper [m] (NEVER when clear), the body's speed along the strip [m/s], and who it is: a driver's
        index, or -1 for something that stands.
    """
    half = 0.5 * shape.width + SIDE_MARGIN
    start = nose(shape) - half
    px, py = poses[own, 0], poses[own, 1]
    count = len(disks) + len(world.still_x)
    near = np.empty((count, 4))
    found = 0
    for k in range(count):
        if k < len(disks):
            x, y, r, who = disks[k, 0], disks[k, 1], disks[k, 2], int(disks[k, 3])
        else:
            x, y, r, who = (world.still_x[k - len(disks)], world.still_y[k - len(disks)], world.still_r[k - len(disks)],
                            -1)
        if who == own:
            continue
        if (x - px) ** 2 + (y - py) ** 2 < (reach + 8.0) ** 2:
            near[found, 0], near[found, 1], near[found, 2], near[found, 3] = x, y, (r + half) ** 2, who
            found += 1
    steps = int(reach)
    for step in range(steps):
        s = start + step
        index = vertex(world, shape.line, s)
        offset, _ = offset_at(shape, s)
        x = world.x[index] - math.sin(world.heading[index]) * offset
        y = world.y[index] + math.cos(world.heading[index]) * offset
        for k in range(found):
            if (near[k, 0] - x) ** 2 + (near[k, 1] - y) ** 2 < near[k, 2]:
                who = int(near[k, 3])
                along = 0.0
                if who >= 0:
                    along = drivers[who].speed * math.cos(poses[who, 2] - world.heading[index])
                return float(step), along, who
    return NEVER, 0.0, -1


@njit(cache=True)
def advance(driver: Row, wanted: float, time: float) -> None:
    """One step with the wanted acceleration, jerk-limited; what the driver was told overrules it."""
    if time < driver.hold_until:
        driver.speed, driver.acceleration = 0.0, 0.0
        return
    if time >= driver.brake_from:
        if driver.speed > driver.brake_to:
            wanted = min(wanted, -driver.brake_with)
        else:
            wanted = min(wanted, 0.0)
    down = 5.0 if wanted > -3.0 else 15.0
    change = min(max(wanted - driver.acceleration, -down * STEP_S), 4.0 * STEP_S)
    acceleration = min(max(driver.acceleration + change, -HARDEST_BRAKING), driver.power)
    speed = max(0.0, driver.speed + acceleration * STEP_S)
    driver.acceleration = 0.0 if speed == 0.0 else acceleration
    driver.s += 0.5 * (driver.speed + speed) * STEP_S
    driver.speed = speed
