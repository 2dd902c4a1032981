"""Pedestrians and cyclists: jointed figures of rounded limbs; a bicycle of two wheels and a frame."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.rendering.solid import Pose
from nemo_mtdrive.driving.scene import Array

SKINS: tuple[Colour, ...] = ((236, 188, 158), (204, 150, 116), (148, 98, 68), (98, 64, 46))
HAIRS: tuple[Colour, ...] = ((48, 34, 26), (92, 64, 38), (28, 26, 28), (168, 128, 74), (150, 148, 146))
TROUSERS: tuple[Colour, ...] = ((40, 48, 78), (58, 58, 62), (92, 82, 68), (30, 32, 38), (96, 108, 130))
COATS: tuple[Colour, ...] = ((214, 44, 44), (246, 158, 24), (34, 118, 208), (150, 44, 150), (242, 222, 70), (24, 150, 112),
                             (232, 232, 228), (236, 120, 150))
SHOE: Colour = (36, 32, 30)
TYRE: Colour = (28, 28, 30)
FRAMES: tuple[Colour, ...] = ((190, 40, 40), (40, 90, 170), (60, 62, 66), (60, 140, 90))
WALKING_MPS = 0.25


class _Figure:
    """Limbs in a body's own frame (x forward, y left, z up), collected far to near and painted at once."""

    def __init__(self, canvas: Canvas, pose: Pose, lift: float) -> None:
        self._canvas, self._pose = canvas, pose
        x, y, heading = pose
        self._turn = np.array([[math.cos(heading), math.sin(heading), 0.0], [-math.sin(heading), math.cos(heading), 0.0],
                               [0.0, 0.0, 1.0]])
        ground = float(canvas.terrain.heights(np.array([[x, y]]))[0])
        self._foot = np.array([x, y, ground + lift])
        self._distance = math.dist(canvas.position, self._foot)
        self._beam = canvas.air.beam(x, y)
        self._limbs: list[tuple[tuple[float, ...], tuple[float, ...], float, float, Colour]] = []

    def limb(self, start: tuple[float, ...], end: tuple[float, ...], first: float, second: float, colour: Colour) -> None:
        """From `start` to `end` [3], as thick as the radii `first` and `second` [m]."""
        self._limbs.append((start, end, first, second, self._canvas.air.shaded(colour, self._distance, 0.5, self._beam)))

    def paint(self) -> None:
        """All limbs, the farthest first."""
        ends = np.array([[start, end] for start, end, *_ in self._limbs]) @ self._turn + self._foot
        order = np.argsort(-((ends.sum(1) / 2.0 - self._canvas.position) ** 2).sum(1), kind="stable").tolist()
        radii = np.array([limb[2:4] for limb in self._limbs])
        self._canvas.capsules(ends[order], radii[order], [self._limbs[k][4] for k in order])


def paint_pedestrian(canvas: Canvas, pose: Pose, size: Array, speed: float, seed: int) -> None:
    """Somebody on foot: size [3], speed [m/s]; a stride tells who walks from who stands."""
    figure = _Figure(canvas, pose, 0.0)
    tall = float(np.clip(size[2], 1.0, 2.1))
    stride = 0.0 if speed < WALKING_MPS else (0.9 if seed % 2 else 1.0) * min(0.26, 0.14 + 0.08 * speed) * tall / 1.75
    lead = 1.0 if seed // 2 % 2 else -1.0
    coat, trousers = COATS[seed % len(COATS)], TROUSERS[seed // 8 % len(TROUSERS)]
    skin, hair = SKINS[seed // 64 % len(SKINS)], HAIRS[seed // 256 % len(HAIRS)]
    unit = tall / 1.75
    hip, shoulder, neck = 0.9 * unit, 1.42 * unit, 1.5 * unit
    for side in (1.0, -1.0):
        swing = side * lead * stride
        y = side * 0.1 * unit
        knee = (0.55 * swing + 0.05, y, 0.5 * unit)
        heel = (swing, y, 0.08)
        figure.limb((0.0, y, hip), knee, 0.1 * unit, 0.075 * unit, trousers)
        figure.limb(knee, heel, 0.075 * unit, 0.055 * unit, trousers)
        figure.limb(heel, (swing + 0.14, y, 0.05), 0.05, 0.045, SHOE)
        elbow = (-0.6 * swing - 0.03, side * 0.25 * unit, 1.16 * unit)
        hand = (-0.9 * swing + 0.08, side * 0.25 * unit, 0.92 * unit)
        figure.limb((0.0, side * 0.2 * unit, shoulder), elbow, 0.065 * unit, 0.055 * unit, coat)
        figure.limb(elbow, hand, 0.055 * unit, 0.045 * unit, coat)
        figure.limb(hand, hand, 0.05 * unit, 0.05 * unit, skin)
    figure.limb((0.0, 0.07 * unit, hip), (0.0, 0.09 * unit, shoulder - 0.04), 0.11 * unit, 0.12 * unit, coat)
    figure.limb((0.0, -0.07 * unit, hip), (0.0, -0.09 * unit, shoulder - 0.04), 0.11 * unit, 0.12 * unit, coat)
    if seed // 1024 % 3 == 0:
        figure.limb((-0.16, 0.0, 1.05 * unit), (-0.16, 0.0, 1.36 * unit), 0.13, 0.12, TROUSERS[seed // 4096 % 5])
    _head(figure, (0.02, 0.0, neck), unit, skin, hair)
    figure.paint()


def _head(figure: _Figure, neck: tuple[float, float, float], unit: float, skin: Colour, top: Colour) -> None:
    x, y, z = neck
    figure.limb((x, y, z - 0.05), (x, y, z + 0.04), 0.05 * unit, 0.05 * unit, skin)
    figure.limb((x + 0.02, y, z + 0.09 * unit), (x + 0.01, y, z + 0.15 * unit), 0.095 * unit, 0.1 * unit, skin)
    figure.limb((x - 0.05, y, z + 0.13 * unit), (x - 0.01, y, z + 0.19 * unit), 0.1 * unit, 0.088 * unit, top)


def paint_cyclist(canvas: Canvas, pose: Pose, size: Array, speed: float, seed: int, lamps: bool) -> None:
    """Somebody on a bicycle, or the bicycle alone where the track is too low or too slow to be ridden."""
    length = float(np.clip(size[0], 1.2, 2.2))
    wheel, reach = 0.34, 0.5 * length - 0.34
    bicycle = _Figure(canvas, pose, 0.0)
    frame = FRAMES[seed % len(FRAMES)]
    angles = np.linspace(0.0, 2 * math.pi, 17)
    for middle in (-reach, reach):
        ring = [(middle + wheel * math.cos(a), 0.0, wheel + wheel * math.sin(a)) for a in angles]
        for start, end in pairwise(ring):
            bicycle.limb(start, end, 0.03, 0.03, TYRE)
    saddle, bars, crank = (-0.45 * reach, 0.0, 0.92), (0.75 * reach, 0.0, 1.0), (-0.05, 0.0, 0.32)
    for start, end in (((-reach, 0.0, wheel), crank), (crank, saddle), (saddle, (0.72 * reach, 0.0, 0.85)),
                       (crank, (0.72 * reach, 0.0, 0.8)), ((0.7 * reach, 0.0, 0.95), (reach, 0.0, wheel)),
                       ((-reach, 0.0, wheel), (-0.4 * reach, 0.0, 0.8))):
        bicycle.limb(start, end, 0.024, 0.024, frame)
    bicycle.limb((bars[0], -0.25, bars[2]), (bars[0], 0.25, bars[2]), 0.022, 0.022, TYRE)
    bicycle.paint()
    if speed > WALKING_MPS or size[2] > 1.3:
        _rider(canvas, pose, saddle, bars, crank, seed)
    if lamps:
        back = math.cos(pose[2]) * pose[0] + math.sin(pose[2]) * pose[1] > 0.0
        along = -reach if back else reach
        point = np.array([pose[0] + along * math.cos(pose[2]), pose[1] + along * math.sin(pose[2]), 0.85])
        canvas.glow(point, 0.35, (255, 40, 24) if back else (255, 250, 226), 0.9)


def _rider(canvas: Canvas, pose: Pose, saddle: tuple[float, ...], bars: tuple[float, ...], crank: tuple[float, ...],
           seed: int) -> None:
    rider = _Figure(canvas, pose, 0.0)
    coat, trousers = COATS[seed // 4 % len(COATS)], TROUSERS[seed // 32 % len(TROUSERS)]
    skin, helmet = SKINS[seed // 64 % len(SKINS)], COATS[seed // 128 % len(COATS)]
    hip, shoulder = (saddle[0], 0.0, saddle[2] + 0.08), (saddle[0] + 0.3, 0.0, 1.46)
    for side, pedal in ((1.0, 0.15), (-1.0, -0.15)):
        y = side * 0.1
        foot = (crank[0] + pedal, y, crank[2] + 0.06 - 0.5 * abs(pedal) * (1.0 if pedal > 0 else -1.0))
        knee = (saddle[0] + 0.4, y * 1.2, 0.66 + 0.3 * pedal)
        rider.limb((hip[0], y, hip[2]), knee, 0.095, 0.075, trousers)
        rider.limb(knee, foot, 0.07, 0.05, trousers)
        rider.limb(foot, (foot[0] + 0.12, y, foot[2] - 0.02), 0.045, 0.04, SHOE)
        elbow = (shoulder[0] + 0.22, side * 0.27, 1.2)
        rider.limb((shoulder[0], side * 0.18, shoulder[2]), elbow, 0.06, 0.05, coat)
        rider.limb(elbow, (bars[0], side * 0.22, bars[2] + 0.04), 0.05, 0.04, coat)
        rider.limb((hip[0], side * 0.07, hip[2]), (shoulder[0], side * 0.1, shoulder[2]), 0.11, 0.11, coat)
    _head(rider, (shoulder[0] + 0.08, 0.0, shoulder[2] + 0.1), 1.0, skin, helmet)
    rider.paint()
