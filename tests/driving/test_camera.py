"""The cameras: projection by hand, deterministic bytes, sizes, and the strip of three."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nemo_mtdrive.driving.camera import camera_of, front_camera, on_ground, project, render, render_strip
from nemo_mtdrive.driving.scene import Scene
from tests.driving.drawing import HEIGHT, WIDTH, empty_road, track_ahead


def test_full_size_is_cam_f0() -> None:
    camera = front_camera(1920, 1080, "x.png")
    pixels, depth = project(np.array([[1.65 + 10.0, 0.0, 1.55], [1.65 + 10.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), camera)
    np.testing.assert_allclose(pixels[0], [960.0, 560.0])
    np.testing.assert_allclose(pixels[1], [960.0 - 1545.0 * 0.2, 560.0 + 1545.0 * 0.155])
    np.testing.assert_allclose(depth, [10.0, 10.0, -1.65])
    assert np.isnan(pixels[2]).all()


def test_side_cameras_look_aside() -> None:
    yaw = np.radians(55.0)
    for name, sign in (("left", 1.0), ("right", -1.0)):
        camera = camera_of(name, 1920, 1080)
        rotation = camera.extrinsics[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
        middle = camera.extrinsics[:3, 3] + 20.0 * np.array([np.cos(yaw), sign * np.sin(yaw), 0.0])
        pixels, depth = project(middle[None], camera)
        np.testing.assert_allclose(pixels[0], [960.0, 560.0], atol=1e-9)
        assert depth[0] == pytest.approx(20.0)
        # what lies further ahead is nearer to the front picture
        ahead, _ = project(middle[None] + [[1.0, 0.0, 0.0]], camera)
        assert (ahead[0, 0] - 960.0) * sign > 0.0


def test_other_sizes_are_crops_of_the_scaled_picture() -> None:
    points = np.array([[20.0, 3.0, 0.0], [8.0, -1.0, 1.0], [50.0, 10.0, 4.0]])
    full, _ = project(points, front_camera(1920, 1080, ""))
    small, _ = project(points, front_camera(WIDTH, HEIGHT, ""))
    scale = WIDTH / 1920
    cropped = 1080 * scale - HEIGHT
    np.testing.assert_allclose(small, full * scale - [0.0, cropped])
    on_flat_ground, _ = project(points[:1, :2], front_camera(1920, 1080, ""))
    np.testing.assert_allclose(on_flat_ground, full[:1])


@pytest.mark.parametrize("name, place", [("front", (25.0, 1.0)), ("left", (5.0, 4.2)), ("right", (5.0, -4.2))])
def test_projection_matches_the_picture(name: str, place: tuple[float, float]) -> None:
    # under clouds nothing throws a long shadow
    scene = replace(empty_road(), extra={"appearance": {"weather": "cloudy"}})
    box = replace(scene, tracks=(track_ahead(scene, "traffic_cone", (0.4, 0.4, 1.6), (*place, 0.0)),))
    changed = np.argwhere((render(scene, 448, 252, name) != render(box, 448, 252, name)).any(-1))
    pixels, _ = project(np.array([[*place, 0.0], [*place, 1.6]]), camera_of(name, 448, 252))
    low, high = changed.min(0), changed.max(0)
    # the foot is 0.4 m wide, and its shadow a little wider
    metre = pixels[0, 1] - pixels[1, 1]
    assert (low[1] + high[1]) / 2 == pytest.approx(pixels[:, 0].mean(), abs=1.0 + 0.1 * metre / 1.6)
    assert high[0] == pytest.approx(pixels[0, 1], abs=2.0 + 0.3 * metre / 1.6)
    assert low[0] == pytest.approx(pixels[1, 1], abs=2.0 + 0.1 * metre / 1.6)


def test_bytes_are_deterministic_and_differ_between_scenes(scenes: list[Scene]) -> None:
    pictures = [render(scene, WIDTH, HEIGHT) for scene in scenes[:14]]
    for scene, picture in zip(scenes[:6], pictures, strict=False):
        assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
        assert render(scene, WIDTH, HEIGHT).tobytes() == picture.tobytes()
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_two_processes_paint_the_same_bytes() -> None:
    program = ("import hashlib; from nemo_mtdrive.driving.generator import MIXTURE, generate; "
               "from nemo_mtdrive.driving.camera import render; picture = render(generate(3, MIXTURE), 640, 360); "
               "print(hashlib.sha256(picture.tobytes()).hexdigest())")
    digests = [subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
                              capture_output=True, text=True).stdout for seed in ("1", "2")]
    assert digests[0] == digests[1] and len(digests[0].strip()) == hashlib.sha256().digest_size * 2


@pytest.mark.parametrize("size", [(224, 112), (448, 252), (952, 532), (1932, 1092)])
def test_sizes(scenes: list[Scene], size: tuple[int, int]) -> None:
    picture = render(scenes[1], *size)
    assert picture.shape == (size[1], size[0], 3)
    assert len(np.unique(picture[::4, ::4].reshape(-1, 3), axis=0)) > 100


def test_the_strip_joins_three_cameras(scenes: list[Scene]) -> None:
    strip = render_strip(scenes[2], 256)
    assert strip.shape == (256, 1024, 3)
    front = render(scenes[2], 480, 270)
    np.testing.assert_array_equal(strip[:, 272:752], front[7:263])


def test_ground_heights_move_what_stands_on_them() -> None:
    scene = empty_road()
    x, y, _ = scene.ego.rear_axle_pose
    step, cells = 2.0, 200
    along = np.arange(cells) * step - 200.0
    # flat under the ego, then a rise of one metre in ten
    heights = np.repeat(np.maximum(0.1 * (along - 15.0), 0.0)[None], cells, axis=0)
    hilly = replace(scene, extra={"ground": {"origin": [x - 200.0, y - 200.0], "step": step, "heights": heights.tolist()}})
    ahead = np.array([[0.0, 0.0], [10.0, 2.0], [45.0, 0.0]])
    np.testing.assert_allclose(on_ground(ahead, scene), np.column_stack([ahead, np.zeros(3)]))
    np.testing.assert_allclose(on_ground(ahead, hilly)[:, 2], [0.0, 0.0, 3.0], atol=1e-6)
    scene, hilly = (replace(s, extra={**s.extra, "appearance": {"weather": "cloudy"}}) for s in (scene, hilly))
    cone = track_ahead(scene, "traffic_cone", (0.4, 0.4, 1.6), (45.0, 0.0, 0.0))
    changed = [np.argwhere((render(s, 448, 252) != render(replace(s, tracks=(cone,)), 448, 252)).any(-1)).mean(0)[0]
               for s in (scene, hilly)]
    assert changed[0] - changed[1] == pytest.approx(3.0 / 43.35 * 1545.0 * 448 / 1920, abs=2.0)


def test_a_camera_needs_a_size_and_a_name() -> None:
    with pytest.raises(ValueError, match="0 x 112"):
        front_camera(0, 112, "")
    with pytest.raises(ValueError, match="'back'.*front, left, right"):
        camera_of("back", 224, 112)
