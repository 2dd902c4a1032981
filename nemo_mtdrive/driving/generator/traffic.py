"""Road users: drivers that follow a line with the Intelligent Driver Model, and pedestrians that cross or stroll.

Everyone sees everyone: a driver takes the nearest body that reaches into the strip ahead of it as its leader, be it
another car, the expert or somebody merging; stop lines, crosswalks in use and crossing traffic with priority are
standing leaders. `Driver` serves for the expert (the ego) and for the traffic alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nemo_mtdrive.driving.generator.geometry import Path
from nemo_mtdrive.driving.generator.roads import Route
from nemo_mtdrive.driving.scene import Array

STEP_S = 0.1
STANDSTILL_GAP = 2.0
SIDE_MARGIN = 0.25
VIEW_M = 90.0
HARDEST_BRAKING = 7.0


@dataclass(frozen=True)
class Body:
    """Length, width, height [m] and how far the centre lies ahead of the rear axle."""

    length: float
    width: float
    height: float
    rear_to_center: float

    @property
    def front(self) -> float:
        """Rear axle to front bumper [m]."""
        return self.rear_to_center + self.length / 2


@dataclass(frozen=True)
class Style:
    """How somebody drives: desired speed [m/s], headway [s], acceleration and comfortable braking [m/s^2]."""

    speed: float
    headway: float
    acceleration: float
    braking: float


@dataclass(frozen=True)
class Script:
    """What a driver was told to do, in scene time [s]; None or empty where it drives freely.

    `hold_until`: stand still before this time. `brake_from`: brake with `brake_with` m/s^2 from then on down to
    `brake_to` m/s. `lateral`: (offset, start, duration): begins `offset` m left of its line and moves onto it.
    """

    hold_until: float | None = None
    brake_from: float | None = None
    brake_with: float = 0.0
    brake_to: float = 0.0
    lateral: tuple[float, float, float] | None = None

    def offset_at(self, time: float) -> float:
        """Lateral distance from the line, left positive [m]."""
        if self.lateral is None:
            return 0.0
        distance, start, duration = self.lateral
        share = min(max((time - start) / duration, 0.0), 1.0)
        return distance * (1.0 - share**3 * (10.0 - 15.0 * share + 6.0 * share**2))


@dataclass
class Driver:
    """A vehicle on a path: arc length `s` of its rear axle, speed and acceleration; `trace` keeps a row a step."""

    name: str
    path: Path
    route: Route
    body: Body
    style: Style
    s: float
    speed: float
    script: Script = field(default_factory=Script)
    acceleration: float = 0.0
    trace: list[tuple[float, float, float, float, float, float]] = field(default_factory=list)
    """Rows (x, y, heading of the rear axle, speed, acceleration, s)."""

    @property
    def nose(self) -> float:
        """Arc length of the front bumper."""
        return self.s + self.body.front

    def pose(self, time: float) -> tuple[float, float, float]:
        """Rear axle (x, y, heading) at the present arc length."""
        x, y, heading = self.path.pose(self.s)
        lateral = self.script.offset_at(time)
        if lateral == 0.0 or self.script.lateral is None:
            return x, y, heading
        drift = (self.script.offset_at(time + STEP_S) - lateral) / (STEP_S * max(self.speed, 2.0))
        return x - math.sin(heading) * lateral, y + math.cos(heading) * lateral, heading + math.atan(drift)

    def free_acceleration(self) -> float:
        """Towards the desired speed, and ahead of curves down to the path's speed profile."""
        style = self.style
        preview = 0.6
        ahead = self.path.speed[self.path.index(self.s + self.speed * preview)]
        free = style.acceleration * (1.0 - (self.speed / style.speed) ** 4)
        return max(min(free, (ahead - self.speed) / preview, style.acceleration), -style.braking * 1.25)

    def car_following(self, gap: float, leader_speed: float) -> float:
        """IDM's interaction term [m/s^2, <= 0] for a leader `gap` m before the bumper.

        IDM alone panics when somebody cuts in at a short gap but equal speed; so it never asks for much more than the
        closing speed makes necessary (the idea of the constant-acceleration heuristic).
        """
        style = self.style
        closing = self.speed * (self.speed - leader_speed) / (2.0 * math.sqrt(style.acceleration * style.braking))
        wanted = STANDSTILL_GAP + max(0.0, self.speed * style.headway + closing)
        needed = max(0.0, self.speed - leader_speed) ** 2 / (2.0 * max(gap - 1.0, 0.3))
        return -min(style.acceleration * (wanted / max(gap, 0.3)) ** 2, style.acceleration + 1.0 + 1.5 * needed)

    def can_stop_within(self, gap: float) -> bool:
        """Whether braking at 3.5 m/s^2 is enough."""
        return self.speed**2 / 7.0 <= max(gap, 0.0)

    def advance(self, wanted: float, time: float) -> None:
        """One step with the wanted acceleration, jerk-limited; the script overrules it."""
        script = self.script
        if script.hold_until is not None and time < script.hold_until:
            self.speed, self.acceleration = 0.0, 0.0
            return
        if script.brake_from is not None and time >= script.brake_from:
            wanted = min(wanted, -script.brake_with if self.speed > script.brake_to else 0.0)
        down = 5.0 if wanted > -3.0 else 15.0
        change = min(max(wanted - self.acceleration, -down * STEP_S), 4.0 * STEP_S)
        self.acceleration = min(max(self.acceleration + change, -HARDEST_BRAKING), self.style.acceleration)
        speed = max(0.0, self.speed + self.acceleration * STEP_S)
        if speed == 0.0:
            self.acceleration = 0.0
        self.s += 0.5 * (self.speed + speed) * STEP_S
        self.speed = speed


@dataclass
class Pedestrian:
    """Somebody of a `size` (length, width, height) m who walks from `start` [2] along `direction` [2] at `speed` m/s.

    The walk begins at the time `begins` and is over after `distance` m; `crossing` tells whether it leads over the road.
    """

    name: str
    size: tuple[float, float, float]
    start: Array
    direction: Array
    distance: float
    speed: float
    begins: float
    crossing: bool
    arm: int = -1
    walked: float = 0.0
    now: float = 0.0
    trace: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    """Rows (x, y, heading, vx, vy)."""

    @property
    def position(self) -> Array:
        """Where it stands now [2]."""
        return self.start + self.walked * self.direction

    def advance(self, time: float, blocked: bool) -> None:
        """One step of walking, or of waiting."""
        walking = time >= self.begins and self.walked < self.distance and not blocked
        target = self.speed if walking else 0.0
        # one step up to speed takes about half a second
        self.now += min(max(target - self.now, -3.0 * STEP_S), 3.0 * STEP_S)
        self.walked += self.now * STEP_S


def disks(drivers: list[Driver], poses: Array) -> tuple[Array, Array]:
    """Three disks a vehicle that fill its box: centres [3 V, 2] and radii [3 V]."""
    cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    length = np.array([d.body.length for d in drivers])
    width = np.array([d.body.width for d in drivers])
    center = np.array([d.body.rear_to_center for d in drivers])
    reach = (length - width) / 2
    along = np.stack([center - reach, center, center + reach])
    points = np.stack([poses[:, 0] + along * cos, poses[:, 1] + along * sin], axis=-1)
    return points.reshape(-1, 2), np.tile(width / 2, 3)


def leader(driver: Driver, own: int, count: int, points: Array, radii: Array, headings: Array,
           speeds: Array) -> tuple[float, float]:
    """Gap [m] to the nearest body in the strip ahead and its speed along the strip; (inf, 0) when it is clear."""
    path = driver.path
    start = path.index(driver.s + 0.5 * driver.body.front)
    strip = path.points[start : start + int(VIEW_M / path.SPACING) : 2]
    # only bodies in the half circle ahead can lie in the strip; dropping the rest first halves the work
    offset = points - strip[0]
    heading = path.heading[start]
    ahead = offset[:, 0] * math.cos(heading) + offset[:, 1] * math.sin(heading) > -12.0
    ahead[own::count] = False
    near = np.flatnonzero(ahead)
    if not len(near):
        return math.inf, 0.0
    reach = radii[near] + driver.body.width / 2 + SIDE_MARGIN
    dx = strip[:, 0:1] - points[near, 0]
    dy = strip[:, 1:2] - points[near, 1]
    hit = dx * dx + dy * dy < reach * reach
    first = int(hit.argmax())  # row-major: the first hit along the strip
    row, column = divmod(first, len(near))
    if not hit[row, column]:
        return math.inf, 0.0
    other = int(near[column]) % count
    vertex = min(start + 2 * row, len(path.heading) - 1)
    gap = vertex * path.SPACING + driver.body.width / 2 + SIDE_MARGIN - driver.nose
    along = speeds[other] * math.cos(headings[other] - path.heading[vertex])
    return gap, max(0.0, along)
