"""NAVSIM v1 scenes (OpenScene logs, nuPlan maps), read through NAVSIM's own package.

The package is autonomousvision/navsim at tag v1.1, with nuplan-devkit; PyPI's `navsim` is another project. Ego poses,
history, command, route, lights and boxes are NAVSIM's; the map is cut out around the ego as far as its scorer looks.
Pickles of logs are read by that package: open only logs that you trust.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import (
    COMMANDS,
    TRACK_TYPES,
    Area,
    Array,
    Camera,
    Ego,
    Lane,
    Roadblock,
    Scene,
    SceneError,
    SceneMap,
    Track,
    TrafficLight,
    check_scene,
    to_map_frame,
)
from nemo_mtdrive.driving.sources.lru import LRU, images_kept
from nemo_mtdrive.driving.sources.rings import simple_ring

LICENCE = "nuPlan Dataset License (OpenScene: CC BY-NC-SA 4.0)"
HISTORY, FUTURE = 4, 10
"""Frames of 0.5 s: the last of the history is t = 0."""
FULL_SIZE = (1920, 1080)
RADIUS_M = 150.0
"""Of the map: more than the corners of the scorer's box of +-100 m."""
INSTALL = ("install it from its source repository (autonomousvision/navsim, tag v1.1, with nuplan-devkit v1.2); "
           "`pip install navsim` gets another project of that name")


class NavsimScenes:
    """The scenes of a split; ids are LOG-TOKEN, so that windows of one log stay together in a split."""

    def __init__(self, root: str, split: str, count: int, width: int, height: int, *, tokens: Sequence[str] | None = None,
                 logs: Sequence[str] | None = None) -> None:
        data = Path(root or _environment("OPENSCENE_DATA_ROOT", "the folder of navsim_logs and sensor_blobs"))
        logs_path, blobs_path = data / "navsim_logs" / split, data / "sensor_blobs" / split
        if not logs_path.is_dir():
            raise SceneError(f"navsim://{root}?split={split}: no such folder {logs_path}; set OPENSCENE_DATA_ROOT or the "
                             "split")
        _environment("NUPLAN_MAPS_ROOT", "the folder of nuPlan's maps")
        loading, data_classes, self._layers, self._point = _package()
        scene_filter = data_classes.SceneFilter(
            num_history_frames=HISTORY, num_future_frames=FUTURE, frame_interval=1, has_route=True,
            max_scenes=count or None, log_names=None if logs is None else list(logs),
            tokens=None if tokens is None else list(tokens))
        self._loader = loading.SceneLoader(logs_path, blobs_path, scene_filter, data_classes.SensorConfig.build_no_sensors())
        self._frames: Mapping[str, list[dict[str, Any]]] = self._loader.scene_frames_dicts
        self._tokens = {f"{frames[HISTORY - 1]['log_name']}-{token}": token for token, frames in self._frames.items()}
        if not self._tokens:
            raise SceneError(f"{logs_path}: no scene passes the filter (a route, {HISTORY + FUTURE} frames, tokens, logs)")
        self._blobs, self._size = blobs_path, (width, height) if width else FULL_SIZE
        self._scenes = LRU(256, self._read)
        self._images = LRU(images_kept(*self._size), self._read_image)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Nothing: NAVSIM's filter decides what is a scene."""
        return {}

    def ids(self) -> Sequence[str]:
        """The ids, in the loader's order."""
        return list(self._tokens)

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError for an unknown id, SceneError for one that breaks a rule of the scene file."""
        return self._scenes.get(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """CAM_F0's picture at t = 0, RGB [H, W, 3], resized if another size was asked for."""
        return self._images.get(scene_id)

    def _read(self, scene_id: str) -> Scene:
        token = self._tokens[scene_id]
        source = self._loader.get_scene_from_token(token)
        agent_input = self._loader.get_agent_input_from_token(token)
        scene = scene_of(scene_id, source, agent_input, self._layers, self._point)
        scene = replace(scene, camera=camera_of(self._frames[token][HISTORY - 1]["cams"]["CAM_F0"], *self._size))
        check_scene(scene)
        return scene

    def _read_image(self, scene_id: str) -> NDArray[np.uint8]:
        file = self._blobs / self._frames[self._tokens[scene_id]][HISTORY - 1]["cams"]["CAM_F0"]["data_path"]
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR) if file.is_file() else None
        if picture is None:
            raise SceneError(f"{scene_id}: no picture {file}; download the split's sensor blobs (CAM_F0)")
        if picture.shape[1::-1] != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)


def _environment(name: str, what: str) -> str:
    value = os.environ.get(name, "")
    if not value or not Path(value).is_dir():
        raise SceneError(f"{name}={value!r}: no such folder; set it to {what}")
    return value


def _package() -> tuple[Any, Any, Any, Any]:
    """NAVSIM's loader and data classes, nuPlan's map layers and point; SceneError when they are not there."""
    try:
        loading = importlib.import_module("navsim.common.dataloader")
        data_classes = importlib.import_module("navsim.common.dataclasses")
        layers = importlib.import_module("nuplan.common.maps.maps_datatypes").SemanticMapLayer
        point = importlib.import_module("nuplan.common.actor_state.state_representation").Point2D
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("navsim.") and importlib.util.find_spec("navsim") is not None:
            raise SceneError(f"the navsim package here ({_version('navsim')}) is not NAVSIM the benchmark: {error}; "
                             f"uninstall it and {INSTALL}") from error
        raise SceneError(f"NAVSIM's package cannot be imported ({error}); {INSTALL}") from error
    return loading, data_classes, layers, point


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def camera_of(cam: Mapping[str, Any], width: int, height: int) -> Camera:
    """CAM_F0 of a log's frame for a picture of `width` x `height` px; NAVSIM's lidar frame is the ego's rear axle."""
    intrinsics: Array = np.asarray(cam["cam_intrinsic"], dtype=np.float64).copy()
    intrinsics[0] *= width / FULL_SIZE[0]
    intrinsics[1] *= height / FULL_SIZE[1]
    extrinsics = np.eye(4)
    extrinsics[:3, :3] = cam["sensor2lidar_rotation"]
    extrinsics[:3, 3] = cam["sensor2lidar_translation"]
    return Camera(Path(cam["data_path"]).name, width, height, intrinsics, extrinsics)


def scene_of(scene_id: str, source: Any, agent_input: Any, layers: Any, point: Any) -> Scene:
    """NAVSIM's scene and agent input as ours, without a camera.

    Args:
        scene_id: its name here.
        source, agent_input: `SceneLoader.get_scene_from_token` and `get_agent_input_from_token`.
        layers, point: nuPlan's `SemanticMapLayer` and `Point2D`.
    """
    now = source.frames[HISTORY - 1]
    pose = np.asarray(now.ego_status.ego_pose, dtype=np.float64)
    history = np.array([status.ego_pose for status in agent_input.ego_statuses], dtype=np.float64)
    history[-1] = 0.0
    status = agent_input.ego_statuses[-1]
    scene_map, route = map_of(source.map_api, pose, [str(name) for name in now.roadblock_ids], layers, point)
    lanes = {lane.id for lane in scene_map.lanes}
    lights = {str(name): bool(is_red) for name, is_red in now.traffic_lights}
    return Scene(
        scene_id=scene_id, kind=f"navsim/{source.scene_metadata.map_name}",
        ego=Ego(pose, np.asarray(status.ego_velocity, dtype=np.float64)[:2],
                np.asarray(status.ego_acceleration, dtype=np.float64)[:2]),
        map=scene_map, route_roadblock_ids=route,
        traffic_lights=tuple(TrafficLight(name, is_red) for name, is_red in lights.items() if name in lanes),
        tracks=tracks_of(source.frames[HISTORY - 1 : HISTORY + FUTURE]),
        history=history, command=command_of(status.driving_command),
        future=np.asarray(source.get_future_trajectory(num_trajectory_frames=8).poses, dtype=np.float64),
        source=f"NAVSIM log {source.scene_metadata.log_name}, token {source.scene_metadata.initial_token}",
        licence=LICENCE)


def command_of(driving_command: Sequence[int]) -> str:
    """NAVSIM's one-hot left, straight, right, unknown; unknown drives on."""
    chosen = int(np.argmax(driving_command))
    return COMMANDS[chosen] if chosen < len(COMMANDS) else COMMANDS[1]


def tracks_of(frames: Sequence[Any]) -> tuple[Track, ...]:
    """The boxes of the frames t = 0, 0.5, ... 5 s, moved from the ego's frame of their time to the map frame.

    A track has the size and type of its first frame; what is no agent stands, as in NAVSIM's scorer.
    """
    rows: dict[str, list[Array]] = {}
    first: dict[str, tuple[str, Array]] = {}
    for k, frame in enumerate(frames):
        pose = np.asarray(frame.ego_status.ego_pose, dtype=np.float64)
        cos, sin = np.cos(pose[2]), np.sin(pose[2])
        boxes, notes = np.asarray(frame.annotations.boxes, dtype=np.float64), frame.annotations
        for box, name, velocity, token in zip(boxes, notes.names, notes.velocity_3d, notes.track_tokens, strict=True):
            if name not in TRACK_TYPES:
                continue  # the ego's own box
            moving = name in ("vehicle", "pedestrian", "bicycle")
            vx, vy = (float(velocity[0]), float(velocity[1])) if moving else (0.0, 0.0)
            x, y, heading = to_map_frame(box[[0, 1, 6]], pose)
            heading = np.arctan2(np.sin(heading), np.cos(heading))
            row = np.array([0.5 * k, x, y, heading, cos * vx - sin * vy, sin * vx + cos * vy])
            first.setdefault(str(token), (str(name), box[3:6]))
            rows.setdefault(str(token), []).append(row)
    return tuple(Track(token, *first[token], np.array(states)) for token, states in rows.items())


def map_of(map_api: Any, pose: Array, route: Sequence[str], layers: Any, point: Any) -> tuple[SceneMap, tuple[str, ...]]:
    """nuPlan's map within `RADIUS_M` of the ego and under the whole route, and the route's known roadblocks."""
    wanted = [layers.ROADBLOCK, layers.ROADBLOCK_CONNECTOR, layers.INTERSECTION, layers.CARPARK_AREA, layers.CROSSWALK]
    near = map_api.get_proximal_map_objects(point(pose[0], pose[1]), RADIUS_M, wanted)
    kinds = {layers.ROADBLOCK: ("roadblock", "lane"), layers.ROADBLOCK_CONNECTOR: ("roadblock_connector", "lane_connector")}
    blocks = {str(block.id): (block, *kinds[layer]) for layer in kinds for block in near[layer]}
    for name in route:
        for layer, names in kinds.items():
            if name not in blocks and (found := map_api.get_map_object(name, layer)) is not None:
                blocks[name] = (found, *names)
    lanes = {str(lane.id): (lane, kind, name) for name, (block, _, kind) in blocks.items() for lane in block.interior_edges}

    def known(edges: Iterable[Any], among: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(edge.id) for edge in edges if str(edge.id) in among)

    def areas(layer: Any) -> tuple[Area, ...]:
        return tuple(Area(str(area.id), simple_ring(area.polygon)) for area in near[layer])

    roadblocks = tuple(Roadblock(name, kind, simple_ring(block.polygon), known(block.interior_edges, lanes),
                                 known(block.incoming_edges, blocks), known(block.outgoing_edges, blocks))
                       for name, (block, kind, _) in blocks.items())
    found_lanes = tuple(Lane(name, kind, block, simple_ring(lane.polygon),
                             np.array([[state.x, state.y] for state in lane.baseline_path.discrete_path]),
                             lane.speed_limit_mps or None, known(lane.incoming_edges, lanes),
                             known(lane.outgoing_edges, lanes))
                        for name, (lane, kind, block) in lanes.items())
    scene_map = SceneMap(roadblocks, found_lanes, areas(layers.INTERSECTION), areas(layers.CARPARK_AREA),
                         areas(layers.CROSSWALK))
    return scene_map, tuple(name for name in route if name in blocks)
