# ruff: noqa: E501 (the paper's paragraphs are one line each)
r"""The conversation of Appendix A.1 of the paper, copied by hand (its `\n` are newlines), and the tiny tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer

QUESTION = """As an autonomous driving system, predict the vehicle's trajectory based on:
1. Visual perception from front camera view
2. Historical motion context (last 4 timesteps): - t-3: (-9.44, +0.02, -0.02) - t-2: (-6.21, -0.02, 0.0) - t-1: (-3.05, -0.03, 0.0) - t-0: (0.0, 0.0, 0.0)
3. Active navigation command: [GO STRAIGHT]
Output requirements:
- Predict 8 future trajectory points
- Each point format: (x:float, y:float, heading:float)
- Use [PT, ...] to encapsulate the trajectory
- Maintain numerical precision to 2 decimal places"""

FIRST_ANSWER = (
    "Here is the planning trajectory [PT, (+3.1, 0.0, 0.0), (+6.21, 0.0, 0.0), (+9.31, 0.0, 0.0), (+12.42, 0.0, 0.0), "
    "(+15.52, 0.0, 0.0), (+18.62, 0.0, 0.0), (+21.73, 0.0, 0.0), (+24.83, 0.0, 0.0)]."
)

FEEDBACK = """This was your previous trajectory prediction. Analyze this trajectory data and propose a revised prediction. Consider the following identified issues:
1. The TTC metric reveals that certain trajectory points fail to maintain a safe distance from surrounding objects. The format for describing these objects is: (x, y, z, l, w, h, heading, name). Where x, y, z are the center coordinates of the object in ego-coordinate system, l, w, h are length, width, height of the bounding box, heading is the object heading, and name is the object class name. The specific trajectory points and their corresponding objects are as follows:
Trajectory Point 1: (+21.73, 0.0, 0.0) with Objects: (34.14, -0.85, 1.59, 10.26, 2.95, 4.39, -0.02, vehicle).
Based on these issues, provide an improved trajectory prediction."""

SECOND_ANSWER = (
    "Here is the planning trajectory [PT, (+2.97, +0.02, 0.0), (+5.82, +0.02, 0.0), (+8.54, 0.0, -0.03), (+11.17, "
    "-0.07, -0.05), (+13.73, -0.22, -0.09), (+16.21, -0.56, -0.16), (+18.62, -1.10, -0.24), (+20.94, -1.77, -0.28)]."
)


@dataclass(frozen=True)
class Appendix:
    """What Appendix A.1 prints, and the numbers in it."""

    history = ((-9.44, 0.02, -0.02), (-6.21, -0.02, 0.0), (-3.05, -0.03, 0.0), (0.0, 0.0, 0.0))
    command = "GO STRAIGHT"
    question = QUESTION
    first_answer = FIRST_ANSWER
    feedback = FEEDBACK
    second_answer = SECOND_ANSWER
    first_trajectory = tuple((x, 0.0, 0.0) for x in (3.1, 6.21, 9.31, 12.42, 15.52, 18.62, 21.73, 24.83))
    second_trajectory = (
        (2.97, 0.02, 0.0), (5.82, 0.02, 0.0), (8.54, 0.0, -0.03), (11.17, -0.07, -0.05),
        (13.73, -0.22, -0.09), (16.21, -0.56, -0.16), (18.62, -1.10, -0.24), (20.94, -1.77, -0.28),
    )


@pytest.fixture(scope="session")
def appendix() -> Appendix:
    """The paper's conversation."""
    return Appendix()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The shipped tiny tokenizer."""
    return Tokenizer.load(TINY_TOKENIZER)
