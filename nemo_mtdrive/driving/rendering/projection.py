"""Faces of the ego frame -> pixels: transformed, cut to what the pinhole can show, in OpenCV's fixed-point form."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Array

SHIFT = 4
"""Fractional bits of pixel positions."""
NEAR_M = 0.4
WIDE = 3.0
"""Half the clipping wedge's width and height per metre of depth; the view itself is 0.62 wide."""


@njit(cache=True)  # type: ignore[untyped-decorator]
def _inside(x: float, y: float, z: float, plane: int) -> float:
    """How far (>= 0: inside) a point of the camera frame is from one of the wedge's planes."""
    if plane == 0:
        return z - NEAR_M
    if plane == 1:
        return WIDE * z + x
    if plane == 2:
        return WIDE * z - x
    if plane == 3:
        return WIDE * z + y
    return WIDE * z - y


@njit(cache=True)  # type: ignore[untyped-decorator]
def _clipped(points: Array) -> Array:
    """A polygon of the camera frame [n, 3] cut to the wedge (Sutherland-Hodgman)."""
    for plane in range(5):
        count = len(points)
        result = np.empty((2 * count + 1, 3))
        kept = 0
        for i in range(count):
            a, b = points[i], points[(i + 1) % count]
            here, there = _inside(a[0], a[1], a[2], plane), _inside(b[0], b[1], b[2], plane)
            if here >= 0.0:
                result[kept] = a
                kept += 1
            if (here >= 0.0) != (there >= 0.0):
                share = here / (here - there)
                for k in range(3):
                    result[kept, k] = a[k] + share * (b[k] - a[k])
                kept += 1
        points = result[:kept]
        if kept == 0:
            break
    return points


@njit(cache=True)  # type: ignore[untyped-decorator]
def project_faces(vertices: Array, starts: NDArray[np.int64], counts: NDArray[np.int64], position: Array, rotation: Array,
                  pinhole: Array) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Pixels [m, 2] (fixed point) of faces, one after the other, and how many each has: 0 for a face out of the picture.

    Args:
        vertices: [V, 3] in the ego frame.
        starts, counts: [F] where each face begins in `vertices`, and its number of corners.
        position, rotation: [3], [3, 3] of the camera in the ego frame.
        pinhole: [5] focal length, centre x and y, width, height [px].
    """
    faces = len(starts)
    room = 0
    for face in range(faces):
        room += counts[face]
    pixels = np.empty((room + 64, 2), dtype=np.int32)
    used = 0
    found = np.zeros(faces, dtype=np.int64)
    focal, centre_x, centre_y, width, height = pinhole
    unit = float(1 << SHIFT)
    for face in range(faces):
        count = counts[face]
        seen = np.empty((count, 3))
        whole = True
        for i in range(count):
            dx = vertices[starts[face] + i, 0] - position[0]
            dy = vertices[starts[face] + i, 1] - position[1]
            dz = vertices[starts[face] + i, 2] - position[2]
            for k in range(3):
                seen[i, k] = dx * rotation[0, k] + dy * rotation[1, k] + dz * rotation[2, k]
            x, y, z = seen[i, 0], seen[i, 1], seen[i, 2]
            if z < NEAR_M or abs(x) > WIDE * z or abs(y) > WIDE * z:
                whole = False
        if not whole:
            seen = _clipped(seen)
        corners = len(seen)
        if corners < 3:
            continue
        if used + corners > len(pixels):
            grown = np.empty((2 * len(pixels) + corners, 2), dtype=np.int32)
            grown[:used] = pixels[:used]
            pixels = grown
        left, right, top, bottom = 1e9, -1e9, 1e9, -1e9
        for i in range(corners):
            across = focal * seen[i, 0] / seen[i, 2] + centre_x
            down = focal * seen[i, 1] / seen[i, 2] + centre_y
            left, right, top, bottom = min(left, across), max(right, across), min(top, down), max(bottom, down)
            pixels[used + i, 0] = np.int32(np.rint(across * unit))
            pixels[used + i, 1] = np.int32(np.rint(down * unit))
        if right < -1.0 or left > width or bottom < -1.0 or top > height:
            continue
        found[face] = corners
        used += corners
    return pixels[:used], found


@njit(cache=True)  # type: ignore[untyped-decorator]
def project_disks(centres: Array, radii: Array, position: Array, rotation: Array, pinhole: Array) -> NDArray[np.int64]:
    """Across, down and radius (fixed point) [n, 3] of disks that face the camera; radius 0 for one that is not seen."""
    focal, centre_x, centre_y, width, height = pinhole
    unit = float(1 << SHIFT)
    found = np.zeros((len(centres), 3), dtype=np.int64)
    for i in range(len(centres)):
        seen = np.zeros(3)
        for k in range(3):
            for axis in range(3):
                seen[k] += (centres[i, axis] - position[axis]) * rotation[axis, k]
        if seen[2] < NEAR_M or abs(seen[0]) > WIDE * seen[2] or abs(seen[1]) > WIDE * seen[2]:
            continue
        across, down = focal * seen[0] / seen[2] + centre_x, focal * seen[1] / seen[2] + centre_y
        radius = max(radii[i] * focal / seen[2], 0.5)
        if -radius < across < width + radius and -radius < down < height + radius:
            found[i, 0], found[i, 1] = round(across * unit), round(down * unit)
            found[i, 2] = max(round(radius * unit), 1)
    return found
