"""In which order upright things are painted so that near ones cover far ones, also where a long one stands beside a
short one: of two disjoint convex footprints, the one on the eye's side of a line that parts them lies in front.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.scene import Array

LONG_M = 2.0
"""Footprints that reach less far than this are ordered by distance alone among each other."""
_TOUCH_M = 0.05


@dataclass(frozen=True)
class Item:
    """A thing to paint: its footprint [4, 2] counter-clockwise in the ego frame, and how."""

    footprint: Array
    paint: Callable[[], None]


def spot(point: Array, radius: float = 0.25) -> Array:
    """The footprint [4, 2] of something thin at a point [>=2]."""
    x, y = float(point[0]), float(point[1])
    return np.array([[x + radius, y - radius], [x + radius, y + radius], [x - radius, y + radius], [x - radius, y - radius]])


def paint_order(footprints: Array, eye: Array) -> list[int]:
    """Indices of footprints [n, 4, 2], those to be painted first in front; `eye` [2]. Equal inputs, equal order."""
    count = len(footprints)
    if count == 0:
        return []
    distance = np.sqrt(((footprints.mean(1) - eye) ** 2).sum(1))
    reach = np.sqrt(((footprints - footprints.mean(1, keepdims=True)) ** 2).sum(2)).max(1)
    before = _behind(footprints, eye, np.flatnonzero(reach > LONG_M))
    before &= _overlaps(footprints, eye)
    # Kahn's algorithm, the farthest first among what is free
    waiting = before.sum(0).astype(int).tolist()
    heap = [(-distance[i], i) for i in range(count) if waiting[i] == 0]
    heapq.heapify(heap)
    left = set(range(count))
    order: list[int] = []
    while left:
        if not heap:
            # a ring of things each before the next (or boxes that cut each other): the farthest goes
            farthest = max(left, key=lambda i: (distance[i], -i))
            heapq.heappush(heap, (-distance[farthest], farthest))
        _, index = heapq.heappop(heap)
        if index not in left:
            continue
        left.discard(index)
        order.append(index)
        for other in np.flatnonzero(before[index]).tolist():
            waiting[other] -= 1
            if waiting[other] == 0 and other in left:
                heapq.heappush(heap, (-distance[other], other))
    return order


def _behind(footprints: Array, eye: Array, long: np.ndarray) -> np.ndarray:
    """[n, n] bool: i lies behind j. Known for pairs of which one is long; smaller pairs are left to the distance."""
    count = len(footprints)
    behind = np.zeros((count, count), dtype=bool)
    if not len(long):
        return behind
    start = footprints[long]
    edge = np.roll(start, -1, axis=1) - start
    outward = np.stack([edge[..., 1], -edge[..., 0]], axis=-1)
    outward /= np.maximum(np.sqrt((outward**2).sum(-1, keepdims=True)), 1e-9)
    level = (outward * start).sum(-1)
    # [long, edge, n]: every corner of n is beyond the edge
    beyond = (np.einsum("led,npd->lenp", outward, footprints) - level[:, :, None, None]).min(3) > -_TOUCH_M
    eye_beyond = (outward @ eye - level) > 0.0
    in_front = (beyond & eye_beyond[:, :, None]).any(1)
    hidden = (beyond & ~eye_beyond[:, :, None]).any(1) & ~in_front
    in_front[np.arange(len(long)), long] = False
    hidden[np.arange(len(long)), long] = False
    behind[long] |= in_front
    behind.T[long] |= hidden
    # what one says is final: a pair that both call "behind" is told by the distance
    both = behind & behind.T
    behind[both] = False
    return behind


def _overlaps(footprints: Array, eye: Array) -> np.ndarray:
    """[n, n] bool: seen from the eye, the footprints' bearings overlap."""
    off = footprints - eye
    bearing = np.arctan2(off[..., 1], off[..., 0])
    middle = bearing[:, :1]
    bearing = middle + np.remainder(bearing - middle + np.pi, 2 * np.pi) - np.pi
    low, high = bearing.min(1), bearing.max(1)
    apart = np.remainder((low + high)[:, None] / 2 - (low + high)[None] / 2 + np.pi, 2 * np.pi) - np.pi
    overlap: np.ndarray = np.abs(apart) < ((high - low)[:, None] + (high - low)[None]) / 2 + 0.01
    return overlap
