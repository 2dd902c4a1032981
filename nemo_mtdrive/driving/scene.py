"""The scene: one moment of driving, with its map, its road users and, where known, what the human did next.

The file form is versioned JSON (`SCHEMA`). A scene with a map, an ego and tracks can be scored; one that also has
`history`, `command` and a camera can be driven. Metres, radians, seconds; map frame is right-handed x/y with heading
counter-clockwise from +x. Tracks are box centres, the ego is its rear axle (as nuPlan and NAVSIM have it).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.schema import SceneError, validate

SCHEMA = "nemo-mtdrive-scene/1"
COMMANDS = ("TURN LEFT", "GO STRAIGHT", "TURN RIGHT")
TRACK_TYPES = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Vehicle:
    """The ego's body [m]; lengths are measured from the rear axle."""

    name: str = "pacifica"
    width: float = 2.297
    front_length: float = 4.049
    rear_length: float = 1.127
    cog_position_from_rear_axle: float = 1.67
    wheel_base: float = 3.089
    height: float = 1.777

    @property
    def length(self) -> float:
        """Bumper to bumper [m]."""
        return self.front_length + self.rear_length

    @property
    def rear_axle_to_center(self) -> float:
        """Rear axle to the centre of the box [m]."""
        return (self.front_length - self.rear_length) / 2.0


@dataclass(frozen=True)
class Ego:
    """The ego at t = 0: rear axle [x, y, heading] in the map frame; velocity, acceleration [lon, lat] in its own."""

    rear_axle_pose: Array
    velocity: Array
    acceleration: Array
    vehicle: Vehicle = field(default_factory=Vehicle)


@dataclass(frozen=True)
class Roadblock:
    """Parallel lanes of one direction; `kind` is roadblock or roadblock_connector (connectors are not drivable area)."""

    id: str
    kind: str
    polygon: Array
    lane_ids: tuple[str, ...]
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]


@dataclass(frozen=True)
class Lane:
    """A lane or lane_connector: polygon [P, 2], centreline [Q, 2] in driving direction, speed limit [m/s] or None."""

    id: str
    kind: str
    roadblock_id: str
    polygon: Array
    centerline: Array
    speed_limit_mps: float | None
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]


@dataclass(frozen=True)
class Area:
    """A polygon [P, 2] with an id: intersection, car park or crosswalk."""

    id: str
    polygon: Array


@dataclass(frozen=True)
class SceneMap:
    """The map around the ego. Drivable = roadblocks (not connectors) + intersections + car parks."""

    roadblocks: tuple[Roadblock, ...]
    lanes: tuple[Lane, ...]
    intersections: tuple[Area, ...]
    carparks: tuple[Area, ...]
    crosswalks: tuple[Area, ...] = ()


@dataclass(frozen=True)
class TrafficLight:
    """The light of one lane connector at t = 0."""

    lane_connector_id: str
    is_red: bool


@dataclass(frozen=True)
class Track:
    """One road user or object: size [l, w, h]; states [n, 6] rows [t, x, y, heading, vx, vy], t in 0..5 s every 0.5 s.

    A time without a row means: not annotated at that time.
    """

    token: str
    type: str
    size: Array
    states: Array


@dataclass(frozen=True)
class Camera:
    """The front camera's picture: a file beside the scene file; intrinsics [3, 3]; extrinsics [4, 4] camera to ego."""

    file: str
    width: int
    height: int
    intrinsics: Array
    extrinsics: Array


@dataclass(frozen=True)
class Case:
    """A trajectory [8, 3] to be scored with a scene and, in golden files, what the original NAVSIM returned."""

    name: str
    trajectory: Array
    expected: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Scene:
    """One scene; see the module's docstring for frames and units."""

    scene_id: str
    kind: str
    ego: Ego
    map: SceneMap
    route_roadblock_ids: tuple[str, ...]
    traffic_lights: tuple[TrafficLight, ...]
    tracks: tuple[Track, ...]
    history: Array | None = None
    """[4, 3] ego poses at t = -1.5, -1.0, -0.5, 0 s in the ego frame of t = 0 (last row zeros); 2 Hz as NAVSIM."""
    command: str | None = None
    future: Array | None = None
    """[8, 3] what the human (or the expert of the generator) drove."""
    camera: Camera | None = None
    source: str = ""
    licence: str = ""
    cases: tuple[Case, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the file that no record holds (golden `derived`, generator notes), kept as they came."""
    directory: Path | None = None
    """Where the file lies, to resolve `camera.file`; not saved."""

    @property
    def drivable(self) -> bool:
        """Whether it can be driven: history, command and a camera are there."""
        return self.history is not None and self.command is not None and self.camera is not None


def _array(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)


def _ids(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _map_from_json(data: Mapping[str, Any]) -> SceneMap:
    def areas(key: str) -> tuple[Area, ...]:
        return tuple(Area(str(a["id"]), _array(a["polygon"])) for a in data.get(key, ()))

    blocks = tuple(
        Roadblock(str(b["id"]), b["kind"], _array(b["polygon"]), _ids(b["lane_ids"]), _ids(b["incoming"]),
                  _ids(b["outgoing"]))
        for b in data["roadblocks"]
    )
    lanes = tuple(
        Lane(str(v["id"]), v["kind"], str(v["roadblock_id"]), _array(v["polygon"]), _array(v["centerline"]),
             v["speed_limit_mps"], _ids(v["incoming"]), _ids(v["outgoing"]))
        for v in data["lanes"]
    )
    return SceneMap(blocks, lanes, areas("intersections"), areas("carparks"), areas("crosswalks"))


def _camera_from_json(data: Mapping[str, Any]) -> Camera:
    return Camera(data["file"], data["width"], data["height"], _array(data["intrinsics"]), _array(data["extrinsics"]))


_RECORD_KEYS = frozenset(
    "schema scene_id category kind ego map route_roadblock_ids traffic_lights tracks history command future camera source"
    " licence cases".split()
)


def scene_from_json(data: Mapping[str, Any], directory: Path | None = None) -> Scene:
    """Build a `Scene` from the parsed JSON of a scene file.

    Raises:
        SceneError: it is not a scene; the message says where and what (`schema.validate`).
    """
    validate(data)
    return scene_from_valid(data, directory)


def scene_from_valid(data: Mapping[str, Any], directory: Path | None = None) -> Scene:
    """The same of data that `validate` has passed before, as what a scene set holds."""
    ego = data["ego"]
    vehicle = {name: value for name, value in ego["vehicle"].items() if name in Vehicle.__dataclass_fields__}
    return Scene(
        scene_id=data["scene_id"],
        kind=data.get("kind", data.get("category", "unknown")),
        ego=Ego(_array(ego["rear_axle_pose"]), _array(ego["velocity"]), _array(ego["acceleration"]), Vehicle(**vehicle)),
        map=_map_from_json(data["map"]),
        route_roadblock_ids=_ids(data["route_roadblock_ids"]),
        traffic_lights=tuple(TrafficLight(str(t["lane_connector_id"]), t["is_red"]) for t in data["traffic_lights"]),
        tracks=tuple(Track(str(t["token"]), t["type"], _array(t["size"]), _array(t["states"])) for t in data["tracks"]),
        history=None if data.get("history") is None else _array(data["history"]),
        command=data.get("command"),
        future=None if data.get("future") is None else _array(data["future"]),
        camera=None if data.get("camera") is None else _camera_from_json(data["camera"]),
        source=data.get("source", ""),
        licence=data.get("licence", ""),
        cases=tuple(Case(c["name"], _array(c["trajectory"]), c.get("expected")) for c in data.get("cases", ())),
        extra={key: value for key, value in data.items() if key not in _RECORD_KEYS},
        directory=directory,
    )


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The JSON form of a scene; `scene_from_json(scene_to_json(s))` gives the same numbers (rounded to 1e-6)."""

    def rows(array: Array) -> list[Any]:
        return np.round(array, 6).tolist()

    def areas(values: tuple[Area, ...]) -> list[dict[str, Any]]:
        return [{"id": a.id, "polygon": rows(a.polygon)} for a in values]

    vehicle = {name: getattr(scene.ego.vehicle, name) for name in Vehicle.__dataclass_fields__}
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "scene_id": scene.scene_id,
        "kind": scene.kind,
        "source": scene.source,
        "licence": scene.licence,
        "ego": {"rear_axle_pose": rows(scene.ego.rear_axle_pose), "velocity": rows(scene.ego.velocity),
                "acceleration": rows(scene.ego.acceleration), "vehicle": vehicle},
        "map": {
            "roadblocks": [{"id": b.id, "kind": b.kind, "polygon": rows(b.polygon), "lane_ids": list(b.lane_ids),
                            "incoming": list(b.incoming), "outgoing": list(b.outgoing)} for b in scene.map.roadblocks],
            "lanes": [{"id": v.id, "kind": v.kind, "roadblock_id": v.roadblock_id, "polygon": rows(v.polygon),
                       "centerline": rows(v.centerline), "speed_limit_mps": v.speed_limit_mps,
                       "incoming": list(v.incoming), "outgoing": list(v.outgoing)} for v in scene.map.lanes],
            "intersections": areas(scene.map.intersections),
            "carparks": areas(scene.map.carparks),
            "crosswalks": areas(scene.map.crosswalks),
        },
        "route_roadblock_ids": list(scene.route_roadblock_ids),
        "traffic_lights": [{"lane_connector_id": t.lane_connector_id, "is_red": t.is_red} for t in scene.traffic_lights],
        "tracks": [{"token": t.token, "type": t.type, "size": rows(t.size), "states": rows(t.states)}
                   for t in scene.tracks],
    }
    if scene.history is not None:
        data["history"] = rows(scene.history)
    if scene.command is not None:
        data["command"] = scene.command
    if scene.future is not None:
        data["future"] = rows(scene.future)
    if scene.camera is not None:
        camera = scene.camera
        data["camera"] = {"file": camera.file, "width": camera.width, "height": camera.height,
                          "intrinsics": rows(camera.intrinsics), "extrinsics": rows(camera.extrinsics)}
    if scene.cases:
        data["cases"] = [{"name": c.name, "trajectory": rows(c.trajectory)} | ({"expected": dict(c.expected)} if c.expected
                         else {}) for c in scene.cases]
    return data | dict(scene.extra)


def check_scene(scene: Scene) -> None:
    """Hold a scene that was made here against the same rules as a file.

    Raises:
        SceneError: the message says where and what.
    """
    validate(scene_to_json(scene))


def load_scene(path: str | os.PathLike[str]) -> Scene:
    """Read a scene file.

    Raises:
        SceneError: not JSON, or not a scene; the message starts with the file's name.
        OSError: the file cannot be read.
    """
    file = Path(path)
    try:
        return scene_from_json(json.loads(file.read_text()), file.parent)
    except (SceneError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SceneError(f"{file}: {error}") from error


def save_scene(scene: Scene, path: str | os.PathLike[str]) -> None:
    """Write a scene file whole or not at all (a temporary file, then a rename).

    Raises:
        SceneError: the scene would be refused when it is read; nothing is written.
    """
    file = Path(path)
    data = scene_to_json(scene)
    try:
        validate(data)
    except SceneError as error:
        raise SceneError(f"{file}: not written: {error}") from error
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, separators=(",", ":"), allow_nan=False))
    temporary.replace(file)


def to_ego_frame(poses: Array, origin: Array) -> Array:
    """Map-frame poses [..., 3] -> the frame of `origin` [x, y, heading]; headings wrapped to (-pi, pi]."""
    cos, sin = math.cos(origin[2]), math.sin(origin[2])
    dx, dy = poses[..., 0] - origin[0], poses[..., 1] - origin[1]
    heading = poses[..., 2] - origin[2]
    return np.stack([cos * dx + sin * dy, -sin * dx + cos * dy, np.arctan2(np.sin(heading), np.cos(heading))], axis=-1)


def to_map_frame(poses: Array, origin: Array) -> Array:
    """The inverse of `to_ego_frame`, without wrapping the heading."""
    cos, sin = math.cos(origin[2]), math.sin(origin[2])
    x, y = poses[..., 0], poses[..., 1]
    return np.stack([origin[0] + cos * x - sin * y, origin[1] + sin * x + cos * y, poses[..., 2] + origin[2]], axis=-1)
