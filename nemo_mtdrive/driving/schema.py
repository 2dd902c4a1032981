"""What a scene file may hold: the JSON schema beside this file, and the checks that a schema cannot express.

Every complaint names the place and the value: `tracks[3].states[7][2]: got NaN, want a finite number`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import fastjsonschema
import numpy as np
import shapely
from numpy.typing import NDArray

SCHEMA_FILE = Path(__file__).with_name("scene.schema.json")
AREAS = ("roadblocks", "lanes", "intersections", "carparks", "crosswalks")
STEP_S = 0.5
_LAST_S = 5.0
_ON_GRID_S = 1e-3
_ZERO = 1e-6
_ROTATION = 1e-3
_TYPES = {"number": "a number", "integer": "a whole number", "string": "text", "array": "a list", "object": "an object",
          "boolean": "true or false", "null": "null"}

Array = NDArray[np.float64]


class SceneError(ValueError):
    """A scene that cannot be used: the message says where, what was got and what is wanted."""


def validate(data: Any) -> None:
    """Check the parsed JSON of a scene file whole.

    Args:
        data: what `json.loads` gave.

    Raises:
        SceneError: the first thing that is wrong: a missing key, a wrong type or length, a number that is not finite, a
            polygon that crosses itself or has no area, times that do not rise on the 0.5 s grid, an id that names
            nothing or is given twice, a history that does not end at the origin, a camera whose matrices are none.
    """
    _by_schema(data)
    for path, value, columns in _arrays(data):
        _finite(path, value, columns)
    _areas(data["map"])
    _tracks(data["tracks"])
    _references(data)
    if data.get("history") is not None and np.abs(np.asarray(data["history"][-1])).max() > _ZERO:
        raise SceneError(f"history[3]: got {data['history'][-1]}, want [0, 0, 0]: poses are in the ego frame of t = 0")
    if data.get("camera") is not None:
        _camera(data["camera"])
    if len(set(map(len, data.get("ground", {}).get("heights", ())))) > 1:
        raise SceneError("ground.heights: got rows of different lengths, want a grid")


@cache
def _compiled(whole: bool) -> Callable[[Any], Any]:
    """The check that the schema says; not `whole`: without a look into the rows of numbers, where the time goes."""
    schema = json.loads(SCHEMA_FILE.read_text())
    check: Callable[[Any], Any] = fastjsonschema.compile(schema if whole else _without_rows(schema), use_default=False)
    return check


def _without_rows(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_rows(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    of_rows = schema.get("items", {}) if isinstance(schema.get("items", {}), dict) else {}
    skip = "items" if str(of_rows.get("$ref", "")).startswith("#/definitions/row") else None
    return {key: _without_rows(value) for key, value in schema.items() if key != skip}


def _by_schema(data: Any) -> None:
    try:
        _compiled(False)(data)
        if not all(_plain(value, columns) for _, value, columns in _arrays(data) if columns):
            _compiled(True)(data)
    except fastjsonschema.JsonSchemaValueException as error:
        raise SceneError(_complaint(error)) from error


def _plain(rows: Any, columns: int) -> bool:
    """Whether these are rows of `columns` numbers, by set operations that run in C."""
    return (set(map(type, rows)) == {list} and set(map(len, rows)) == {columns}
            and {int, float}.issuperset(map(type, chain.from_iterable(rows))))


def _complaint(error: Any) -> str:
    """Our words for a schema violation."""
    where = error.name.removeprefix("data").removeprefix(".") or "scene"
    rule, wanted, got = error.rule, error.rule_definition, error.value
    if rule == "required":
        missing = next(key for key in wanted if key not in got)
        return f"{missing if where == 'scene' else f'{where}.{missing}'}: missing"
    if rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        return f"{where}: got {_shown(got)}, want {' or '.join(_TYPES[kind] for kind in kinds)}"
    if rule in ("minItems", "maxItems"):
        return f"{where}: got {len(got)} items, want {'at least' if rule == 'minItems' else 'at most'} {wanted}"
    if rule == "enum":
        return f"{where}: got {_shown(got)}, want one of {', '.join(wanted)}"
    if rule == "exclusiveMinimum":
        return f"{where}: got {_shown(got)}, want a number above {wanted}"
    if rule == "minimum":
        return f"{where}: got {_shown(got)}, want {wanted} or more"
    return f"{where}: got {_shown(got)}, want text that fits {wanted}"


def _shown(value: Any) -> str:
    """A value, short; NaN as NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _arrays(data: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Every number of the scene with its path and the columns of its rows; 0 columns: a short list or one number."""
    ego = data["ego"]
    for key in ("rear_axle_pose", "velocity", "acceleration"):
        yield f"ego.{key}", ego[key], 0
    for key, value in ego["vehicle"].items():
        if not isinstance(value, str):
            yield f"ego.vehicle.{key}", value, 0
    for key in AREAS:
        for i, area in enumerate(data["map"].get(key, ())):
            yield f"map.{key}[{i}].polygon", area["polygon"], 2
            if key == "lanes":
                yield f"map.{key}[{i}].centerline", area["centerline"], 2
                if area["speed_limit_mps"] is not None:
                    yield f"map.{key}[{i}].speed_limit_mps", area["speed_limit_mps"], 0
    for i, track in enumerate(data["tracks"]):
        yield f"tracks[{i}].size", track["size"], 0
        yield f"tracks[{i}].states", track["states"], 6
    for key in ("history", "future"):
        if data.get(key) is not None:
            yield key, data[key], 3
    if data.get("camera") is not None:
        yield "camera.intrinsics", data["camera"]["intrinsics"], 3
        yield "camera.extrinsics", data["camera"]["extrinsics"], 0
    if "ground" in data:
        yield "ground.origin", data["ground"]["origin"], 0
        yield "ground.step", data["ground"]["step"], 0
    for i, row in enumerate(data.get("ground", {}).get("heights", ())):
        yield f"ground.heights[{i}]", row, 0
    for i, case in enumerate(data.get("cases", ())):
        yield f"cases[{i}].trajectory", case["trajectory"], 3


def _finite(path: str, value: Any, columns: int) -> None:
    try:
        if columns and math.isfinite(sum(chain.from_iterable(value))):
            return  # one NaN or infinity would show in the sum; numbers that only overflow it are looked at below
        array = np.asarray(value, dtype=np.float64)
    except OverflowError as error:
        raise SceneError(f"{path}: got a whole number of hundreds of digits, want finite numbers") from error
    if not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0]
        where = path + "".join(f"[{k}]" for k in at)
        raise SceneError(f"{where}: got {_shown(float(array[tuple(at)]))}, want a finite number")


def _areas(scene_map: Mapping[str, Any]) -> None:
    """Rings are simple and have an area; centrelines have a length."""
    named = [(f"map.{key}[{i}].polygon", area["polygon"]) for key in AREAS for i, area in enumerate(scene_map.get(key, ()))]
    for path, ring in named:
        if (points := len(set(map(tuple, ring)))) < 3:
            raise SceneError(f"{path}: got {points} different points, want at least 3")
    if named:
        lengths = [len(ring) for _, ring in named]
        polygons = shapely.polygons(shapely.linearrings(np.array([point for _, ring in named for point in ring], float),
                                                        indices=np.repeat(np.arange(len(named)), lengths)))
        for k in np.flatnonzero(~(shapely.is_valid(polygons) & (shapely.area(polygons) > 0))):
            reason = shapely.is_valid_reason(polygons[k])
            reason = "no area" if reason == "Valid Geometry" else reason[0].lower() + reason[1:]
            raise SceneError(f"{named[k][0]}: got {reason}, want a simple polygon that does not cross itself")
    for i, lane in enumerate(scene_map["lanes"]):
        if len(set(map(tuple, lane["centerline"]))) < 2:
            raise SceneError(f"map.lanes[{i}].centerline: got one point {len(lane['centerline'])} times, want a line")


def _tracks(tracks: Sequence[Mapping[str, Any]]) -> None:
    for i, track in enumerate(tracks):
        times = [row[0] for row in track["states"]]
        for k, time in enumerate(times):
            where = f"tracks[{i}].states[{k}][0]"
            if not -_ON_GRID_S <= time <= _LAST_S + _ON_GRID_S or abs(math.remainder(time, STEP_S)) > _ON_GRID_S:
                raise SceneError(f"{where}: got t = {time}, want one of 0, 0.5, ... 5 s")
            if k and time <= times[k - 1]:
                raise SceneError(f"{where}: got t = {time} after {times[k - 1]}, want times that go forward")


def _references(data: Mapping[str, Any]) -> None:
    """Ids are given once, and what is named exists."""
    lanes, blocks = data["map"]["lanes"], data["map"]["roadblocks"]
    lane_ids = _unique("map.lanes", "id", lanes)
    block_ids = _unique("map.roadblocks", "id", blocks)
    _unique("tracks", "token", data["tracks"])
    for i, block in enumerate(blocks):
        _exist(f"map.roadblocks[{i}].lane_ids", block["lane_ids"], lane_ids, "lane")
        for key in ("incoming", "outgoing"):
            _exist(f"map.roadblocks[{i}].{key}", block[key], block_ids, "roadblock")
    for i, lane in enumerate(lanes):
        if str(lane["roadblock_id"]) not in block_ids:
            raise SceneError(f"map.lanes[{i}].roadblock_id: got {lane['roadblock_id']!r}, want the id of a roadblock")
        for key in ("incoming", "outgoing"):
            _exist(f"map.lanes[{i}].{key}", lane[key], lane_ids, "lane")
    _exist("route_roadblock_ids", data["route_roadblock_ids"], block_ids, "roadblock")
    for i, light in enumerate(data["traffic_lights"]):
        if str(light["lane_connector_id"]) not in lane_ids:
            raise SceneError(f"traffic_lights[{i}].lane_connector_id: got {light['lane_connector_id']!r}, want the id of a "
                             "lane")


def _unique(path: str, key: str, records: Iterable[Mapping[str, Any]]) -> set[str]:
    seen: set[str] = set()
    for i, record in enumerate(records):
        name = str(record[key])
        if name in seen:
            raise SceneError(f"{path}[{i}].{key}: got {name!r} again, want each once")
        seen.add(name)
    return seen


def _exist(path: str, names: Sequence[str | int], known: set[str], what: str) -> None:
    for i, name in enumerate(names):
        if str(name) not in known:
            raise SceneError(f"{path}[{i}]: got {name!r}, want the id of a {what}")


def _camera(camera: Mapping[str, Any]) -> None:
    intrinsics, extrinsics = np.asarray(camera["intrinsics"], float), np.asarray(camera["extrinsics"], float)
    for i in (0, 1):
        if intrinsics[i, i] <= 0:
            raise SceneError(f"camera.intrinsics[{i}][{i}]: got {intrinsics[i, i]}, want a focal length above 0")
    if not np.array_equal(intrinsics[2], [0.0, 0.0, 1.0]):
        raise SceneError(f"camera.intrinsics[2]: got {intrinsics[2].tolist()}, want [0, 0, 1]")
    if not np.array_equal(extrinsics[3], [0.0, 0.0, 0.0, 1.0]):
        raise SceneError(f"camera.extrinsics[3]: got {extrinsics[3].tolist()}, want [0, 0, 0, 1]")
    rotation = extrinsics[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ROTATION or np.linalg.det(rotation) < 0:
        raise SceneError("camera.extrinsics: the upper left 3 x 3 is not a rotation")
