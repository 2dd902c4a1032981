"""The environment with the agents on generated scenes: an expert's answer is clean, a bad one is told why."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mtdrive.config import AgentConfig
from nemo_mtdrive.dialogue.conversation import Conversation
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.driving.camera import render
from nemo_mtdrive.driving.generator import ROADS, SITUATIONS, generate
from nemo_mtdrive.environment.env import DrivingEnvironment
from nemo_mtdrive.environment.messages import pack_results, unpack_results
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.types import SCORE_NAMES

SEEDS = range(1, 9)


class Generated:
    """Eight generated scenes, kept."""

    def __init__(self) -> None:
        kinds = dict.fromkeys(ROADS + SITUATIONS, 1.0)
        self._scenes = {scene.scene_id: scene for scene in (generate(seed, kinds) for seed in SEEDS)}

    def ids(self):
        return list(self._scenes)

    def load(self, scene_id):
        return self._scenes[scene_id]

    def image(self, scene_id):
        return render(self._scenes[scene_id], 224, 112)


@pytest.fixture(scope="module")
def scenes():
    return Generated()


@pytest.fixture(params=["pdm", "learned"])
def environment(request, scenes):
    path = str(request.getfixturevalue("reward_model_folder")) if request.param == "learned" else ""
    environment = DrivingEnvironment(scenes, open_reviewer(AgentConfig(request.param, path), "oracle", 8), max_turns=3)
    environment.warm_up()
    return environment


def _swerve(scene):
    """The expert's trajectory, but leaving the road to the left."""
    trajectory = scene.future.copy()
    trajectory[:, 0] = np.arange(1, 9) * 3.0
    trajectory[:, 1] = np.arange(1, 9) ** 2 * 0.8
    return trajectory


@pytest.mark.parametrize("environment", ["pdm"], indirect=True)
def test_experts_are_clean(environment, scenes):
    environment.reset_many([(name, name, False) for name in scenes.ids()])
    results = environment.step_many([(name, 0, answer_text(scenes.load(name).future)) for name in scenes.ids()])
    assert sum(result.reason == "clean" for result in results) >= 6
    assert np.mean([result.scores["PDMS"] for result in results]) > 0.75
    assert all(tuple(result.scores) == SCORE_NAMES for result in results)


def test_a_bad_answer_is_told_why_and_the_conversation_goes_on(environment, scenes):
    tokenizer = Tokenizer.load(TINY_TOKENIZER)

    def violated(trajectory):
        return {v["metric"] for v in environment.agent.review(scene, trajectory[None])[0].violations}

    for name in scenes.ids():
        scene = scenes.load(name)
        if not violated(scene.future) and "DAC" in violated(_swerve(scene)):
            break
    else:
        pytest.fail("no scene where the expert is clean and the swerve is off the road")
    seen = environment.reset("e", name, want_image=True)
    assert seen.image.shape == (112, 224, 3)
    conversation = Conversation(tokenizer, seen.prompt, (1, 8, 16))

    for turn, trajectory in enumerate((_swerve(scenes.load(name)), scenes.load(name).future)):
        ids = [*tokenizer.encode(answer_text(trajectory)).tolist(), tokenizer.im_end]
        conversation.add_answer(ids, [-0.1] * len(ids))
        result = environment.step("e", turn, conversation.answer(turn))
        np.testing.assert_allclose(result.trajectory, trajectory, atol=0.00501)
        [sent] = unpack_results(pack_results([result]))
        assert (sent.violations, sent.scores, sent.feedback) == (result.violations, result.scores, result.feedback)
        if not result.done:
            conversation.add_feedback(result.feedback)
            assert {violation["metric"] for violation in result.violations} <= {"DAC", "NC", "TTC"}
            assert result.scores["DAC"] == 0.0 and "The DAC metric reveals" in result.feedback
    assert (result.reason, conversation.turns) == ("clean", 2)
