"""Understanding data: balance, agreement with the scorer, and objects that really matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.data.lines import answers_of
from nemo_mtdrive.data.understanding import Asking, score_without, understanding
from nemo_mtdrive.dialogue.questions import ENOUGH_PROGRESS, FORMS, NO, YES, QuestionError, question_text, read_question
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.feedback import format_object
from tests.data.conftest import SCENES, lines_of
from tests.pdm.conftest import MakeScene, make_scene, standing, straight_plan  # noqa: F401


def test_yes_and_no_are_as_many(curated: Path) -> None:
    lines = lines_of(curated, "understanding")
    counts = Counter((line["provenance"]["metric"], line["provenance"]["form"], answers_of(line)[0]) for line in lines)
    assert len(lines) >= 2 * 2 * 24
    assert {metric for metric, _, _ in counts} == {"NC", "DAC", "TTC", "EP"}
    assert {form for _, form, _ in counts} == set(FORMS)
    for (metric, form, answer), count in counts.items():
        assert counts[metric, form, NO if answer == YES else YES] == count
    asked = [(line["scene_id"], line["provenance"]["metric"], line["provenance"]["form"]) for line in lines]
    assert set(Counter(asked).values()) == {2}


def test_questions_come_back_from_their_text(curated: Path) -> None:
    for line in lines_of(curated, "understanding"):
        text = line["messages"][0]["content"].removeprefix("<image>\n")
        question = read_question(text)
        assert (question.metric, question.form) == (line["provenance"]["metric"], line["provenance"]["form"])
        assert question_text(question) == text
        with pytest.raises(QuestionError):
            read_question(text.replace("Yes or No", "Yes or no"))


def test_trajectory_questions_agree_with_the_scorer(curated: Path) -> None:
    scenes, agent = SCENES.open(), PDMAgent("oracle", 4)
    for line in lines_of(curated, "understanding"):
        asked = read_question(line["messages"][0]["content"].removeprefix("<image>\n"))
        if asked.form != "trajectory":
            continue
        (review,) = agent.review(scenes.load(line["scene_id"]), asked.trajectory[None])
        least = ENOUGH_PROGRESS if asked.metric == "EP" else 1.0
        assert answers_of(line) == [YES if review.scores[asked.metric] >= least else NO]
        if asked.metric == "EP":
            assert review.scores["NC"] == review.scores["DAC"] == 1.0


def test_what_is_ignored_is_as_if_it_were_not_there(make_scene: MakeScene) -> None:  # noqa: F811
    """Two cars stand in the way: without the nearer one the farther one is hit; a cone beside the road changes nothing."""
    near = standing("near", "vehicle", (4.5, 1.9, 1.5), 18.0, 0.0)
    cone = standing("cone", "traffic_cone", (0.4, 0.4, 0.8), 22.0, 0.0)
    aside = standing("aside", "barrier", (1.0, 0.5, 1.0), 10.0, 6.0)
    agent, plan = PDMAgent("oracle", 2), straight_plan(6.2)[None]
    for tracks, place, wanted in (((near, cone, aside), 0, 0.5), ((near, aside), 0, 1.0), ((near, aside), 1, 0.0)):
        scene = make_scene(tracks)
        prepared = agent.prepare(scene)
        got = score_without(prepared, prepared.simulate(plan), place, "NC")
        less = replace(scene, scene_id=f"less{place}", tracks=tuple(t for n, t in enumerate(tracks) if n != place))
        assert got == agent.review(less, plan)[0].scores["NC"] == wanted


def test_the_critical_obstacle_is_found(make_scene: MakeScene) -> None:  # noqa: F811
    car = standing("car", "vehicle", (4.5, 1.9, 1.5), 20.0, 0.0)
    aside = standing("aside", "vehicle", (4.5, 1.9, 1.5), 12.0, 9.0)
    scene = make_scene((car, aside), future=straight_plan(2.0))
    asking = Asking.of(scene, PDMAgent("oracle", 1), np.random.default_rng(0))
    pair = asking.object("NC")
    assert pair is not None
    critical, other = pair
    assert critical.obstacle == format_object([20.0, 0.0, 0.75, 4.5, 1.9, 1.5, 0.0, "vehicle"])
    assert other.obstacle == format_object([12.0, 9.0, 0.75, 4.5, 1.9, 1.5, 0.0, "vehicle"])
    assert (critical.trajectory == other.trajectory).all()
    twins = make_scene((car, replace(car, token="twin"), aside), future=straight_plan(2.0))
    assert Asking.of(twins, PDMAgent("oracle", 1), np.random.default_rng(0)).object("NC") is None  # they read alike


def test_a_scene_gives_the_same_questions_again() -> None:
    scene = SCENES.open().load("p0000002")
    once = list(understanding(scene, "k", PDMAgent("oracle", 1), 4, 7))
    assert once == list(understanding(scene, "k", PDMAgent("oracle", 1), 4, 7))
    assert once != list(understanding(scene, "k", PDMAgent("oracle", 1), 4, 8))
    assert 2 <= len(once) <= 8
