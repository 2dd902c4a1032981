"""The forms of lorries and buses."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nemo_mtdrive.driving.rendering.cars import (
    ACCENT,
    BRAKE,
    GLASS,
    HEAD,
    HOLLOW,
    LAMP_LEFT,
    LAMP_RIGHT,
    LEFT,
    PAINT,
    PLATE,
    RIGHT,
    SIGN,
    TRIM,
    add_wheel,
    side_with_arches,
)
from nemo_mtdrive.driving.rendering.solid import PartBuilder, Solid, box_face, inset
from nemo_mtdrive.driving.scene import Array

WHEEL_M = 0.48
CAB_M = 2.1
REAR, AHEAD = (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)


def _side(sign: float) -> str:
    return "l" if sign > 0 else "r"


def _rear_lamps(part: PartBuilder, back: Array, low: float, high: float, reach: float) -> None:
    """Lamps on a rear face whose shares are given; the outer thirds are the indicators."""
    part.face(inset(back, .02, .02 + reach, low, high), REAR, LAMP_LEFT)
    part.face(inset(back, .98 - reach, .98, low, high), REAR, LAMP_RIGHT)
    part.face(inset(back, .02, .02 + .35 * reach, low, high), REAR, LEFT)
    part.face(inset(back, .98 - .35 * reach, .98, low, high), REAR, RIGHT)


def _front_lamps(part: PartBuilder, front: Array, low: float, high: float) -> None:
    part.face(inset(front, .04, .22, low, high), AHEAD, HEAD)
    part.face(inset(front, .78, .96, low, high), AHEAD, HEAD)
    part.face(inset(front, .0, .05, low, high), AHEAD, RIGHT)
    part.face(inset(front, .95, 1.0, low, high), AHEAD, LEFT)


@lru_cache(maxsize=128)
def lorry(length: float, width: float, height: float, detailed: bool) -> Solid:
    """A box lorry: cab (PAINT) before a box (ACCENT) on a dark frame."""
    half, nose = width / 2, length / 2
    parts: list[PartBuilder] = []
    axles = [nose - 1.25, -nose + 1.6] + ([-nose + 2.75] if length > 8.5 else [])
    for x in axles:
        for sign in (-1.0, 1.0):
            add_wheel(parts, x, sign * (half - 0.03), WHEEL_M, 0.32, detailed)
    frame = PartBuilder(layer=0)
    frame.box((-nose + 0.1, nose - 0.6), (-half + 0.4, half - 0.4), (0.45, 0.95), HOLLOW, skip="t")
    parts.append(frame)
    box, split = PartBuilder(layer=1), nose - CAB_M
    box.box((-nose, split - 0.12), (-half, half), (0.92, height), ACCENT)
    back = box_face((-nose - .01, 0.0), (-half, half), (0.92, height), "b")
    for start, end in ((.03, .488), (.512, .97)):
        panel = inset(back, start, end, .07, .97)
        box.face(panel, REAR, TRIM)
        box.face(inset(panel, .015, .985, .008, .992), REAR, ACCENT)
    bumper = box_face((-nose - .02, 0.0), (-half, half), (0.5, 0.92), "b")
    box.face(inset(bumper, .0, 1.0, .3, .95), REAR, HOLLOW)
    _rear_lamps(box, bumper, .38, .92, .24)
    box.face(inset(bumper, .4, .6, .4, .8), REAR, PLATE)
    box.face(inset(back, .4, .6, .955, .99), REAR, BRAKE)
    for sign in (-1.0, 1.0):
        rail = box_face((-nose, split - .12), (-half - .005, half + .005), (0.92, 1.04), _side(sign))
        box.face(rail, (0.0, sign, 0.0), TRIM)
    parts.append(box)
    parts.append(_lorry_cab(split, nose, half, min(height - 0.25, 2.75)))
    return Solid(parts)


def _lorry_cab(split: float, nose: float, half: float, height: float) -> PartBuilder:
    cab = PartBuilder(layer=1)
    half -= 0.06
    profile = np.array([[split, 0.42], [nose, 0.42], [nose, 1.45], [nose - 0.28, height - 0.1], [nose - 0.45, height],
                        [split, height]])
    cab.prism(profile, half, half, PAINT)
    wind = np.array([[nose + .005, -half, 1.45], [nose + .005, half, 1.45], [nose - .275, half, height - .1],
                     [nose - .275, -half, height - .1]])
    slope = (height - 1.55, 0.0, 0.28)
    cab.face(inset(wind, .05, .95, .06, .9), slope, GLASS)
    front = box_face((0.0, nose + .008), (-half, half), (0.42, 1.45), "f")
    cab.face(inset(front, .12, .88, .45, .9), AHEAD, HOLLOW)
    cab.face(inset(front, .0, 1.0, .0, .22), AHEAD, TRIM)
    _front_lamps(cab, front, .22, .42)
    cab.face(inset(front, .38, .62, .04, .16), AHEAD, PLATE)
    for sign in (-1.0, 1.0):
        door = box_face((nose - 1.25, nose - 0.4), (-half - .006, half + .006), (1.5, height - .3), _side(sign))
        cab.face(door, (0.0, sign, 0.0), GLASS)
        arch = box_face((nose - 1.8, nose - 0.7), (-half - .004, half + .004), (0.42, 1.02), _side(sign))
        cab.face(arch, (0.0, sign, 0.0), HOLLOW)
    return cab


@lru_cache(maxsize=128)
def bus(length: float, width: float, height: float, detailed: bool) -> Solid:
    """A city bus: rows of windows, a band of ACCENT, doors on the right, a lit sign over the windscreen."""
    half, nose, low = width / 2, length / 2, 0.3
    parts: list[PartBuilder] = []
    wheels = (-nose + 0.26 * length, nose - 0.22 * length)
    for x in wheels:
        for sign in (-1.0, 1.0):
            add_wheel(parts, x, sign * (half - 0.03), WHEEL_M, 0.3, detailed)
    hollow = PartBuilder(layer=0)
    hollow.box((-0.47 * length, 0.47 * length), (-half + 0.34, half - 0.34), (low, 1.2), HOLLOW, skip="t")
    parts.append(hollow)
    body = PartBuilder(layer=1)
    body.box((-nose, nose), (-half, half), (low, height), PAINT, skip="lr")
    top = np.array([[nose, height], [-nose, height], [-nose, low]])
    outline = side_with_arches(top, wheels, WHEEL_M, low)
    for sign in (-1.0, 1.0):
        body.face(np.column_stack([outline[:, 0], np.full(len(outline), sign * half), outline[:, 1]]), (0, sign, 0), PAINT)
        _bus_side(body, sign, nose, half, height)
    _bus_ends(body, nose, half, low, height)
    parts.append(body)
    return Solid(parts)


def _bus_side(body: PartBuilder, sign: float, nose: float, half: float, height: float) -> None:
    y, name, normal = (-half - .006, half + .006), _side(sign), (0.0, sign, 0.0)
    body.face(box_face((-nose, nose), y, (1.02, 1.22), name), normal, ACCENT)
    body.face(box_face((-nose, nose), y, (height - .28, height - .14), name), normal, ACCENT)
    panes = max(3, round((2 * nose - 1.2) / 1.5))
    width = (2 * nose - 1.0) / panes
    for k in range(panes):
        x = -nose + 0.5 + k * width
        door = sign < 0 and k in (panes - 1, panes // 2 - 1)
        low = 0.4 if door else 1.3
        body.face(box_face((x + .05, x + width - .05), y, (low, height - .38), name), normal, GLASS)
        if door:
            body.face(box_face((x + width / 2 - .03, x + width / 2 + .03), (-half - .009, half + .009),
                               (low, height - .38), name), normal, TRIM)


def _bus_ends(body: PartBuilder, nose: float, half: float, low: float, height: float) -> None:
    back = box_face((-nose - .008, 0.0), (-half, half), (low, height), "b")
    front = box_face((0.0, nose + .008), (-half, half), (low, height), "f")
    body.face(inset(back, .1, .9, .5, .84), REAR, GLASS)
    body.face(inset(back, .0, 1.0, .24, .31), REAR, ACCENT)
    body.face(inset(back, .3, .7, .88, .96), REAR, SIGN)
    body.face(inset(back, .0, 1.0, .0, .08), REAR, TRIM)
    for share in (.34, .38, .42):
        body.face(inset(back, .25, .75, share, share + .015), REAR, HOLLOW)
    _rear_lamps(body, back, .1, .22, .2)
    body.face(inset(back, .41, .59, .11, .17), REAR, PLATE)
    body.face(inset(back, .42, .58, .855, .875), REAR, BRAKE)
    body.face(inset(front, .05, .95, .34, .84), AHEAD, GLASS)
    body.face(inset(front, .15, .85, .87, .96), AHEAD, SIGN)
    body.face(inset(front, .0, 1.0, .24, .31), AHEAD, ACCENT)
    body.face(inset(front, .0, 1.0, .0, .07), AHEAD, TRIM)
    _front_lamps(body, front, .12, .2)
    body.face(inset(front, .4, .6, .08, .13), AHEAD, PLATE)
