"""Scenes of the data sets that py123d reads (nuPlan, nuScenes, AV2, Waymo, ...), from its converted Arrow logs.

py123d 0.7.0 is an alpha release of 1.9 GB installed, so it is an extra: `pip install 'nemo-mtdrive[py123d]'`. All that is
known of its interface is in this file. Its lane groups become roadblocks, those inside an intersection connectors.
Pictures are drawn, and the command comes from where the human went (as for `av2`), since its logs hold no lane-level route.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import render
from nemo_mtdrive.driving.scene import (
    Area,
    Array,
    Ego,
    Lane,
    Roadblock,
    Scene,
    SceneError,
    SceneMap,
    Track,
    TrafficLight,
    Vehicle,
    check_scene,
    to_ego_frame,
)
from nemo_mtdrive.driving.sources.av2_route import driven_route, lanes_under
from nemo_mtdrive.driving.sources.lru import LRU, images_kept
from nemo_mtdrive.driving.sources.procedural import with_camera
from nemo_mtdrive.driving.sources.rings import simple_ring

HISTORY, FUTURE = 3, 10
"""Iterations of 0.5 s before and after t = 0."""
RADIUS_M = 150.0
TURN_M = 2.0
TYPES = {"VEHICLE": "vehicle", "TRAIN": "vehicle", "TWO_WHEELER": "bicycle", "PERSON": "pedestrian",
         "TRAFFIC_CONE": "traffic_cone", "BARRIER": "barrier", "TRAFFIC_SIGN": "czone_sign"}
"""py123d's default labels -> track types; the ego is left out, all others are generic objects."""


class Py123dScenes:
    """Windows of 1.5 s + 5 s every 0.5 s; ids are LOG-MICROSECONDS, so that windows of one log stay together."""

    def __init__(self, root: str, split: str | None, count: int, width: int, height: int) -> None:
        path = Path(root or os.environ.get("PY123D_DATA_ROOT", ""))
        if not (path / "logs").is_dir():
            raise SceneError(f"py123d://{root}: no folder of converted logs {path / 'logs'}; set PY123D_DATA_ROOT or "
                             "the path")
        self._api = _package()
        helper = importlib.import_module("py123d.api.scene.arrow.helper")
        scene_filter = importlib.import_module("py123d.api.scene.scene_filter").SceneFilter(
            split_names=[split] if split else None, has_map=True, target_iteration_duration_s=0.5,
            history_num_iterations=HISTORY, future_num_iterations=FUTURE, iteration_threshold=1,
            max_num_scenes=count or None)
        found = helper.get_filtered_scenes(scene_filter, data_root=path)
        self._windows = {_id(window): window for window in found}
        if not self._windows:
            raise SceneError(f"py123d://{path}: no scene of {0.5 * HISTORY} s + {0.5 * FUTURE} s with a map in it; set the "
                             "path or the split")
        self._size = (width, height)
        self._scenes = LRU(256, self._read)
        self._images = LRU(images_kept(width, height), lambda name: render(self.load(name), width, height))

    @property
    def skipped(self) -> Mapping[str, str]:
        """Nothing: py123d's filter decides what is a scene."""
        return {}

    def ids(self) -> Sequence[str]:
        """The ids, in py123d's order."""
        return list(self._windows)

    def load(self, scene_id: str) -> Scene:
        """The window; KeyError for an unknown id, SceneError for one that breaks a rule of the scene file."""
        return self._scenes.get(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """A drawn front picture, RGB [H, W, 3]."""
        return self._images.get(scene_id)

    def _read(self, scene_id: str) -> Scene:
        scene = with_camera(scene_of(scene_id, self._windows[scene_id], self._api), *self._size)
        check_scene(scene)
        return scene


def _package() -> Any:
    """py123d's map layers; SceneError when it is not installed."""
    try:
        return importlib.import_module("py123d.datatypes.map_objects.map_layer_types").MapLayer
    except ModuleNotFoundError as error:
        raise SceneError(f"py123d cannot be imported ({error}); install it with pip install 'nemo-mtdrive[py123d]'"
                         ) from error


def _id(window: Any) -> str:
    return f"{window.log_name}-{window.get_timestamp_at_iteration(0).time_us}"


def scene_of(scene_id: str, window: Any, layers: Any) -> Scene:
    """A py123d scene as ours, without a camera; SceneError where it has no ego or map."""
    egos = [window.get_ego_state_se3_at_iteration(k) for k in range(-HISTORY, FUTURE + 1)]
    if any(ego is None for ego in egos):
        raise SceneError(f"{scene_id}: a time without an ego pose")
    poses = np.array([[ego.rear_axle_se2.x, ego.rear_axle_se2.y, ego.rear_axle_se2.yaw] for ego in egos], dtype=np.float64)
    pose = poses[HISTORY]
    relative = to_ego_frame(poses, pose)
    scene_map = map_of(window.get_map_api(), pose, layers)
    lanes = {lane.id for lane in scene_map.lanes}
    lights = window.get_traffic_light_detections_at_iteration(0)
    side = relative[HISTORY + 8, 1]
    return Scene(
        scene_id=scene_id, kind=f"py123d/{window.dataset}", ego=_ego(egos[HISTORY], pose, relative),
        map=scene_map, route_roadblock_ids=driven_route(scene_map, lanes_under(scene_map, poses[HISTORY:])),
        traffic_lights=tuple({str(light.lane_id): TrafficLight(str(light.lane_id), light.status.name == "RED")
                              for light in (lights.detections if lights is not None else ())
                              if str(light.lane_id) in lanes}.values()),
        tracks=_tracks([window.get_box_detections_se3_at_iteration(k) for k in range(FUTURE + 1)]),
        history=relative[: HISTORY + 1], future=relative[HISTORY + 1 : HISTORY + 9],
        command="TURN LEFT" if side > TURN_M else "TURN RIGHT" if side < -TURN_M else "GO STRAIGHT",
        source=f"py123d {window.split}, log {window.log_name}", licence=f"that of {window.dataset}")


def _ego(state: Any, pose: Array, relative: Array) -> Ego:
    body, motion = state.metadata, state.dynamic_state_se3
    ahead = float(body.rear_axle_to_center_longitudinal)
    vehicle = Vehicle(f"py123d_{body.vehicle_name}", float(body.width), ahead + body.length / 2, body.length / 2 - ahead,
                      ahead, float(body.wheel_base), float(body.height))
    if motion is not None:
        return Ego(pose, np.array([motion.velocity_2d.x, motion.velocity_2d.y]),
                   np.array([motion.acceleration_2d.x, motion.acceleration_2d.y]), vehicle)
    speed = (relative[HISTORY + 1, 0] - relative[HISTORY - 1, 0]) / 1.0
    return Ego(pose, np.array([speed, 0.0]), np.zeros(2), vehicle)


def _tracks(frames: Sequence[Any]) -> tuple[Track, ...]:
    rows: dict[str, list[list[float]]] = {}
    first: dict[str, tuple[str, Array]] = {}
    for k, frame in enumerate(frames):
        for box in frame.box_detections if frame is not None else ():
            label = box.attributes.default_label.name
            if label == "EGO":
                continue
            token, body, velocity = box.attributes.track_token, box.bounding_box_se3, box.velocity_2d
            vx, vy = (0.0, 0.0) if velocity is None else (float(velocity.x), float(velocity.y))
            yaw = math.remainder(box.center_se2.yaw, 2 * math.pi)
            first.setdefault(token, (TYPES.get(label, "generic_object"), np.array([body.length, body.width, body.height])))
            rows.setdefault(token, []).append([0.5 * k, box.center_se2.x, box.center_se2.y, yaw, vx, vy])
    return tuple(Track(token, *first[token], np.array(states, dtype=np.float64)) for token, states in rows.items())


def map_of(map_api: Any, pose: Array, layers: Any) -> SceneMap:
    """The map within `RADIUS_M` of the ego."""
    point = importlib.import_module("py123d.geometry").Point2D(float(pose[0]), float(pose[1]))
    wanted = [layers.LANE, layers.LANE_GROUP, layers.INTERSECTION, layers.CARPARK, layers.GENERIC_DRIVABLE, layers.CROSSWALK]
    known = set(map_api.get_available_map_layers())
    near = map_api.get_map_objects_in_radius(point, RADIUS_M, [layer for layer in wanted if layer in known])
    groups = {str(group.object_id): group for group in near.get(layers.LANE_GROUP, ())}
    lanes = {str(lane.object_id): lane for lane in near.get(layers.LANE, ()) if str(lane.lane_group_id) in groups}

    def among(names: Iterable[Any], records: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(name) for name in names if str(name) in records)

    def areas(*chosen: Any) -> tuple[Area, ...]:
        return tuple(Area(f"{layer.name.lower()}{area.object_id}", simple_ring(area.shapely_polygon))
                     for layer in chosen for area in near.get(layer, ()))

    def kind(group: Any, name: str) -> str:
        return name if group.intersection_id is None else f"{name}_connector"

    return SceneMap(
        tuple(Roadblock(name, kind(group, "roadblock"), simple_ring(group.shapely_polygon), among(group.lane_ids, lanes),
                        among(group.predecessor_ids, groups), among(group.successor_ids, groups))
              for name, group in groups.items()),
        tuple(Lane(name, kind(groups[str(lane.lane_group_id)], "lane"), str(lane.lane_group_id),
                   simple_ring(lane.shapely_polygon), np.asarray(lane.centerline_2d.array, dtype=np.float64),
                   lane.speed_limit_mps or None, among(lane.predecessor_ids, lanes), among(lane.successor_ids, lanes))
              for name, lane in lanes.items()),
        areas(layers.INTERSECTION), areas(layers.CARPARK, layers.GENERIC_DRIVABLE), areas(layers.CROSSWALK))
