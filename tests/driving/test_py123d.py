"""The py123d reader: on Arrow logs of py123d's own writers, and what it says where the extra is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import SceneError, check_scene
from nemo_mtdrive.driving.sources import open_scenes

START, SPEED_MPS, PERIOD_US = np.array([5100.0, 2300.0]), 5.0, 100_000


def write_log(root: Path) -> None:
    """Eight seconds eastwards at 5 m/s with a car 20 m ahead, and a map of two lane groups and a car park."""
    from py123d.api.map.arrow.arrow_map_writer import ArrowMapWriter
    from py123d.api.scene.arrow.arrow_log_writer import ArrowLogWriter
    from py123d.api.scene.arrow.utils.log_writer_config import LogWriterConfig
    from py123d.datatypes import (
        BoxDetectionAttributes,
        BoxDetectionSE3,
        BoxDetectionsSE3,
        BoxDetectionsSE3Metadata,
        DefaultBoxDetectionLabel,
        DynamicStateSE3,
        EgoStateSE3,
        EgoStateSE3Metadata,
        LogMetadata,
        MapMetadata,
        Timestamp,
    )
    from py123d.datatypes.map_objects.map_layer_types import LaneType
    from py123d.datatypes.map_objects.map_objects import Carpark, Lane, LaneGroup
    from py123d.geometry import BoundingBoxSE3, Polyline3D, PoseSE3, Vector3D
    from py123d.parser.base_dataset_parser import ModalitiesSync

    def pose(x: float, y: float) -> PoseSE3:
        return PoseSE3(START[0] + x, START[1] + y, 0.0, 1.0, 0.0, 0.0, 0.0)

    def line(*points: tuple[float, float]) -> Polyline3D:
        return Polyline3D.from_array(np.array([[START[0] + x, START[1] + y, 0.0] for x, y in points]))

    map_metadata = MapMetadata("toy", "town", map_has_z=True, map_is_per_log=True, split="toy_train", log_name="log-a")
    maps = ArrowMapWriter(True, root / "maps", root / "logs")
    assert maps.reset(map_metadata)
    for number, (low, high) in enumerate(((-60.0, 40.0), (40.0, 160.0))):
        left, right, middle = line((low, 2), (high, 2)), line((low, -2), (high, -2)), line((low, 0), (high, 0))
        before, after = ([number - 1] if number else []), ([] if number else [1])
        maps.write_map_object(Lane(number, LaneType.SURFACE_STREET, left, right, middle, lane_group_id=number,
                                   predecessor_ids=before, successor_ids=after, speed_limit_mps=13.9))
        maps.write_map_object(LaneGroup(number, [number], left, right, predecessor_ids=before, successor_ids=after))
    maps.write_map_object(Carpark(7, outline=line((0, 2), (10, 2), (10, 9), (0, 9), (0, 2))))
    maps.close()

    identity = PoseSE3(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    ahead = PoseSE3(1.4, 0.0, 0.7, 1.0, 0.0, 0.0, 0.0)
    ego = EgoStateSE3Metadata("toy_car", 2.0, 4.8, 1.5, 2.8, center_to_imu_se3=ahead, rear_axle_to_imu_se3=identity)
    boxes = BoxDetectionsSE3Metadata(DefaultBoxDetectionLabel)
    motion = DynamicStateSE3(Vector3D(SPEED_MPS, 0.0, 0.0), Vector3D(0.5, 0.0, 0.0), Vector3D(0.0, 0.0, 0.0))
    logs = ArrowLogWriter(LogWriterConfig(force_log_conversion=True), root / "logs", root / "sensors")
    assert logs.reset(LogMetadata("toy", "toy_train", "log-a", "town", map_metadata))
    for k in range(80):
        stamp = Timestamp.from_us(PERIOD_US * (k + 10))
        x = 0.1 * SPEED_MPS * k
        car = BoxDetectionSE3(BoxDetectionAttributes(DefaultBoxDetectionLabel.VEHICLE, "car"),
                              BoundingBoxSE3(pose(x + 20.0, 0.0), 4.5, 1.9, 1.6), Vector3D(SPEED_MPS, 0.0, 0.0))
        cone = BoxDetectionSE3(BoxDetectionAttributes(DefaultBoxDetectionLabel.TRAFFIC_CONE, "cone"),
                               BoundingBoxSE3(pose(30.0, 4.0), 0.4, 0.4, 0.8))
        logs.write_sync(ModalitiesSync(stamp, [EgoStateSE3.from_rear_axle(pose(x, 0.0), ego, stamp, motion),
                                               BoxDetectionsSE3([car, cone], stamp, boxes)]))
    logs.close()


def test_logs_that_py123d_wrote(tmp_path: Path) -> None:
    write_log(tmp_path)
    source = open_scenes(f"py123d://{tmp_path}?split=toy_train", 56, 28)
    assert len(source.ids()) >= 3 and all(name.startswith("log-a-") for name in source.ids())
    scene = source.load(source.ids()[0])
    check_scene(scene)
    assert scene.ego.rear_axle_pose[2] == pytest.approx(0.0) and scene.ego.velocity.tolist() == [SPEED_MPS, 0.0]
    assert scene.ego.vehicle.length == pytest.approx(4.8) and scene.ego.vehicle.rear_axle_to_center == pytest.approx(1.4)
    np.testing.assert_allclose(scene.future[:, 0], 0.5 * SPEED_MPS * np.arange(1, 9), atol=1e-6)
    np.testing.assert_allclose(scene.history[:, 0], 0.5 * SPEED_MPS * np.arange(-3, 1), atol=1e-6)
    tracks = {track.token: track for track in scene.tracks}
    assert {token: track.type for token, track in tracks.items()} == {"car": "vehicle", "cone": "traffic_cone"}
    np.testing.assert_allclose(tracks["car"].states[0, 1:3], scene.ego.rear_axle_pose[:2] + np.array([20.0, 0.0]))
    np.testing.assert_allclose(tracks["car"].states[:, 0], 0.5 * np.arange(11))
    assert [block.lane_ids for block in scene.map.roadblocks] == [("0",), ("1",)]
    assert scene.route_roadblock_ids == ("0", "1") and scene.map.lanes[0].speed_limit_mps == pytest.approx(13.9)
    assert [area.id for area in scene.map.carparks] == ["carpark7"] and scene.command == "GO STRAIGHT"
    assert source.image(source.ids()[0]).shape == (28, 56, 3)
    with pytest.raises(SceneError, match="no scene of"):
        open_scenes(f"py123d://{tmp_path}?split=toy_val")


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PY123D_DATA_ROOT", raising=False)
    with pytest.raises(SceneError, match="no folder of converted logs"):
        open_scenes("py123d://")
    (tmp_path / "logs").mkdir()
    for name in ("py123d", *(name for name in sys.modules if name.startswith("py123d."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SceneError, match=r"py123d cannot be imported .*pip install 'nemo-mtdrive\[py123d\]'"):
        open_scenes(f"py123d://{tmp_path}")
    with pytest.raises(SceneError, match="unknown parameter 'speed'"):
        open_scenes(f"py123d://{tmp_path}?speed=1")
