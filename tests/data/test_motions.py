"""Drawn motions obey mechanics, and their conversations are those of an episode in form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nemo_mtdrive.data.motions import MOST_ANSWERS, Motion, Talk, draw_faults, draw_motion, giving_way, poses, talk
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.pdm.feedback import CLOSING, OPENING

STRAIGHT = Motion(speed=8.0, acceleration=0.0, past_acceleration=0.0, curvature=0.0, bend=0.0)
TIMES = 0.5 * np.arange(-3, 9)


def talks(count: int, seed: int = 0) -> list[Talk]:
    rng = np.random.default_rng(seed)
    return [talk(rng) for _ in range(count)]


def test_straight_on_at_a_speed() -> None:
    found = poses(STRAIGHT, TIMES)
    np.testing.assert_allclose(found[:, 0], 8.0 * TIMES, atol=1e-12)
    assert not found[:, 1:].any()


def test_a_vehicle_speeds_up_and_stops() -> None:
    """x = v t + a t² / 2, and v² / 2 a where it stands; the past has its own acceleration."""
    faster = replace(STRAIGHT, acceleration=1.5, past_acceleration=-1.0)
    ahead = TIMES > 0
    np.testing.assert_allclose(poses(faster, TIMES)[:, 0],
                               8.0 * TIMES + np.where(ahead, 0.75, -0.5) * TIMES**2, atol=1e-12)
    stops = poses(replace(STRAIGHT, acceleration=-4.0), TIMES)[-4:, 0]
    np.testing.assert_allclose(stops, 8.0, atol=0.05)
    assert not poses(replace(STRAIGHT, speed=0.0, acceleration=-1.0), TIMES).any(), "nothing drives backwards"


def test_an_arc() -> None:
    """Of radius 20 m: x = r sin(s/r), y = r (1 - cos(s/r))."""
    found = poses(replace(STRAIGHT, curvature=0.05), TIMES)
    angle = 8.0 * TIMES / 20.0
    np.testing.assert_allclose(found[:, 2], angle, atol=1e-12)
    np.testing.assert_allclose(found[:, 0], 20.0 * np.sin(angle), atol=0.01)
    np.testing.assert_allclose(found[:, 1], 20.0 * (1.0 - np.cos(angle)), atol=0.01)


def test_what_gives_way() -> None:
    rng = np.random.default_rng(4)
    motion = replace(STRAIGHT, curvature=0.03, bend=0.004)
    for _ in range(40):
        slower = giving_way(rng, motion, [{"metric": "NC", "point": 3, "object": None}])
        assert poses(slower, TIMES)[-1, 0] < poses(motion, TIMES)[-1, 0]
        np.testing.assert_array_equal(poses(slower, TIMES)[:4], poses(motion, TIMES)[:4], "the past is the past")
        assert giving_way(rng, motion, [{"metric": "DAC", "point": 3, "object": None}]).bend < motion.bend


def test_faults_are_of_the_plan_and_objects_near_it() -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        plan = poses(draw_motion(rng), TIMES[4:])
        faults = draw_faults(rng, plan)
        assert faults
        for fault in faults:
            assert (fault["metric"] == "DAC") == (fault["object"] is None)
            if fault["object"]:
                assert np.linalg.norm(np.array(fault["object"][:2]) - plan[fault["point"], :2]) < 8.0


def test_conversations_are_read_as_an_episodes() -> None:
    drawn = talks(300)
    lengths = {len(each.turns) for each in drawn}
    assert lengths == set(range(1, MOST_ANSWERS + 1))
    for each in drawn:
        assert all(parse_answer(answer).trajectory is not None for answer, _ in each.turns)
        told = [feedback for _, feedback in each.turns]
        assert told[-1] is None and all(text and text.startswith(OPENING) and text.endswith(CLOSING) for text in told[:-1])
        assert "- t-0: (0.0, 0.0, 0.0)" in each.question
    commands = [each.question.split("command: [")[1].split("]")[0] for each in drawn]
    assert {command: commands.count(command) > 10 for command in set(commands)} == {
        "TURN LEFT": True, "GO STRAIGHT": True, "TURN RIGHT": True}


def test_the_command_is_the_plans_side() -> None:
    for each in talks(200):
        if len(each.turns) == 1:
            plan = parse_answer(each.turns[0][0]).trajectory
            assert plan is not None
            side = plan[-1, 1]
            if abs(abs(side) - 3.0) > 0.01:
                wanted = "GO STRAIGHT" if abs(side) < 3.0 else "TURN LEFT" if side > 0 else "TURN RIGHT"
                assert f"[{wanted}]" in each.question


def test_the_same_numbers_the_same_talk() -> None:
    assert talks(20, seed=3) == talks(20, seed=3) != talks(20, seed=4)


def test_no_picture_in_it() -> None:
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    drawn = talks(1)[0]
    conversation = encode_dialogue(tokenizer, drawn.question, None, drawn.turns)
    assert conversation.image_grids == ()
    assert not {tokenizer.image_pad, tokenizer.vision_start} & set(np.asarray(conversation.tokens).tolist())
    assert conversation.answer(len(drawn.turns) - 1) == drawn.turns[-1][0]
