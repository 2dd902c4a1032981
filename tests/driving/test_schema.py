"""The scene file's rules: every field broken in turn is refused with its path, and what is whole is accepted."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
import numpy as np
import pytest

from nemo_mtdrive.driving.camera import front_camera
from nemo_mtdrive.driving.scene import (
    Area,
    Case,
    Ego,
    Lane,
    Roadblock,
    Scene,
    SceneError,
    SceneMap,
    Track,
    TrafficLight,
    load_scene,
    save_scene,
    scene_from_json,
    scene_to_json,
)
from nemo_mtdrive.driving.schema import SCHEMA_FILE, validate

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "pdm").glob("*.json"))
OPTIONAL = {"kind", "source", "licence", "history", "command", "future", "camera", "cases", "ego.vehicle.name",
            "map.crosswalks", "cases[0].expected", "notes", "ground"}
"""What a scene may lack; it can then be scored but not driven, or says less about itself."""
POLYGONS = [f"map.{key}[0].polygon" for key in ("roadblocks", "lanes", "intersections", "carparks", "crosswalks")]
LISTS_OF_ANY_LENGTH = {"map.roadblocks", "map.lanes", "tracks", "traffic_lights", "cases", "route_roadblock_ids"}

GROUND = {"origin": [0.0, 0.0], "step": 4.0, "heights": [[1.0, 2.0], [3.0, 4.0]]}


def square(x: float) -> np.ndarray:
    return np.array([[x, -5.0], [x + 40.0, -5.0], [x + 40.0, 5.0], [x, 5.0]])


def whole_scene() -> Scene:
    """A small scene with every field there is."""
    lanes = (Lane("l1", "lane", "b1", square(0), np.array([[0.0, 0.0], [40.0, 0.0]]), 13.9, (), ("l2",)),
             Lane("l2", "lane_connector", "b2", square(40), np.array([[40.0, 0.0], [80.0, 0.0]]), None, ("l1",), ()))
    blocks = (Roadblock("b1", "roadblock", square(0), ("l1",), (), ("b2",)),
              Roadblock("b2", "roadblock_connector", square(40), ("l2",), ("b1",), ()))
    states = np.column_stack([0.5 * np.arange(11), 20.0 + np.arange(11), np.zeros(11), np.zeros(11), np.full(11, 2.0),
                              np.zeros(11)])
    driven = np.column_stack([np.arange(1, 9), np.zeros(8), np.zeros(8)]).astype(float)
    return Scene(
        "s1", "road/test", Ego(np.array([5.0, 0.0, 0.0]), np.array([2.0, 0.0]), np.zeros(2)),
        SceneMap(blocks, lanes, (Area("i", square(40)),), (Area("c", square(0)),), (Area("w", square(60)),)),
        ("b1", "b2"), (TrafficLight("l2", True),), (Track("t1", "vehicle", np.array([4.5, 1.9, 1.6]), states),),
        history=driven[:4] - driven[3], command="GO STRAIGHT", future=driven, camera=front_camera(224, 112, "s1.png"),
        source="a test", licence="none", cases=(Case("forward", driven, {"NC": 1.0}),),
        extra={"notes": {"x": 1}, "ground": GROUND})


WHOLE = json.loads(json.dumps(scene_to_json(whole_scene())))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key, first and last items of lists and first rows of numbers with their paths; not what is kept as it came."""
    if isinstance(value, dict):
        for key, part in value.items():
            at = f"{path}.{key}" if path else key
            yield at, part
            if at not in ("notes", "cases[0].expected"):
                yield from walk(part, at)
    elif isinstance(value, list):
        numbers = value and (isinstance(value[0], list) or path.count("[") > 1)
        for k in sorted({0, 0 if numbers else len(value) - 1} & set(range(len(value)))):
            yield f"{path}[{k}]", value[k]
            yield from walk(value[k], f"{path}[{k}]")


FIELDS = dict(walk(WHOLE))
NUMBERS = [path for path, value in FIELDS.items() if type(value) in (int, float)
           and path not in ("camera.width", "camera.height")]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The whole scene with one place changed, or removed if `value` is Ellipsis."""
    data = copy.deepcopy(WHOLE)
    keys: list[Any] = [int(key) if key.isdigit() else key for key in path.replace("[", ".").replace("]", "").split(".")]
    at = data
    for key in keys[:-1]:
        at = at[key]
    if value is ...:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    return data


def refusal(data: Any) -> str:
    with pytest.raises(SceneError) as caught:
        validate(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_whole_scene_is_accepted_and_comes_back() -> None:
    assert len(FIELDS) > 120
    again = scene_from_json(WHOLE)
    assert json.loads(json.dumps(scene_to_json(again))) == WHOLE
    assert again.extra["notes"] == {"x": 1} and again.drivable


@pytest.mark.parametrize("path", [path for path in FIELDS if not path.endswith("]")])
def test_a_missing_field(path: str) -> None:
    if path in OPTIONAL:
        validate(changed(path, ...))
    else:
        assert refusal(changed(path, ...)) == f"{path}: missing"


@pytest.mark.parametrize("path", [path for path in FIELDS if path != "notes"])
def test_a_wrong_type(path: str) -> None:
    for wrong in ({"a": 1}, [["a"]], True, "word", math.pi):
        if type(wrong) is type(FIELDS[path]) or (isinstance(FIELDS[path], int) and type(wrong) is float):
            continue
        if type(wrong) is float and path.endswith("speed_limit_mps"):
            continue
        assert path in refusal(changed(path, wrong)), wrong


@pytest.mark.parametrize("path", NUMBERS)
def test_a_number_that_is_none(path: str) -> None:
    for value, shown in ((math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")):
        text = refusal(changed(path, value))
        assert text.startswith(f"{path}: got {shown}, want"), text
    assert path in refusal(changed(path, True))
    if path != "map.lanes[0].speed_limit_mps":  # null: no limit is known
        assert path in refusal(changed(path, None))


@pytest.mark.parametrize("path", [path for path, value in FIELDS.items() if isinstance(value, list) and value
                                  and isinstance(value[0], (int, float)) and not path.startswith("ground.heights")])
def test_a_row_of_another_length(path: str) -> None:
    assert refusal(changed(path, FIELDS[path][:-1])).startswith(f"{path}: got {len(FIELDS[path]) - 1} items, want")
    assert refusal(changed(path, [*FIELDS[path], 0.0])).startswith(f"{path}: got {len(FIELDS[path]) + 1} items, want")


@pytest.mark.parametrize("path", ["history", "future", "cases[0].trajectory", "camera.intrinsics", "camera.extrinsics"])
def test_lists_of_rows_have_their_length(path: str) -> None:
    assert refusal(changed(path, FIELDS[path][1:])).startswith(f"{path}: got {len(FIELDS[path]) - 1} items")
    assert refusal(changed(path, [FIELDS[path][0], *FIELDS[path]])).startswith(f"{path}: got {len(FIELDS[path]) + 1} items")


@pytest.mark.parametrize("path", [*POLYGONS, "map.lanes[0].centerline", "tracks[0].states"])
def test_lists_of_rows_are_not_empty(path: str) -> None:
    assert refusal(changed(path, [])).startswith(f"{path}: got 0 items, want at least")


@pytest.mark.parametrize("path", POLYGONS)
def test_polygons_are_simple(path: str) -> None:
    bow_tie = [[0.0, 0.0], [10.0, 10.0], [10.0, 0.0], [0.0, 10.0]]
    assert refusal(changed(path, bow_tie)).startswith(f"{path}: got self-intersection[5 5], want a simple polygon")
    assert refusal(changed(path, [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])).startswith(f"{path}: got ")
    assert refusal(changed(path, [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])).startswith(f"{path}: got 2 different points")
    validate(changed(path, [*FIELDS[path], FIELDS[path][0]]))  # a closed ring says the same


@pytest.mark.parametrize(("path", "time", "said"), [
    ("tracks[0].states[3][0]", 1.0, "got t = 1.0 after 1.0, want times that go forward"),
    ("tracks[0].states[3][0]", 0.5, "got t = 0.5 after 1.0, want times that go forward"),
    ("tracks[0].states[0][0]", -0.5, "got t = -0.5, want one of 0, 0.5, ... 5 s"),
    ("tracks[0].states[10][0]", 5.5, "got t = 5.5, want one of 0, 0.5, ... 5 s"),
    ("tracks[0].states[1][0]", 0.3, "got t = 0.3, want one of 0, 0.5, ... 5 s")])
def test_time_goes_forward_on_the_grid(path: str, time: float, said: str) -> None:
    assert refusal(changed(path, time)) == f"{path}: {said}"


@pytest.mark.parametrize("path", ["tracks[0].size[0]", "tracks[0].size[2]", "ego.vehicle.width", "ego.vehicle.front_length",
                                  "ego.vehicle.rear_length", "ego.vehicle.wheel_base", "ego.vehicle.height",
                                  "map.lanes[0].speed_limit_mps"])
def test_sizes_are_positive(path: str) -> None:
    for value in (0.0, -4.5):
        assert refusal(changed(path, value)) == f"{path}: got {value}, want a number above 0"


@pytest.mark.parametrize(("path", "what"), [
    ("map.roadblocks[0].lane_ids", "lane"), ("map.roadblocks[0].incoming", "roadblock"),
    ("map.roadblocks[1].outgoing", "roadblock"), ("map.lanes[0].incoming", "lane"), ("map.lanes[1].outgoing", "lane"),
    ("route_roadblock_ids", "roadblock")])
def test_lists_of_ids_name_what_exists(path: str, what: str) -> None:
    assert refusal(changed(path, ["ghost"])) == f"{path}[0]: got 'ghost', want the id of a {what}"


def test_single_ids_name_what_exists_once() -> None:
    for path in ("map.lanes[0].roadblock_id", "traffic_lights[0].lane_connector_id"):
        assert refusal(changed(path, "ghost")).startswith(f"{path}: got 'ghost', want the id of a ")
    for path, key in (("map.lanes", "id"), ("map.roadblocks", "id"), ("tracks", "token")):
        twice = [*copy.deepcopy(FIELDS[path]), copy.deepcopy(FIELDS[path][0])]
        assert refusal(changed(path, twice)).startswith(f"{path}[{len(twice) - 1}].{key}: got ")


@pytest.mark.parametrize(("path", "value", "said"), [
    ("schema", "nemo-mtdrive-scene/99", "want one of nemo-mtdrive-scene/1"),
    ("command", "TURN AROUND", "want one of TURN LEFT, GO STRAIGHT, TURN RIGHT"),
    ("tracks[0].type", "spaceship", "want one of vehicle"),
    ("map.lanes[0].kind", "road", "want one of lane, lane_connector"),
    ("history[3]", [0.1, 0.0, 0.0], "want [0, 0, 0]"),
    ("scene_id", "../elsewhere", "want text that fits"),
    ("camera.file", "../elsewhere.png", "want text that fits"),
    ("camera.width", 0, "want 1 or more"),
    ("camera.intrinsics[0][0]", -1545.0, "want a focal length above 0"),
    ("camera.intrinsics[2]", [0.0, 1.0, 1.0], "want [0, 0, 1]"),
    ("camera.extrinsics[3]", [0.0, 0.0, 1.0, 1.0], "want [0, 0, 0, 1]"),
    ("camera.extrinsics[0]", [0.0, 0.0, 2.0, 1.65], "is not a rotation"),
    ("map.lanes[0].centerline", [[1.0, 1.0], [1.0, 1.0]], "got one point 2 times"),
    ("tracks[0].states[3][1]", 10**400, "hundreds of digits"),
    ("ground.heights", [[1.0, 2.0], [1.0, 2.0, 3.0]], "got rows of different lengths"),
    ("ground.step", 0.0, "want a number above 0"),
    ("ground.heights[1]", [1.0, math.nan], "[1]: got NaN")])
def test_other_nonsense(path: str, value: Any, said: str) -> None:
    text = refusal(changed(path, value))
    assert text.startswith(path.split("[3][1]")[0].replace(".extrinsics[0]", ".extrinsics")) and said in text


def test_nothing_that_is_not_an_object_is_a_scene() -> None:
    for data in (None, [], 3, "scene", {}):
        assert refusal(data)


def test_the_shipped_schema_alone_accepts_the_whole_scene_and_refuses_its_breaks() -> None:
    """What `validate` skips for speed, the schema still says to those who use it with another library."""
    schema = fastjsonschema.compile(json.loads(SCHEMA_FILE.read_text()))
    schema(copy.deepcopy(WHOLE))
    for data in (changed("tracks[0].states[3]", [1.5, 0.0]), changed("map.lanes[0].polygon[1][0]", "x"),
                 changed("ego", ...)):
        with pytest.raises(fastjsonschema.JsonSchemaValueException):
            schema(data)


@pytest.mark.parametrize("path", GOLDEN[::5], ids=lambda path: path.stem)
def test_golden_scenes_are_accepted(path: Path) -> None:
    validate(json.loads(path.read_text()))


def test_generated_scenes_are_accepted(scenes: list[Scene]) -> None:
    for scene in scenes:
        validate(scene_to_json(scene))


def test_a_file_is_named_in_the_complaint_and_no_broken_file_is_written(tmp_path: Path) -> None:
    file = tmp_path / "s1.json"
    file.write_text(json.dumps(changed("tracks[0].states[7][2]", math.nan)))
    with pytest.raises(SceneError) as caught:
        load_scene(file)
    assert str(caught.value) == f"{file}: tracks[0].states[7][2]: got NaN, want a finite number"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SceneError, match="s1.json"):
        load_scene(file)
    broken = scene_from_json(WHOLE)
    broken.tracks[0].size[1] = -2.0
    with pytest.raises(SceneError, match=r"not written: tracks\[0\].size\[1\]: got -2.0"):
        save_scene(broken, tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
