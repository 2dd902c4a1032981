"""Points in binned rings against shapely, at boundaries and at random."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from nemo_mtdrive.pdm.rings import Rings, inside_ring, make_rings


def closed(ring: np.ndarray) -> np.ndarray:
    return np.vstack([ring, ring[:1]])


def rings_of(*rings: np.ndarray) -> Rings:
    return make_rings([closed(ring) for ring in rings])


def test_points_on_the_ring_are_outside() -> None:
    square = rings_of(np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]]))
    for x, y in ((0.0, 0.0), (2.0, 0.0), (4.0, 2.0), (2.0, 4.0), (0.0, 4.0), (5.0, 4.0), (-1.0, 0.0)):
        assert not inside_ring(square, 0, x, y)
    assert inside_ring(square, 0, 1e-12, 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_inside_equals_shapely_on_ragged_rings(seed: int) -> None:
    generator = np.random.default_rng(seed)
    angles = np.sort(generator.uniform(0.0, 2 * np.pi, 30))
    radii = generator.uniform(1.0, 5.0, 30)
    ring = np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])[:: 1 if seed % 2 else -1]
    points = np.concatenate([generator.uniform(-5.0, 5.0, (400, 2)), ring])
    wanted = shapely.contains_xy(shapely.Polygon(ring), points)
    rings = rings_of(ring)
    assert [inside_ring(rings, 0, x, y) for x, y in points] == wanted.tolist()


def test_inside_equals_shapely_on_long_roads() -> None:
    generator = np.random.default_rng(7)
    along = np.linspace(-100.0, 100.0, 150)
    roads, half = [], np.array([0.0, 3.5])
    for heading in (0.0, 0.01, 0.8, np.pi / 2):
        line = np.column_stack([along, 12.0 * np.sin(along / 30.0)])
        ring = np.concatenate([line + half, line[::-1] - half])
        cos, sin = np.cos(heading), np.sin(heading)
        roads.append(ring @ np.array([[cos, sin], [-sin, cos]]) + [664000.0, 3998000.0])
    rings = rings_of(*roads)
    for number, road in enumerate(roads):
        points = road[generator.integers(0, len(road), 2000)] + generator.normal(0.0, 3.0, (2000, 2))
        points = np.concatenate([points, road, 0.5 * (road[1:] + road[:-1])])
        wanted = shapely.contains_xy(shapely.Polygon(road), points)
        assert [inside_ring(rings, number, x, y) for x, y in points] == wanted.tolist()
        assert 500 < wanted.sum() < 2000


def test_flat_and_empty_rings_hold_nothing() -> None:
    flat = rings_of(np.array([[0.0, 1.0], [5.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 1.0]] * 3))
    assert not any(inside_ring(flat, p, x, 1.0) for p in (0, 1) for x in (0.5, 1.0, 2.0, 3.0))
    assert len(make_rings([]).bounds) == 0
