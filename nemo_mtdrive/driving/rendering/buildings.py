"""Buildings: town houses with rows of windows and shops, and small houses under a gabled roof."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.rendering.chance import Draws
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


@njit(cache=True)  # type: ignore[untyped-decorator]
def _panes(face: Array, columns: tuple[int, float, float], rows: tuple[int, int, float, float]) -> Array:
    """Quadrilaterals [k, 4, 3] on an upright face [4, 3], row by row.

    Args:
        columns: how many, and the share of a column's width where a pane begins and ends.
        rows: the first, the one behind the last (also their number over the height), and where in a row a pane begins
            and ends.
    """
    bays, left, right = columns
    first, last, low, high = rows
    rise = face[3, 2] - face[0, 2]
    tiles = np.empty((max(last - first, 0) * bays, 4, 3))
    for row in range(first, last):
        bottom, top = face[0, 2] + (row + low) / last * rise, face[0, 2] + (row + high) / last * rise
        for bay in range(bays):
            tile = tiles[(row - first) * bays + bay]
            for corner in range(4):
                share = (bay + (left if corner == 0 or corner == 3 else right)) / bays
                for axis in range(2):
                    tile[corner, axis] = face[0, axis] + share * (face[1, axis] - face[0, axis])
                tile[corner, 2] = bottom if corner < 2 else top
    return tiles


class _Faces:
    """Faces and colours of a building, painted at once."""

    def __init__(self, canvas: Canvas, distance: float) -> None:
        self.canvas, self.distance = canvas, distance
        self._faces: list[Array] = []
        self._counts: list[int] = []
        self._colours: list[Colour] = []

    def add(self, face: Array, colour: Colour, light: float) -> None:
        """A lit surface [n, 3]."""
        self._faces.append(face)
        self._counts.append(len(face))
        self._colours.append(self.canvas.air.shaded(colour, self.distance, light))

    def tiles(self, tiles: Array, colour: Colour) -> None:
        """Quadrilaterals [k, 4, 3] of one finished colour."""
        self._faces.append(tiles.reshape(-1, 3))
        self._counts += [4] * len(tiles)
        self._colours += [colour] * len(tiles)

    def paint(self) -> None:
        """All of them, in the order they came."""
        if self._faces:
            self.canvas.paint(np.concatenate(self._faces), np.array(self._counts), self._colours)


def paint_building(canvas: Canvas, building: Building) -> None:
    """Walls that face the camera, with their windows, then the roof."""
    corners = building.corners
    centre = corners.sum(0) / 4.0
    base = float(canvas.terrain.heights(centre[None])[0]) - 0.3
    wall = WALLS[building.seed % len(WALLS)]
    near = corners[((corners - canvas.position[:2]) ** 2).sum(1).argmin()]
    faces = _Faces(canvas, math.dist(near, canvas.position[:2]))
    seen = []
    for start in range(4):
        (ax, ay), (bx, by) = a, b = corners[start].tolist(), corners[(start + 1) % 4].tolist()
        out_x, out_y = by - ay, ax - bx
        if out_x * (ax - centre[0]) + out_y * (ay - centre[1]) < 0.0:
            a, b, out_x, out_y = b, a, -out_x, -out_y
        if (canvas.position[0] - a[0]) * out_x + (canvas.position[1] - a[1]) * out_y <= 0.0:
            continue
        sun = (out_x * canvas.sun[0] + out_y * canvas.sun[1]) / math.hypot(out_x, out_y)
        light = 0.3 + 0.7 * max(0.0, float(sun))
        face = np.array([[*a, base], [*b, base], [*b, base + building.height], [*a, base + building.height]])
        faces.add(face, wall, light)
        _windows(faces, building, face, light, street=start == 3)
        seen.append((a, b))
    if building.gabled:
        _gable(faces, building, base)
    else:
        _cornice(faces, building, base + building.height, seen)
    faces.paint()


def _windows(faces: _Faces, building: Building, face: Array, light: float, street: bool) -> None:
    canvas, distance = faces.canvas, faces.distance
    low, across = face[0], face[1] - face[0]
    width, rise = math.hypot(across[0], across[1]), float(face[3, 2] - low[2])
    floors, bays = max(1, int(rise / FLOOR_M)), max(1, int(width / BAY_M))
    shop = street and not building.gabled
    first = 1 if shop else 0
    banded = canvas.pixels_per_metre(low + 0.5 * across) * FLOOR_M < FLOOR_PX
    spread = (0.06, 0.94) if banded else (0.24, 0.76) if building.seed % 2 else (0.16, 0.84)
    tiles = _panes(face, (1 if banded else bays, *spread), (first, floors, 0.32, 0.8))
    lit = np.zeros(len(tiles), dtype=bool)
    if canvas.air.time_of_day != "day" and not banded:
        lit = Draws(building.seed).uniform(0.0, 1.0, len(tiles)) < 0.35
    faces.tiles(tiles[~lit], canvas.air.shaded(PANE, distance, 0.4 + 0.5 * light))
    if lit.any():
        faces.tiles(tiles[lit], canvas.air.emitted(LIT, distance))
    if shop:
        _shop(faces, building, face, rise / floors, light)


def _shop(faces: _Faces, building: Building, face: Array, rise: float, light: float) -> None:
    """Glass along the ground floor under a coloured board."""
    across = face[1] - face[0]
    panes = max(1, int(math.hypot(across[0], across[1]) / 4.0))
    floors = max(1, round(float(face[3, 2] - face[0, 2]) / rise))
    tiles = _panes(face, (panes, 0.06, 0.94), (0, 1, 0.16 / floors, 0.68 / floors))
    air = faces.canvas.air
    faces.tiles(tiles, air.emitted((236, 206, 150), faces.distance) if air.lamps_on
                else air.shaded((70, 84, 96), faces.distance, light))
    board = face[[0, 1, 1, 0]]
    board[:, 2] += rise * np.array([0.74, 0.74, 0.94, 0.94])
    faces.add(board, SHOPS[building.seed // 8 % len(SHOPS)], light)


def _cornice(faces: _Faces, building: Building, top: float, seen: list[tuple[list[float], list[float]]]) -> None:
    """A lighter band under the flat roof's edge, on the walls that are seen."""
    red, green, blue = WALLS[building.seed % len(WALLS)]
    pale: Colour = (min(red + 26, 255), min(green + 26, 255), min(blue + 26, 255))
    for a, b in seen:
        faces.add(np.array([[*a, top - 0.45], [*b, top - 0.45], [*b, top + 0.1], [*a, top + 0.1]]), pale, 0.6)


def _gable(faces: _Faces, building: Building, base: float) -> None:
    """A roof whose ridge runs along the street; the eaves reach over the walls."""
    a, b, c, d = building.corners
    eaves, ridge = base + building.height - 0.15, base + building.height + 2.6
    first, last = (a + b) / 2, (d + c) / 2
    eye = faces.canvas.position[:2]
    for left, right, end, other in ((a, b, first, last), (d, c, last, first)):
        if (eye - end) @ (end - other) > 0.0:
            faces.add(np.array([[*left, eaves + 0.15], [*right, eaves + 0.15], [*end, ridge - 0.1]]),
                      WALLS[building.seed % len(WALLS)], 0.4)
    slopes = [(a, d, 0.55), (b, c, 0.35)]
    # the far slope first; it is seen at most at its edge
    slopes.sort(key=lambda slope: -float((((slope[0] + slope[1]) / 2 - eye) ** 2).sum()))
    for left, right, light in slopes:
        out = (left + right) / 2 - (first + last) / 2
        over = 0.5 * out / max(math.hypot(*out), 1e-6)
        faces.add(np.array([[*(left + over), eaves - 0.25], [*(right + over), eaves - 0.25], [*last, ridge],
                            [*first, ridge]]), ROOFS[building.seed // 16 % len(ROOFS)], light)
