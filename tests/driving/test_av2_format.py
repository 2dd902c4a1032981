"""The Argoverse 2 reader on a small log written here in the data set's own format."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Scene, SceneError, check_scene
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from tests.driving.av2_log import NAME, SLOPE, SPEED_MPS, START, write_log


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SceneSource:
    root = tmp_path_factory.mktemp("av2")
    write_log(root)
    return open_scenes(f"av2://{root}", 224, 112)


@pytest.fixture(scope="module")
def scene(source: SceneSource) -> Scene:
    return source.load(source.ids()[0])


def test_windows(source: SceneSource) -> None:
    assert list(source.ids()) == [f"{NAME[:8]}-{frame:03d}" for frame in (20, 25, 30, 35)]
    for name in source.ids():
        check_scene(source.load(name))


def test_ego_and_its_way(scene: Scene) -> None:
    np.testing.assert_allclose(scene.ego.rear_axle_pose, [START[0] + 2.0 * SPEED_MPS, START[1], 0.0])
    np.testing.assert_allclose(scene.ego.velocity, [SPEED_MPS, 0.0], atol=1e-9)
    np.testing.assert_allclose(scene.future[:, 0], 0.5 * SPEED_MPS * np.arange(1, 9))
    np.testing.assert_allclose(scene.history[:, 0], 0.5 * SPEED_MPS * np.arange(-3, 1), atol=1e-12)
    assert scene.command == "GO STRAIGHT" and scene.kind == "av2/moving"
    assert scene.ego.vehicle.length == pytest.approx(4.869)


def test_tracks_are_in_the_map_frame(scene: Scene) -> None:
    tracks = {track.token: track for track in scene.tracks}
    assert {token: track.type for token, track in tracks.items()} == {
        "car": "vehicle", "walker": "pedestrian", "cone": "traffic_cone"}
    car = tracks["car"].states
    np.testing.assert_allclose(car[:, 0], 0.5 * np.arange(11))
    np.testing.assert_allclose(car[0, 1:3], (START[0] + 10.0 + 20.0, START[1]))
    np.testing.assert_allclose(car[:, 4], SPEED_MPS)
    assert len(tracks["walker"].states) == 4, "annotated until frame 39 alone: t = 0 .. 1.5 s"


def test_map_and_route(scene: Scene) -> None:
    blocks = {block.id: block for block in scene.map.roadblocks}
    assert {name: block.lane_ids for name, block in blocks.items()} == {"block2": ("2", "1"), "block4": ("4", "3")}
    assert scene.route_roadblock_ids == ("block2", "block4")
    assert [area.id for area in scene.map.carparks] == ["drivable0"]


def test_ground_climbs(scene: Scene, source: SceneSource, tmp_path: Path) -> None:
    ground = scene.extra["ground"]
    heights, (x, _), step = np.array(ground["heights"]), ground["origin"], ground["step"]
    at = x + step * np.arange(heights.shape[1])
    np.testing.assert_allclose(heights[10], SLOPE * (at - START[0]), atol=0.06)
    assert np.isfinite(heights).all(), "holes take the nearest height"
    flat = write_log(tmp_path)
    (next((flat / "map").glob("*.npy"))).unlink()
    level = open_scenes(f"av2://{tmp_path}", 224, 112)
    assert "ground" not in level.load(level.ids()[0]).extra
    assert source.image(source.ids()[0]).tobytes() != level.image(level.ids()[0]).tobytes()


def test_a_log_that_is_not_whole_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_log(tmp_path)
    broken = tmp_path / "broken"
    whole.rename(broken)
    write_log(tmp_path)
    (next((broken / "map").glob("log_map*"))).unlink()
    with caplog.at_level(logging.WARNING):
        opened = open_scenes(f"av2://{tmp_path}", 224, 112)
    assert len(opened.ids()) == 4 and "no log_map_archive" in opened.skipped["broken"]
    assert "log skipped" in caplog.text
    with pytest.raises(SceneError, match="no log_map_archive"):
        open_scenes(f"av2://{broken}", 224, 112)
    (next((broken / "map").glob("*Sim2*"))).unlink()
    for name in ("city_SE3_egovehicle.feather", "annotations_with_ego.feather"):
        (broken / name).write_bytes(b"no feather")
        with pytest.raises(SceneError, match=name):
            open_scenes(f"av2://{broken}", 224, 112)
        (broken / name).write_bytes((tmp_path / NAME / name).read_bytes())


def test_a_log_that_is_too_short_has_no_window(tmp_path: Path) -> None:
    write_log(tmp_path, frames=40)
    with pytest.raises(SceneError, match="no window"):
        open_scenes(f"av2://{tmp_path}", 224, 112)
