"""What a scene knows of the place that its picture shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_mtdrive.data.views import AHEAD_M, ASIDE_M, CELL_M, COLUMNS, ROWS, ground, read_views
from nemo_mtdrive.driving.scene import Roadblock, Scene, SceneMap, Track
from nemo_mtdrive.driving.sources import open_scenes


@pytest.fixture(scope="module")
def scene() -> Scene:
    return open_scenes("procedural://?count=1&seed=3", 28, 28).load("p0000003")


def _on(scene: Scene, road: np.ndarray, boxes: list[tuple[float, float]]) -> Scene:
    """The scene with one road, [P, 2] in the ego frame, and standing boxes of 2 x 1 m at points of it."""
    x, y, heading = scene.ego.rear_axle_pose
    turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
    block = Roadblock("r", "roadblock", road @ turn + (x, y), (), (), ())
    tracks = tuple(Track(str(place), "vehicle", np.array([2.0, 1.0, 1.5]),
                         np.array([[0.0, *(np.array(box) @ turn + (x, y)), heading, 0.0, 0.0]]))
                   for place, box in enumerate(boxes))
    return replace(scene, map=SceneMap((block,), (), (), ()), tracks=tracks)


def test_the_grid_covers_the_ground_ahead() -> None:
    assert (AHEAD_M[1] - AHEAD_M[0]) / CELL_M[0] == ROWS
    assert 2 * ASIDE_M / CELL_M[1] == COLUMNS


def test_drivable_and_occupied_cells(scene: Scene) -> None:
    road = np.array([[-20.0, -4.0], [22.0, -4.0], [22.0, 8.0], [-20.0, 8.0]])  # to 22 m ahead, 4 m right, 8 m left
    drivable, occupied = ground(_on(scene, road, [(12.0, 1.0), (32.0, -9.0), (-6.0, 0.0)]))
    wanted = np.zeros((ROWS, COLUMNS), dtype=bool)
    wanted[:5, 6:12] = True
    assert (drivable == wanted).all()
    assert [(int(row), int(column)) for row, column in np.argwhere(occupied)] == [(2, 8), (7, 3)]


def test_an_object_that_appears_later_is_not_there_yet(scene: Scene) -> None:
    one = _on(scene, np.zeros((4, 2)), [(12.0, 1.0)])
    late = replace(one.tracks[0], states=one.tracks[0].states + np.array([0.5, 0, 0, 0, 0, 0]))
    assert not ground(replace(one, tracks=(late,)))[1].any()


def test_views_of_a_source() -> None:
    source = open_scenes("procedural://?count=3&seed=3", 28, 28)
    counted: list[int] = []
    views = read_views(source, source.ids(), counted.append)
    assert views.ids == ["p0000003", "p0000004", "p0000005"]
    assert sum(counted) == 3
    second = source.load("p0000004")
    assert second.future is not None
    np.testing.assert_allclose(views.future[1], second.future, atol=1e-5)
    assert views.ground.shape == (3, 2, ROWS, COLUMNS)
