"""The seeded text that the tiny tokenizer is trained on: questions, answers, feedback and yes/no questions.

The feedback here follows Appendix A.1 closely enough to learn its words; the text that the model is really shown is
written by the PDM agent, which this package does not import.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from nemo_mtdrive.dialogue.prompt import SYSTEM, answer_text, first_question, format_point, unreadable_feedback

_COMMANDS = ("TURN LEFT", "GO STRAIGHT", "TURN RIGHT")
_CLASSES = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object")
_METRICS = ("Drivable Area Compliance (DAC)", "No Collisions (NC)", "Time-to-Collision (TTC)", "Ego Progress (EP)")
_BOX_FORMAT = (
    "The format for describing these objects is: (x, y, z, l, w, h, heading, name). Where x, y, z are the center "
    "coordinates of the object in ego-coordinate system, l, w, h are length, width, height of the bounding box, "
    "heading is the object heading, and name is the object class name. The specific trajectory points and their "
    "corresponding objects are as follows:\n"
)
_OPENING = (
    "This was your previous trajectory prediction. Analyze this trajectory data and propose a revised prediction. "
    "Consider the following identified issues:\n"
)
_ISSUES = {
    "DAC": "The DAC metric reveals that certain trajectory points fail to stay within the drivable area. "
           "The specific trajectory points are as follows:\n",
    "NC": "The NC metric reveals that certain trajectory points collide with surrounding objects. " + _BOX_FORMAT,
    "TTC": "The TTC metric reveals that certain trajectory points fail to maintain a safe distance from surrounding "
           "objects. " + _BOX_FORMAT,
}
_PROBLEMS = (
    "there is no [PT, ...] list", "there is more than one [PT, ...] list", "the answer is too long",
    "the list is malformed or cut after point 3", "there are 7 points, and 8 are needed", "a number is too large",
)


def generate_corpus(seed: int, count: int) -> Iterator[str]:
    """`count` rounds of one question, two answers, one feedback and one yes/no question; the same for the same seed."""
    draw = random.Random(seed)
    for index in range(count):
        poses = np.array([[draw.uniform(-20, 60), draw.uniform(-9, 9), draw.uniform(-1, 1)] for _ in range(20)])
        yield f"system\n{SYSTEM}"
        yield "assistant\n"
        yield first_question(np.vstack([poses[:3], np.zeros((1, 3))]), draw.choice(_COMMANDS))
        yield answer_text(poses[4:12])
        yield answer_text(poses[12:20])
        yield f"user\n{_feedback(draw)}"
        if index % 8 == 0:
            yield unreadable_feedback(draw.choice(_PROBLEMS))
            yield _understanding(draw)


def _feedback(draw: random.Random) -> str:
    issues = [name for name in _ISSUES if draw.random() < 0.5] or ["TTC"]
    lines = [_OPENING]
    for number, name in enumerate(issues, start=1):
        lines.append(f"{number}. {_ISSUES[name]}")
        for point in range(1, draw.randint(2, 4)):
            pose = format_point([draw.uniform(0, 60), draw.uniform(-9, 9), draw.uniform(-1, 1)])
            if name == "DAC":
                lines.append(f"Trajectory Point {point}: {pose}.\n")
                continue
            boxes = ", ".join(_box(draw) for _ in range(draw.randint(1, 2)))
            lines.append(f"Trajectory Point {point}: {pose} with Objects: {boxes}.\n")
    return "".join(lines) + "Based on these issues, provide an improved trajectory prediction."


def _box(draw: random.Random) -> str:
    numbers = [f"{draw.uniform(low, high):.2f}" for low, high in
               ((-20, 60), (-20, 20), (0, 3), (0, 15), (0, 3), (0, 4), (-3, 3))]
    return f"({', '.join(numbers)}, {draw.choice(_CLASSES)})"


def _understanding(draw: random.Random) -> str:
    metric = draw.choice(_METRICS)
    return (
        "You are a vehicle trajectory prediction model for an autonomous driving system. One of your key metrics is "
        f"{metric}, which assesses whether trajectory points remain within the drivable area. Given a trajectory "
        "prediction point and a front-view image, where trajectory point is formatted as (x: float, y: float, heading: "
        "float), your task is to identify if the given trajectory point stays within the drivable area.\n"
        f"Trajectory point is {format_point([draw.uniform(0, 60), draw.uniform(-9, 9), 0.0])}.\n"
        "Output Requirements:\nFormat: Yes or No\nMaintain numerical precision to two decimal places.\n"
        f"{draw.choice(('Yes', 'No'))}."
    )
