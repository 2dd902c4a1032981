"""Things on the road: cones, barriers, signs of road works, and whatever else lies about."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas
from nemo_mtdrive.driving.rendering.solid import Finish, PartBuilder, Pose, Solid, box_face, inset, paint_solid
from nemo_mtdrive.driving.scene import Array

BODY, BAND, BASE, LAMP = range(4)
ORANGE, WHITE, RED = (248, 106, 18), (242, 242, 238), (214, 36, 32)
BOARD_M = 2.0
"""A barrier longer than this is a concrete wall, a shorter one a striped board."""
_RING = np.linspace(0.0, 2 * math.pi, 11)[:-1]


def paint_thing(canvas: Canvas, pose: Pose, size: Array, kind: str, seed: int) -> None:
    """A track that is no road user: `kind` as in TRACK_TYPES, size [3] m."""
    length, width, height = (max(float(side), 0.1) for side in size)
    shape = (round(length, 1), round(width, 1), round(height, 1))
    if kind == "traffic_cone":
        solid, colours = _cone(max(min(width, length), 0.3), max(height, 0.5)), (ORANGE, WHITE, (40, 40, 42), ORANGE)
    elif kind == "barrier":
        # the long side is the board, whichever way the box is named
        turned = width > length
        if turned:
            shape, pose = (shape[1], shape[0], shape[2]), (pose[0], pose[1], pose[2] + math.pi / 2)
        wall = shape[0] > BOARD_M
        solid = _wall(*shape) if wall else _board(*shape)
        colours = ((200, 198, 192), RED, (150, 148, 142), (255, 180, 30)) if wall else (WHITE, RED, (70, 70, 72),
                                                                                      (255, 180, 30))
    elif kind == "czone_sign":
        solid, colours = _sign(max(height, 1.2)), (ORANGE, (28, 28, 28), (70, 70, 72), (255, 180, 30))
    else:
        tint = ((110, 128, 112), (134, 128, 118), (96, 104, 122), (150, 126, 90))[seed % 4]
        solid, colours = _bin(*shape), (tint, (70, 72, 74), (52, 54, 56), tint)
    lamps = frozenset({LAMP}) if kind in ("barrier", "czone_sign") and canvas.air.lamps_on else frozenset()
    paint_solid(canvas, solid, pose, Finish(np.array(colours, dtype=np.float64), lamps))


@lru_cache(maxsize=64)
def _cone(width: float, height: float) -> Solid:
    """An orange cone with two white bands on a dark foot."""
    foot = PartBuilder(layer=0)
    half = width / 2
    foot.box((-half, half), (-half, half), (0.0, 0.06), BASE)
    body = PartBuilder(layer=1)
    bounds = [(0.06, BODY), (0.36, BAND), (0.54, BODY), (0.68, BAND), (0.82, BODY)]
    for (low, paint), high in zip(bounds, [0.36, 0.54, 0.68, 0.82, 1.0], strict=True):
        _frustum(body, 0.78 * half * (1.08 - low), 0.78 * half * (1.08 - high), low * height, high * height, paint)
    return Solid([foot, body])


def _frustum(part: PartBuilder, low_radius: float, high_radius: float, low: float, high: float, paint: int) -> None:
    cos, sin = np.cos(_RING), np.sin(_RING)
    for i in range(len(_RING)):
        j = (i + 1) % len(_RING)
        part.face([[low_radius * cos[i], low_radius * sin[i], low], [low_radius * cos[j], low_radius * sin[j], low],
                   [high_radius * cos[j], high_radius * sin[j], high], [high_radius * cos[i], high_radius * sin[i], high]],
                  (cos[i] + cos[j], sin[i] + sin[j], 0.3), paint)
    part.face(np.column_stack([high_radius * cos, high_radius * sin, np.full(len(_RING), high)]), (0, 0, 1), paint)


def _stripes(part: PartBuilder, face: Array, normal: tuple[float, ...], count: int) -> None:
    """Slanted bands across a face."""
    for k in range(count):
        start, end = (k + 0.1) / count, (k + 0.6) / count
        lean = 0.4 / count
        corners = [inset(face, s, s, h, h)[0] for s, h in ((start, 0.0), (end, 0.0), (min(end + lean, 1.0), 1.0),
                                                           (min(start + lean, 1.0), 1.0))]
        part.face(np.array(corners), normal, BAND)


@lru_cache(maxsize=64)
def _board(length: float, width: float, height: float) -> Solid:
    """Two striped boards on legs, with a lamp."""
    half, thick = max(length, 0.6) / 2, 0.06
    height = max(height, 0.8)
    part = PartBuilder()
    for x in (-half + 0.08, half - 0.08):
        part.box((x - .04, x + .04), (-max(width, 0.4) / 2, max(width, 0.4) / 2), (0.0, 0.06), BASE)
        part.box((x - .03, x + .03), (-.03, .03), (0.06, height), BASE)
    for low, high in ((0.42, 0.66), (0.74, 1.0)):
        z = (low * height, high * height)
        part.box((-half, half), (-thick, thick), z, BODY)
        for name, normal in (("l", (0.0, 1.0, 0.0)), ("r", (0.0, -1.0, 0.0))):
            _stripes(part, box_face((-half, half), (-thick - .002, thick + .002), z, name), normal, 5)
    part.box((-.08, .08), (-.08, .08), (height, height + 0.18), LAMP)
    return Solid([part])


@lru_cache(maxsize=64)
def _wall(length: float, width: float, height: float) -> Solid:
    """A concrete wall, wide at its foot, with a red and white band."""
    half, foot, top = length / 2, max(width, 0.3) / 2, max(width, 0.3) / 5
    height = max(height, 0.7)
    part = PartBuilder()
    for sign in (1.0, -1.0):
        name = "l" if sign > 0 else "r"
        low = box_face((-half, half), (-foot, foot), (0.0, 0.35 * height), name)
        low[2:, 1] = sign * (top + 0.06)
        high = box_face((-half, half), (-top - 0.06, top + 0.06), (0.35 * height, height), name)
        high[2:, 1] = sign * top
        part.face(low, (0.0, sign, 0.6), BODY)
        part.face(high, (0.0, sign, 0.1), BODY)
        band = inset(high, 0.02, 0.98, 0.45, 0.85)
        band[:, 1] += sign * 0.004
        _stripes(part, band, (0.0, sign, 0.1), max(2, round(length / 0.8)))
    outline = np.array([[-foot, 0.0], [-top - .06, .35 * height], [-top, height], [top, height], [top + .06, .35 * height],
                        [foot, 0.0]])
    for x in (-half, half):
        part.face(np.column_stack([np.full(6, x), outline]), (x, 0.0, 0.0), BASE)
    part.face([[-half, top, height], [-half, -top, height], [half, -top, height], [half, top, height]], (0, 0, 1), BODY)
    return Solid([part])


@lru_cache(maxsize=64)
def _sign(height: float) -> Solid:
    """An orange diamond on a stand that looks backwards, to those who come."""
    part = PartBuilder()
    part.box((-.35, .35), (-.35, .35), (0.0, 0.08), BASE)
    part.box((-.03, .03), (-.03, .03), (0.08, height - 0.5), BASE)
    middle = height - 0.45
    for reach, paint, x in ((0.62, BODY, 0.0), (0.56, BAND, -0.004), (0.52, BODY, -0.008)):
        diamond = [[x, 0.0, middle - reach], [x, -reach, middle], [x, 0.0, middle + reach], [x, reach, middle]]
        part.face(diamond, (0.0, 0.0, 0.0), paint)
    # somebody with a shovel
    for outline in ([[-.1, -.2], [.0, -.2], [.08, .1], [-.04, .14]], [[.06, -.2], [.15, -.2], [.08, .1], [.0, .1]],
                    [[-.12, -.02], [-.2, -.28], [-.16, -.3], [-.04, .08]]):
        part.face([[-.012, -y, middle + z] for y, z in outline], (-1.0, 0.0, 0.0), BAND)
    part.face([[-.012, .03 - .07 * math.cos(a), middle + .22 + .07 * math.sin(a)] for a in _RING], (-1.0, 0, 0), BAND)
    part.box((-.07, .07), (-.07, .07), (middle + .6, middle + .76), LAMP)
    return Solid([part])


@lru_cache(maxsize=64)
def _bin(length: float, width: float, height: float) -> Solid:
    """A plain box with a lid."""
    x, y, top = max(length, 0.2) / 2, max(width, 0.2) / 2, max(height, 0.3)
    part = PartBuilder()
    part.box((-.94 * x, .94 * x), (-.94 * y, .94 * y), (0.0, 0.86 * top), BODY)
    part.box((-x, x), (-y, y), (0.86 * top, top), BAND)
    return Solid([part])
