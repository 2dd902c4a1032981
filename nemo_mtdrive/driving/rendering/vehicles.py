"""Vehicles: which form a track has, its colours, and its lights: brakes, indicators, head and tail lamps."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nemo_mtdrive.driving.rendering import cars, heavy
from nemo_mtdrive.driving.rendering.atmosphere import appearance_of
from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.rendering.solid import Finish, Pose, paint_solid
from nemo_mtdrive.driving.scene import Array, Scene, Track

PAINTS: tuple[Colour, ...] = ((214, 216, 220), (72, 75, 82), (36, 38, 44), (164, 34, 36), (36, 76, 158), (238, 238, 234),
                              (124, 128, 134), (178, 166, 136), (28, 84, 66), (96, 28, 40), (84, 120, 150))
BUS_PAINTS: tuple[tuple[Colour, Colour], ...] = (((226, 228, 226), (32, 96, 170)), ((196, 40, 40), (240, 236, 228)),
                                                 ((238, 186, 40), (60, 62, 68)), ((60, 140, 90), (236, 236, 228)))
BOX_PAINTS: tuple[Colour, ...] = ((232, 232, 228), (206, 208, 210), (222, 206, 170), (54, 92, 150), (150, 60, 50))
GLASS: Colour = (44, 54, 66)
TAIL_OFF, TAIL_DIM, RED = (126, 18, 20), (172, 22, 22), (255, 38, 24)
AMBER_OFF, AMBER = (150, 84, 20), (255, 168, 20)
HEAD_OFF, HEAD_ON = (206, 212, 214), (255, 250, 226)
BRAKING_MPS2 = -0.4
STOPPED_MPS = 0.3
LANE_NEAR_M = 1.5
HEAVY_LENGTH_M, HEAVY_HEIGHT_M = 7.5, 2.4
DETAILED_PX = 26.0
"""Pixels a metre from which small things are drawn."""


@dataclass(frozen=True)
class Lights:
    """What a vehicle shows at t = 0."""

    brake: bool
    left: bool
    right: bool
    head: bool


class LightBoard:
    """Which lights the vehicles of a scene show: as its appearance says, else read off their motion (brakes only)."""

    def __init__(self, scene: Scene, lamps_on: bool) -> None:
        signals = appearance_of(scene).get("signals")
        self._signals = signals if isinstance(signals, Mapping) else None
        self._lamps_on, self._lanes = lamps_on, scene.map.lanes

    def lights(self, track: Track) -> Lights:
        """The lights of one vehicle at t = 0."""
        if self._signals is not None:
            on = self._signals.get(track.token, ())
            return Lights("brake" in on, "left" in on, "right" in on, self._lamps_on and not self._parked(track))
        braking = is_braking(track)
        parked = (braking or self._lamps_on) and self._parked(track)
        return Lights(braking and not parked, False, False, self._lamps_on and not parked)

    @cached_property
    def _centres(self) -> Array:
        return np.concatenate([lane.centerline for lane in self._lanes]) if self._lanes else np.zeros((0, 2))

    def _parked(self, track: Track) -> bool:
        """Whether a vehicle stands for good and beside all lanes: its lights are off."""
        if np.hypot(track.states[:, 4], track.states[:, 5]).max() > STOPPED_MPS:
            return False
        return not (((self._centres - track.states[0, 1:3]) ** 2).sum(1) < LANE_NEAR_M**2).any()


def is_braking(track: Track) -> bool:
    """Whether the brake lights are on at t = 0: it stands, or slows by more than 0.4 m/s^2 in the next half second."""
    times = track.states[:, 0]
    speed = np.hypot(track.states[:, 4], track.states[:, 5])
    now = speed[np.abs(times) < 1e-6]
    if not len(now):
        return False
    if now[0] < STOPPED_MPS:
        return True
    after = speed[np.abs(times - 0.5) < 1e-6]
    return bool(len(after) and (after[0] - now[0]) / 0.5 < BRAKING_MPS2)


def look_seed(track: Track) -> int:
    """Colours stay the same in every scene of a log, and say nothing of what somebody is about to do."""
    return zlib.crc32(f"{track.token}{np.round(track.size, 2).tolist()}".encode())


def form_of(size: Array, token: str, seed: int) -> str:
    """bus, lorry, or a form of `cars.FORMS`, by length and height [m]; a token may name a bus or lorry."""
    length, _, height = (float(side) for side in size)
    if "bus" in token:
        return "bus"
    if "truck" in token or "lorry" in token:
        return "lorry"
    if length > HEAVY_LENGTH_M or height > HEAVY_HEIGHT_M:
        return "bus" if length > 9.0 and (length > 10.5 or seed % 2) else "lorry"
    if height > 1.9:
        return "van"
    if height > 1.62:
        return "pickup" if length > 5.2 else "offroader"
    return "hatchback" if length < 4.4 or seed % 3 == 0 else "saloon"


def paint_vehicle(canvas: Canvas, pose: Pose, size: Array, token: str, seed: int, lights: Lights) -> None:
    """A vehicle of size [3] (length, width, height) with its lights; nearer ones in more detail."""
    form = form_of(size, token, seed)
    here = np.array([pose[0], pose[1]])
    detailed = canvas.pixels_per_metre(here) > DETAILED_PX
    rounded = np.maximum(np.round(size, 1), (1.0, 0.6, 0.8))
    length, width, height = rounded.tolist()
    solid = (heavy.bus(length, width, height, detailed) if form == "bus" else
             heavy.lorry(length, width, height, detailed) if form == "lorry" else
             cars.car(form, length, width, height, detailed))
    stretch = (size / rounded).tolist()
    paint_solid(canvas, solid, pose, _finish(form, seed, lights), (stretch[0], stretch[1], stretch[2]))
    _glows(canvas, pose, size, form, lights)


def _finish(form: str, seed: int, lights: Lights) -> Finish:
    colours = np.zeros((cars.PAINTS, 3))
    body, accent = PAINTS[seed % len(PAINTS)], BOX_PAINTS[seed // 16 % len(BOX_PAINTS)]
    if form == "bus":
        body, accent = BUS_PAINTS[seed % len(BUS_PAINTS)]
    lamps = set()
    colours[cars.PAINT], colours[cars.ACCENT] = body, accent
    colours[cars.GLASS], colours[cars.TYRE], colours[cars.RIM] = GLASS, (26, 26, 28), (148, 150, 154)
    colours[cars.TRIM], colours[cars.HOLLOW], colours[cars.PLATE] = (52, 53, 57), (20, 20, 22), (244, 244, 236)
    colours[cars.SIGN] = (255, 176, 40)
    lamps.add(cars.SIGN)
    tail: Colour = TAIL_DIM if lights.head else TAIL_OFF
    colours[[cars.LAMP_LEFT, cars.LAMP_RIGHT]] = RED if lights.brake else tail
    colours[cars.BRAKE] = RED if lights.brake else (70, 14, 16)
    if lights.brake:
        lamps |= {cars.BRAKE, cars.LAMP_LEFT, cars.LAMP_RIGHT}
    elif lights.head:
        lamps |= {cars.LAMP_LEFT, cars.LAMP_RIGHT}
    for index, on in ((cars.LEFT, lights.left), (cars.RIGHT, lights.right)):
        colours[index] = AMBER if on else AMBER_OFF
        if on:
            lamps.add(index)
    colours[cars.HEAD] = HEAD_ON if lights.head else HEAD_OFF
    if lights.head:
        lamps.add(cars.HEAD)
    return Finish(colours, frozenset(lamps))


def _glows(canvas: Canvas, pose: Pose, size: Array, form: str, lights: Lights) -> None:
    """Light around the lamps that are on and look towards the camera."""
    x, y, heading = pose
    length, width, height = (float(side) for side in size)
    cos, sin = math.cos(heading), math.sin(heading)
    ahead = cos * (canvas.position[0] - x) + sin * (canvas.position[1] - y)
    up = 0.25 * height if form in ("bus", "lorry") else 0.48 * height
    ground = float(canvas.terrain.heights(np.array([[x, y]]))[0])
    dark = 1.0 if canvas.air.night else 0.75 if canvas.air.lamps_on else 0.6
    # a lamp far away still lights some pixels
    smallest = 2.6 / canvas.pixels_per_metre(np.array([x, y]))

    def add(along: float, aside: float, z: float, radius: float, colour: Colour, strength: float) -> None:
        point = np.array([x + cos * along - sin * aside, y + sin * along + cos * aside, ground + z])
        canvas.glow(point, max(radius, smallest), colour, strength * dark)

    side = 0.4 * width
    if ahead < -length / 2:
        if lights.brake:
            for aside in (side, -side):
                add(-length / 2 - .05, aside, up, 0.55, (255, 40, 24), 0.9)
        elif lights.head:
            for aside in (side, -side):
                add(-length / 2 - .05, aside, up, 0.3, (200, 24, 16), 0.5)
        for on, aside in ((lights.left, side), (lights.right, -side)):
            if on:
                add(-length / 2 - .05, 1.12 * aside, up, 0.55, AMBER, 0.9)
    elif ahead > length / 2:
        if lights.head:
            for aside in (side, -side):
                add(length / 2 + .05, aside, 0.9 if form in ("bus", "lorry") else 0.45 * height, 0.9, HEAD_ON, 0.8)
        for on, aside in ((lights.left, side), (lights.right, -side)):
            if on:
                add(length / 2 + .05, 1.12 * aside, up, 0.5, AMBER, 0.8)
