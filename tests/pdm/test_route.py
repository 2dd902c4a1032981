"""Route correction and the centreline on small road graphs."""

from __future__ import annotations

import numpy as np

from nemo_mtdrive.driving.scene import Lane, Roadblock, Scene, SceneMap
from nemo_mtdrive.pdm.drivable import drivable_map
from nemo_mtdrive.pdm.route import Route, find_route
from tests.pdm.conftest import MakeScene, rectangle

LENGTH = 20.0


def chain(count: int, connectors: frozenset[int] = frozenset(), offsets: dict[int, float] | None = None) -> SceneMap:
    """Roadblocks b0, b1, ... one behind the other along x from -10, each with one lane l0, l1, ..."""
    blocks, lanes = [], []
    for i in range(count):
        x = -10.0 + LENGTH * i + (offsets or {}).get(i, 0.0)
        before, after = ((i - 1,) if i else ()), ((i + 1,) if i + 1 < count else ())
        kind = "_connector" if i in connectors else ""
        ring = rectangle(x, -2.0, x + LENGTH, 2.0)
        blocks.append(Roadblock(f"b{i}", f"roadblock{kind}", ring, (f"l{i}",), tuple(f"b{k}" for k in before),
                                tuple(f"b{k}" for k in after)))
        line = np.array([[x, 0.0], [x + 10.0, 0.0], [x + LENGTH, 0.0]])
        lanes.append(Lane(f"l{i}", f"lane{kind}", f"b{i}", ring, line, float(i + 1), tuple(f"l{k}" for k in before),
                          tuple(f"l{k}" for k in after)))
    return SceneMap(tuple(blocks), tuple(lanes), (), ())


def route_of(scene: Scene) -> Route:
    return find_route(scene, drivable_map(scene.map, scene.ego))


def test_a_route_is_followed_from_the_lane_of_the_ego(make_scene: MakeScene) -> None:
    route = route_of(make_scene(map=chain(5), route_roadblock_ids=("b0", "b1", "b2"), pose=(15.0, 0.5, 0.0)))
    assert route.lane_ids == ("l0", "l1", "l2")
    assert route.centerline[0].tolist() == [10.0, 0.0, 0.0]
    assert route.centerline[-1].tolist() == [50.0, 0.0, 0.0]
    assert route.speed_limit_mps == 2.0


def test_gaps_are_filled(make_scene: MakeScene) -> None:
    assert route_of(make_scene(map=chain(6), route_roadblock_ids=("b0", "b3", "b5"))).lane_ids == (
        "l0", "l1", "l2", "l3", "l4", "l5")


def test_a_start_before_the_route_leads_up_to_it(make_scene: MakeScene) -> None:
    route = route_of(make_scene(map=chain(6), route_roadblock_ids=("b3", "b4")))
    assert route.lane_ids == ("l0", "l1", "l2", "l3", "l4")


def test_a_route_that_cannot_be_reached_is_kept(make_scene: MakeScene) -> None:
    far = make_scene(map=chain(6), route_roadblock_ids=("b0", "b1"), pose=(75.0, 0.0, 0.0))
    assert route_of(far).lane_ids == ("l0", "l1")


def test_a_route_ends_where_it_crosses_itself(make_scene: MakeScene) -> None:
    crossing = chain(5, connectors=frozenset({1, 3}), offsets={3: -2 * LENGTH})
    route = route_of(make_scene(map=crossing, route_roadblock_ids=("b0", "b1", "b2", "b3", "b4")))
    assert route.lane_ids == ("l0", "l1", "l2")


def test_without_a_route_the_straightest_lanes_are_taken(make_scene: MakeScene) -> None:
    road = chain(3)
    ring, line = rectangle(30.0, 0.0, 40.0, 20.0), np.array([[30.0, 0.0], [30.0, 20.0]])
    bend = Lane("bend", "lane", "", ring, line, None, (), ())
    first, second, third = road.lanes
    fork = Lane("l1", "lane", "b1", second.polygon, second.centerline, None, (), ("bend", "l2"))
    scene = make_scene(map=SceneMap(road.roadblocks, (first, fork, third, bend), (), ()), route_roadblock_ids=())
    assert route_of(scene).lane_ids == ("l0", "l1", "l2")


def test_lanes_without_a_roadblock_are_on_the_map(make_scene: MakeScene) -> None:
    road = chain(2)
    scene = make_scene(map=SceneMap((), road.lanes, (), ()), route_roadblock_ids=())
    assert drivable_map(scene.map, scene.ego).ids == ("l0", "l1")
    assert route_of(scene).lane_ids == ("l0", "l1")
