"""Prompts as they are built: no pose of the human's future or of PDM-Closed's plan; and what is put in is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.config import AgentConfig, SFTDataConfig, load_config
from nemo_mtdrive.data.curate import CurationTask, SceneArguments, curate
from nemo_mtdrive.data.single_turn import question
from nemo_mtdrive.dialogue.prompt import answer_text, first_question, format_point
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources import open_scenes
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.environment.env import DrivingEnvironment
from nemo_mtdrive.evaluation.baselines import pdm_closed
from nemo_mtdrive.evaluation.feedback import SeparateFeedback
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.reproduce.checks import leaks_of_question
from nemo_mtdrive.reproduce.leaks import episode_leaks, feedback_leaks, poses_in, question_leaks, unlike
from nemo_mtdrive.types import StepResult
from tests.reproduce.made_up import HUMAN, episode, turn

SCENES = "procedural://?count=12&split=held_out&width=56&height=28"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    source = open_scenes(SCENES)
    return [source.load(name) for name in source.ids()]


@pytest.fixture(scope="module")
def agent() -> PDMAgent:
    return PDMAgent("oracle", 4)


def test_questions_hold_the_past_alone(scenes: list[Scene], agent: PDMAgent) -> None:
    for scene in scenes:
        assert leaks_of_question(scene, question(scene), agent) == []


def test_a_future_in_a_question_is_found(scenes: list[Scene], agent: PDMAgent) -> None:
    found = 0
    for scene in scenes:
        assert scene.history is not None and scene.command is not None and scene.future is not None
        for future in (scene.future, pdm_closed(agent, scene)):
            told = unlike(future, [scene.history])
            if not len(told):
                continue  # it stands and will stand
            found += 1
            text = question(scene) + f" The best is {format_point(told[-1])}."
            leaks = leaks_of_question(scene, text, agent)
            assert format_point(told[-1]) in leaks
    assert found > 10
    other = first_question(np.flip(scenes[0].history, 0), "GO STRAIGHT")  # type: ignore[arg-type]
    assert question_leaks(other, scenes[0]), "the same numbers in other words"


@pytest.mark.parametrize("perception", ["oracle", "kinematic"])
def test_feedback_of_episodes_holds_own_points_and_boxes_alone(perception: str, scenes: list[Scene],
                                                               agent: PDMAgent) -> None:
    """Real episodes of RL and evaluation: constant velocity, something wild, something that cannot be read."""
    source = open_scenes(SCENES)
    reviewer: Reviewer = agent if perception == "oracle" else SeparateFeedback(agent, open_reviewer(
        AgentConfig(), perception, 4))
    environment = DrivingEnvironment(source, reviewer, 6)
    told = 0
    for scene in scenes:
        environment.reset_many([(scene.scene_id, scene.scene_id, False)])
        steady = constant_velocity(scene)
        wild = steady + np.column_stack([np.zeros(8), np.linspace(0.0, 9.0, 8), np.zeros(8)])
        for number, (said, plan) in enumerate(((answer_text(wild), wild), ("?", None), (answer_text(steady), steady))):
            result = environment.step_many([(scene.scene_id, number, said)])[0]
            assert isinstance(result, StepResult)
            feedback = result.feedback
            told += bool(feedback)
            assert feedback_leaks(feedback, plan) == []
            assert scene.future is not None and scene.history is not None
            own = [scene.history] if plan is None else [scene.history, plan]
            for future in (scene.future, pdm_closed(agent, scene)):
                assert poses_in(feedback, unlike(future, own)) == []
            if result.done:
                break
    assert told > 10


def test_foreign_points_in_feedback_are_found() -> None:
    own = HUMAN + np.array([0.0, 1.0, 0.0])
    clean = ("1. The TTC metric: the format is (x, y, z, l, w, h, heading, name).\nTrajectory Point 1: (+3.00, +1.00, 0.0) "
             "with Objects: (34.14, -0.85, 1.59, 10.26, 2.95, 4.39, -0.02, vehicle).")
    assert feedback_leaks(clean, own) == []
    assert feedback_leaks(clean + " Better: (+3.00, 0.0, 0.0).", own) == ["(+3.00, 0.0, 0.0)"]
    assert feedback_leaks(clean + " EP is (0.71).", own) == ["(0.71)"]
    leaky = episode("s", turn(0, 0.5, trajectory=own, feedback=clean),
                    turn(1, 0.5, trajectory=own, feedback="(+24.00, 0.0, 0.0)"))
    assert episode_leaks(leaky) == ["evaluation/0/s/0 turn 2: (+24.00, 0.0, 0.0)"]


def test_questions_of_sft_data_hold_no_future(tmp_path: Path, agent: PDMAgent) -> None:
    """What the model is taught: the human's trajectory stands in the answer that is learned, never before it."""
    source = open_scenes(SCENES)
    task = CurationTask(SceneArguments("", "", 0, 0, 0, 0, SCENES), tmp_path, "oracle",
                        SFTDataConfig(kinds=["single_turn", "multi_turn"], mock_share=1.0))
    curate(task, list(source.ids()), 1, lambda count: None)
    seen = 0
    for path in tmp_path.glob("*_turn.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            scene = source.load(line["scene_id"])
            assert scene.history is not None and scene.future is not None
            *before, answer = line["messages"]
            assert answer["content"] == answer_text(scene.future)
            told = [message["content"] for message in before if message["role"] == "user"]
            rejected = [message["content"] for message in before if message["role"] == "assistant"]
            for future in (scene.future, pdm_closed(agent, scene)):
                new = [pose for pose in unlike(future, [scene.history]) if format_point(pose) not in "".join(rejected)]
                assert not [text for text in told for pose in new if format_point(pose) in text]
            seen += 1
    assert seen > 20


def test_the_demo_shows_scenes_that_its_model_has_not_seen() -> None:
    config = load_config("demo_cpu", [])
    learned = json.loads((Path(config.model.init_from) / "training.json").read_text())
    shown = config.scenes
    assert learned["scenes"] == shown.source == "procedural"
    first, last = learned["first_seed"], learned["first_seed"] + learned["count"] - 1
    assert not first <= shown.seed <= last and not first <= shown.seed + shown.count + shown.held_out - 1 <= last
