"""Argoverse 2 logs: the anchors known of the four logs at hand."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.generator.checks import inside
from nemo_mtdrive.driving.scene import TRACK_TYPES, Scene, load_scene, save_scene, to_map_frame
from nemo_mtdrive.driving.sources.av2 import AV2Scenes
from nemo_mtdrive.driving.trajectory import box_corners, boxes_overlap, dense, interpolate_poses


@pytest.fixture(scope="module")
def source(shared_dir: Path) -> AV2Scenes:
    return AV2Scenes(str(shared_dir / "data" / "av2" / "logs"), 0, 224, 112)


@pytest.fixture(scope="module")
def windows(source: AV2Scenes) -> list[Scene]:
    return [source.load(name) for name in source.ids()]


def test_windows_and_commands(windows: list[Scene]) -> None:
    assert len(windows) == 80 and len({scene.scene_id for scene in windows}) == 80
    assert Counter(scene.command for scene in windows) == {"GO STRAIGHT": 55, "TURN LEFT": 14, "TURN RIGHT": 11}
    assert sum(scene.kind == "av2/moving" for scene in windows) == 65


def test_vehicle(windows: list[Scene]) -> None:
    vehicle = windows[0].ego.vehicle
    assert (vehicle.length, vehicle.width, vehicle.height) == pytest.approx((4.869, 2.127, 1.476))
    assert vehicle.rear_axle_to_center == pytest.approx(1.339)


def test_recorded_ego_stays_on_the_road_and_clear(windows: list[Scene]) -> None:
    times = 0.1 * np.arange(41)
    for scene in windows:
        vehicle = scene.ego.vehicle
        assert scene.future is not None
        poses = to_map_frame(dense(scene.future, 0.1), scene.ego.rear_axle_pose)
        corners = box_corners(poses, vehicle.length, vehicle.width, vehicle.rear_axle_to_center)
        assert inside(scene.map, corners[::5].reshape(-1, 2)).all(), scene.scene_id
        for track in scene.tracks:
            if np.hypot(*(track.states[:, 1:3] - scene.ego.rear_axle_pose[:2]).T).min() > 70.0:
                continue
            annotated = (times >= track.states[0, 0] - 1e-6) & (times <= track.states[-1, 0] + 1e-6)
            if len(track.states) > 1:
                others = box_corners(interpolate_poses(track.states[:, 0], track.states[:, 1:4], times),
                                     track.size[0], track.size[1], 0.0)
                assert not (boxes_overlap(corners, others) & annotated).any(), (scene.scene_id, track.token)


def test_drivable_area_is_av2s(windows: list[Scene]) -> None:
    scene_map = windows[0].map
    only_av2 = type(scene_map)((), (), (), scene_map.carparks)
    points = np.random.default_rng(0).uniform(-80.0, 80.0, (4000, 2)) + windows[0].ego.rear_axle_pose[:2]
    differ = inside(scene_map, points) != inside(only_av2, points)
    assert inside(only_av2, points).sum() > 300 and differ.sum() == 0


def test_history_future_and_motion(windows: list[Scene]) -> None:
    for scene in windows:
        assert scene.history is not None and scene.history.shape == (4, 3)
        assert scene.future is not None and scene.future.shape == (8, 3)
        assert scene.future[0, 0] == pytest.approx(0.5 * scene.ego.velocity[0], abs=0.6)
        assert abs(scene.ego.velocity[1]) < 0.6


def test_tracks(windows: list[Scene]) -> None:
    for scene in windows:
        assert all(track.type in TRACK_TYPES for track in scene.tracks)
        vehicle = scene.ego.vehicle
        body = box_corners(scene.ego.rear_axle_pose[None], vehicle.length, vehicle.width, vehicle.rear_axle_to_center)
        assert 50 < len(scene.tracks) < 140
        for track in scene.tracks:
            steps = track.states[:, 0] / 0.5
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
            assert track.states[0, 0] >= 0.0 and track.states[-1, 0] <= 5.0
            if track.states[0, 0] == 0.0:  # nobody stands where the ego is: its own annotation is left out
                assert not boxes_overlap(body, box_corners(track.states[:1, 1:4], track.size[0], track.size[1], 0.0))[0]
    last = [scene for scene in windows if scene.scene_id.endswith("-115")]
    assert last and all(track.states[-1, 0] <= 4.0 for scene in last for track in scene.tracks)


def test_routes_follow_the_lane_graph(windows: list[Scene]) -> None:
    joined = total = 0
    for scene in windows:
        blocks = {block.id: block for block in scene.map.roadblocks}
        assert len(scene.route_roadblock_ids) >= 2
        for before, after in pairwise(scene.route_roadblock_ids):
            joined += after in blocks[before].outgoing
            total += 1
    assert joined / total > 0.95


def test_pictures_and_files(source: AV2Scenes, tmp_path: Path) -> None:
    first, later = source.ids()[0], source.ids()[45]
    assert source.image(first).shape == (112, 224, 3)
    assert source.image(first).tobytes() != source.image(later).tobytes()
    scene = source.load(first)
    save_scene(scene, tmp_path / "a.json")
    loaded = load_scene(tmp_path / "a.json")
    assert loaded.licence.startswith("CC BY-NC-SA") and loaded.drivable and len(loaded.tracks) == len(scene.tracks)
