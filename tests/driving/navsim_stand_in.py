"""A stand-in for the parts of NAVSIM v1.1 and nuPlan v1.2 that our reader calls, over logs in OpenScene's own format.

Written from the public interfaces: names, arguments and what comes back are theirs; the map is a straight road. It shows
that the reader asks for the right things and turns frames the right way, not that the real packages work.
"""

from __future__ import annotations

import enum
import math
import pickle
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely

LOG, TOKENS = "2021.05.12.22.00.38_veh-35_01008_01518", 18
START, HEADING, SPEED_MPS = np.array([664_430.0, 3_998_270.0]), math.pi / 2, 6.0


class SemanticMapLayer(enum.IntEnum):
    LANE, INTERSECTION, CROSSWALK, ROADBLOCK, CARPARK_AREA, LANE_CONNECTOR, ROADBLOCK_CONNECTOR = range(7)


@dataclass
class Point2D:
    x: float
    y: float


@dataclass
class MapObject:
    id: str
    polygon: shapely.Polygon
    incoming_edges: list[MapObject] = field(default_factory=list)
    outgoing_edges: list[MapObject] = field(default_factory=list)
    interior_edges: list[MapObject] = field(default_factory=list)
    speed_limit_mps: float | None = 13.4
    baseline_path: Any = None


class Map:
    """Roadblock 10, connector 11 and roadblock 12 northwards from the start; 12 begins 400 m ahead."""

    def __init__(self) -> None:
        self._layers: dict[SemanticMapLayer, list[MapObject]] = {layer: [] for layer in SemanticMapLayer}
        before: tuple[MapObject, MapObject] | None = None
        for name, low, high, layer in (("10", -50, 60, SemanticMapLayer.ROADBLOCK),
                                       ("11", 60, 90, SemanticMapLayer.ROADBLOCK_CONNECTOR),
                                       ("12", 400, 500, SemanticMapLayer.ROADBLOCK)):
            lane, block = MapObject(f"{name}1", _box(low, high, 1.8)), MapObject(name, _box(low, high, 3.6))
            states = [types.SimpleNamespace(x=START[0], y=START[1] + y, heading=HEADING) for y in (low, high)]
            lane.baseline_path = types.SimpleNamespace(discrete_path=states)
            block.interior_edges = [lane]
            if before:
                for old, new in zip(before, (lane, block), strict=True):
                    old.outgoing_edges.append(new)
                    new.incoming_edges.append(old)
            before = (lane, block)
            self._layers[layer].append(block)
        twisted = shapely.Polygon(START + np.array([[0, 60], [10, 70], [10, 60], [0, 72]]))
        self._layers[SemanticMapLayer.INTERSECTION].append(MapObject("20", twisted))

    def get_proximal_map_objects(self, point: Point2D, radius: float, layers: list[SemanticMapLayer]) -> dict:
        near = shapely.Point(point.x, point.y).buffer(radius)
        return {layer: [found for found in self._layers[layer] if found.polygon.intersects(near)] for layer in layers}

    def get_map_object(self, object_id: str, layer: SemanticMapLayer) -> MapObject | None:
        return next((found for found in self._layers[layer] if found.id == object_id), None)


def _box(low: float, high: float, half: float) -> shapely.Polygon:
    return shapely.box(START[0] - half, START[1] + low, START[0] + half, START[1] + high)


@dataclass
class SceneFilter:
    num_history_frames: int = 4
    num_future_frames: int = 10
    frame_interval: int | None = None
    has_route: bool = True
    max_scenes: int | None = None
    log_names: list[str] | None = None
    tokens: list[str] | None = None


class SensorConfig:
    @classmethod
    def build_no_sensors(cls) -> SensorConfig:
        return cls()


class SceneLoader:
    def __init__(self, data_path: Path, sensor_blobs_path: Path, scene_filter: SceneFilter,
                 sensor_config: SensorConfig) -> None:
        self.scene_frames_dicts: dict[str, list[dict[str, Any]]] = {}
        length = scene_filter.num_history_frames + scene_filter.num_future_frames
        for file in sorted(data_path.iterdir()):
            if scene_filter.log_names is not None and file.stem not in scene_filter.log_names:
                continue
            frames = pickle.loads(file.read_bytes())
            for start in range(0, len(frames) - length + 1, scene_filter.frame_interval or length):
                token = frames[start + 3]["token"]
                full = scene_filter.max_scenes is not None and len(self.scene_frames_dicts) >= scene_filter.max_scenes
                if not full and (scene_filter.tokens is None or token in scene_filter.tokens):
                    self.scene_frames_dicts[token] = frames[start : start + length]

    def get_scene_from_token(self, token: str) -> Any:
        frames = [types.SimpleNamespace(
            ego_status=types.SimpleNamespace(ego_pose=_pose(raw)), roadblock_ids=raw["roadblock_ids"],
            traffic_lights=raw["traffic_lights"], annotations=types.SimpleNamespace(
                boxes=raw["anns"]["gt_boxes"], names=raw["anns"]["gt_names"], velocity_3d=raw["anns"]["gt_velocity_3d"],
                track_tokens=raw["anns"]["track_tokens"])) for raw in self.scene_frames_dicts[token]]
        poses = np.array([frame.ego_status.ego_pose for frame in frames])

        def get_future_trajectory(num_trajectory_frames: int) -> Any:
            return types.SimpleNamespace(poses=_relative(poses[4 : 4 + num_trajectory_frames], poses[3]))

        raw = self.scene_frames_dicts[token][3]
        metadata = types.SimpleNamespace(log_name=raw["log_name"], map_name=raw["map_location"], initial_token=raw["token"])
        return types.SimpleNamespace(frames=frames, map_api=Map(), scene_metadata=metadata,
                                     get_future_trajectory=get_future_trajectory)

    def get_agent_input_from_token(self, token: str) -> Any:
        raws = self.scene_frames_dicts[token][:4]
        poses = _relative(np.array([_pose(raw) for raw in raws]), _pose(raws[-1])).astype(np.float32)
        return types.SimpleNamespace(ego_statuses=[types.SimpleNamespace(
            ego_pose=pose, ego_velocity=np.array(raw["ego_dynamic_state"][:2], np.float32),
            ego_acceleration=np.array(raw["ego_dynamic_state"][2:], np.float32),
            driving_command=raw["driving_command"]) for pose, raw in zip(poses, raws, strict=True)])


def _pose(raw: dict[str, Any]) -> np.ndarray:
    w, _, _, z = raw["ego2global_rotation"]
    return np.array([*raw["ego2global_translation"][:2], 2 * math.atan2(z, w)])


def _relative(poses: np.ndarray, origin: np.ndarray) -> np.ndarray:
    c, s = math.cos(origin[2]), math.sin(origin[2])
    d = poses - origin
    return np.column_stack([c * d[:, 0] + s * d[:, 1], -s * d[:, 0] + c * d[:, 1], d[:, 2]])


def write_data(root: Path) -> None:
    """A split `mini` in OpenScene's format: one log going north at 6 m/s, a car 15 m ahead and a cone."""
    frames = []
    (root / "navsim_logs" / "mini").mkdir(parents=True)
    pictures = root / "sensor_blobs" / "mini" / LOG / "CAM_F0"
    pictures.mkdir(parents=True)
    for k in range(TOKENS):
        cv2.imwrite(str(pictures / f"{k:04d}.jpg"), np.full((1080, 1920, 3), (10 * k, 0, 255), np.uint8))
        frames.append({
            "token": f"{k:016x}", "log_name": LOG, "scene_token": "s", "map_location": "us-nv-las-vegas-strip",
            "timestamp": k,
            "ego2global_translation": np.array([START[0], START[1] + 0.5 * SPEED_MPS * k, 0.0]),
            "ego2global_rotation": np.array([math.cos(HEADING / 2), 0, 0, math.sin(HEADING / 2)]),
            "ego_dynamic_state": [SPEED_MPS, 0.0, 0.25, 0.0],
            "driving_command": np.eye(4, dtype=int)[k % 4], "roadblock_ids": ["10", "11", "12", "nowhere"],
            "traffic_lights": [("111", True), ("not near", False)],
            "cams": {"CAM_F0": {"data_path": f"{LOG}/CAM_F0/{k:04d}.jpg",
                                "sensor2lidar_rotation": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
                                "sensor2lidar_translation": np.array([1.7, 0, 1.6]), "distortion": np.zeros(5),
                                "cam_intrinsic": np.array([[1545.0, 0, 960], [0, 1545, 560], [0, 0, 1]])}},
            "anns": {"gt_boxes": np.array([[15.0, 0, 0.8, 4.5, 1.9, 1.6, 0.0], [8.0, 3.0, 0.4, 0.5, 0.5, 0.9, 0.0]]),
                     "gt_names": np.array(["vehicle", "traffic_cone"]), "instance_tokens": ["i", "j"],
                     "gt_velocity_3d": np.array([[SPEED_MPS, 1.0, 0.0], [SPEED_MPS, 0.0, 0.0]]),
                     "track_tokens": ["car", "cone"]}})
    (root / "navsim_logs" / "mini" / f"{LOG}.pkl").write_bytes(pickle.dumps(frames))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in where the packages would be imported from."""
    modules = {
        "navsim": {}, "navsim.common": {}, "navsim.common.dataloader": {"SceneLoader": SceneLoader},
        "navsim.common.dataclasses": {"SceneFilter": SceneFilter, "SensorConfig": SensorConfig},
        "nuplan": {}, "nuplan.common": {}, "nuplan.common.maps": {}, "nuplan.common.actor_state": {},
        "nuplan.common.maps.maps_datatypes": {"SemanticMapLayer": SemanticMapLayer},
        "nuplan.common.actor_state.state_representation": {"Point2D": Point2D}}
    import sys
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
