"""The view from above and the sheet of a scene: where things lie, and in which colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.bird_eye import BODIES, EGO, GREEN, HUMAN, INK, PLANNED, RED, draw
from nemo_mtdrive.driving.camera import front_camera, project
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sheet import WIDTH_PX, scene_sheet, with_trajectories
from nemo_mtdrive.driving.trajectory import constant_velocity
from tests.driving.drawing import empty_road, track_ahead

SIZE, METRES = 400, 80.0


def at(picture: NDArray[np.uint8], x: float, y: float) -> tuple[int, ...]:
    """The colour at an ego-frame point."""
    scale = SIZE / METRES
    return tuple(picture[round(SIZE * 0.72 - x * scale), round(SIZE / 2 - y * scale)].tolist())


def like(colour: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 40


def has(picture: NDArray[np.uint8], wanted: tuple[int, ...]) -> int:
    return int((np.abs(picture.astype(int) - wanted).max(-1) < 12).sum())


def test_everything_lies_where_it_is() -> None:
    scene = empty_road()
    tracks = (track_ahead(scene, "vehicle", (4.6, 2.0, 1.5), (20.0, 6.0, 0.0), token="a"),
              track_ahead(scene, "barrier", (3.0, 2.0, 1.0), (12.0, -6.0, 0.0), token="b"))
    future = np.column_stack([np.arange(1, 9) * 3.0, np.zeros(8), np.zeros(8)])
    picture = draw(replace(scene, tracks=tracks, future=future), None, SIZE, METRES)
    assert picture.shape == (SIZE, SIZE, 3)
    assert like(at(picture, 19.5, 6.0), BODIES["vehicle"])
    assert like(at(picture, 12.0, -6.0), BODIES["barrier"])
    assert like(at(picture, 0.0, 0.0), EGO)
    assert like(at(picture, 9.0, 0.0), HUMAN)
    assert draw(scene, None, (300, 200), METRES).shape == (200, 300, 3)


def test_a_stop_line_has_the_colour_of_its_light() -> None:
    dark = draw(empty_road(), None, SIZE, METRES)
    red = draw(empty_road([("straight", True), ("left", True)]), None, SIZE, METRES)
    both = draw(empty_road([("straight", False), ("left", True)]), None, SIZE, METRES)
    assert has(dark, RED) == has(dark, GREEN) == 0
    assert has(red, RED) > 15 and has(red, GREEN) == 0
    assert has(both, RED) > 8 and has(both, GREEN) > 8


def test_each_trajectory_has_its_colour() -> None:
    scene = empty_road()
    left = np.column_stack([np.arange(1, 9) * 3.0, np.arange(1, 9) * 1.0, np.zeros(8)])
    one = draw(scene, left, SIZE, METRES)
    two = draw(scene, [left, left * [1.0, -1.0, 1.0]], SIZE, METRES)
    assert like(at(one, 12.0, 4.0), PLANNED[0]) and not like(at(one, 12.0, -4.0), PLANNED[1])
    assert like(at(two, 12.0, 4.0), PLANNED[0]) and like(at(two, 12.0, -4.0), PLANNED[1])


def test_the_bar_tells_the_scale() -> None:
    picture = draw(empty_road(), None, SIZE, METRES)
    lowest = picture[SIZE - 40 :, : SIZE // 3].astype(int)
    columns = np.flatnonzero((np.abs(lowest - INK).max(-1) < 25).sum(0) >= 1)
    assert 48 <= columns.max() - columns.min() <= 54, "10 m at 5 px a metre"


def test_a_trajectory_on_the_front_picture_lies_on_the_ground_ahead() -> None:
    scene, camera = empty_road(), front_camera(640, 360, "")
    grey = np.full((360, 640, 3), 128, dtype=np.uint8)
    drawn = with_trajectories(grey, camera, scene, [(constant_velocity(scene), HUMAN)])
    changed = (drawn != grey).any(-1)
    pixels, _ = project(np.array([[10.0, 0.0], [10.0, 3.0]]), camera)
    (u, v), (far_u, far_v) = np.round(pixels).astype(int).tolist()
    assert changed[v, u] and not changed[far_v, far_u] and not changed[: int(camera.intrinsics[1, 2])].any()
    assert (grey == 128).all(), "the picture given stays as it was"


def test_the_sheet_shows_the_stored_picture(scenes: list[Scene]) -> None:
    scene = scenes[0]
    small = np.full((112, 224, 3), (250, 10, 250), dtype=np.uint8)
    large = np.full((504, 896, 3), (250, 10, 250), dtype=np.uint8)
    with_small = scene_sheet(scene, small)
    assert with_small.shape[1] == WIDTH_PX and 10_000 < has(with_small, (250, 10, 250)) <= 224 * 112
    with_large = scene_sheet(replace(scene, camera=front_camera(896, 504, "x.png")), large)
    assert has(with_large, (250, 10, 250)) > 250_000
