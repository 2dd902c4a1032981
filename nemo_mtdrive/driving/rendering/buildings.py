"""Buildings: town houses with rows of windows and shops, and small houses under a gabled roof."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.scene import Array

WALLS: tuple[Colour, ...] = ((182, 150, 122), (158, 98, 76), (204, 196, 180), (148, 152, 156), (190, 172, 138),
                             (126, 84, 66), (214, 206, 198), (112, 122, 134))
ROOFS: tuple[Colour, ...] = ((112, 62, 48), (84, 84, 90), (96, 74, 60), (64, 70, 78))
SHOPS: tuple[Colour, ...] = ((176, 44, 40), (40, 92, 136), (46, 112, 74), (196, 146, 50), (80, 60, 96))
PANE: Colour = (92, 110, 128)
LIT: Colour = (255, 214, 140)
FLOOR_M, BAY_M = 3.2, 3.0
FLOOR_PX = 9.0
"""A storey lower than this is drawn without single windows."""


@dataclass(frozen=True)
class Building:
    """Corners [4, 2] in the ego frame (the street side is corner 0 to corner 3), height to the eaves [m]."""

    corners: Array
    height: float
    gabled: bool
    seed: int


def paint_building(canvas: Canvas, building: Building) -> None:
    """Walls that face the camera, with their windows, then the roof."""
    corners = building.corners
    centre = corners.sum(0) / 4.0
    base = float(canvas.terrain.heights(centre[None])[0]) - 0.3
    wall = WALLS[building.seed % len(WALLS)]
    near = corners[((corners - canvas.position[:2]) ** 2).sum(1).argmin()]
    distance = math.dist(near, canvas.position[:2])
    for start in range(4):
        a, b = corners[start], corners[(start + 1) % 4]
        outward = np.array([b[1] - a[1], a[0] - b[0]])
        if outward @ (a - centre) < 0.0:
            a, b = b, a
            outward = -outward
        if (canvas.position[:2] - a) @ outward <= 0.0:
            continue
        outward = outward / math.hypot(*outward)
        light = 0.3 + 0.7 * max(0.0, float(outward @ canvas.sun[:2]))
        face = np.array([[*a, base], [*b, base], [*b, base + building.height], [*a, base + building.height]])
        canvas.fill(face, canvas.air.shaded(wall, distance, light))
        _windows(canvas, building, face, distance, light, street=start == 3)
    if building.gabled:
        _gable(canvas, building, base, distance)
    elif canvas.depth(near) > 3.0:
        _cornice(canvas, building, base, distance)


def _windows(canvas: Canvas, building: Building, face: Array, distance: float, light: float, street: bool) -> None:
    low, high = face[0], face[3]
    across = face[1] - face[0]
    width, rise = float(np.hypot(*across[:2])), float(high[2] - low[2])
    floors, bays = max(1, int(rise / FLOOR_M)), max(1, int(width / BAY_M))
    shop = street and not building.gabled
    rows = np.arange(1 if shop else 0, floors)
    up = ((rows[:, None] + np.array([0.32, 0.8])) / floors)
    size = canvas.pixels_per_metre((face[0] + face[1]) / 2.0) * FLOOR_M
    if size < FLOOR_PX:
        ends = np.repeat(np.array([[0.06, 0.94]]), len(rows), axis=0)
        up = up.reshape(-1, 2)
        lit = np.zeros(len(rows), dtype=bool)
    else:
        columns = np.arange(bays)
        spread = (0.24, 0.76) if building.seed % 2 else (0.16, 0.84)
        pane = (columns[:, None] + np.array(spread)) / bays
        ends = np.tile(pane, (len(rows), 1))
        up = np.repeat(up, bays, axis=0)
        lit = np.zeros(len(ends), dtype=bool)
        if canvas.air.time_of_day != "day":
            lit = np.random.default_rng(building.seed).random(len(ends)) < 0.35
    # a hand's breadth in front of the wall, against ties
    corner = low + np.stack([ends[:, :1] * across, ends[:, 1:] * across], axis=1).reshape(-1, 2, 3)
    bottom, top = corner.copy(), corner.copy()
    bottom[..., 2] += up[:, :1] * rise
    top[..., 2] += up[:, 1:] * rise
    tiles = np.stack([bottom[:, 0], bottom[:, 1], top[:, 1], top[:, 0]], axis=1)
    shine = canvas.air.shaded(PANE, distance, 0.4 + 0.5 * light)
    canvas.fill_tiles(tiles[~lit], shine)
    canvas.fill_tiles(tiles[lit], canvas.air.emitted(LIT, distance))
    if shop:
        _shop(canvas, building, face, floors, distance, light)


def _shop(canvas: Canvas, building: Building, face: Array, floors: int, distance: float, light: float) -> None:
    """Glass along the ground floor under a coloured board."""
    across, rise = face[1] - face[0], float(face[3, 2] - face[0, 2]) / floors
    panes = max(1, int(np.hypot(*across[:2]) / 4.0))
    ends = (np.arange(panes)[:, None] + np.array([0.06, 0.94])) / panes
    corner = face[0] + ends[..., None] * across
    up = np.array([0.0, 0.0, rise])
    low, high = corner + 0.16 * up, corner + 0.68 * up
    tiles = np.stack([low[:, 0], low[:, 1], high[:, 1], high[:, 0]], axis=1)
    air = canvas.air
    glass = air.emitted((236, 206, 150), distance) if air.lamps_on else air.shaded((70, 84, 96), distance, light)
    canvas.fill_tiles(tiles, glass)
    board = np.array([face[0] + 0.74 * up, face[1] + 0.74 * up, face[1] + 0.94 * up, face[0] + 0.94 * up])
    canvas.fill(board, air.shaded(SHOPS[building.seed // 8 % len(SHOPS)], distance, light))


def _cornice(canvas: Canvas, building: Building, base: float, distance: float) -> None:
    """A lighter band under the flat roof's edge."""
    centre = building.corners.sum(0) / 4.0
    wall = WALLS[building.seed % len(WALLS)]
    pale: Colour = (min(wall[0] + 26, 255), min(wall[1] + 26, 255), min(wall[2] + 26, 255))
    for start in range(4):
        a, b = building.corners[start], building.corners[(start + 1) % 4]
        outward = np.array([b[1] - a[1], a[0] - b[0]])
        if outward @ (a - centre) < 0.0:
            outward = -outward
        if (canvas.position[:2] - a) @ outward > 0.0:
            top = base + building.height
            canvas.fill(np.array([[*a, top - 0.45], [*b, top - 0.45], [*b, top + 0.1], [*a, top + 0.1]]),
                        canvas.air.shaded(pale, distance, 0.6))


def _gable(canvas: Canvas, building: Building, base: float, distance: float) -> None:
    """A roof whose ridge runs along the street; the eaves reach over the walls."""
    a, b, c, d = building.corners
    eaves, ridge = base + building.height - 0.15, base + building.height + 2.6
    middle = [(a + b) / 2, (d + c) / 2]
    roof = ROOFS[building.seed // 16 % len(ROOFS)]
    wall = WALLS[building.seed % len(WALLS)]
    eye = canvas.position[:2]
    for first, second, end in ((a, b, middle[0]), (d, c, middle[1])):
        other = middle[1] if end is middle[0] else middle[0]
        if (eye - end) @ (end - other) > 0.0:
            gable = np.array([[*first, eaves + 0.15], [*second, eaves + 0.15], [*end, ridge - 0.1]])
            canvas.fill(gable, canvas.air.shaded(wall, distance, 0.4))
    slopes = [((a, d), 0.55), ((b, c), 0.35)]
    # the far slope first; it is seen at most at its edge
    slopes.sort(key=lambda slope: -float((((slope[0][0] + slope[0][1]) / 2 - eye) ** 2).sum()))
    for (left, right), light in slopes:
        out = (left + right) / 2 - (middle[0] + middle[1]) / 2
        over = 0.5 * out / max(math.hypot(*out), 1e-6)
        slope = np.array([[*(left + over), eaves - 0.25], [*(right + over), eaves - 0.25], [*middle[1], ridge],
                          [*middle[0], ridge]])
        canvas.fill(slope, canvas.air.shaded(roof, distance, light))
