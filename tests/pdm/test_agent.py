"""The agent: both perceptions, what it keeps, and scenes and plans that are not as they should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import SceneMap
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import SceneCache
from nemo_mtdrive.types import SCORE_NAMES
from tests.pdm.conftest import MakeScene, standing, straight_map, straight_plan, track

EMPTY_MAP = SceneMap((), (), (), ())


def test_free_road_is_perfect(make_scene: MakeScene) -> None:
    review = PDMAgent("oracle", 1).review(make_scene(speed=10.0), straight_plan(10.0)[None])[0]
    assert review.scores == dict.fromkeys(SCORE_NAMES, 1.0)


def test_braking_leader_is_seen_by_the_oracle_only(make_scene: MakeScene) -> None:
    rows = [(0.5 * i, x, 0.0, 0.0, v, 0.0) for i, (x, v) in enumerate(
        [(18.0, 10.0), (22.0, 6.0), (24.0, 2.0)] + [(24.5, 0.0)] * 8)]
    scene = make_scene((track("leader", "vehicle", (4.5, 1.9, 1.5), rows),), speed=10.0)
    plan = straight_plan(10.0)[None]
    oracle, kinematic = PDMAgent("oracle", 1).review(scene, plan)[0], PDMAgent("kinematic", 1).review(scene, plan)[0]
    assert (oracle.scores["NC"], oracle.scores["TTC"], oracle.scores["PDMS"]) == (0.0, 0.0, 0.0)
    assert (kinematic.scores["NC"], kinematic.scores["TTC"], kinematic.feedback) == (1.0, 1.0, "")


def test_kinematic_knows_nothing_that_appears_later(make_scene: MakeScene) -> None:
    rows = [(t, 20.0, 0.0, 0.0, 0.0, 0.0) for t in (1.0, 5.0)]
    later = track("late", "vehicle", (4.5, 1.9, 1.5), rows)
    scene = make_scene((later,))
    assert PDMAgent("kinematic", 1).review(scene, straight_plan(6.2)[None])[0].scores["NC"] == 1.0
    assert PDMAgent("oracle", 1).review(scene, straight_plan(6.2)[None])[0].scores["NC"] == 0.0


def test_objects_cost_half_and_road_users_all(make_scene: MakeScene) -> None:
    agent = PDMAgent("oracle", 2)
    for kind, wanted in (("barrier", 0.5), ("pedestrian", 0.0)):
        scene = make_scene((standing("it", kind, (1.0, 1.0, 1.0), 15.0, 0.0),), scene_id=kind)
        assert agent.review(scene, straight_plan(6.2)[None])[0].scores["NC"] == wanted


def test_progress_is_held_against_the_reference(make_scene: MakeScene) -> None:
    agent, scene = PDMAgent("oracle", 1), make_scene(speed=10.0)
    slow, fast = agent.review(scene, np.stack([straight_plan(5.0), straight_plan(10.0)]))
    assert 0.4 < slow.scores["EP"] < 0.9
    assert slow.scores["EP"] == agent.review(scene, straight_plan(5.0)[None])[0].scores["EP"]
    assert slow.scores["PDMS"] == pytest.approx(slow.scores["NC"] * slow.scores["DAC"] * (
        5 * slow.scores["EP"] + 5 * slow.scores["TTC"] + 2 * slow.scores["C"]) / 12)
    assert fast.scores["EP"] == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_plans_that_are_not_finite_are_refused(make_scene: MakeScene, value: float) -> None:
    plan = straight_plan(6.2)
    plan[3, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        PDMAgent("oracle", 1).review(make_scene(), plan[None])


@pytest.mark.parametrize("factor", [1e3, 1e9, 1e300])
def test_plans_far_away_get_a_sound_zero(make_scene: MakeScene, factor: float) -> None:
    for plan in (straight_plan(6.2) * factor, straight_plan(6.2, lateral=9.0) * -factor):
        review = PDMAgent("oracle", 1).review(make_scene(), plan[None])[0]
        assert all(0.0 <= review.scores[name] <= 1.0 for name in SCORE_NAMES)
        assert (review.scores["DAC"], review.scores["C"], review.scores["PDMS"]) == (0.0, 0.0, 0.0)
        assert "DAC" in review.feedback


def test_no_plans_no_reviews(make_scene: MakeScene) -> None:
    assert PDMAgent("oracle", 1).review(make_scene(), np.zeros((0, 8, 3))) == []


@pytest.mark.parametrize("route", [(), ("unknown",)])
def test_without_a_route_the_nearest_lane_is_followed(make_scene: MakeScene, route: tuple[str, ...]) -> None:
    with_route, without = make_scene(), make_scene(scene_id="without", route_roadblock_ids=route)
    agent = PDMAgent("oracle", 2)
    plans = np.stack([straight_plan(6.2), straight_plan(3.0), straight_plan(6.2, lateral=5.0)])
    assert [r.scores for r in agent.review(without, plans)] == [r.scores for r in agent.review(with_route, plans)]


def test_without_lanes_progress_counts_along_the_heading(make_scene: MakeScene) -> None:
    road = replace(straight_map(), lanes=())
    scene = make_scene(map=road, route_roadblock_ids=(), speed=9.0)
    slow, fast, away = PDMAgent("oracle", 1).review(
        scene, np.stack([straight_plan(4.0), straight_plan(9.0), straight_plan(9.0, lateral=6.0)]))
    assert 0.2 < slow.scores["EP"] < fast.scores["EP"] <= 1.0
    assert (fast.scores["DAC"], away.scores["DAC"]) == (1.0, 0.0)
    assert fast.scores["DDC"] == 1.0


def test_an_empty_map_is_nowhere_drivable(make_scene: MakeScene) -> None:
    scene = make_scene((standing("car", "vehicle", (4.5, 1.9, 1.5), 15.0, 0.0),), map=EMPTY_MAP, route_roadblock_ids=())
    review = PDMAgent("oracle", 1).review(scene, straight_plan(6.2)[None])[0]
    assert (review.scores["NC"], review.scores["DAC"], review.scores["TTC"], review.scores["C"]) == (0.0, 0.0, 0.0, 1.0)
    assert review.scores["PDMS"] == 0.0


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ValueError, match="perception='psychic': set it to one of oracle, kinematic"):
        PDMAgent("psychic", 1)
    with pytest.raises(ValueError, match="cache_size=0"):
        PDMAgent("oracle", 0)


def test_the_cache_keeps_the_last_scenes_and_sees_changes(make_scene: MakeScene) -> None:
    kept = SceneCache("oracle", 2)
    scenes = [make_scene(scene_id=str(i)) for i in range(3)]
    first, second = kept.get(scenes[0]), kept.get(scenes[1])
    assert kept.get(scenes[0]) is first
    assert kept.get(make_scene(scene_id="0")) is first  # loaded anew, same content
    kept.get(scenes[2])
    assert len(kept) == 2
    assert kept.get(scenes[0]) is first
    assert kept.get(scenes[1]) is not second
    assert kept.get(make_scene(scene_id="0", speed=3.0)) is not first


def test_many_scenes_at_once_are_reviewed_as_each_alone(make_scene: MakeScene) -> None:
    parked = (standing("car", "vehicle", (4.5, 1.9, 1.5), 20.0, 0.5),)
    scenes = [make_scene(scene_id="free"), make_scene(parked, scene_id="parked"),
              make_scene(scene_id="turned", pose=(5.0, 0.5, 0.2), speed=9.0, extra={"t0_us": 1630335398550000})]
    plans = np.stack([straight_plan(6.2), straight_plan(9.0, lateral=4.0)])
    requests = [(scenes[0], plans), (scenes[1], plans[:0]), (scenes[2], plans), (scenes[1], plans[1:])]
    together = PDMAgent("oracle", 4).review_many(requests)
    assert together == [PDMAgent("oracle", 1).review(scene, rows) for scene, rows in requests]
    assert [len(reviews) for reviews in together] == [2, 0, 2, 1]
    assert PDMAgent("oracle", 1).review_many([]) == []
    with pytest.raises(ValueError, match=r"requests\[1\]: trajectories\[0\]"):
        PDMAgent("oracle", 2).review_many([(scenes[0], plans), (scenes[0], plans * np.nan)])
