"""Trees and street lamps."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour, raised
from nemo_mtdrive.driving.scene import Array

LEAVES: tuple[Colour, ...] = ((72, 112, 50), (88, 124, 54), (58, 98, 58), (104, 128, 60), (150, 118, 48))
NEEDLES: Colour = (44, 82, 58)
BARK: Colour = (92, 74, 58)
POLE: Colour = (98, 102, 106)
LAMP_HEIGHT_M, LAMP_ARM_M = 7.2, 1.9
FORMS = 12
CONIFERS = 3
_FULL_PX, _SOME_PX = 200.0, 50.0


@lru_cache(maxsize=FORMS)
def _crown(form: int) -> Array:
    """Clumps of leaves of a tree one metre high, [n, 5]: x, y, z, radius, brightness; from the back to the front."""
    draws = np.random.default_rng(700 + form)
    count = 34
    angle, ring = draws.uniform(0.0, 2 * math.pi, count), np.sqrt(draws.uniform(0.0, 1.0, count))
    up = draws.uniform(-1.0, 1.0, count)
    wide = 0.27 * np.sqrt(np.clip(1.0 - (0.9 * up) ** 2, 0.1, 1.0)) * ring
    x, y, z = wide * np.cos(angle), wide * np.sin(angle), 0.66 + 0.23 * up
    radius = draws.uniform(0.07, 0.13, count)
    bright = 0.84 + 0.26 * (z - 0.5) / 0.4 + draws.uniform(-0.07, 0.07, count)
    heart = np.array([[0.0, 0.0, 0.64, 0.24, 0.72], [0.0, -0.1, 0.6, 0.17, 0.76], [0.0, 0.1, 0.68, 0.17, 0.78]])
    clumps = np.column_stack([x, y, z, radius, bright])
    # dark and low ones first: light clumps lie on top, as leaves in the sun do
    return np.vstack([heart, clumps[np.argsort(clumps[:, 4])]])


def paint_tree(canvas: Canvas, place: Array, height: float, seed: int) -> None:
    """A trunk under a crown of clumps, or a conifer of tiers; far ones have fewer clumps."""
    base = float(canvas.terrain.heights(place[None])[0])
    foot = np.array([*place, base])
    distance = canvas.distance(foot)
    beam = 0.6 * canvas.air.beam(float(place[0]), float(place[1]))
    form = seed % FORMS
    size = height * canvas.pixels_per_metre(place)
    conifer = form < CONIFERS
    trunk = (0.16 if conifer else 0.55) * height
    canvas.capsules(np.array([[foot, raised(foot, trunk)]]), np.array([[0.028 * height, 0.018 * height]]),
                    [canvas.air.shaded(BARK, distance, 0.4, beam)])
    if conifer:
        _conifer(canvas, foot, height, distance, beam)
        return
    clumps = _crown(form)
    clumps = clumps if size > _FULL_PX else clumps[:3] if size < _SOME_PX else clumps[:: 2]
    leaves = np.array([LEAVES[seed // FORMS % len(LEAVES)]], dtype=np.float64)
    bright = np.clip(clumps[:, 4], 0.7, 1.1)
    light = np.clip((bright - 0.7) * 2.2, 0.0, 1.0)
    colours = canvas.air.surface(leaves * bright[:, None], light, beam, distance).astype(int)
    canvas.disks(foot + clumps[:, :3] * height, clumps[:, 3] * height, [(r, g, b) for r, g, b in colours.tolist()])


def _conifer(canvas: Canvas, foot: Array, height: float, distance: float, beam: float) -> None:
    across = np.array([-canvas.axis[1], canvas.axis[0], 0.0])
    up = np.array([0.0, 0.0, height])
    tiers = 6
    vertices, colours = [], []
    for k in range(tiers):
        low = 0.12 + 0.8 * k / tiers
        half = (0.24 * (1.0 - k / tiers) + 0.05) * height
        top = min(low + 0.3, 1.0)
        colour = canvas.air.shaded(NEEDLES, distance, 0.2 + 0.12 * k, beam)
        middle = foot + low * up
        vertices += [middle - half * across, middle - 0.03 * up, middle + half * across, foot + top * up]
        colours.append(colour)
    canvas.paint(np.array(vertices), np.full(tiers, 4), colours)


def paint_street_lamp(canvas: Canvas, foot: Array, toward: Array) -> None:
    """A mast with an arm over the road; it shines when it is dark."""
    base = np.array([*foot, float(canvas.terrain.heights(foot[None])[0])])
    distance = canvas.distance(base)
    pole = canvas.air.shaded(POLE, distance)
    top = raised(base, LAMP_HEIGHT_M)
    end = top + np.array([*(LAMP_ARM_M * toward), 0.25])
    canvas.capsules(np.array([[base, top], [top, end]]), np.array([[0.09, 0.06], [0.05, 0.05]]), [pole, pole])
    lit = canvas.air.time_of_day in ("night", "dusk")
    colour = canvas.air.emitted((255, 226, 168), distance) if lit else canvas.air.shaded((210, 210, 206), distance)
    canvas.capsules(np.array([[end - np.array([*(0.35 * toward), 0.0]), end]]), np.array([[0.1, 0.1]]), [colour])
    if lit:
        canvas.glow(end, 1.5, (255, 214, 150), 0.8 if canvas.air.night else 0.4)
