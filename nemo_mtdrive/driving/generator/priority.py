"""Who goes first: traffic signals, lines that cross each other, and pedestrians on crosswalks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.generator.roads import Road
from nemo_mtdrive.driving.generator.traffic import Driver, Pedestrian

CLEARANCE_M = 2.7
"""Lines closer than this cannot both be driven."""

_RANK = {"straight": 0, "right": 1, "left": 2}


@dataclass(frozen=True)
class Signal:
    """A crossing's lights in scene time: the main road is green from `main_green_from`, the other until 3 s before."""

    main_green_from: float

    def is_red(self, approach: int, time: float) -> bool:
        """Whether the arm's light is red."""
        if approach in (0, 2):
            return time < self.main_green_from
        return time >= self.main_green_from - 3.0


@dataclass(frozen=True)
class Conflict:
    """The stretch [enter, leave] of each of two lines where they come too close; `first` must give way to `second`."""

    first: int
    second: int
    first_span: tuple[float, float]
    second_span: tuple[float, float]


def find_conflicts(drivers: list[Driver], signal: Signal | None) -> list[Conflict]:
    """The crossing or merging stretches of all pairs that come from different arms."""
    found = []
    for i, one in enumerate(drivers):
        for j in range(i + 1, len(drivers)):
            two = drivers[j]
            if one.route.entry is None or two.route.entry is None or one.route.approach == two.route.approach:
                continue
            spans = _spans(one, two)
            if spans is None:
                continue
            if _rank(one, signal) > _rank(two, signal):
                found.append(Conflict(i, j, spans[0], spans[1]))
            else:
                found.append(Conflict(j, i, spans[1], spans[0]))
    return found


def _rank(driver: Driver, signal: Signal | None) -> tuple[int, int]:
    minor = signal is None and driver.route.approach in (1, 3)
    return int(minor), _RANK[driver.route.movement]


def _spans(one: Driver, two: Driver) -> tuple[tuple[float, float], tuple[float, float]] | None:
    assert one.route.entry is not None and two.route.entry is not None
    first, second = one.path.index(one.route.entry - 2), two.path.index(two.route.entry - 2)
    reach = 120  # 60 m from the edge of the crossing on
    a, b = one.path.points[first : first + reach : 2], two.path.points[second : second + reach : 2]
    close = ((a[:, None] - b[None]) ** 2).sum(-1) < CLEARANCE_M**2
    rows, columns = np.flatnonzero(close.any(1)), np.flatnonzero(close.any(0))
    if not len(rows):
        return None
    spacing = one.path.SPACING
    # on lines that merge, who has got 8 m into the common stretch is a leader like any other
    return tuple((spacing * (start + 2 * int(index[0])), spacing * (start + 2 * min(int(index[-1]), int(index[0]) + 8)))
                 for start, index in ((first, rows), (second, columns)))  # type: ignore[return-value]


def yielding_gap(conflict: Conflict, drivers: list[Driver], signal: Signal | None, time: float) -> float | None:
    """How far before its bumper the driver who must give way has to stop, or None if it may go."""
    mine, other = drivers[conflict.first], drivers[conflict.second]
    gap = conflict.first_span[0] - 1.0 - mine.nose
    if gap < -1.5:
        return None  # already in the stretch: clear it
    other_gap = conflict.second_span[0] - other.nose
    if other.s - 1.5 > conflict.second_span[1]:
        return None
    if _held(other, signal, time):
        return None
    arrives = max(other_gap, 0.0) / max(other.speed, 3.0)
    clear = (conflict.first_span[1] + mine.body.length - mine.nose) / max(mine.speed, 4.0)
    if arrives > clear + 1.5 or arrives > 8.0:
        return None
    stop = mine.route.stop
    if stop is not None and mine.route.approach in (1, 3) and stop - mine.nose > -0.5:
        gap = min(gap, stop - mine.nose)
    return gap if mine.can_stop_within(gap) else None


def _held(driver: Driver, signal: Signal | None, time: float) -> bool:
    """Whether a red light keeps the driver out of the crossing."""
    stop = driver.route.stop
    return signal is not None and stop is not None and driver.nose <= stop + 1.0 and signal.is_red(
        driver.route.approach, time)


def signal_gap(driver: Driver, signal: Signal | None, time: float) -> float | None:
    """Distance to the stop line of a red light that binds the driver, else None."""
    stop = driver.route.stop
    if signal is None or stop is None or not signal.is_red(driver.route.approach, time):
        return None
    gap = stop - driver.nose
    if gap < -1.0 or (gap >= 0.5 and not driver.can_stop_within(gap)):
        return None
    return max(gap, 0.0)


class Crossings:
    """Where each driver's line meets each crossing pedestrian's line: (s on the line, distance walked by then)."""

    def __init__(self, drivers: list[Driver], pedestrians: list[Pedestrian]) -> None:
        self._meet: list[list[tuple[float, float] | None]] = []
        for driver in drivers:
            row: list[tuple[float, float] | None] = []
            for walker in pedestrians:
                row.append(_meeting(driver, walker) if walker.crossing else None)
            self._meet.append(row)

    def gap(self, own: int, driver: Driver, pedestrians: list[Pedestrian], time: float) -> float | None:
        """Distance at which the driver must stop for somebody on, or stepping onto, the crosswalk."""
        gaps = []
        for meet, walker in zip(self._meet[own], pedestrians, strict=True):
            if meet is None or time < walker.begins - 0.8:
                continue
            at, walked = meet
            half = driver.body.width / 2
            if not walked - half - 0.8 - 2.5 * walker.speed < walker.walked < walked + half + 0.9:
                continue
            gap = at - 2.6 - driver.nose
            if gap > -2.0 and driver.can_stop_within(gap + 1.0):
                gaps.append(max(gap, 0.0))
        return min(gaps) if gaps else None

    def blocks(self, index: int, walker: Pedestrian, drivers: list[Driver]) -> bool:
        """Whether the pedestrian waits before a lane because somebody there cannot stop any more."""
        for driver, row in zip(drivers, self._meet, strict=True):
            meet = row[index]
            if meet is None:
                continue
            gap = meet[0] - 0.5 - driver.nose
            before = meet[1] - driver.body.width / 2 - walker.walked
            cannot_stop = -driver.body.length - 1.0 < gap < driver.speed**2 / 6.0 + 1.0 and driver.speed > 1.0
            if 0.2 < before < 1.6 and cannot_stop:
                return True
        return False


def _meeting(driver: Driver, walker: Pedestrian) -> tuple[float, float] | None:
    ahead = driver.path.points - walker.start
    across = np.abs(ahead[:, 1] * walker.direction[0] - ahead[:, 0] * walker.direction[1])
    along = ahead @ walker.direction
    across[(along < 0) | (along > walker.distance)] = math.inf
    index = int(np.argmin(across))
    return (index * driver.path.SPACING, float(along[index])) if across[index] < 1.0 else None


def red_connectors(road: Road, signal: Signal | None) -> list[tuple[str, bool]]:
    """(lane connector id, is red at t = 0) for every connector of a crossing with lights."""
    if signal is None:
        return []
    return [(route.connector_id, signal.is_red(route.approach, 0.0)) for route in road.routes
            if route.connector_id is not None]
