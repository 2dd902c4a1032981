"""`Solid`: a thing made of flat faces in its own frame, painted so that near parts cover far ones.

Faces of one part are painted in the order they were added; those that look away from the eye are left out. Parts of a
higher layer lie over those of a lower one; within a layer the farther part comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.scene import Array

Pose = tuple[float, float, float]
"""(x, y, heading) in the ego frame."""


class PartBuilder:
    """Collects the faces of a part; x is forward, y left, z up."""

    def __init__(self, layer: int = 0) -> None:
        self._layer = layer
        self._faces: list[Array] = []
        self._normals: list[Array] = []
        self._paints: list[int] = []

    def face(self, points: Array | Sequence[Sequence[float]], normal: Sequence[float], paint: int) -> None:
        """A face [n, 3] that looks along `normal`; a zero normal is seen from both sides."""
        self._faces.append(np.asarray(points, dtype=np.float64))
        direction = np.asarray(normal, dtype=np.float64)
        self._normals.append(direction / max(float(np.sqrt(direction @ direction)), 1e-9))
        self._paints.append(paint)

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], paint: int,
            skip: str = "") -> None:
        """The faces of a box but its bottom; `skip` names others to leave out: f(ront) b(ack) l(eft) r(ight) t(op)."""
        for name, normal in (("f", (1, 0, 0)), ("b", (-1, 0, 0)), ("l", (0, 1, 0)), ("r", (0, -1, 0)), ("t", (0, 0, 1))):
            if name not in skip:
                self.face(box_face(x, y, z, name), normal, paint)

    def prism(self, profile: Array, half_low: float, half_high: float, paint: int, sides: bool = True) -> None:
        """A side profile [n, 2] of (x, z), counter-clockwise seen from the right, drawn out to either side; the half
        width runs from `half_low` at its lowest to `half_high` at its highest point.
        """
        low, high = float(profile[:, 1].min()), float(profile[:, 1].max())
        half = half_low + (half_high - half_low) * (profile[:, 1] - low) / max(high - low, 1e-6)
        right = np.column_stack([profile[:, 0], -half, profile[:, 1]])
        left = np.column_stack([profile[:, 0], half, profile[:, 1]])
        following = np.roll(np.arange(len(profile)), -1)
        for i, j in enumerate(following.tolist()):
            ahead = profile[j] - profile[i]
            self.face(np.array([right[i], right[j], left[j], left[i]]), (ahead[1], 0.0, -ahead[0]), paint)
        if sides:
            lean = (half_low - half_high) / max(high - low, 1e-6)
            self.face(right, (0.0, -1.0, lean), paint)
            self.face(left, (0.0, 1.0, lean), paint)

    def collect(self) -> tuple[list[Array], list[Array], list[int], int]:
        """Faces, normals, paints and the layer."""
        return self._faces, self._normals, self._paints, self._layer


def box_face(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], name: str) -> Array:
    """A face [4, 3] of a box: bottom left, bottom right, top right, top left as seen from outside."""
    (x0, x1), (y0, y1), (z0, z1) = x, y, z
    if name == "t":
        return np.array([[x0, y1, z1], [x0, y0, z1], [x1, y0, z1], [x1, y1, z1]])
    (ax, ay), (bx, by) = {"f": ((x1, y0), (x1, y1)), "b": ((x0, y1), (x0, y0)), "l": ((x1, y1), (x0, y1)),
                          "r": ((x0, y0), (x1, y0))}[name]
    return np.array([[ax, ay, z0], [bx, by, z0], [bx, by, z1], [ax, ay, z1]])


def inset(face: Array, left: float, right: float, low: float, high: float) -> Array:
    """A part of a four-cornered face: shares 0..1 of its width and height from its bottom left corner."""
    across = np.array([left, right, right, left])[:, None]
    up = np.array([low, low, high, high])[:, None]
    bottom = face[0] + across * (face[1] - face[0])
    part: Array = bottom + up * (face[3] + across * (face[2] - face[3]) - bottom)
    return part


class Solid:
    """A finished thing: the faces of its parts, one after the other."""

    def __init__(self, parts: Sequence[PartBuilder]) -> None:
        collected = [part.collect() for part in parts]
        faces = [face for part in collected for face in part[0]]
        self.vertices = np.vstack(faces)
        self.counts = np.array([len(face) for face in faces])
        self.starts = np.cumsum(self.counts) - self.counts
        self.normals = np.vstack([normal for part in collected for normal in part[1]])
        self.levels = (self.normals * np.array([face[0] for face in faces])).sum(1)
        self.two_sided = np.abs(self.normals).sum(1) == 0.0
        self.paints = np.array([paint for part in collected for paint in part[2]])
        ends = np.cumsum([len(part[0]) for part in collected]).tolist()
        self._ranges = [np.arange(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self._middles = np.array([np.vstack(part[0]).mean(0) for part in collected])
        self._layers = np.array([part[3] for part in collected])
        # faces that look down get less of the sky's light, so that a form can be read without a sun
        self.form = (0.86 + 0.16 * self.normals[:, 2] + 0.05 * np.abs(self.normals[:, 1]))[:, None]

    def order(self, eye: Array) -> NDArray[np.int64]:
        """Face indices as an eye [3] wants them painted."""
        far = ((self._middles - eye) ** 2).sum(1)
        return np.concatenate([self._ranges[k] for k in np.lexsort((-far, self._layers)).tolist()])


@dataclass(frozen=True)
class Finish:
    """How a solid's faces look: a colour per paint index; indices in `lamps` shine by themselves."""

    colours: Array
    lamps: frozenset[int] = frozenset()


def paint_solid(canvas: Canvas, solid: Solid, pose: Pose, finish: Finish, scale: tuple[float, float, float] = (1, 1, 1),
                lift: float = 0.0) -> None:
    """Paint a solid standing at a pose on the ground, `lift` m over it, its own axes stretched by `scale`."""
    x, y, heading = pose
    cos, sin = math.cos(heading), math.sin(heading)
    ground = 0.0 if canvas.terrain.flat else float(canvas.terrain.heights(np.array([[x, y]]))[0])
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    offset = np.array([x, y, ground + lift])
    size = np.array(scale)
    eye = (turn @ (canvas.position - offset)) / size
    sun = turn @ canvas.sun
    distance = math.dist(canvas.position, offset)
    beam = canvas.air.beam(x, y)
    order = solid.order(eye)
    order = order[((solid.normals @ eye > solid.levels) | solid.two_sided)[order]]
    paints = solid.paints[order]
    light = 0.25 + 0.75 * np.maximum(solid.normals[order] @ sun, 0.0)
    shades = canvas.air.surface(finish.colours[paints] * solid.form[order], light, beam, distance).astype(int).tolist()
    shining = {paint: canvas.air.emitted(_colour(finish.colours[paint]), distance) for paint in finish.lamps}
    colours = [shining[paint] if paint in shining else (shade[0], shade[1], shade[2])
               for paint, shade in zip(paints.tolist(), shades, strict=True)]
    canvas.paint_faces((solid.vertices * size) @ turn + offset, solid.starts[order], solid.counts[order], colours)


def _colour(values: Array) -> Colour:
    red, green, blue = values.astype(int).tolist()
    return red, green, blue
