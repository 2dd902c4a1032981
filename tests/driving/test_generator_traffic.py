"""Traffic of the generator: car following, lane changes, priority, lights, people, and the checks of the expert."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from nemo_mtdrive.driving.generator.checks import crash, inside, tracked, unsafe
from nemo_mtdrive.driving.generator.crossings import build_crossing, build_t_junction
from nemo_mtdrive.driving.generator.motion import following, free_road
from nemo_mtdrive.driving.generator.ramps import build_merge
from nemo_mtdrive.driving.generator.recording import ACCELERATION, LINE, OFFSET, SPEED, S, Take
from nemo_mtdrive.driving.generator.records import BICYCLE, NEVER, STEPS, WARM_UP_S, driver
from nemo_mtdrive.driving.generator.roads import Wish, build_straight
from nemo_mtdrive.driving.generator.roundabout import build_roundabout
from nemo_mtdrive.driving.generator.simulation import box_poses, row_at, simulate
from nemo_mtdrive.driving.generator.situations import BICYCLE_BODY, work_zone
from nemo_mtdrive.driving.generator.stage import EGO, Lights, Stage
from nemo_mtdrive.driving.trajectory import box_corners, boxes_overlap

CAR = (4.5, 1.8, 1.5)


def stage_on(lanes: int = 1) -> Stage:
    """A straight road of `lanes` lanes a direction with the expert in the left one at 10 m/s."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        stage = Stage(build_straight(rng, Wish(lanes=lanes, slow=True)), "free", "GO STRAIGHT", 0.5, rng)
        if stage.route.lanes == lanes:
            break
    stage.line, stage.route = 0, stage.road.routes[0]
    stage.place_expert(150.0, speed=10.0, wish=10.0, changes=0, passes=0, headway=1.4, power=1.5, braking=2.0)
    stage.expert["speed"] = 10.0
    return stage


def run(stage: Stage) -> Take:
    world, drivers, walkers = stage.world()
    traces, walks = simulate(world, drivers, walkers)
    return Take(stage, drivers, walkers, traces, walks)


def touch(take: Take, one: int, two: int) -> bool:
    """Whether two drivers' boxes ever overlap."""
    boxes = box_poses(take.traces, take.drivers)
    corners = [box_corners(boxes[:, k], take.drivers["length"][k], take.drivers["width"][k], 0.0) for k in (one, two)]
    return bool(boxes_overlap(*corners).any())


def test_idm() -> None:
    """No force at the desired speed; at IDM's equilibrium gap the two terms cancel; closer and faster means harder."""
    row = driver(0, 0.0, 10.0, CAR, wish=10.0, headway=1.5, power=1.5, braking=2.0)[0]
    assert free_road(row, 50.0) == pytest.approx(0.0)
    assert free_road(row, 7.0) < -1.0, "a curve ahead"
    row["speed"] = 6.0
    assert free_road(row, 50.0) == pytest.approx(1.5 * (1 - 0.6**6))
    gap = (2.0 + 6.0 * 1.5) / math.sqrt(1 - 0.6**6)
    assert free_road(row, 50.0) + following(row, gap, 6.0) == pytest.approx(0.0, abs=1e-9)
    assert following(row, NEVER, 0.0) == 0.0
    pulls = [following(row, gap, speed) for gap, speed in ((40.0, 6.0), (15.0, 6.0), (15.0, 3.0), (15.0, 0.0), (8.0, 0.0))]
    assert pulls == sorted(pulls, reverse=True) and pulls[-1] < -3.0


def test_a_follower_stops_behind_who_stands() -> None:
    stage = stage_on()
    stage.add_ahead(60.0, 0.0, CAR, hold_until=NEVER)
    take = run(stage)
    end = take.traces[-1, 0]
    gap = take.traces[-1, 1, S] + 0.28 * CAR[0] - CAR[0] / 2 - (end[S] + EGO.front_length)
    assert end[SPEED] < 2.0 and 1.0 < gap < 6.0, (end[SPEED], gap)
    assert take.traces[:, 0, ACCELERATION].min() > -3.5
    assert not touch(take, 0, 1)


def test_traffic_reacts_to_the_expert() -> None:
    """A car behind an expert that brakes hard brakes too."""
    stage = stage_on()
    stage.expert["brake_from"], stage.expert["brake_with"] = -1.0, 3.0
    stage.add_driver(0, float(stage.expert["s"][0]) - 18.0, 10.0, CAR, changes=0, passes=0)
    take = run(stage)
    assert take.traces[-1, :, SPEED].max() < 1.0
    assert not touch(take, 0, 1)


def test_mobil_overtakes_where_it_is_safe_only() -> None:
    """A slow car ahead is overtaken; not when the new follower would have to brake hard; never by who may not change."""
    def last_lane(changes: int, behind: float | None) -> int:
        stage = stage_on(lanes=2)
        right = stage.road.neighbours[0][1]
        stage.line, stage.route = right, stage.road.routes[right]
        stage.expert["line"], stage.expert["changes"] = right, changes
        stage.add_ahead(22.0, 5.0, CAR)
        if behind is not None:
            stage.add_driver(0, float(stage.expert["s"][0]) - behind, 16.0, CAR, wish=16.0, changes=0)
            stage.add_driver(0, float(stage.expert["s"][0]) + 1.0, 10.0, CAR, wish=10.0, changes=0)
            stage.add_driver(0, float(stage.expert["s"][0]) + 18.0, 6.0, CAR, wish=6.0, changes=0)
        take = run(stage)
        assert not any(touch(take, 0, k) for k in range(1, len(take.drivers)))
        return int(take.traces[row_at(0.0), 0, LINE])

    assert last_lane(1, None) == 0
    assert last_lane(0, None) != 0
    assert last_lane(1, 25.0) != 0


def test_a_cyclist_is_passed_with_room_unless_somebody_comes() -> None:
    def passing(oncoming: bool) -> Take:
        stage = stage_on()
        stage.expert["passes"] = 1
        stage.add_ahead(20.0, 3.0, BICYCLE_BODY, type=BICYCLE, offset_from=-1.1, offset_to=-1.1, passes=0)
        if oncoming:
            other = stage.oncoming_line()
            assert other is not None
            here = stage.lines.nearest(other, stage.lines.beside(0, stage.nose, 0.0))
            for k in range(9):
                stage.add_driver(other, here - 40.0 - 22.0 * k, 9.0, CAR, wish=9.0, changes=0)
        return run(stage)

    free, held = passing(False), passing(True)
    assert free.traces[:, 0, OFFSET].max() > 0.8 and free.traces[-1, 0, S] > free.traces[-1, 1, S] + 4.0
    assert abs(free.traces[-1, 0, OFFSET]) < 0.3, "back in its lane"
    assert not touch(free, 0, 1) and not touch(held, 0, 1)
    assert held.traces[-1, 0, S] < held.traces[-1, 1, S]


def test_a_closed_lane_is_left() -> None:
    left = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        stage = Stage(build_straight(rng, Wish(lanes=2)), "work_zone", "GO STRAIGHT", 0.5, rng)
        work_zone(stage)
        closed = stage.line
        assert {thing.type for thing in stage.things} >= {"traffic_cone", "barrier", "czone_sign"}
        take = run(stage)
        expert = box_corners(box_poses(take.traces, take.drivers)[:, 0], EGO.length, EGO.width, 0.0)
        for thing in stage.things:
            box = np.repeat(box_corners(np.array([thing.pose]), thing.size[0], thing.size[1], 0.0), STEPS, axis=0)
            assert not boxes_overlap(expert, box).any()
        left += take.traces[-1, 0, LINE] != closed
    assert left >= 4


@pytest.mark.parametrize("green", [0.5, NEVER])
def test_a_red_light_holds_until_it_is_green(green: float) -> None:
    rng = np.random.default_rng(5)
    stage = Stage(build_crossing(rng, Wish(), lights=True), "red_light", "GO STRAIGHT", 0.5, rng)
    stage.line = next(i for i, r in enumerate(stage.road.routes) if r.approach == 0 and r.movement == "straight")
    stage.route = stage.road.routes[stage.line]
    stop = stage.route.stop
    assert stop is not None
    stage.lights = Lights((green, -NEVER), (NEVER, green))
    stage.place_expert(stop - 10.0, speed=7.0)
    stage.expert["s"] = stop - 24.0
    expert = run(stage).traces[:, 0]
    before = expert[: row_at(min(green, 5.0))]
    assert (before[:, S] + EGO.front_length).max() < stop + 0.6
    assert before[-1, SPEED] < 2.0
    assert (expert[-1, S] > stop) == (green < NEVER)


def test_who_turns_left_lets_the_oncoming_pass() -> None:
    rng = np.random.default_rng(2)
    stage = Stage(build_crossing(rng, Wish(), lights=True), "unprotected_turn", "TURN LEFT", 0.5, rng)
    routes = stage.road.routes
    oncoming = next(i for i, r in enumerate(routes) if r.approach == 2 and r.movement == "straight")
    assert stage.route.movement == "left" and stage.route.entry is not None and routes[oncoming].entry is not None
    stage.place_expert(stage.route.entry + 4.0)
    stage.add_driver(oncoming, routes[oncoming].entry - 42.0, 9.0, CAR, wish=9.0, changes=0)
    take = run(stage)
    world = stage.world()[0]
    conflict = next(c for c in world.conflicts if {c["yields"], c["goes"]} == {stage.line, oncoming})
    assert conflict["yields"] == stage.line, "the left turn gives way"
    there = np.flatnonzero(take.traces[:, 0, S] + EGO.front_length > conflict["yields_from"])
    passed = np.flatnonzero(take.traces[:, 1, S] > conflict["goes_to"])
    assert len(passed) and (not len(there) or passed[0] <= there[0] + 3)
    assert not touch(take, 0, 1)


def test_ranks_of_a_junction_without_lights() -> None:
    """The road that ends gives way to the one that goes through, whatever the movement."""
    road = build_t_junction(np.random.default_rng(0), Wish(command="TURN RIGHT"), lights=False)
    arms = {route.approach for route in road.routes}
    ends = next(k for k in arms if (k + 2) % 4 not in arms)
    through = [route.rank for route in road.routes if route.approach != ends]
    assert len(arms) == 3 and min(route.rank for route in road.routes if route.approach == ends) > max(through)


def test_roundabout() -> None:
    """The island is no road; every way round it stays on the road and can be driven at 4 m/s; who enters gives way."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        road = build_roundabout(rng, Wish())
        stage = Stage(road, "free", "TURN RIGHT", 0.5, rng)
        middle = np.mean([np.asarray(shapely.Polygon(a.polygon).centroid.coords[0]) for a in road.map.intersections[:4]],
                         axis=0)
        assert not inside(road.map, middle[None])[0]
        for i, route in enumerate(road.routes):
            assert route.entry is not None and route.leave is not None
            part = slice(stage.lines.vertex(i, route.entry - 10), stage.lines.vertex(i, route.leave + 10))
            poses = np.column_stack([stage.lines.x[part], stage.lines.y[part], stage.lines.heading[part]])
            corners = box_corners(poses, EGO.length, EGO.width, EGO.rear_axle_to_center)
            assert inside(road.map, corners.reshape(-1, 2)).all(), (seed, i)
            assert stage.lines.cap[part].min() > 4.0
        stage.place_expert(road.routes[stage.line].entry)
        for i in range(len(road.routes)):
            stage.add_driver(i, 20.0, 5.0, CAR)
        world = stage.world()[0]
        for c in world.conflicts:
            mine, other = road.routes[c["yields"]], road.routes[c["goes"]]
            assert c["yields_from"] - mine.entry <= c["goes_from"] - other.entry


def test_merging_cars_take_turns() -> None:
    """Two cars abreast before the end of the acceleration lane: nobody touches, one is behind the other at the end."""
    rng = np.random.default_rng(1)
    road = build_merge(rng, Wish())
    stage = Stage(road, "free", "GO STRAIGHT", 0.5, rng)
    stage.line = next(i for i, route in enumerate(road.routes) if route.ends)
    stage.route = road.routes[stage.line]
    stage.place_expert(stage.route.change[1] - 30.0, speed=14.0, wish=15.0, changes=0)
    main = road.neighbours[stage.line][0]
    beside = stage.lines.nearest(main, stage.lines.beside(stage.line, float(stage.expert["s"][0]), 0.0))
    stage.add_driver(main, beside, 14.0, CAR, wish=15.0, changes=0)
    take = run(stage)
    assert not touch(take, 0, 1)
    boxes = box_poses(take.traces, take.drivers)[-1]
    along = (boxes[1, :2] - boxes[0, :2]) @ np.array([math.cos(boxes[0, 2]), math.sin(boxes[0, 2])])
    assert abs(along) > 6.0


def crossing_walker(crosses: int, begins: float, hidden_until: float = -NEVER, ahead: float = 22.0) -> Take:
    """Somebody crosses `ahead` m before the bumper that an expert at 10 m/s has at t = 0."""
    stage = stage_on()
    at = stage.at_zero + ahead
    heading = stage.lines.pose(0, at)[2]
    stage.add_walker(stage.lines.beside(0, at, stage.kerb() - 1.0), np.array([-math.sin(heading), math.cos(heading)]), 20.0,
                     1.4, begins, crosses=crosses, hidden_until=hidden_until)
    return run(stage)


def test_the_expert_stops_for_people() -> None:
    take = crossing_walker(1, -0.5)
    assert take.traces[:, 0, SPEED].min() < 4.0
    assert take.traces[:, 0, ACCELERATION].min() > -4.0
    ahead = take.traces[-1, 0, S] + EGO.front_length - (take.stage.at_zero + 22.0)
    assert ahead < 0.0 or take.walkers["walked"][0] > 4.0
    assert take.walkers["walked"][0] > 3.0, "who is let go walks on"


def test_polite_people_wait_for_who_cannot_stop() -> None:
    """Ten metres before them nobody can stop from 10 m/s: who looks lets the car pass, careless ones go all the same."""
    waits, careless = crossing_walker(1, 0.4, ahead=10.0), crossing_walker(2, 0.4, ahead=10.0)
    at = row_at(1.2)
    assert waits.walks[at, 0, 2] < 0.2
    assert careless.walks[at, 0, 2] > 1.2
    assert waits.walks[-1, 0, 2] > 1.2, "it goes when the car has passed"


def test_nobody_reacts_to_who_is_hidden() -> None:
    """Up to the moment that the walker comes out, the drive is that on an empty road."""
    hidden, nobody = crossing_walker(2, -1.5, hidden_until=1.2), run(stage_on())
    seen = int(np.argmax(hidden.walks[:, 0, 2].cumsum() * 0.1 > 1.2))
    assert row_at(-1.2) < seen < row_at(0.5)
    np.testing.assert_array_equal(hidden.traces[:seen, 0, SPEED], nobody.traces[:seen, 0, SPEED])
    assert hidden.traces[seen:, 0, SPEED].min() < 5.0 < nobody.traces[:, 0, SPEED].min()


def test_the_check_sees_what_time_to_collision_sees() -> None:
    ego = np.column_stack([np.linspace(0.0, 4.0, 5), np.zeros(5), np.zeros(5)])
    speed, careful = np.full(5, 10.0), np.zeros(5, dtype=bool)
    size = np.array([[4.5, 1.8]])

    def at(x: float, y: float, *, watch: bool = False) -> bool:
        others = np.tile(np.array([x, y, 0.0]), (14, 1, 1))
        return unsafe(ego, speed, careful | watch, EGO.length, EGO.width, EGO.rear_axle_to_center, others, size)

    assert at(5.0, 0.0), "touched"
    assert at(4.0 + EGO.front_length + 9.0 + 2.0, 0.0), "reached within 0.9 s"
    assert not at(4.0 + EGO.front_length + 9.0 + 3.0, 0.0)
    assert not at(-8.0, 0.0) and not at(12.0, 3.0)
    assert not at(-4.5, 1.0, watch=True), "behind"


def test_crashes_of_the_traffic_near_the_expert_are_seen() -> None:
    """Two cars, one person, one parked car: cars touch cars and what stands; people are not looked at."""
    sizes = np.array([[4.5, 1.8], [4.5, 1.8], [0.6, 0.6], [4.5, 1.8]])
    apart = np.array([[[0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])

    def seen(index: int, x: float, y: float, radius: float = 70.0) -> bool:
        boxes = apart.copy()
        boxes[0, index, :2] = x, y
        return crash(boxes, sizes, 2, 3, np.array([10.0, 0.0]), radius)

    assert not seen(1, 6.0, 0.0)
    assert seen(1, 4.0, 0.0) and seen(3, 0.0, 1.5)
    assert not seen(1, 4.0, 0.0, radius=5.0), "too far to matter"


def test_a_car_with_straight_wheels_is_carried_out_of_a_bend() -> None:
    s = 0.1 * 8.0 * np.arange(41)
    line = np.column_stack([s, np.zeros(41), np.zeros(41)])
    np.testing.assert_allclose(tracked(line, np.full(41, 8.0), EGO.wheel_base), line, atol=1e-9)
    circle = np.column_stack([20.0 * np.sin(s / 20.0), 20.0 * (1.0 - np.cos(s / 20.0)), s / 20.0])
    followed = tracked(circle, np.full(41, 8.0), EGO.wheel_base)
    outward = np.hypot(followed[:, 0], followed[:, 1] - 20.0) - 20.0
    assert 0.5 < outward[:25].max() < 1.5 and outward[-1] < 0.85
    assert WARM_UP_S >= 2.0, "two seconds of history"
