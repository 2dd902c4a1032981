"""The generator: the same seed gives the same bytes, the expert is sound, records agree with each other."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shapely

from nemo_mtdrive.driving.generator import MIXTURE, ROADS, SITUATIONS, generate
from nemo_mtdrive.driving.generator.simulation import inside
from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene, save_scene, scene_to_json, to_map_frame
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


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_kinds_are_what_was_asked_for(road: str, situation: str) -> None:
    scene = generate(3, {road: 2.0, situation: 0.5})
    assert scene.kind == f"{road}/{situation}"
    assert scene.scene_id == "p0000003"


@pytest.mark.parametrize("kinds, word", [({"motorway": 1.0}, "motorway"), ({"straight": 1.0}, "free"), ({}, "straight"),
                                         ({"curve": -1.0, "free": 1.0}, "straight")])
def test_bad_kinds_are_refused(kinds: dict[str, float], word: str) -> None:
    with pytest.raises(SceneError, match=word):
        generate(0, kinds)


def test_shapes_and_frames(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.history is not None and scene.history.shape == (4, 3)
        assert scene.future is not None and scene.future.shape == (8, 3)
        np.testing.assert_allclose(scene.history[-1], 0.0, atol=1e-9)
        for track in scene.tracks:
            np.testing.assert_allclose(track.states[:, 0], 0.5 * np.arange(11))
        assert 0.0 <= scene.ego.velocity[0] <= 17.0


def test_history_and_future_agree_with_the_velocity(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.history is not None and scene.future is not None
        speed, acceleration = scene.ego.velocity[0], scene.ego.acceleration[0]
        # half a second of motion; the rest is change of acceleration (at most 15 m/s^3 when somebody must brake)
        assert scene.future[0, 0] == pytest.approx(speed * 0.5 + acceleration * 0.125, abs=0.35)
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
        assert (turn * speed[1:]).max() < 2.6, scene.scene_id


def test_command_agrees_with_the_route(scenes: list[Scene]) -> None:
    blocks_seen = set()
    for scene in scenes:
        blocks = {block.id: block for block in scene.map.roadblocks}
        lanes = {lane.id: lane for lane in scene.map.lanes}
        route = scene.route_roadblock_ids
        for before, after in pairwise(route):
            assert after in blocks[before].outgoing and before in blocks[after].incoming
        turn = 0.0
        for name in route:
            if blocks[name].kind == "roadblock_connector":
                line = lanes[blocks[name].lane_ids[0]].centerline
                first, last = line[1] - line[0], line[-1] - line[-2]
                turn = math.remainder(math.atan2(last[1], last[0]) - math.atan2(first[1], first[0]), 2 * math.pi)
        expected = "TURN LEFT" if turn > 0.7 else "TURN RIGHT" if turn < -0.7 else "GO STRAIGHT"
        assert scene.command == expected
        blocks_seen.add(scene.command)
    assert len(blocks_seen) == 3


def test_map_is_continuous_and_long_enough(scenes: list[Scene]) -> None:
    for scene in scenes:
        lanes = {lane.id: lane for lane in scene.map.lanes}
        for lane in lanes.values():
            for after in lane.outgoing:
                np.testing.assert_allclose(lane.centerline[-1], lanes[after].centerline[0], atol=0.05)
                assert lane.id in lanes[after].incoming
        areas = [block.polygon for block in scene.map.roadblocks if block.kind == "roadblock"]
        areas += [area.polygon for area in scene.map.intersections]
        union = shapely.union_all([shapely.Polygon(area).buffer(0.01) for area in areas])
        assert union.geom_type == "Polygon", "roads and crossing are one piece"
        blocks = {block.id: block for block in scene.map.roadblocks}
        route = np.vstack([lanes[blocks[name].lane_ids[0]].centerline for name in scene.route_roadblock_ids])
        distance = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(route, axis=0).T))])
        here = distance[np.argmin(np.hypot(*(route - scene.ego.rear_axle_pose[:2]).T))]
        assert here > 60.0 and distance[-1] - here > 120.0, scene.scene_id


def test_lights_are_consistent() -> None:
    scenes = [generate(seed, {"crossing": 1.0, "free": 1.0}) for seed in range(12)]
    lit = [scene for scene in scenes if scene.traffic_lights]
    assert 3 <= len(lit) < 12
    for scene in lit:
        red = {light.lane_connector_id: light.is_red for light in scene.traffic_lights}
        main = {value for name, value in red.items() if name[1] in "02"}
        cross = {value for name, value in red.items() if name[1] in "13"}
        assert len(main) == 1 and len(cross) == 1 and (main | cross != {False})


def test_distribution_is_worth_learning(scenes: list[Scene]) -> None:
    errors = np.array([ade(constant_velocity(scene), scene.future) for scene in scenes])
    assert (errors > 1.0).mean() >= 0.45
    assert (errors < 0.5).any()
    speeds = np.array([scene.ego.velocity[0] for scene in scenes])
    assert speeds.min() < 3.0 and speeds.max() > 10.0


def test_save_and_load(scenes: list[Scene], tmp_path: Path) -> None:
    for scene in scenes[:5]:
        save_scene(scene, tmp_path / "scene.json")
        loaded = load_scene(tmp_path / "scene.json")
        assert as_text(loaded) == as_text(scene)
        assert loaded.extra == {"generator": scene.extra["generator"]}


def test_times() -> None:
    np.testing.assert_allclose(TIMES, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
