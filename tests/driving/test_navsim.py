"""The NAVSIM reader over a log in OpenScene's format and a stand-in for its package (see `navsim_stand_in`)."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import SceneError, check_scene
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from tests.driving.navsim_stand_in import LOG, SPEED_MPS, START, install, write_data

FIRST = f"{LOG}-{3:016x}"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SceneSource:
    write_data(tmp_path)
    install(monkeypatch)
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path))
    return open_scenes(f"navsim://{tmp_path}?split=mini")


def test_scenes_of_a_log(source: SceneSource) -> None:
    assert list(source.ids()) == [f"{LOG}-{k:016x}" for k in range(3, 8)]
    commands = [source.load(name).command for name in source.ids()]
    assert commands == ["GO STRAIGHT", "TURN LEFT", "GO STRAIGHT", "TURN RIGHT", "GO STRAIGHT"], "unknown drives on"
    for name in source.ids():
        check_scene(source.load(name))
    with pytest.raises(KeyError):
        source.load("none")


def test_frames_are_turned_as_navsim_turns_them(source: SceneSource) -> None:
    scene = source.load(FIRST)
    here = START + np.array([0.0, 1.5 * SPEED_MPS])
    np.testing.assert_allclose(scene.ego.rear_axle_pose, [*here, np.pi / 2], atol=1e-6)
    np.testing.assert_allclose(scene.ego.velocity, [SPEED_MPS, 0.0])
    np.testing.assert_allclose(scene.ego.acceleration, [0.25, 0.0])
    assert scene.history is not None and scene.future is not None
    np.testing.assert_allclose(scene.history, np.column_stack([[-9.0, -6, -3, 0], np.zeros(4), np.zeros(4)]), atol=1e-5)
    np.testing.assert_allclose(scene.future[:, 0], 3.0 * np.arange(1, 9), atol=1e-5)
    car, cone = scene.tracks
    np.testing.assert_allclose(car.states[:, 0], 0.5 * np.arange(11))
    np.testing.assert_allclose(car.states[0, 1:], [here[0], here[1] + 15.0, np.pi / 2, -1.0, SPEED_MPS], atol=1e-6)
    np.testing.assert_allclose(car.states[4, 1:3], [here[0], here[1] + 15.0 + 2.0 * SPEED_MPS], atol=1e-6)
    np.testing.assert_allclose(cone.states[0, 1:3], [here[0] - 3.0, here[1] + 8.0], atol=1e-6)
    assert not cone.states[:, 4:].any() and cone.type == "traffic_cone", "what is no agent stands"


def test_map_route_and_lights(source: SceneSource) -> None:
    scene = source.load(FIRST)
    assert [(block.id, block.kind) for block in scene.map.roadblocks] == [
        ("10", "roadblock"), ("11", "roadblock_connector"), ("12", "roadblock")], "the route's far end is there too"
    assert scene.route_roadblock_ids == ("10", "11", "12")
    lanes = {lane.id: lane for lane in scene.map.lanes}
    assert lanes["101"].outgoing == ("111",) and lanes["111"].kind == "lane_connector" and lanes["121"].roadblock_id == "12"
    assert lanes["101"].speed_limit_mps == 13.4
    assert [(light.lane_connector_id, light.is_red) for light in scene.traffic_lights] == [("111", True)]
    assert len(scene.map.intersections) == 1, "its crossed ring was repaired"


def test_pictures_are_the_cameras(source: SceneSource, tmp_path: Path) -> None:
    picture = source.image(FIRST)
    assert picture.shape == (1080, 1920, 3) and abs(picture[..., 2].mean() - 30.0) < 3 and picture[..., 0].min() > 245
    small = open_scenes(f"navsim://{tmp_path}", 448, 252)
    assert small.image(FIRST).shape == (252, 448, 3)
    camera = small.load(FIRST).camera
    assert camera is not None and (camera.width, camera.height) == (448, 252)
    np.testing.assert_allclose(camera.intrinsics, [[1545 * 448 / 1920, 0, 224], [0, 1545 * 252 / 1080, 560 * 252 / 1080],
                                                   [0, 0, 1]])
    (tmp_path / "sensor_blobs" / "mini" / LOG / "CAM_F0" / "0004.jpg").unlink()
    with pytest.raises(SceneError, match="download the split's sensor blobs"):
        source.image(f"{LOG}-{4:016x}")


def test_filters(source: SceneSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(open_scenes(f"navsim://{tmp_path}?count=2").ids()) == 2
    (tmp_path / "tokens.txt").write_text(f"{5:016x}\n{6:016x}\n")
    assert len(open_scenes(f"navsim://{tmp_path}?tokens={tmp_path / 'tokens.txt'}").ids()) == 2
    (tmp_path / "logs.txt").write_text("another log\n")
    with pytest.raises(SceneError, match="no scene passes the filter"):
        open_scenes(f"navsim://{tmp_path}?logs={tmp_path / 'logs.txt'}")
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tmp_path))
    assert len(open_scenes("navsim://").ids()) == 5


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT"):
        monkeypatch.delenv(name, raising=False)
    write_data(tmp_path)
    for address, said in (("navsim://", "OPENSCENE_DATA_ROOT=''"), (f"navsim://{tmp_path}?split=test", "navsim_logs/test"),
                          (f"navsim://{tmp_path}", "NUPLAN_MAPS_ROOT=''"),
                          (f"navsim://{tmp_path}?speed=1", "unknown parameter")):
        with pytest.raises(SceneError) as caught:
            open_scenes(address)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path))
    monkeypatch.setitem(sys.modules, "navsim", None)
    with pytest.raises(SceneError, match=r"cannot be imported .*install it from its source repository"):
        open_scenes(f"navsim://{tmp_path}")


def test_the_other_package_of_that_name_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path))
    site = tmp_path / "site" / "navsim"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("# what PyPI calls navsim\n")
    monkeypatch.syspath_prepend(str(site.parent))
    for name in [name for name in sys.modules if name.split(".")[0] == "navsim"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SceneError, match=r"is not NAVSIM the benchmark: .*uninstall it and install it from its source"):
        open_scenes(f"navsim://{tmp_path}")
    assert isinstance(sys.modules.pop("navsim"), types.ModuleType)
