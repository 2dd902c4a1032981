"""Points in many polygons, fast and exact: the edges of each ring lie in bins along its longer side.

A ray across the bins meets only edges of the point's own bin, so a long ring costs as little as a short one. A point on
a ring is outside it, as the contains predicate of the geometry engine behind NAVSIM says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.pdm.kernel import kernel

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_EDGES_PER_BIN, _MOST_BINS = 2, 256
_FLAT_M = 1e-9


class Rings(NamedTuple):
    """P rings, their edges sorted into bins."""

    bounds: Array
    """[P, 4] min x, min y, max x, max y."""
    upright: NDArray[np.bool_]
    """[P] bins follow one another along y, else along x."""
    per_metre: Array
    """[P] bins per metre."""
    first_bin: Indices
    """[P + 1] bins of ring p: first_bin[p] to first_bin[p + 1] - 1."""
    first_edge: Indices
    """[bins + 1] edges of a bin, likewise."""
    clear: Array
    """[bins, 4] across: before the first and after the last number nothing of the ring is in the bin; between the two
    others, nothing but its inside."""
    edges: Array
    """[E, 4] across and along of an edge's start and end; an edge is in every bin that it meets."""


@kernel
def bin_of(along: float, low: float, per_metre: float, bins: int) -> int:
    """Bin of a coordinate that is at least low: never falls as the coordinate grows, which makes the bins exact."""
    return min(int((along - low) * per_metre), bins - 1)


@kernel
def _sort_edges(
    vertices: Array, starts: Indices, bounds: Array, upright: NDArray[np.bool_], per_metre: Array, first_bin: Indices,
    first_edge: Indices, edges: Array, fill: bool,
) -> None:
    """Count the edges of each bin into first_edge[bin + 1], or put them where first_edge says and advance it."""
    for p in range(len(bounds)):
        along, across = (1, 0) if upright[p] else (0, 1)
        low, bins = bounds[p, along], first_bin[p + 1] - first_bin[p]
        for i in range(starts[p], starts[p + 1] - 1):
            a, b = vertices[i, along], vertices[i + 1, along]
            start = first_bin[p] + bin_of(min(a, b), low, per_metre[p], bins)
            stop = first_bin[p] + bin_of(max(a, b), low, per_metre[p], bins)
            for k in range(start, stop + 1):
                if fill:
                    edge = edges[first_edge[k]]
                    edge[0], edge[1] = vertices[i, across], a
                    edge[2], edge[3] = vertices[i + 1, across], b
                    first_edge[k] += 1
                else:
                    first_edge[k + 1] += 1


@kernel
def inside_bin(edges: Array, start: int, stop: int, across: float, along: float) -> bool:
    """Whether a point in the bin with edges start to stop - 1 lies strictly inside the ring; even-odd rule."""
    inside = False
    for i in range(start, stop):
        ax, ay, bx, by = edges[i, 0], edges[i, 1], edges[i, 2], edges[i, 3]
        if (ax < across and bx < across) or (ay > along and by > along) or (ay < along and by < along):
            continue
        if ay == along and by == along:
            if min(ax, bx) <= across <= max(ax, bx):
                return False
            continue
        turn = (bx - ax) * (along - ay) - (by - ay) * (across - ax)
        if turn == 0.0:
            return False
        if (ay > along) != (by > along) and (turn > 0.0) == (by > ay):
            inside = not inside
    return inside


@kernel
def _sort_by_low(edges: Array, start: int, stop: int) -> None:
    """Sort the few edges of a bin by where they begin across it."""
    for i in range(start + 1, stop):
        k = i
        while k > start and min(edges[k, 0], edges[k, 2]) < min(edges[k - 1, 0], edges[k - 1, 2]):
            for column in range(4):
                edges[k, column], edges[k - 1, column] = edges[k - 1, column], edges[k, column]
            k -= 1


@kernel
def _find_clear(
    bounds: Array, upright: NDArray[np.bool_], per_metre: Array, first_bin: Indices, first_edge: Indices, edges: Array,
    clear: Array,
) -> None:
    """Fill clear [bins, 4] from the edges of each bin."""
    clear[:, :2], clear[:, 2:] = np.inf, -np.inf
    for p in range(len(bounds)):
        low = bounds[p, 1] if upright[p] else bounds[p, 0]
        for k in range(first_bin[p], first_bin[p + 1]):
            start, stop = first_edge[k], first_edge[k + 1]
            if start == stop or per_metre[p] == 0.0:
                clear[k, 0], clear[k, 3] = -np.inf, np.inf
                continue
            along = low + (k - first_bin[p] + 0.5) / per_metre[p]
            _sort_by_low(edges, start, stop)
            reached = min(edges[start, 0], edges[start, 2])
            clear[k, 0] = reached
            for i in range(start, stop):
                low_side, high_side = min(edges[i, 0], edges[i, 2]), max(edges[i, 0], edges[i, 2])
                is_wider = low_side - reached > max(clear[k, 2] - clear[k, 1], 0.0)
                if is_wider and inside_bin(edges, start, stop, 0.5 * (low_side + reached), along):
                    clear[k, 1], clear[k, 2] = reached, low_side
                reached = max(reached, high_side)
            clear[k, 3] = reached


def make_rings(rings: Sequence[Array]) -> Rings:
    """Sort closed rings [n, 2] (first vertex repeated last) into bins."""
    sizes = np.array([len(ring) for ring in rings], dtype=np.int64)
    starts = np.append(0, np.cumsum(sizes))
    vertices = np.ascontiguousarray(np.concatenate(rings)) if len(rings) else np.zeros((0, 2))
    bounds = np.empty((len(rings), 4))
    if len(rings):
        bounds[:, :2] = np.minimum.reduceat(vertices, starts[:-1])
        bounds[:, 2:] = np.maximum.reduceat(vertices, starts[:-1])
    extent = bounds[:, 2:] - bounds[:, :2]
    upright, longer = extent[:, 1] > extent[:, 0], extent.max(axis=1, initial=0.0)
    bins = np.clip(sizes // _EDGES_PER_BIN, 1, _MOST_BINS)
    per_metre = np.where(longer > _FLAT_M, bins / np.maximum(longer, _FLAT_M), 0.0)
    first_bin = np.append(0, np.cumsum(bins))
    counts = np.zeros(first_bin[-1] + 1, dtype=np.int64)
    _sort_edges(vertices, starts, bounds, upright, per_metre, first_bin, counts, np.empty((0, 4)), False)
    first_edge = np.cumsum(counts)
    edges = np.empty((first_edge[-1], 4))
    _sort_edges(vertices, starts, bounds, upright, per_metre, first_bin, first_edge.copy(), edges, True)
    clear = np.empty((first_bin[-1], 4))
    _find_clear(bounds, upright, per_metre, first_bin, first_edge, edges, clear)
    return Rings(bounds, upright, per_metre, first_bin, first_edge, clear, edges)


@kernel
def inside_ring(rings: Rings, p: int, x: float, y: float) -> bool:
    """Whether the point lies strictly inside ring p."""
    if not (rings.bounds[p, 0] < x < rings.bounds[p, 2] and rings.bounds[p, 1] < y < rings.bounds[p, 3]):
        return False
    across, along, low = (x, y, rings.bounds[p, 1]) if rings.upright[p] else (y, x, rings.bounds[p, 0])
    first = rings.first_bin[p]
    k = first + bin_of(along, low, rings.per_metre[p], rings.first_bin[p + 1] - first)
    if rings.clear[k, 1] < across < rings.clear[k, 2]:
        return True
    if not rings.clear[k, 0] <= across <= rings.clear[k, 3]:
        return False
    return inside_bin(rings.edges, rings.first_edge[k], rings.first_edge[k + 1], across, along)
