"""Compiled predicates against shapely's, at boundaries and at random."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from nemo_mtdrive.pdm.geometry import (
    bearing,
    box_corners,
    boxes_overlap,
    progress_along,
    segment_meets_box,
)


def random_boxes(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return box_corners(generator.uniform(-4.0, 4.0, (count, 2)), generator.uniform(-4.0, 4.0, count),
                       generator.uniform(0.3, 6.0, count), generator.uniform(0.3, 3.0, count))


def test_touching_boxes_overlap() -> None:
    first = box_corners(np.zeros(2), np.array(0.0), 4.0, 2.0)
    assert boxes_overlap(first, box_corners(np.array([4.0, 0.0]), np.array(0.0), 4.0, 2.0))
    assert not boxes_overlap(first, box_corners(np.array([4.0 + 1e-9, 0.0]), np.array(0.0), 4.0, 2.0))


def test_overlaps_equal_shapely() -> None:
    first, second = random_boxes(2000, 1), random_boxes(2000, 2)
    wanted = shapely.intersects(shapely.polygons(first), shapely.polygons(second))
    assert [boxes_overlap(a, b) for a, b in zip(first, second, strict=True)] == wanted.tolist()
    assert 200 < wanted.sum() < 1800


def test_segments_equal_shapely() -> None:
    boxes, others = random_boxes(2000, 3), random_boxes(2000, 4)
    segments = others[:, [0, 3]]
    wanted = shapely.intersects(shapely.linestrings(segments), shapely.polygons(boxes))
    assert [segment_meets_box(a, b) for a, b in zip(segments, boxes, strict=True)] == wanted.tolist()
    assert 100 < wanted.sum() < 1900


def test_progress_equals_shapely() -> None:
    generator = np.random.default_rng(5)
    line = np.cumsum(generator.uniform(-1.0, 3.0, (40, 2)), axis=0)
    line[20] = line[19]  # joints of lanes repeat a vertex
    string = shapely.LineString(line)
    for point in generator.uniform(-10.0, 60.0, (200, 2)):
        assert progress_along(line, *point) == pytest.approx(string.project(shapely.Point(point)), abs=1e-9)


def test_bearing() -> None:
    assert bearing(0.0, 0.0, 0.0, 5.0, 0.0) == 0.0
    assert bearing(0.0, 0.0, np.pi / 2, -1.0, 0.0) == pytest.approx(np.pi / 2)
    assert bearing(0.0, 0.0, 0.3, -np.cos(0.3), -np.sin(0.3)) == pytest.approx(np.pi)
    assert np.isnan(bearing(1.0, 1.0, 0.0, 1.0, 1.0))
