"""Lane changes by MOBIL, and passing what stands or crawls at the side with a lateral offset. Compiled."""

from __future__ import annotations

import math

from numba import njit

from nemo_mtdrive.driving.generator.motion import (
    SIDE_MARGIN,
    following,
    look_ahead,
    nose,
    offset_at,
    project,
    tail,
)
from nemo_mtdrive.driving.generator.records import BICYCLE, NEVER, Row, Rows, World
from nemo_mtdrive.driving.scene import Array

POLITENESS = 0.25
THRESHOLD = 0.25
"""Gain of acceleration for which a lane is changed [m/s^2]."""
SAFE_BRAKING = 2.2
"""Most that the new follower may have to brake [m/s^2]."""
LANE_END_GAIN = 0.6
LANE_END_M = 140.0
SHIFT_S, SHORTEST_SHIFT_M = 3.4, 20.0
PAUSE_S = 3.0
PASSING_GAP_M = 0.75
"""Left free between the bodies when passing."""
WIDEST_PASS_M = 2.4
SLOW = 0.55
"""Who drives slower than this share of the desired speed may be passed in the lane."""


@njit(cache=True)
def shifting(driver: Row) -> bool:
    """Whether the driver is moving sideways."""
    return (driver.s < driver.shift_start + driver.shift_length
            and abs(driver.offset_to - driver.offset_from) > 1e-6)


@njit(cache=True)
def start_change(world: World, driver: Row, target: int, x: float, y: float, time: float) -> None:
    """Put the driver on another line, beside it, and let it move over."""
    s, beside = project(world, target, x, y)
    driver.line, driver.s = target, s
    driver.offset_from, driver.offset_to = beside, 0.0
    driver.shift_start = s
    driver.shift_length = max(SHORTEST_SHIFT_M, SHIFT_S * driver.speed)
    driver.changed_at = time


@njit(cache=True)
def follower_on(world: World, drivers: Rows, own: int, target: int, s: float, poses: Array) -> int:
    """The driver that would follow `own` at arc length s of a line: the nearest behind, -1 for none."""
    best, behind = -1, NEVER
    for j in range(len(drivers)):
        if j == own:
            continue
        if (poses[j, 0] - poses[own, 0]) ** 2 + (poses[j, 1] - poses[own, 1]) ** 2 > 80.0**2:
            continue
        there, beside = project(world, target, poses[j, 0], poses[j, 1])
        facing = math.cos(poses[j, 2] - poses[own, 2])
        if abs(beside) < 1.9 and facing > 0.5 and there <= s and s - there < behind:
            best, behind = j, s - there
    return best


@njit(cache=True)
def mobil(world: World, drivers: Rows, own: int, poses: Array, disks: Array, present: float, time: float) -> bool:
    """Change lanes if that is safe for the new follower and worth it; returns whether it began.

    Args:
        world, drivers, poses, disks: as for `motion.look_ahead`.
        own: who thinks of changing.
        present: the interaction term of its acceleration in its lane [m/s^2].
        time: scene time [s].
    """
    d = drivers[own]
    if not d.changes or shifting(d) or time - d.changed_at < PAUSE_S or d.speed < 3.0:
        return False
    if not world.change_from[d.line] <= d.s <= world.change_to[d.line] or abs(d.offset_to) > 0.1:
        return False
    best, gain = -1, THRESHOLD
    thought = drivers[own:own + 1].copy()
    for side in range(2):
        target = world.left[d.line] if side == 0 else world.right[d.line]
        if target < 0:
            continue
        s, _ = project(world, target, poses[own, 0], poses[own, 1])
        start_change(world, thought[0], target, poses[own, 0], poses[own, 1], time)
        thought[0].speed = d.speed
        # the lane itself must be free beside and ahead, not just the way into it
        thought[0].offset_from = 0.0
        gap, speed, _ = look_ahead(world, drivers, own, thought[0], poses, disks, min(90.0, 20.0 + 5.0 * d.speed))
        if gap < 3.0 + 0.3 * d.speed + 1.5 * max(0.0, d.speed - speed):
            continue
        mine = following(d, gap, speed)
        follower = follower_on(world, drivers, own, target, s, poses)
        theirs = 0.0
        if follower >= 0:
            f = drivers[follower]
            there, _ = project(world, target, poses[follower, 0], poses[follower, 1])
            room = (s + d.to_center - 0.5 * d.length) - (there + f.to_center + 0.5 * f.length)
            theirs = following(f, room, d.speed)
            if room < 2.5 + 0.25 * f.speed or theirs < -SAFE_BRAKING:
                continue
        worth = mine - present + POLITENESS * theirs
        if side == 1:
            worth -= 0.3  # overtake on the left
        if world.ends[d.line] and world.change_to[d.line] - d.s < LANE_END_M:
            worth += LANE_END_GAIN
        if worth > gain:
            best, gain = target, worth
    if best < 0:
        return False
    start_change(world, d, best, poses[own, 0], poses[own, 1], time)
    return True


@njit(cache=True)
def needed_offset(world: World, drivers: Rows, own: int, poses: Array, disks: Array,
                  reach: float) -> tuple[float, float, float]:
    """What stands or crawls in the lane up to `reach` m ahead: the offset to the left that clears all of it [m], the gap to
    the nearest and its speed; (0, NEVER, 0) for nothing.
    """
    d = drivers[own]
    half = 0.5 * d.width
    first, speed, offset = NEVER, 0.0, 0.0
    for k in range(len(disks) + len(world.still_x)):
        along = 0.0
        if k < len(disks):
            who = int(disks[k, 3])
            if who == own:
                continue
            crawls = drivers[who].type == BICYCLE or drivers[who].hold_until > 50.0
            if not crawls:
                continue
            x, y, r, along = disks[k, 0], disks[k, 1], disks[k, 2], drivers[who].speed
            if math.cos(poses[who, 2] - poses[own, 2]) < 0.3:
                continue
        else:
            x, y, r = world.still_x[k - len(disks)], world.still_y[k - len(disks)], world.still_r[k - len(disks)]
        if (x - poses[own, 0]) ** 2 + (y - poses[own, 1]) ** 2 > (reach + 10.0) ** 2:
            continue
        s, beside = project(world, d.line, x, y)
        gap = s - r - nose(d)
        if s + r < tail(d) - 1.0 or gap > reach or abs(beside) > half + r + SIDE_MARGIN + 0.05:
            continue
        offset = max(offset, beside + r + half + PASSING_GAP_M)
        if gap < first:
            first, speed = gap, along
    return offset, first, speed


@njit(cache=True)
def oncoming_clear(world: World, drivers: Rows, own: int, poses: Array, offset: float, seconds: float) -> bool:
    """Whether nobody comes towards a driver that moves `offset` m to the left for some seconds."""
    d = drivers[own]
    for j in range(len(drivers)):
        if j == own:
            continue
        facing = math.cos(poses[j, 2] - poses[own, 2])
        s, beside = project(world, d.line, poses[j, 0], poses[j, 1])
        if facing < -0.5:
            gap = s - nose(d)
            if gap > -2.0 and beside < offset + 2.9 and beside > offset - 2.9 and gap < (
                    d.speed + drivers[j].speed) * seconds + 6.0:
                return False
        elif facing > 0.5 and offset - 2.6 < beside < offset + 2.6 and beside > 1.6:
            # somebody in the lane to the left, beside or about to be
            along = s - d.s
            if -12.0 - 2.0 * max(0.0, drivers[j].speed - d.speed) < along < 14.0:
                return False
    return True


@njit(cache=True)
def pass_aside(world: World, drivers: Rows, own: int, poses: Array, disks: Array, time: float) -> None:
    """Begin, keep up or end a lateral offset for what stands or crawls at the side."""
    d = drivers[own]
    if not d.passes or shifting(d) or abs(offset_at(d, d.s)[0] - d.offset_to) > 1e-3:
        return
    reach = min(60.0, 15.0 + 4.5 * d.speed)
    offset, gap, speed = needed_offset(world, drivers, own, poses, disks, reach)
    if gap >= NEVER or offset <= 0.0:
        if d.offset_to > 0.05:
            _shift(d, 0.0, max(14.0, 2.6 * d.speed))
        return
    if offset > WIDEST_PASS_M or speed > SLOW * d.wish or offset <= d.offset_to + 0.05:
        return
    way = gap * d.speed / max(d.speed - speed, 0.5) if speed > 0.0 else gap
    if way < 9.0 or way > max(30.0, 4.0 * d.speed):
        return
    seconds = (way + 22.0) / max(d.speed - 0.6 * speed, 3.0) + 0.5
    if oncoming_clear(world, drivers, own, poses, offset, seconds):
        _shift(d, offset, min(max(way - 3.0, 9.0), max(16.0, 3.0 * d.speed)))


@njit(cache=True)
def _shift(driver: Row, offset: float, length: float) -> None:
    driver.offset_from, driver.offset_to = driver.offset_to, offset
    driver.shift_start, driver.shift_length = driver.s, length
