"""What every agent must keep, whoever wrote or trained it: the same tests over the rules and over a learned model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.config import AgentConfig
from nemo_mtdrive.driving.scene import TRACK_TYPES, Scene, load_scene
from nemo_mtdrive.pdm.feedback import CLOSING, OPENING, format_point
from nemo_mtdrive.pdm.review import Review, Reviewer, feedback_to
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.types import SCORE_NAMES
from tests.pdm.conftest import MakeScene, standing, straight_plan
from tests.pdm.test_points import moved

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm"
SCENES = ("g021_lead", "g030_pedestrian", "g037_static_barrier", "g051_narrow", "g011_intersection_left")
ISSUES = ("DAC", "NC", "TTC")


@pytest.fixture(params=["pdm", "learned"])
def agent(request: pytest.FixtureRequest) -> Reviewer:
    path = str(request.getfixturevalue("reward_model_folder")) if request.param == "learned" else ""
    return open_reviewer(AgentConfig(request.param, path), "oracle", cache_size=8)


def golden(name: str) -> tuple[Scene, np.ndarray]:
    scene = load_scene(GOLDEN / f"{name}.json")
    return scene, np.stack([case.trajectory for case in scene.cases])


def same(first: Review, second: Review) -> bool:
    return (first.scores == pytest.approx(second.scores, abs=1e-5) and first.feedback == second.feedback
            and first.violations == second.violations)


@pytest.mark.parametrize("name", SCENES)
def test_scores_are_shares(agent: Reviewer, name: str) -> None:
    scene, plans = golden(name)
    reviews = agent.review(scene, plans)
    assert len(reviews) == len(plans)
    for review in reviews:
        assert tuple(review.scores) == SCORE_NAMES
        assert all(isinstance(value, float) and 0.0 <= value <= 1.0 for value in review.scores.values())
        parts = review.scores
        weighted = (5 * parts["EP"] + 5 * parts["TTC"] + 2 * parts["C"]) / 12  # Eq. 1
        assert parts["PDMS"] == pytest.approx(parts["NC"] * parts["DAC"] * weighted)


@pytest.mark.parametrize("name", SCENES)
def test_violations_are_data(agent: Reviewer, name: str) -> None:
    scene, plans = golden(name)
    for review in agent.review(scene, plans):
        assert json.loads(json.dumps(review.violations)) == review.violations
        for violation in review.violations:
            assert set(violation) == {"metric", "point", "object"}
            assert violation["metric"] in ISSUES and violation["point"] in range(8)
            box = violation["object"]
            assert (box is None) == (violation["metric"] == "DAC")
            if box is not None:
                assert len(box) == 8 and box[-1] in TRACK_TYPES
                assert all(math.isfinite(value) for value in box[:-1])
                assert box[2] == pytest.approx(box[5] / 2)  # it stands on the ground


@pytest.mark.parametrize("name", SCENES)
def test_the_text_says_what_the_data_say_and_no_more(agent: Reviewer, name: str) -> None:
    scene, plans = golden(name)
    for plan, review in zip(plans, agent.review(scene, plans), strict=True):
        failing = {metric for metric in ISSUES if review.scores[metric] < 1.0}
        assert {violation["metric"] for violation in review.violations} == failing
        assert {metric for metric in ISSUES if f"The {metric} metric reveals" in review.feedback} == failing
        assert "EP" not in review.feedback and "omfort" not in review.feedback
        if not failing:
            assert review.feedback == ""
            continue
        assert review.feedback.startswith(OPENING) and review.feedback.endswith(CLOSING)
        for violation in review.violations:
            assert format_point(plan[violation["point"]]) in review.feedback


def test_a_batch_is_its_rows_in_any_order(agent: Reviewer) -> None:
    scene, plans = golden("g021_lead")
    together = agent.review(scene, plans)
    alone = [agent.review(scene, plan[None])[0] for plan in plans]
    backwards = agent.review(scene, plans[::-1])[::-1]
    assert all(same(*pair) for pair in zip(together, alone, strict=True))
    assert all(same(*pair) for pair in zip(together, backwards, strict=True))
    assert list(agent.review(scene, np.zeros((0, 8, 3)))) == []


def test_the_same_is_said_twice_and_feedback_alone_is_the_reviews(agent: Reviewer) -> None:
    scene, plans = golden("g030_pedestrian")
    first, again = agent.review(scene, plans), agent.review(scene, plans)
    assert [(r.scores, r.violations, r.feedback) for r in first] == [(r.scores, r.violations, r.feedback) for r in again]
    assert [feedback_to(agent, scene, plan) for plan in plans] == [review.feedback for review in first]


def test_it_does_not_matter_where_a_scene_lies(agent: Reviewer, make_scene: MakeScene) -> None:
    here = make_scene((standing("car", "vehicle", (4.5, 1.9, 1.5), 24.0, -1.0),))
    there = moved(here, np.array([812.5, -94.0, -1.3]))
    plans = np.stack([straight_plan(6.2), straight_plan(3.0), straight_plan(6.2, lateral=5.0)])
    for near, far in zip(agent.review(here, plans), agent.review(replace(there, scene_id="there"), plans), strict=True):
        assert far.scores == pytest.approx(near.scores, abs=1e-4)
        assert [(v["metric"], v["point"]) for v in far.violations] == [(v["metric"], v["point"]) for v in near.violations]


@pytest.mark.parametrize("plans", [np.zeros((8, 3)), np.zeros((1, 7, 3)), np.full((1, 8, 3), np.nan)])
def test_what_is_no_trajectory_is_refused(agent: Reviewer, make_scene: MakeScene, plans: np.ndarray) -> None:
    with pytest.raises(ValueError, match="trajectories"):
        agent.review(make_scene(), plans)


@pytest.mark.parametrize("factor", [1e4, 1e300])
def test_absurd_plans_get_sound_reviews(agent: Reviewer, make_scene: MakeScene, factor: float) -> None:
    scene = make_scene((standing("car", "vehicle", (4.5, 1.9, 1.5), 15.0, 0.0),))
    for plan in (straight_plan(6.2) * factor, straight_plan(6.2, lateral=9.0) * -factor):
        review = agent.review(scene, plan[None])[0]
        assert all(0.0 <= value <= 1.0 for value in review.scores.values())


def test_a_scene_without_anything_is_reviewed(agent: Reviewer, make_scene: MakeScene) -> None:
    empty = make_scene(map=replace(make_scene().map, roadblocks=(), lanes=()), route_roadblock_ids=(), scene_id="empty")
    review = agent.review(empty, straight_plan(6.2)[None])[0]
    assert {violation["metric"] for violation in review.violations} <= {"DAC"}
