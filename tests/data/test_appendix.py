"""Appendix A.1 and A.2 of the paper, byte for byte, from a scene with those numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.data.lines import Line
from nemo_mtdrive.data.multi_turn import MultiTurnSettings, judge, stack
from nemo_mtdrive.data.understanding import points_on_road
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.questions import NO, YES, Question, question_text, read_question
from nemo_mtdrive.driving.scene import Ego, Lane, Roadblock, Scene, SceneMap, Track
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.pdm.agent import PDMAgent

HISTORY = ((-9.44, 0.02, -0.02), (-6.21, -0.02, 0.0), (-3.05, -0.03, 0.0), (0.0, 0.0, 0.0))
HUMAN = ((2.97, 0.02, 0.0), (5.82, 0.02, 0.0), (8.54, 0.0, -0.03), (11.17, -0.07, -0.05), (13.73, -0.22, -0.09),
         (16.21, -0.56, -0.16), (18.62, -1.10, -0.24), (20.94, -1.77, -0.28))
SPEED = 6.208
"""Of the constant-velocity driver in A.1: 3.1 m in half a second, 24.83 m in four."""
MODELS_WORDS = (
    "Here is the planning trajectory [PT, (+3.1, 0.0, 0.0), (+6.21, 0.0, 0.0), (+9.31, 0.0, 0.0), (+12.42, 0.0, 0.0), "
    "(+15.52, 0.0, 0.0), (+18.62, 0.0, 0.0), (+21.73, 0.0, 0.0), (+24.83, 0.0, 0.0)]."
)
"""The model's answer in A.1, which writes +3.1 where we write +3.10; a model's words are kept as they came."""
TRUCK_X = (20.0, 22.0, 24.5, 27.0, 29.0, 31.0, 32.6, 34.14, 35.5, 36.6, 44.0)
"""Where the vehicle of A.1 is every half second: too close at 3.5 s only, and then at x = 34.14 m."""
LOWER_M = 4.39 / 2 - 1.59
"""The ground under the vehicle lies so much lower than under the ego: A.1 has z = 1.59 m for one that is 4.39 m high."""


def scene_of(road_end: float, **changes: Any) -> Scene:
    """A straight road, 7 m wide, that ends at x = `road_end`."""
    ring = np.array([[-60.0, -3.5], [road_end, -3.5], [road_end, 3.5], [-60.0, 3.5]])
    line = np.column_stack([np.linspace(-60.0, road_end, 66), np.zeros(66)])
    lane = Lane("lane", "lane", "block", ring, line, 10.0, (), ())
    road = SceneMap((Roadblock("block", "roadblock", ring, ("lane",), (), ()),), (lane,), (), ())
    return Scene(scene_id="appendix", kind="test", ego=Ego(np.zeros(3), np.array([SPEED, 0.0]), np.zeros(2)), map=road,
                 route_roadblock_ids=("block",), traffic_lights=(), history=np.array(HISTORY), command="GO STRAIGHT",
                 future=np.array(HUMAN), **({"tracks": ()} | changes))


@pytest.fixture(scope="module")
def two_turns() -> Line:
    """The line that the multi-turn curation makes of the model's answer in A.1."""
    rows = np.array([(0.5 * i, x, -0.85, -0.02, 2.0, 0.0) for i, x in enumerate(TRUCK_X)])
    truck = Track("truck", "vehicle", np.array([10.26, 2.95, 4.39]), rows)
    along = np.arange(-40.0, 80.0)
    heights = np.tile(np.where(along < 25.0, 0.0, -LOWER_M), (40, 1)).tolist()
    scene = scene_of(200.0, tracks=(truck,), extra={"ground": {"origin": [-40.0, -20.0], "step": 1.0, "heights": heights}})
    agent = PDMAgent("oracle", 1)
    rejected = judge("model", MODELS_WORDS, scene, agent)
    assert rejected is not None
    return stack(scene, "key", [rejected], "model", MultiTurnSettings(0, "oracle", 0.0, 6), model="sft1")


def paper(shared_dir: Path) -> str:
    return next((shared_dir / "seeds").glob("001_*.txt")).read_text().replace("\\n", "\n")


def test_a1_byte_for_byte(two_turns: Line, shared_dir: Path) -> None:
    first, answer, feedback, target = (message["content"] for message in two_turns["messages"])
    printed = (f"Question: {first}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|><|im_start|>user\n{feedback}"
               f"\n\nAnswer: {target}\n")
    assert printed in paper(shared_dir)


def test_a1_without_the_paper(two_turns: Line) -> None:
    """The same against the text that stands in these tests, where the paper is not at hand."""
    from tests.dialogue.conftest import FEEDBACK, FIRST_ANSWER, QUESTION, SECOND_ANSWER

    assert [message["content"] for message in two_turns["messages"]] == [
        f"<image>\n{QUESTION}", FIRST_ANSWER, FEEDBACK, SECOND_ANSWER]


def test_the_driver_of_a1_is_the_constant_velocity_one() -> None:
    written = answer_text(constant_velocity(scene_of(200.0)))
    assert written == MODELS_WORDS.replace("+3.1,", "+3.10,")


def test_a2_byte_for_byte(shared_dir: Path) -> None:
    point = np.array([24.87, 0.0, 0.0])
    prepared = PDMAgent("oracle", 1).prepare(scene_of(28.0))
    answer = YES if points_on_road(prepared, point[None])[0] else NO
    text = question_text(Question("DAC", "point", point=point))
    assert f"Question: <image>\n{text}\n\nAnswer: {answer}\n" in paper(shared_dir)
    assert read_question(text).form == "point"


def test_the_car_of_a2_stands_with_its_front_off_the_road() -> None:
    """The rear axle at 24.87 m puts the bumper 4.049 m on: the road must go on to 28.919 m."""
    point = np.array([[24.87, 0.0, 0.0]])
    assert points_on_road(PDMAgent("oracle", 1).prepare(scene_of(28.93)), point).tolist() == [True]
    assert points_on_road(PDMAgent("oracle", 1).prepare(scene_of(28.91)), point).tolist() == [False]
