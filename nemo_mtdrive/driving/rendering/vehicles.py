"""Vehicles as a body, a cabin, windows, wheels and lights."""

from __future__ import annotations

import math

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.scene import Array

Pose = tuple[float, float, float]
"""(x, y, heading) in the ego frame."""

PAINTS: tuple[Colour, ...] = ((206, 208, 212), (60, 62, 68), (28, 30, 34), (160, 36, 36), (38, 74, 150),
                              (236, 236, 232), (116, 118, 122), (176, 164, 132), (30, 92, 70))
GLASS: Colour = (34, 44, 56)
TYRE: Colour = (24, 24, 26)
SHADOW: Colour = (46, 48, 52)
TAIL_OFF, TAIL_ON = (120, 16, 18), (255, 34, 26)
GLOW: Colour = (255, 120, 90)
HEADLIGHT: Colour = (250, 246, 214)
TALL_M = 2.3
"""From this height on it is drawn as a lorry or bus."""
SUN = np.array([-0.35, 0.45, 0.82])


class Box:
    """An upright box, its top shortened by `taper` at either end, and which of its faces an eye [3] sees.

    Faces are [4, 3]: bottom left, bottom right, top right, top left as seen from outside.
    """

    def __init__(self, pose: Pose, size: tuple[float, float], heights: tuple[float, float], taper: float,
                 eye: Array) -> None:
        x, y, heading = pose
        cos, sin = math.cos(heading), math.sin(heading)
        half, side = size[0] / 2, size[1] / 2
        top, top_side = half * (1.0 - 2 * taper), side * (1.0 - 0.5 * taper)
        low, high = heights
        along = np.array([half, half, -half, -half, top, top, -top, -top])
        across = np.array([side, -side, -side, side, top_side, -top_side, -top_side, top_side])
        self._corners = np.empty((8, 3))
        self._corners[:, 0] = x + cos * along - sin * across
        self._corners[:, 1] = y + sin * along + cos * across
        self._corners[:4, 2], self._corners[4:, 2] = low, high
        dx, dy = float(eye[0]) - x, float(eye[1]) - y
        ahead, left = cos * dx + sin * dy, cos * dy - sin * dx
        # of opposite sides at most one is seen; the top lies behind none of them
        self.visible = [name for name, seen in (("top", eye[2] > high), ("left", left > side), ("right", left < -side),
                                                ("front", ahead > half), ("rear", ahead < -half)) if seen]
        self._lights = {"top": SUN[2], "front": cos * SUN[0] + sin * SUN[1], "left": cos * SUN[1] - sin * SUN[0]}
        self._lights |= {"rear": -self._lights["front"], "right": -self._lights["left"]}

    def face(self, name: str) -> Array:
        """The corners of a face [4, 3]."""
        return self._corners[_FACES[name]]

    def light(self, name: str) -> float:
        """How bright a face is, 0.62..1.04."""
        return 0.62 + 0.42 * max(0.0, float(self._lights[name]))


_FACES = {"rear": [3, 2, 6, 7], "front": [1, 0, 4, 5], "left": [0, 3, 7, 4], "right": [2, 1, 5, 6], "top": [7, 6, 5, 4]}


class _Pile:
    """Polygons of one body, gathered so that the canvas projects them at once."""

    def __init__(self) -> None:
        self.polygons: list[Array] = []
        self.colours: list[Colour] = []

    def add(self, polygon: Array, colour: Colour) -> None:
        self.polygons.append(polygon)
        self.colours.append(colour)


def _inset(face: Array, left: float, right: float, low: float, high: float) -> Array:
    """A part of a face: shares 0..1 of its width and height, from its bottom left corner."""
    across = np.array([left, right, right, left])[:, None]
    up = np.array([low, low, high, high])[:, None]
    bottom = face[0] + across * (face[1] - face[0])
    return bottom + up * (face[3] + across * (face[2] - face[3]) - bottom)


def paint_vehicle(canvas: Canvas, pose: Pose, size: Array, seed: int, braking: bool) -> None:
    """A car, or from `TALL_M` on a lorry; size [3] is length, width, height; `braking` lights its brake lights."""
    length, width, height = (float(side) for side in size)
    tall = height >= TALL_M
    paint = PAINTS[seed % len(PAINTS)]
    distance = math.hypot(pose[0] - canvas.position[0], pose[1])
    waist = 0.92 * height if tall else 0.56 * height
    eye = canvas.position
    pile = _Pile()
    pile.add(Box(pose, (length + 0.2, width + 0.2), (0.0, 0.01), 0.0, eye).face("top"), canvas.hazy(SHADOW, distance))
    body = Box(pose, (length, width), (0.28, waist), 0.015, eye)
    for name in body.visible:
        pile.add(body.face(name), canvas.hazy(paint, distance, body.light(name)))
    _add_wheels(pile, Box(pose, (length, width), (0.0, 0.66), 0.0, eye), canvas.hazy(TYRE, distance))
    glass = canvas.hazy(GLASS, distance)
    if tall:
        if "front" in body.visible:
            pile.add(_inset(body.face("front"), 0.08, 0.92, 0.55, 0.85), glass)
    else:
        behind = (pose[0] - 0.06 * length * math.cos(pose[2]), pose[1] - 0.06 * length * math.sin(pose[2]), pose[2])
        cabin = Box(behind, (0.62 * length, 0.94 * width), (waist, height), 0.13, eye)
        for name in cabin.visible:
            pile.add(cabin.face(name), canvas.hazy(paint, distance, cabin.light(name)))
            if name != "top":
                pile.add(_inset(cabin.face(name), 0.08, 0.92, 0.12, 0.86), glass)
    _add_lights(pile, body, braking, tall, canvas.hazy(TAIL_OFF, distance))
    canvas.fill_all(pile.polygons, pile.colours)


def _add_wheels(pile: _Pile, box: Box, colour: Colour) -> None:
    for name in box.visible:
        if name in ("left", "right"):
            for start in (0.12, 0.74):
                pile.add(_inset(box.face(name), start, start + 0.14, 0.0, 1.0), colour)
        elif name in ("rear", "front"):
            for start in (0.04, 0.8):
                pile.add(_inset(box.face(name), start, start + 0.16, 0.0, 0.5), colour)


def _add_lights(pile: _Pile, body: Box, braking: bool, tall: bool, dark: Colour) -> None:
    low, high = (0.1, 0.22) if tall else (0.42, 0.82)
    if "rear" in body.visible:
        rear = body.face("rear")
        # brake lights are larger, have a bright core and a third lamp in the middle, and shine through the haze
        reach = 0.26 if braking else 0.2
        for start in (0.02, 0.98 - reach + 0.02):
            pile.add(_inset(rear, start, start + reach - 0.02, low, high), TAIL_ON if braking else dark)
            if braking:
                core = low + 0.1 * (high - low), low + 0.7 * (high - low)
                pile.add(_inset(rear, start + 0.04, start + reach - 0.08, *core), GLOW)
        if braking:
            pile.add(_inset(rear, 0.4, 0.6, 0.92, 1.06), TAIL_ON)
    if "front" in body.visible:
        for start in (0.03, 0.8):
            pile.add(_inset(body.face("front"), start, start + 0.17, low, high), HEADLIGHT)
