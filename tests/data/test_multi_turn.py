"""Multi-turn data: who is rejected, what is stacked, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.data.bootstrap import bootstrap, rejected_of
from nemo_mtdrive.data.length import ConversationLength
from nemo_mtdrive.data.lines import answers_of
from nemo_mtdrive.data.multi_turn import MultiTurnSettings, judge, mock_length, multi_turn
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.prompt import answer_text, unreadable_feedback
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.driving.trajectory import ade, constant_velocity
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.types import Episode, Turn
from tests.data.conftest import SCENES, SETTINGS, lines_of

ALWAYS = MultiTurnSettings(seed=5, perception="oracle", mock_share=1.0, max_turns=6)


def anything(_texts: Sequence[str]) -> bool:
    return True


def test_two_turns_are_the_constant_velocity_drivers(curated: Path) -> None:
    scenes, agent = SCENES.open(), PDMAgent("oracle", 2)
    rejected = {scene_id for scene_id in scenes.ids()
                if agent.feedback(scenes.load(scene_id), np.round(constant_velocity(scenes.load(scene_id)), 2))}
    lines = [line for line in lines_of(curated, "multi_turn") if line["id"].endswith("constant_velocity")]
    assert {line["scene_id"] for line in lines} == rejected
    for line in lines:
        scene = scenes.load(line["scene_id"])
        assert answers_of(line) == [answer_text(constant_velocity(scene)), answer_text(scene.future)]
        assert line["provenance"]["answers"] == ["constant_velocity", "human"]


def test_mock_conversations_come_nearer_to_the_human(curated: Path) -> None:
    scenes, agent = SCENES.open(), PDMAgent("oracle", 2)
    lines = [line for line in lines_of(curated, "multi_turn") if line["id"].endswith("mock")]
    # Which trajectories are rejected may turn on the last bit of a float, so on the processor: what was drawn is exact.
    assert len(lines) >= 8 and len({len(answers_of(line)) for line in lines}) > 1
    drawn = [mock_length(line["scene_id"], replace(ALWAYS, seed=line["provenance"]["seed"])) for line in lines]
    stacked = [len(answers_of(line)) - 1 for line in lines]
    assert all(2 <= some <= most for some, most in zip(stacked, drawn, strict=True))
    assert sum(some == most for some, most in zip(stacked, drawn, strict=True)) >= len(lines) // 2
    for line in lines:
        scene = scenes.load(line["scene_id"])
        *rejected, last = answers_of(line)
        assert last == answer_text(scene.future) and 2 <= len(rejected) <= 5 and len(set(rejected)) == len(rejected)
        plans = [parse_answer(answer).trajectory for answer in rejected]
        ways = [ade(plan, scene.future) for plan in plans]
        assert ways == sorted(ways, reverse=True)
        for plan, message in zip(plans, line["messages"][2::2], strict=True):
            (review,) = agent.review(scene, plan[None])
            assert message["content"] == review.feedback != ""
        assert set(line["provenance"]["answers"][:-1]) <= {"constant_velocity", "perturbed_human"}


def test_the_share_of_mock_conversations() -> None:
    scene, agent = SCENES.open().load("p0000003"), PDMAgent("oracle", 1)

    def mocks(share: float) -> set[str]:
        settings = replace(ALWAYS, mock_share=share)
        copies = [replace(scene, scene_id=f"copy{number}") for number in range(40)]
        return {line["scene_id"] for copy in copies for line in multi_turn(copy, "k", agent, settings, anything)
                if line["id"].endswith("mock")}

    every, half = mocks(1.0), mocks(0.5)
    assert mocks(0.0) == set()
    assert 35 <= len(every) <= 40  # where fewer than two trajectories are rejected there is none
    assert half < every and 10 <= len(half) <= 30


def test_no_longer_than_asked() -> None:
    scene, agent = SCENES.open().load("p0000003"), PDMAgent("oracle", 1)
    for most in (3, 4):
        settings = replace(ALWAYS, max_turns=most)
        lines = [line for number in range(30) for line in multi_turn(replace(scene, scene_id=f"copy{number}"), "k", agent,
                                                                     settings, anything)]
        assert max(len(answers_of(line)) for line in lines) == most
    assert [mock_length(f"s{number}", ALWAYS) in (2, 3, 4, 5) for number in range(50)] == [True] * 50


@pytest.mark.parametrize("most", [450, 700, 1792])
def test_conversations_fit_the_models_context(most: int) -> None:
    scenes, agent, tokenizer = SCENES.open(), PDMAgent("oracle", 2), Tokenizer.load(TINY_TOKENIZER)
    image = np.zeros((112, 224, 3), dtype=np.uint8)
    fits = ConversationLength(str(TINY_TOKENIZER), most).limit_for(image)
    turns = []
    for scene_id in list(scenes.ids())[:8]:
        for line in multi_turn(scenes.load(scene_id), "k", agent, ALWAYS, fits):
            texts = [message["content"] for message in line["messages"]]
            talk = encode_dialogue(tokenizer, texts[0].removeprefix("<image>\n"), (1, 8, 16),
                                   list(zip(texts[1::2], [*texts[2::2], None], strict=True)))
            assert len(talk) <= most
            turns.append(len(answers_of(line)))
    assert max(turns) == {450: 2, 700: 4, 1792: 6}[most], turns


def turn(number: int, answer: str, feedback: str) -> Turn:
    trajectory = parse_answer(answer).trajectory
    return Turn(number, 0, 1, answer, trajectory, None, float(trajectory is not None), 0.0, feedback)


def episode(index: int, turns: Sequence[tuple[str, str]]) -> Episode:
    """A played episode of scene p0000003: answers with their feedback."""
    empty = np.zeros(0, dtype=np.int32)
    return Episode(f"e{index}", "p0000003", index, 0, 0, empty, empty.astype(np.int16), empty.astype(np.float32), ("k",), (),
                   tuple(turn(number, *said) for number, said in enumerate(turns)), True, "max_turns")


@pytest.fixture(scope="module")
def wrong() -> list[tuple[str, str]]:
    """Four different answers for p0000003 that the agent rejects, with its feedback."""
    scene, agent = SCENES.open().load("p0000003"), PDMAgent("oracle", 1)
    plans = [scene.future * factor + [0.0, shift, 0.0] for factor, shift in ((2.2, 0), (2.6, 0), (1, 9), (1, -14))]
    found = [judge("model", answer_text(plan), scene, agent) for plan in plans]
    return [(one.answer, one.feedback) for one in found if one is not None]


def test_a_models_rejected_answers_are_stacked_up_to_the_first_clean_one(wrong: list[tuple[str, str]]) -> None:
    scene, agent = SCENES.open().load("p0000003"), PDMAgent("oracle", 1)
    assert len(wrong) == 4
    clean = (answer_text(scene.future), "")
    played = [episode(0, [wrong[0], wrong[1]]), episode(1, [wrong[0], wrong[1]]), episode(2, [wrong[2], clean]),
              episode(3, [clean])]
    settings = replace(ALWAYS, mock_share=0.0)
    lines = list(bootstrap(scene, "key", played, agent, settings, anything, "runs/sft_2", 2))
    assert [line["id"] for line in lines] == ["p0000003/multi_turn/after_2/0", "p0000003/multi_turn/after_2/2"]
    first = [message["content"] for message in lines[0]["messages"]]
    assert first[1:] == [*wrong[0], *wrong[1], answer_text(scene.future)]
    assert answers_of(lines[1]) == [wrong[2][0], answer_text(scene.future)]
    assert lines[0]["provenance"]["answers"] == ["model", "model", "human"]
    assert {line["provenance"]["model"] for line in lines} == {"runs/sft_2"}


def test_a_models_episodes_are_stacked_into_mock_conversations(wrong: list[tuple[str, str]]) -> None:
    scene, agent = SCENES.open().load("p0000003"), PDMAgent("oracle", 1)
    played = [episode(0, wrong[:2]), episode(1, wrong[2:])]
    lines = list(bootstrap(scene, "key", played, agent, ALWAYS, anything, "m", 2))
    (mock,) = [line for line in lines if line["id"].endswith("after_2/mock")]
    assert mock_length("p0000003", ALWAYS) == 5 and mock["provenance"]["answers"] == ["model"] * 4 + ["human"]
    ways = [ade(parse_answer(answer).trajectory, scene.future) for answer in answers_of(mock)]
    assert ways == sorted(ways, reverse=True) and ways[-1] == pytest.approx(0.0, abs=0.01)


def test_an_answer_that_cannot_be_read_is_a_turn_but_none_with_marks(wrong: list[tuple[str, str]]) -> None:
    gibberish = ("I would rather stop.", unreadable_feedback("there is no [PT, ...] list"))
    assert [one.answer for one in rejected_of(episode(0, [gibberish, wrong[0]]))] == [gibberish[0], wrong[0][0]]
    for mark in ("<image>", "<|im_end|>"):
        assert [one.answer for one in rejected_of(episode(0, [wrong[0], (mark, "x"), wrong[1]]))] == [wrong[0][0]]


def test_settings_of_the_fixture() -> None:
    assert SETTINGS.max_turns == ALWAYS.max_turns == 6
