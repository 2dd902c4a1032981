"""The camera: projection by hand, deterministic bytes, and that what matters can be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_mtdrive.driving.camera import front_camera, project, render
from nemo_mtdrive.driving.rendering.bodies import is_braking
from nemo_mtdrive.driving.scene import Scene, Track, TrafficLight, to_map_frame

WIDTH, HEIGHT = 224, 112


def track_ahead(scene: Scene, kind: str, size: tuple[float, float, float], at: tuple[float, float, float],
                speeds: tuple[float, float]) -> Track:
    """A track at a pose of the ego frame; speeds [m/s] at t = 0 and from 0.5 s on."""
    x, y, heading = to_map_frame(np.array(at), scene.ego.rear_axle_pose).tolist()
    speed = np.array([speeds[0]] + [speeds[1]] * 10)
    rows = [[0.5 * k, x, y, heading, v * np.cos(heading), v * np.sin(heading)] for k, v in enumerate(speed)]
    return Track("probe", kind, np.array(size), np.array(rows))


def test_full_size_is_cam_f0() -> None:
    camera = front_camera(1920, 1080, "x.png")
    pixels, depth = project(np.array([[1.65 + 10.0, 0.0, 1.55], [1.65 + 10.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), camera)
    np.testing.assert_allclose(pixels[0], [960.0, 560.0])
    np.testing.assert_allclose(pixels[1], [960.0 - 1545.0 * 0.2, 560.0 + 1545.0 * 0.155])
    np.testing.assert_allclose(depth, [10.0, 10.0, -1.65])
    assert np.isnan(pixels[2]).all()


def test_other_sizes_are_crops_of_the_scaled_picture() -> None:
    points = np.array([[20.0, 3.0, 0.0], [8.0, -1.0, 1.0], [50.0, 10.0, 4.0]])
    full, _ = project(points, front_camera(1920, 1080, ""))
    small, _ = project(points, front_camera(WIDTH, HEIGHT, ""))
    scale = WIDTH / 1920
    cropped = 1080 * scale - HEIGHT
    np.testing.assert_allclose(small, full * scale - [0.0, cropped])
    on_ground, _ = project(points[:1, :2], front_camera(1920, 1080, ""))
    np.testing.assert_allclose(on_ground, full[:1])


def test_projection_matches_the_picture(scenes: list[Scene]) -> None:
    scene = replace(scenes[0], tracks=(), traffic_lights=())
    box = replace(scene, tracks=(track_ahead(scene, "vehicle", (4.5, 1.9, 1.5), (25.0, 1.0, 0.0), (5.0, 5.0)),))
    changed = np.argwhere((render(scene, WIDTH, HEIGHT) != render(box, WIDTH, HEIGHT)).any(-1))
    rear = np.array([[22.75, 1.95, 0.0], [22.75, 0.05, 0.0], [22.75, 1.95, 1.5]])
    pixels, _ = project(rear, front_camera(WIDTH, HEIGHT, ""))
    low, high = changed.min(0), changed.max(0)
    assert low[1] == pytest.approx(pixels[0, 0], abs=2.0) and high[1] == pytest.approx(pixels[1, 0], abs=2.0)
    # the roof lies further away than the rear bumper, so it stands a little lower in the picture
    assert high[0] == pytest.approx(pixels[0, 1], abs=2.0) and low[0] == pytest.approx(pixels[2, 1], abs=2.5)


def test_bytes_are_deterministic_and_differ_between_scenes(scenes: list[Scene]) -> None:
    pictures = [render(scene, WIDTH, HEIGHT) for scene in scenes]
    for scene, picture in zip(scenes[:8], pictures, strict=False):
        assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
        assert render(scene, WIDTH, HEIGHT).tobytes() == picture.tobytes()
    assert len({picture.tobytes() for picture in pictures}) == len(scenes)


@pytest.mark.parametrize("size", [(224, 112), (448, 252), (952, 532), (1932, 1092)])
def test_sizes(scenes: list[Scene], size: tuple[int, int]) -> None:
    picture = render(scenes[1], *size)
    assert picture.shape == (size[1], size[0], 3)
    assert len(np.unique(picture[::4, ::4].reshape(-1, 3), axis=0)) > 100


def test_brake_lights(scenes: list[Scene]) -> None:
    scene = replace(scenes[0], tracks=(), traffic_lights=())
    rolling, braking, stopped = (
        track_ahead(scene, "vehicle", (4.5, 1.9, 1.5), (18.0, 0.0, 0.0), speeds)
        for speeds in ((8.0, 8.0), (8.0, 6.5), (0.0, 0.0)))
    assert [is_braking(track) for track in (rolling, braking, stopped)] == [False, True, True]
    dark, lit = (render(replace(scene, tracks=(track,)), WIDTH, HEIGHT).astype(int) for track in (rolling, braking))
    red = [(p[..., 0] > 200) & (p[..., 1] < 120) & (p[..., 2] < 120) for p in (dark, lit)]
    assert red[0].sum() == 0 and red[1].sum() >= 8


@pytest.mark.parametrize("kind, size, far", [("pedestrian", (0.6, 0.6, 1.7), 30.0), ("bicycle", (1.8, 0.6, 1.7), 30.0),
                                             ("traffic_cone", (0.4, 0.4, 0.8), 20.0),
                                             ("barrier", (1.5, 0.4, 1.0), 20.0),
                                             ("generic_object", (0.8, 0.8, 1.0), 20.0)])
def test_objects_can_be_seen(scenes: list[Scene], kind: str, size: tuple[float, float, float], far: float) -> None:
    scene = replace(scenes[0], tracks=(), traffic_lights=())
    there = replace(scene, tracks=(track_ahead(scene, kind, size, (far, 0.5, 1.0), (0.0, 0.0)),))
    behind = replace(scene, tracks=(track_ahead(scene, kind, size, (-far, 0.5, 1.0), (0.0, 0.0)),))
    empty = render(scene, WIDTH, HEIGHT)
    assert (render(there, WIDTH, HEIGHT) != empty).any(-1).sum() >= 12
    assert render(behind, WIDTH, HEIGHT).tobytes() == empty.tobytes()


def test_lights_change_colour(scenes: list[Scene]) -> None:
    scene = next(s for s in scenes if s.traffic_lights and s.kind.startswith("crossing"))
    scene = replace(scene, tracks=())
    red, green = (render(replace(scene, traffic_lights=tuple(TrafficLight(t.lane_connector_id, state)
                                                             for t in scene.traffic_lights)), WIDTH, HEIGHT)
                  for state in (True, False))
    assert (red != green).any(-1).sum() >= 4


def test_a_camera_needs_a_size() -> None:
    with pytest.raises(ValueError, match="0 x 112"):
        front_camera(0, 112, "")
