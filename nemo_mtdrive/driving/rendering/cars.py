"""The forms of cars: saloon, hatchback, off-roader, van, pick-up; and the wheels that all vehicles share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nemo_mtdrive.driving.rendering.solid import PartBuilder, Solid, box_face, inset
from nemo_mtdrive.driving.scene import Array

(PAINT, GLASS, TYRE, RIM, TRIM, TAIL, BRAKE, LEFT, RIGHT, HEAD, PLATE, ACCENT, HOLLOW, SIGN, LAMP_LEFT,
 LAMP_RIGHT) = range(16)
"""Paint indices of a vehicle. BRAKE is the third lamp; LEFT and RIGHT are the indicators; LAMP_* the rear lamps."""
PAINTS = 16


@dataclass(frozen=True)
class _Form:
    """Shares of length (from the middle, forward) and height."""

    top: tuple[tuple[float, float], ...]
    """The lower body's upper outline from the front bumper back to the rear bumper: (x, z)."""
    belt: float
    base: tuple[float, float]
    roof: tuple[float, float]


FORMS = {
    "saloon": _Form(((.5, .33), (.488, .46), (.44, .53), (.19, .645), (-.30, .67), (-.47, .65), (-.495, .56)), .64,
                    (-.375, .205), (-.215, .05)),
    "hatchback": _Form(((.5, .33), (.488, .46), (.43, .54), (.20, .63), (-.46, .65), (-.495, .5)), .62,
                       (-.485, .22), (-.40, .05)),
    "offroader": _Form(((.5, .36), (.492, .52), (.45, .575), (.22, .62), (-.47, .63), (-.497, .5)), .61,
                       (-.488, .25), (-.44, .08)),
    "van": _Form(((.5, .3), (.49, .42), (.43, .48), (.30, .53), (-.48, .54), (-.498, .4)), .52,
                 (-.496, .33), (-.485, .19)),
    "pickup": _Form(((.5, .36), (.492, .52), (.45, .575), (.24, .62), (-.48, .62), (-.498, .5)), .61,
                    (-.10, .27), (-.06, .12)),
}
CLEARANCE = 0.15
_WHEEL_ANGLES = np.linspace(0.0, 2 * math.pi, 17)[:-1]


def add_wheel(parts: list[PartBuilder], x: float, y: float, radius: float, width: float, detailed: bool) -> None:
    """A wheel whose outer face is at `y` (its sign is the side); lies under the bodywork of higher layers."""
    part = PartBuilder(layer=0)
    side = math.copysign(1.0, y)
    circle = np.column_stack([x + radius * np.cos(_WHEEL_ANGLES), np.full(16, y), radius + radius * np.sin(_WHEEL_ANGLES)])
    inner = circle - [0.0, side * width, 0.0]
    part.face(inner, (0.0, 0.0, 0.0), TYRE)
    across = sorted((y, y - side * width))
    part.face([[x, across[0], 0.0], [x, across[1], 0.0], [x, across[1], 2 * radius], [x, across[0], 2 * radius]],
              (0.0, 0.0, 0.0), TYRE)
    part.face(circle, (0.0, side, 0.0), TYRE)
    if detailed:
        middle = np.array([x, y, radius])
        part.face(middle + 0.62 * (circle - middle), (0.0, side, 0.0), RIM)
        part.face(middle + 0.2 * (circle - middle), (0.0, side, 0.0), TYRE)
    parts.append(part)


def side_with_arches(top: Array, wheels: tuple[float, ...], radius: float, low: float) -> Array:
    """A side's outline [n, 2] (x, z): along the bottom from rear to front over wheel arches, back along `top`."""
    outline = []
    reach = 1.13 * radius
    start = math.asin(max(-1.0, (low - radius) / reach))
    angles = np.linspace(start, math.pi - start, 9)
    outline.append([top[-1, 0], low])
    for wheel in sorted(wheels):
        outline += np.column_stack([wheel - reach * np.cos(angles), radius + reach * np.sin(angles)]).tolist()
    outline.append([top[0, 0], low])
    return np.vstack([outline, top])


@lru_cache(maxsize=512)
def car(form: str, length: float, width: float, height: float, detailed: bool) -> Solid:
    """A car of a form and size [m], its middle over the origin; without small things unless `detailed`."""
    shape = FORMS[form]
    parts: list[PartBuilder] = []
    half, low = width / 2, CLEARANCE + 0.1 * (height - 1.4)
    radius = min(0.33 + 0.05 * max(height - 1.5, 0.0), 0.38)
    wheels = (-0.31 * length, 0.31 * length)
    for x in wheels:
        for side in (-1.0, 1.0):
            add_wheel(parts, x, side * (half - 0.02), radius, 0.22, detailed)
    hollow = PartBuilder(layer=0)
    hollow.box((-0.46 * length, 0.46 * length), (-half + 0.24, half - 0.24), (low, 0.45 * height), HOLLOW, skip="t")
    parts.append(hollow)
    top = np.array(shape.top) * [length, height]
    body = _lower_body(top, half, low, wheels, radius, length, detailed)
    _add_lamps(body, length, half, height, detailed)
    parts.append(body)
    if form == "pickup":
        bed = PartBuilder(layer=2)
        bed.face(np.array([[-.47 * length, -half + .12, .625 * height], [-.12 * length, -half + .12, .625 * height],
                           [-.12 * length, half - .12, .625 * height], [-.47 * length, half - .12, .625 * height]]),
                 (0, 0, 1), HOLLOW)
        parts.append(bed)
    parts.append(_cabin(shape, length, half, height, form, detailed))
    return Solid(parts)


def _lower_body(top: Array, half: float, low: float, wheels: tuple[float, ...], radius: float, length: float,
                detailed: bool) -> PartBuilder:
    body = PartBuilder(layer=1)
    outline = np.vstack([[[-length / 2, low], [length / 2, low]], top])
    for i in range(1, len(outline)):
        a, b = outline[i], outline[(i + 1) % len(outline)]
        body.face([[a[0], -half, a[1]], [b[0], -half, b[1]], [b[0], half, b[1]], [a[0], half, a[1]]],
                  (b[1] - a[1], 0.0, a[0] - b[0]), PAINT)
    side = side_with_arches(np.vstack([top, [[-length / 2, low]]]), wheels, radius, low)
    for sign in (-1.0, 1.0):
        body.face(np.column_stack([side[:, 0], np.full(len(side), sign * half), side[:, 1]]), (0.0, sign, 0.0), PAINT)
        sill = box_face((wheels[0] + 1.2 * radius, wheels[1] - 1.2 * radius), (-half - .005, half + .005),
                        (low, low + 0.1), "l" if sign > 0 else "r")
        body.face(sill, (0.0, sign, 0.0), TRIM)
        if detailed:
            belt = float(top[:, 1].max())
            for x in (-0.13 * length, 0.09 * length):
                line = box_face((x, x + 0.018), (-half - .004, half + .004), (low + 0.12, belt - 0.05),
                                "l" if sign > 0 else "r")
                body.face(line, (0.0, sign, 0.0), HOLLOW)
                handle = box_face((x + 0.06, x + 0.2), (-half - .006, half + .006), (belt - 0.16, belt - 0.12),
                                  "l" if sign > 0 else "r")
                body.face(handle, (0.0, sign, 0.0), TRIM)
    return body


def _cabin(shape: _Form, length: float, half: float, height: float, form: str, detailed: bool) -> PartBuilder:
    cabin = PartBuilder(layer=3)
    (rear, front), (roof_rear, roof_front) = shape.base, shape.roof
    below, above = half - 0.03, half - 0.03 - (0.06 if form == "van" else 0.13)
    z = shape.belt * height

    def corner(x: float, y: float, up: float) -> list[float]:
        return [x * length, y, up]

    roof = [corner(roof_rear, -above, height), corner(roof_front, -above, height), corner(roof_front, above, height),
            corner(roof_rear, above, height)]
    sides = {1.0: np.array([corner(front, below, z), corner(rear, below, z), corner(roof_rear, above, height),
                            corner(roof_front, above, height)]),
             -1.0: np.array([corner(rear, -below, z), corner(front, -below, z), corner(roof_front, -above, height),
                             corner(roof_rear, -above, height)])}
    back = np.array([corner(rear, below, z), corner(rear, -below, z), corner(roof_rear, -above, height),
                     corner(roof_rear, above, height)])
    wind = np.array([corner(front, -below, z), corner(front, below, z), corner(roof_front, above, height),
                     corner(roof_front, -above, height)])
    rise = height - z
    back_normal, wind_normal = (-rise, 0.0, (roof_rear - rear) * length), (rise, 0.0, (front - roof_front) * length)
    cabin.face(back, back_normal, PAINT)
    cabin.face(inset(back, .07, .93, .1 if form != "van" else .35, .86), back_normal, GLASS)
    cabin.face(wind, wind_normal, PAINT)
    cabin.face(inset(wind, .05, .95, .04, .93), wind_normal, GLASS)
    for sign, face in sides.items():
        normal = (0.0, sign * rise, below - above)
        cabin.face(face, normal, PAINT)
        # seen from outside, the right side runs rear to front and the left side front to rear
        panes = [(.07, .46), (.5, .93)] if form != "van" else ([(.64, .95)] if sign < 0 else [(.05, .36)])
        if form == "pickup":
            panes = [(.1, .9)]
        for start, end in panes:
            cabin.face(inset(face, start, end, .08, .84), normal, GLASS)
        if detailed:
            mirror = (front - 0.035) * length
            cabin.face(box_face((mirror - .12, mirror), (-below - .2, below + .2), (z + .02, z + .18),
                                "l" if sign > 0 else "r"), (0.0, sign, 0.0), PAINT)
            inner, outer = sign * (below - .02), sign * (below + .2)
            cabin.face([[mirror - .1, inner, z + .02], [mirror - .1, outer, z + .02], [mirror - .1, outer, z + .18],
                        [mirror - .1, inner, z + .18]], (0.0, 0.0, 0.0), TRIM)
    cabin.face(roof, (0.0, 0.0, 1.0), PAINT)
    cabin.face(inset(back, .36, .64, .88, .98), back_normal, BRAKE)
    return cabin


def _add_lamps(body: PartBuilder, length: float, half: float, height: float, detailed: bool) -> None:
    """Rear lamps, indicators, headlights, grille, bumpers and plates; larger from afar, so that they can be told."""
    x = length / 2 + 0.008
    reach = 0.24 if detailed else 0.3
    low, high = (0.4 * height, 0.56 * height) if detailed else (0.38 * height, 0.6 * height)
    back = box_face((-x, x), (-half, half), (0.0, height), "b")
    front = box_face((-x, x), (-half, half), (0.0, height), "f")
    rear, ahead = (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)
    low_share, high_share = low / height, high / height
    body.face(inset(back, .02, .98, .14, .27), rear, TRIM)
    body.face(inset(front, .02, .98, .12, .24), ahead, TRIM)
    body.face(inset(front, .24, .76, .26, .4), ahead, HOLLOW)
    # from behind, the vehicle's left is on the left
    body.face(inset(back, .01, .01 + reach, low_share, high_share), rear, LAMP_LEFT)
    body.face(inset(back, .99 - reach, .99, low_share, high_share), rear, LAMP_RIGHT)
    body.face(inset(back, .01, .11, low_share - .02, high_share), rear, LEFT)
    body.face(inset(back, .89, .99, low_share - .02, high_share), rear, RIGHT)
    body.face(inset(back, .37, .63, .3, .38), rear, PLATE)
    body.face(inset(front, .03, .22, .4, .5), ahead, HEAD)
    body.face(inset(front, .78, .97, .4, .5), ahead, HEAD)
    # seen from the front the vehicle's left is on the right
    body.face(inset(front, .0, .05, .36, .5), ahead, RIGHT)
    body.face(inset(front, .95, 1.0, .36, .5), ahead, LEFT)
    body.face(inset(front, .38, .62, .15, .22), ahead, PLATE)
    for sign, tail, blinker in ((1.0, LAMP_LEFT, LEFT), (-1.0, LAMP_RIGHT, RIGHT)):
        name = "l" if sign > 0 else "r"
        side = (-half - .006, half + .006)
        body.face(box_face((-length / 2, -length / 2 + .16), side, (low, high), name), (0.0, sign, 0.0), tail)
        body.face(box_face((.36 * length, .36 * length + .12), side, (low, low + .07), name), (0.0, sign, 0.0), blinker)
