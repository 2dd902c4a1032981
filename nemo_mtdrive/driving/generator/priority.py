"""Who goes first: traffic signals, lines that meet each other, and pedestrians. Compiled, but for finding conflicts."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nemo_mtdrive.driving.generator.motion import STANDSTILL_GAP, can_stop_within, following, nose, tail
from nemo_mtdrive.driving.generator.records import CONFLICT, NEVER, SPACING, Row, Rows, World
from nemo_mtdrive.driving.generator.roads import Route
from nemo_mtdrive.driving.scene import Array

CLEARANCE_M = 2.9
"""Lines closer than this cannot both be driven."""
MERGE_SPAN_M = 8.0
"""On lines that merge, who has got this far into the common stretch is a leader like any other."""
ZIPPER_M = 70.0
"""From this distance on, drivers of merging lanes see each other as leaders."""


@njit(cache=True)
def _meetings(ax: Array, ay: Array, bx: Array, by: Array, clearance: float, found: Array) -> int:
    """Stretches of line a that come close to line b after having been apart: rows (a0, a1, b0, b1) of vertices."""
    count, apart, inside = 0, False, False
    first_b, last_b, start = 0, 0, 0
    step = 2
    k = 0
    for i in range(0, len(ax), step):
        best, at = 1e18, 0
        j = 0
        while j < len(bx):
            d = math.sqrt((ax[i] - bx[j]) ** 2 + (ay[i] - by[j]) ** 2)
            if d < best:
                best, at = d, j
            # vertices are at most SPACING apart: the next ones cannot be nearer than d minus that
            j += max(step, int((d - clearance) / SPACING))
        if best >= clearance:
            if inside and apart and count < len(found):
                found[count, 0], found[count, 1], found[count, 2], found[count, 3] = start, k, first_b, last_b
                count += 1
            apart, inside = True, False
        else:
            if not inside:
                inside, start, first_b = True, i, at
                last_b = at
            first_b, last_b = min(first_b, at), max(last_b, at)
            k = i
    if inside and apart and count < len(found):
        found[count, 0], found[count, 1], found[count, 2], found[count, 3] = start, k, first_b, last_b
        count += 1
    return count


def find_conflicts(routes: list[Route], used: list[int], starts: np.ndarray, x: Array, y: Array, heading: Array) -> Rows:
    """Where the lines in use meet, and who has to give way there.

    Args:
        routes: the routes behind the lines, in order.
        used: indices of the lines that somebody drives on or may change to.
        starts, x, y, heading: as in `World`.
    """
    rows: list[tuple[int, int, float, float, float, float, int]] = []
    found = np.empty((4, 4))
    for position, i in enumerate(used):
        for j in used[position + 1:]:
            a, b = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
            if (x[a].min() > x[b].max() + 3 or x[b].min() > x[a].max() + 3 or y[a].min() > y[b].max() + 3
                    or y[b].min() > y[a].max() + 3):
                continue
            for a0, a1, b0, b1 in found[: _meetings(x[a], y[a], x[b], y[b], CLEARANCE_M, found)].tolist():
                turned = heading[starts[i] + int(a1)] - heading[starts[j] + int(b1)]
                merges = abs(math.remainder(turned, 2 * math.pi)) < 0.4 and a1 - a0 > 30
                spans = [SPACING * a0, SPACING * a1, SPACING * b0, SPACING * b1]
                if merges:
                    spans[1], spans[3] = (min(spans[k + 1], spans[k] + MERGE_SPAN_M) for k in (0, 2))
                lanes_end = routes[i].ends or routes[j].ends
                if _gives_way(routes[i], routes[j], spans[0], spans[2]):
                    rows.append((i, j, *spans, int(merges and lanes_end)))
                else:
                    rows.append((j, i, *spans[2:], *spans[:2], int(merges and lanes_end)))
    return np.array(rows, dtype=CONFLICT)


def _gives_way(one: Route, two: Route, one_at: float, two_at: float) -> bool:
    """Whether `one` gives way to `two` where they meet."""
    if one.circles and one.entry is not None and two.entry is not None:
        return one_at - one.entry < two_at - two.entry  # who has been in the roundabout longer goes first
    return one.rank > two.rank


@njit(cache=True)
def is_red(world: World, group: int, time: float) -> bool:
    """Whether a group's light is red."""
    return bool(time < world.green_from[group] or time >= world.green_to[group])


@njit(cache=True)
def signal_gap(world: World, driver: Row, time: float) -> float:
    """Distance to the stop line of a red light that binds the driver, else NEVER."""
    group = world.light[driver.line]
    if group < 0 or not is_red(world, group, time):
        return NEVER
    gap = world.stop[driver.line] - nose(driver)
    if gap < -1.0 or (gap >= 0.5 and not can_stop_within(driver, gap)):
        return NEVER
    return max(gap, 0.0)


@njit(cache=True)
def give_way(world: World, drivers: Rows, own: int, time: float) -> float:
    """Acceleration [m/s^2, <= 0] that conflicts with others ask of a driver."""
    asked = 0.0
    mine = drivers[own]
    for c in range(len(world.conflicts)):
        conflict = world.conflicts[c]
        if conflict.yields != mine.line and not (conflict.merges and conflict.goes == mine.line):
            continue
        for j in range(len(drivers)):
            other = drivers[j]
            if j == own:
                continue
            if conflict.yields == mine.line and other.line == conflict.goes:
                if conflict.merges:
                    asked = min(asked, _zipper(mine, other, conflict.yields_from, conflict.goes_from, True))
                else:
                    gap = yielding_gap(world, mine, other, conflict, time)
                    if gap < NEVER:
                        asked = min(asked, following(mine, gap + STANDSTILL_GAP - 0.4, 0.0))
            elif conflict.merges and conflict.goes == mine.line and other.line == conflict.yields:
                asked = min(asked, _zipper(mine, other, conflict.goes_from, conflict.yields_from, False))
    return asked


@njit(cache=True)
def _zipper(mine: Row, other: Row, mine_from: float, other_from: float, yields: bool) -> float:
    """Follow the car of the other lane as if it were ahead on one's own; who has priority gives way a little only."""
    my_way, other_way = mine_from - nose(mine), other_from - nose(other)
    if my_way < -2.0 or my_way > ZIPPER_M or other_way < -MERGE_SPAN_M or other_way > ZIPPER_M + 20.0:
        return 0.0
    ahead = my_way - other_way  # > 0: the other is ahead
    if yields:
        if ahead < -0.5 * mine.length - max(0.0, (other.speed - mine.speed) * 2.0):
            return 0.0
        gap = max(ahead - other.length, 1.5)
        asked = following(mine, gap, other.speed)
        # while there is room, a gentle way to fall back
        return max(asked, -2.2) if my_way > 20.0 else max(asked, -3.5)
    if ahead < other.length * 0.7:
        return 0.0
    return max(following(mine, max(ahead - other.length, 2.0), other.speed), -1.6)


@njit(cache=True)
def yielding_gap(world: World, mine: Row, other: Row, conflict: Row, time: float) -> float:
    """How far before its bumper the driver who must give way has to stop, NEVER if it may go."""
    gap = conflict.yields_from - 1.0 - nose(mine)
    if gap < -1.5:
        return NEVER  # already in the stretch: clear it
    if tail(other) > conflict.goes_to or _held(world, other, time):
        return NEVER
    other_gap = conflict.goes_from - nose(other)
    arrives = max(other_gap, 0.0) / max(other.speed, 3.0)
    clear = (conflict.yields_to + mine.length - nose(mine)) / max(mine.speed, 4.0)
    if arrives > clear + 1.8 or arrives > 8.0:
        return NEVER
    stop = world.stop[mine.line]
    if stop < NEVER and stop - nose(mine) > -0.5:
        gap = min(gap, stop - nose(mine))
    return gap if can_stop_within(mine, gap) else NEVER


@njit(cache=True)
def _held(world: World, driver: Row, time: float) -> bool:
    """Whether a red light keeps the driver out of the crossing."""
    group = world.light[driver.line]
    return bool(group >= 0 and nose(driver) <= world.stop[driver.line] + 1.0 and is_red(world, group, time))


@njit(cache=True)
def walker_gap(world: World, walkers: Rows, driver: Row, time: float) -> float:
    """Distance at which the driver must stop for somebody on, or stepping onto, the road; else NEVER."""
    nearest = NEVER
    half = 0.5 * driver.width
    for w in range(len(walkers)):
        p = walkers[w]
        at, walked = world.meet_s[driver.line, w], world.meet_walked[driver.line, w]
        if not p.crosses or math.isnan(at) or p.walked < p.hidden_until:
            continue
        if p.hidden_until < 0.0 and time < p.begins - 0.8:
            continue
        if not walked - half - 0.9 - 2.5 * p.speed < p.walked < walked + half + 0.9:
            continue
        gap = at - 2.6 - nose(driver)
        # who looks waits for a car that cannot stop any more; for who does not, everybody brakes as hard as it takes
        if gap > -2.0 and (can_stop_within(driver, gap + 1.2) or (p.crosses == 2 and gap > 0.0)):
            nearest = min(nearest, max(gap, 0.0))
    return nearest


@njit(cache=True)
def waits(world: World, drivers: Rows, walkers: Rows, index: int) -> bool:
    """Whether a walker waits before a lane because somebody there cannot stop any more."""
    p = walkers[index]
    for i in range(len(drivers)):
        d = drivers[i]
        at = world.meet_s[d.line, index]
        if math.isnan(at):
            continue
        gap = at - 0.5 - nose(d)
        before = world.meet_walked[d.line, index] - 0.5 * d.width - p.walked
        if 0.2 < before < 1.8 and -d.length - 1.0 < gap < d.speed**2 / 6.0 + 2.0 and d.speed > 1.0:
            return True
    return False


def find_meetings(walkers: Rows, starts: np.ndarray, x: Array, y: Array) -> tuple[Array, Array]:
    """(meet_s, meet_walked) of `World`: where each line meets each crossing walker's way."""
    lines = len(starts) - 1
    meet_s, meet_walked = np.full((lines, len(walkers)), np.nan), np.full((lines, len(walkers)), np.nan)
    for w, p in enumerate(walkers):
        if not p["crosses"]:
            continue
        ahead_x, ahead_y = x - p["x"], y - p["y"]
        across = np.abs(ahead_y * p["dx"] - ahead_x * p["dy"])
        along = ahead_x * p["dx"] + ahead_y * p["dy"]
        across[(along < 0) | (along > p["distance"])] = math.inf
        for line in range(lines):
            part = slice(starts[line], starts[line + 1])
            index = int(np.argmin(across[part]))
            if across[part][index] < 1.0:
                meet_s[line, w], meet_walked[line, w] = index * SPACING, along[part][index]
    return meet_s, meet_walked
