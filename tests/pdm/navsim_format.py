"""Writes metric caches in the form in which NAVSIM v1.1 leaves them on disk: the same class names, attributes and
reductions, from a golden scene. The classes exist only while pickling; nothing of nuPlan or NAVSIM is here.
"""

from __future__ import annotations

import lzma
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, IntEnum
from pathlib import Path, PosixPath
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import shapely

from nemo_mtdrive.driving.scene import TRACK_TYPES, Ego, Scene
from nemo_mtdrive.pdm.cache import prepare
from nemo_mtdrive.pdm.closed import plan
from nemo_mtdrive.pdm.drivable import CARPARK, INTERSECTION, LANE, ROADBLOCK

STATE, PLANNER = "nuplan.common.actor_state", "navsim.planning.simulation.planner.pdm_planner"
HOMES = {
    "MetricCache": "navsim.planning.metric_caching.metric_cache",
    "PDMObservation": f"{PLANNER}.observation.pdm_observation",
    "PDMOccupancyMap": f"{PLANNER}.observation.pdm_occupancy_map",
    "PDMDrivableMap": f"{PLANNER}.observation.pdm_occupancy_map",
    "PDMPath": f"{PLANNER}.utils.pdm_path",
    "InterpolatedTrajectory": "nuplan.planning.simulation.trajectory.interpolated_trajectory",
    "Agent": f"{STATE}.agent", "StaticObject": f"{STATE}.static_object", "OrientedBox": f"{STATE}.oriented_box",
    "SceneObjectMetadata": f"{STATE}.scene_object", "StateSE2": f"{STATE}.state_representation",
    "StateVector2D": f"{STATE}.state_representation", "TimePoint": f"{STATE}.state_representation",
    "EgoState": f"{STATE}.ego_state", "CarFootprint": f"{STATE}.car_footprint",
    "DynamicCarState": f"{STATE}.dynamic_car_state", "VehicleParameters": f"{STATE}.vehicle_parameters",
    "TrackedObjectType": f"{STATE}.tracked_objects_types", "SemanticMapLayer": "nuplan.common.maps.maps_datatypes",
}
REDUCED = {"PDMOccupancyMap", "PDMDrivableMap", "PDMPath", "InterpolatedTrajectory", "VehicleParameters"}
"""Classes that pickle as (class, arguments); the others pickle their attributes."""
LAYERS = {"LANE": 0, "INTERSECTION": 1, "LANE_CONNECTOR": 11, "CARPARK_AREA": 15, "ROADBLOCK": 17}


def _plain(self: Any, *arguments: Any, **attributes: Any) -> None:
    self.__dict__.update(attributes, **({"_arguments": arguments} if arguments else {}))


@contextmanager
def classes() -> Iterator[SimpleNamespace]:
    """The classes, importable under their own names inside the block."""
    made: dict[str, Any] = {}
    for name, home in HOMES.items():
        body: dict[str, Any] = {"__module__": home, "__init__": _plain}
        if name in REDUCED:
            body["__reduce__"] = lambda self: (type(self), self._arguments)
        made[name] = type(name, (), body)
    made["TrackedObjectType"] = Enum("TrackedObjectType", {kind.upper(): n for n, kind in enumerate(TRACK_TYPES)},
                                     module=HOMES["TrackedObjectType"])
    made["SemanticMapLayer"] = IntEnum("SemanticMapLayer", LAYERS, module=HOMES["SemanticMapLayer"])
    modules: dict[str, ModuleType] = {}
    for name, home in HOMES.items():
        parts = home.split(".")
        for length in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:length]), ModuleType(".".join(parts[:length])))
        setattr(modules[home], name, made[name])
    sys.modules.update(modules)
    try:
        yield SimpleNamespace(**made)
    finally:
        for name in modules:
            del sys.modules[name]


def _ego_state(c: SimpleNamespace, ego: Ego, pose: np.ndarray, time_us: int, cached: bool) -> Any:
    car = ego.vehicle
    ahead = car.rear_axle_to_center
    center = c.StateSE2(x=pose[0] + ahead * np.cos(pose[2]), y=pose[1] + ahead * np.sin(pose[2]), heading=pose[2])
    parameters = c.VehicleParameters(car.width, car.front_length, car.rear_length, car.cog_position_from_rear_axle,
                                     car.wheel_base, car.name, "gen1", car.height)
    footprint = c.CarFootprint(_center=center, _length=car.length, _width=car.width, _height=car.height,
                               _vehicle_parameters=parameters)
    if cached:  # nuPlan keeps what was asked for once
        footprint.rear_axle = c.StateSE2(x=pose[0], y=pose[1], heading=pose[2])

    def vector(values: np.ndarray) -> Any:
        return c.StateVector2D(_x=values[0], _y=values[1], _array=np.array(values))

    moving = c.DynamicCarState(_rear_axle_to_center_dist=ahead, _angular_velocity=0.0, _angular_acceleration=0.0,
                               _rear_axle_velocity_2d=vector(ego.velocity),
                               _rear_axle_acceleration_2d=vector(ego.acceleration), _tire_steering_rate=0.0)
    return c.EgoState(_car_footprint=footprint, _tire_steering_angle=0.0, _is_in_auto_mode=True,
                      _time_point=c.TimePoint(time_us=time_us), _dynamic_car_state=moving)


def _tracked(c: SimpleNamespace, scene: Scene, n: int, seen: Any, polygon: Any) -> Any:
    track = seen.tracks[n]
    first = int(np.argmax(seen.present[:, n]))
    size = np.asarray(track.size, dtype=np.float32)  # NAVSIM's boxes are float32
    box = c.OrientedBox(_center=c.StateSE2(x=seen.centers[first, n, 0], y=seen.centers[first, n, 1],
                                           heading=np.float64(seen.headings[first, n])),
                        _length=size[0], _width=size[1], _height=size[2], geometry=polygon)
    kind = c.TrackedObjectType(TRACK_TYPES.index(track.type))
    metadata = c.SceneObjectMetadata(timestamp_us=7, token="t" + track.token, track_id=None, track_token=track.token)
    row = next(entry for entry in scene.tracks if entry.token == track.token).states[0]
    velocity = c.StateVector2D(_x=row[4], _y=row[5], _array=row[4:6].copy())
    shared = {"_metadata": metadata, "instance_token": None, "_tracked_object_type": kind, "_box": box}
    if track.type in ("vehicle", "pedestrian", "bicycle"):
        return c.Agent(_velocity=velocity, _angular_velocity=None, _predictions=[], _past_trajectory=None,
                       _initial_time_stamp=c.TimePoint(time_us=7), **shared)
    return c.StaticObject(predictions=None, past_trajectory=None, velocity=velocity, **shared)


def metric_cache(c: SimpleNamespace, scene: Scene, *, as_array: bool = False) -> Any:
    """The object that NAVSIM would pickle for a golden scene; `as_array`: geometries in object arrays, not lists."""
    prepared = prepare(scene, "oracle")
    seen, derived = prepared.observation, scene.extra["derived"]
    start = int(scene.extra.get("t0_us", 0))
    geometries = (lambda items: np.array([*items, None], dtype=object)[:-1]) if as_array else list
    polygons = [shapely.polygons(corners) for corners in seen.corners]
    maps = [c.PDMOccupancyMap([seen.tracks[n].token for n in np.flatnonzero(seen.present[step])],
                              geometries(polygons[step][n] for n in np.flatnonzero(seen.present[step])), 10)
            for step in range(len(polygons))]
    order = sorted(range(len(seen.tracks)), key=lambda n: int(np.argmax(seen.present[:, n])))
    objects = {seen.tracks[n].token: _tracked(c, scene, n, seen, polygons[int(np.argmax(seen.present[:, n]))][n])
               for n in order}
    observation = c.PDMObservation(
        _sample_interval=0.1, _observation_samples=50, _map_radius=100, _observation_sample_res=1,
        _global_to_local_idcs=list(range(51)), _collided_track_ids=[], _red_light_token="red_light",
        _occupancy_maps=maps, _unique_objects=objects, _initialized=True)
    closed = plan(scene, prepared.drivable, prepared.route, prepared.on_route)
    closed[:41] = derived["pdm_closed_poses"]
    trajectory = c.InterpolatedTrajectory([
        _ego_state(c, scene.ego, pose, start + 100_000 * step, cached=step == 0) for step, pose in enumerate(closed)])
    connectors = {lane.id for lane in scene.map.lanes if lane.kind == "lane_connector"}
    layers = [c.SemanticMapLayer[{ROADBLOCK: "ROADBLOCK", INTERSECTION: "INTERSECTION", CARPARK: "CARPARK_AREA",
                                  LANE: "LANE_CONNECTOR" if name in connectors else "LANE"}[int(kind)]]
              for name, kind in zip(prepared.drivable.ids, prepared.drivable.kinds, strict=True)]
    return c.MetricCache(
        file_path=PosixPath("/exp/metric_cache/log/unknown") / scene.scene_id / "metric_cache.pkl",
        trajectory=trajectory, ego_state=_ego_state(c, scene.ego, scene.ego.rear_axle_pose, start, cached=True),
        observation=observation,
        centerline=c.PDMPath([c.StateSE2(x=x, y=y, heading=heading) for x, y, heading in derived["centerline"]]),
        route_lane_ids=list(derived["route_lane_ids"]),
        drivable_area_map=c.PDMDrivableMap(list(prepared.drivable.ids), layers, geometries(prepared.drivable.polygons), 10))


def write(path: Path, scene: Scene, *, as_array: bool = False, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    """Write CACHE/log/unknown/TOKEN/metric_cache.pkl below `path`, as NAVSIM does; returns the file."""
    file = path / "log" / "unknown" / scene.scene_id / "metric_cache.pkl"
    file.parent.mkdir(parents=True)
    with classes() as c:
        file.write_bytes(lzma.compress(pickle.dumps(metric_cache(c, scene, as_array=as_array), protocol), preset=0))
    return file
