"""The generator: the same seed gives the same bytes, the expert is sound, records agree with each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shapely

from nemo_mtdrive.driving.generator import (
    COMMAND_SHARES,
    MIXTURE,
    ROADS,
    SITUATIONS,
    SPLITS,
    generate,
    split_seed,
)
from nemo_mtdrive.driving.generator.checks import inside
from nemo_mtdrive.driving.generator.mixture import SPLIT_SIZE, joint_shares, weights_of
from nemo_mtdrive.driving.generator.recording import route_command
from nemo_mtdrive.driving.scene import (
    COMMANDS,
    TRACK_TYPES,
    Scene,
    SceneError,
    load_scene,
    save_scene,
    scene_to_json,
    to_map_frame,
)
from nemo_mtdrive.driving.trajectory import (
    TIMES,
    ade,
    box_corners,
    boxes_overlap,
    constant_velocity,
    dense,
    interpolate_poses,
)


def as_text(scene: Scene) -> str:
    return json.dumps(scene_to_json(scene))


def test_same_seed_same_bytes() -> None:
    for seed in (0, 7, 123456):
        assert as_text(generate(seed, MIXTURE)) == as_text(generate(seed, MIXTURE))
    assert as_text(generate(1, MIXTURE)) != as_text(generate(2, MIXTURE))
    assert as_text(generate(1, MIXTURE, 0.0)) != as_text(generate(1, MIXTURE, 1.0))


@pytest.mark.parametrize("kind", MIXTURE)
def test_kinds_are_what_was_asked_for(kind: str) -> None:
    road, situation = kind.split("/")
    scene = generate(3, {road: 2.0, situation: 0.5})
    assert scene.kind == kind
    assert scene.scene_id == "p0000003"


@pytest.mark.parametrize("kinds, word", [({"motorway": 1.0}, "motorway"), ({"straight": 1.0, "red_light": 1.0}, "no kind"),
                                         ({"curve": -1.0, "free": 1.0}, "0 or more"), ({"curve/lead": 0.0}, "above 0"),
                                         ({"free": math.nan}, "0 or more")])
def test_bad_kinds_are_refused(kinds: dict[str, float], word: str) -> None:
    with pytest.raises(SceneError, match=word):
        generate(0, kinds)


def test_bad_numbers_are_refused() -> None:
    for seed, difficulty in ((-1, 0.5), (0, 1.5), (0, math.nan)):
        with pytest.raises(SceneError, match="difficulty to 0 to 1"):
            generate(seed, MIXTURE, difficulty)
    with pytest.raises(SceneError, match="commands"):
        generate(0, MIXTURE, 0.5, {"TURN BACK": 1.0})


def test_every_kind_has_its_share() -> None:
    assert min(MIXTURE.values()) / sum(MIXTURE.values()) >= 0.022
    assert {kind.split("/")[0] for kind in MIXTURE} == set(ROADS)
    assert {kind.split("/")[1] for kind in MIXTURE} == set(SITUATIONS)
    names, table = joint_shares(MIXTURE, COMMAND_SHARES)
    np.testing.assert_allclose(table.sum(1), [MIXTURE[name] / sum(MIXTURE.values()) for name in names], atol=1e-9)
    np.testing.assert_allclose(table.sum(0), [COMMAND_SHARES[name] for name in COMMANDS], atol=1e-6)


def test_names_apart_and_together() -> None:
    assert weights_of({"curve": 2.0}) == {k: 2.0 * w for k, w in MIXTURE.items() if k.startswith("curve/")}
    assert weights_of({"curve": 2.0, "merge": 1.0, "lead": 3.0}) == {"curve/lead": 6.0, "merge/lead": 3.0}
    assert weights_of({"curve/lead": 1.0, "straight/bus": 3.0}) == {"curve/lead": 1.0, "straight/bus": 3.0}


def test_splits_never_share_a_seed() -> None:
    ranges = [(split_seed(split, 0), split_seed(split, SPLIT_SIZE - 1)) for split in SPLITS]
    for (_, last), (first, _) in pairwise(sorted(ranges)):
        assert last < first
    for split, number in (("validation", 0), ("test", -1), ("test", SPLIT_SIZE)):
        with pytest.raises(SceneError, match=split):
            split_seed(split, number)


def test_commands_follow_the_shares_asked_for() -> None:
    kinds = {"curve/free": 1.0, "t_junction/red_light": 1.0, "crossing/free": 1.0}
    for shares in ({"TURN LEFT": 1.0}, {"TURN RIGHT": 0.5, "TURN LEFT": 0.5}, {"GO STRAIGHT": 1.0}):
        found = Counter(generate(seed, kinds, 0.5, shares).command for seed in range(12))
        if shares == {"TURN LEFT": 1.0}:
            # nobody turns left while standing at the stop line: the kinds' weights go before the commands'
            assert found["TURN LEFT"] >= 6
        else:
            assert set(found) == set(shares)


def test_shapes_and_frames(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.history is not None and scene.history.shape == (4, 3)
        assert scene.future is not None and scene.future.shape == (8, 3)
        np.testing.assert_allclose(scene.history[-1], 0.0, atol=1e-9)
        for track in scene.tracks:
            np.testing.assert_allclose(track.states[:, 0], 0.5 * np.arange(11))
            assert track.type in TRACK_TYPES
        assert len({track.token for track in scene.tracks}) == len(scene.tracks)
        assert 0.0 <= scene.ego.velocity[0] <= 25.5
        assert all(3.1 < lane.speed_limit_mps < 25.5 for lane in scene.map.lanes if lane.speed_limit_mps)


def test_history_and_future_agree_with_the_velocity(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.history is not None and scene.future is not None
        speed, acceleration = scene.ego.velocity[0], scene.ego.acceleration[0]
        # half a second of motion; the rest is change of acceleration (at most 15 m/s^3 when somebody must brake)
        assert np.hypot(*scene.future[0, :2]) == pytest.approx(speed * 0.5 + acceleration * 0.125, abs=0.35)
        assert -scene.history[2, 0] == pytest.approx(speed * 0.5 - acceleration * 0.125, abs=0.35)
        assert (np.diff(np.concatenate([scene.history[:, 0][:3], [0.0]])) > -1e-6).all()


def expert_boxes(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The expert's corners [41, 4, 2] in the map frame at every 0.1 s, from the recorded points alone; its poses."""
    assert scene.future is not None
    poses = to_map_frame(dense(scene.future, 0.1), scene.ego.rear_axle_pose)
    vehicle = scene.ego.vehicle
    return box_corners(poses, vehicle.length, vehicle.width, vehicle.rear_axle_to_center), poses


def test_expert_neither_collides_nor_leaves_the_road(scenes: list[Scene]) -> None:
    times = 0.1 * np.arange(41)
    for scene in scenes:
        corners, _ = expert_boxes(scene)
        # linear interpolation cuts the inside of bends by a few centimetres: the area is checked where poses are known
        assert inside(scene.map, corners[::5].reshape(-1, 2)).all(), scene.scene_id
        for track in scene.tracks:
            poses = interpolate_poses(track.states[:, 0], track.states[:, 1:4], times)
            others = box_corners(poses, track.size[0], track.size[1], 0.0)
            assert not boxes_overlap(corners, others).any(), (scene.scene_id, track.token)


def test_expert_is_comfortable(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.future is not None
        steps = np.diff(np.vstack([np.zeros(2), scene.future[:, :2]]), axis=0)
        speed = np.concatenate([[scene.ego.velocity[0]], np.hypot(steps[:, 0], steps[:, 1]) / 0.5])
        assert (np.diff(speed[1:]) / 0.5).min() > -4.05
        turn = np.abs(np.diff(np.concatenate([[0.0], scene.future[:, 2]]))) / 0.5
        assert (turn * speed[1:]).max() < 3.3, scene.scene_id


def test_command_comes_from_the_route_alone(scenes: list[Scene]) -> None:
    """The recorded command is NAVSIM's rule on the lanes of the route; what the expert drives later is not looked at."""
    agrees = 0
    for scene in scenes:
        blocks = {block.id: block for block in scene.map.roadblocks}
        lanes = {lane.id: lane for lane in scene.map.lanes}
        route = scene.route_roadblock_ids
        for before, after in pairwise(route):
            assert after in blocks[before].outgoing and before in blocks[after].incoming
        here = shapely.Point(scene.ego.rear_axle_pose[:2])
        found = set()
        for first in blocks[route[0]].lane_ids:
            way = [first]
            for block in route[1:]:
                way += [lane for lane in lanes[way[-1]].outgoing if lanes[lane].roadblock_id == block][:1]
            line = np.vstack([lanes[lane].centerline for lane in way])
            if len(way) == len(route) and shapely.LineString(line).distance(here) < 0.5 * 3.75:
                found.add(route_command(line, scene.ego.rear_axle_pose))
        agrees += scene.command in found
    assert agrees >= 0.93 * len(scenes)  # an expert that passes something may be outside its lane
    assert {scene.command for scene in scenes} == set(COMMANDS)


@pytest.mark.parametrize("side, command", [(2.1, "TURN LEFT"), (1.9, "GO STRAIGHT"), (-1.9, "GO STRAIGHT"),
                                           (-2.1, "TURN RIGHT")])
def test_command_rule(side: float, command: str) -> None:
    """20 m further on along the route, 2 m to the side (what NAVSIM's metadata was made with)."""
    line = np.array([[-10.0, 0.0], [10.0, 0.0], [10.0 + math.sqrt(100.0 - side**2), side], [60.0, side]])
    assert route_command(line, np.array([0.0, 0.0, 0.0])) == command
    turned = line @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    assert route_command(turned, np.array([0.0, 0.0, math.pi / 2])) == command


def test_map_is_continuous_and_long_enough(scenes: list[Scene]) -> None:
    for scene in scenes:
        lanes = {lane.id: lane for lane in scene.map.lanes}
        for lane in lanes.values():
            assert shapely.Polygon(lane.polygon).is_valid, (scene.scene_id, lane.id)
            for after in lane.outgoing:
                np.testing.assert_allclose(lane.centerline[-1], lanes[after].centerline[0], atol=0.05)
                assert lane.id in lanes[after].incoming
        areas = [block.polygon for block in scene.map.roadblocks if block.kind == "roadblock"]
        areas += [area.polygon for area in scene.map.intersections]
        assert all(shapely.Polygon(area).is_valid for area in areas), scene.scene_id
        union = shapely.union_all([shapely.Polygon(area).buffer(0.01) for area in areas])
        assert union.geom_type == "Polygon", "roads and crossing are one piece"
        for lane in lanes.values():
            # connectors are no drivable area: a crossing's area must hold whoever follows one
            if lane.kind == "lane_connector":
                way = shapely.LineString(lane.centerline).buffer(1.15, cap_style="flat")
                assert way.difference(union).area < 0.5, (scene.scene_id, lane.id)
        blocks = {block.id: block for block in scene.map.roadblocks}
        route = np.vstack([lanes[blocks[name].lane_ids[-1]].centerline for name in scene.route_roadblock_ids])
        distance = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(route, axis=0).T))])
        here = distance[np.argmin(np.hypot(*(route - scene.ego.rear_axle_pose[:2]).T))]
        assert here > 40.0 and distance[-1] - here > 4.0 * scene.ego.velocity[0] + 60.0, scene.scene_id


def test_lights_are_consistent() -> None:
    scenes = [generate(seed, {"crossing": 1.0, "red_light": 1.0, "green_light": 1.0}) for seed in range(10)]
    for scene in scenes:
        red = {light.lane_connector_id: light.is_red for light in scene.traffic_lights}
        main = {value for name, value in red.items() if name[1] in "02"}
        cross = {value for name, value in red.items() if name[1] in "13"}
        assert len(main) == 1 and len(cross) == 1 and (main | cross != {False})
        assert main == {True} or scene.kind == "crossing/green_light" or scene.ego.velocity[0] < 1.0
    assert {scene.kind for scene in scenes} == {"crossing/red_light", "crossing/green_light"}


def test_appearance(scenes: list[Scene]) -> None:
    for scene in scenes:
        look = scene.extra["appearance"]
        assert look["weather"] in ("clear", "cloudy", "rain", "fog")
        assert look["time_of_day"] in ("day", "dawn", "dusk", "night")
        tracks = {track.token: track for track in scene.tracks}
        for token, shown in look["signals"].items():
            assert tracks[token].type == "vehicle"
            assert shown and set(shown) <= {"brake", "left", "right"}
            if "brake" in shown:
                speed = np.hypot(tracks[token].states[:2, 4], tracks[token].states[:2, 5])
                assert speed[0] < 0.5 or speed[1] < speed[0] + 0.3, (scene.scene_id, token)
    assert len({scene.extra["appearance"]["weather"] for scene in scenes}) >= 3


def test_distribution_is_worth_learning(scenes: list[Scene]) -> None:
    errors = np.array([ade(constant_velocity(scene), scene.future) for scene in scenes])
    assert (errors > 1.0).mean() >= 0.4
    assert (errors < 0.5).any()
    speeds = np.array([scene.ego.velocity[0] for scene in scenes])
    assert speeds.min() < 3.0 and speeds.max() > 12.0
    assert np.median([len(scene.tracks) for scene in scenes]) >= 8
    assert len({scene.kind for scene in scenes}) >= 22


def test_save_and_load(scenes: list[Scene], tmp_path: Path) -> None:
    for scene in scenes[:5]:
        save_scene(scene, tmp_path / "scene.json")
        loaded = load_scene(tmp_path / "scene.json")
        assert as_text(loaded) == as_text(scene)
        assert loaded.extra == {name: scene.extra[name] for name in ("generator", "appearance")}


def test_times() -> None:
    np.testing.assert_allclose(TIMES, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
