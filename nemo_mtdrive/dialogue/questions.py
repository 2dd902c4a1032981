"""Yes-or-no questions about the metrics (PDM understanding data, Section 3.2): Appendix A.2 prints the first one, byte for
byte; the others follow its pattern.

Forms:

- `point`: a point alone. DAC, the appendix's own question: does a car that stands there keep to the drivable area?
- `trajectory`: a whole trajectory. Does it keep the metric?
- `trajectory_point`: a trajectory and one of its points. Is the point one that the PDM agent does not name?
- `object`: a trajectory and an object, where it is at t = 0. Were it not there, would the score change? Then it is the
  critical obstacle, or one of them (the counterfactual questions of Section 1).

"Yes" is the positive answer: the metric is kept; of `object`, that the object is critical.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.prompt import answer_text, format_point

YES, NO = "Yes.", "No."

ENOUGH_PROGRESS = 0.8
"""EP from which a trajectory makes enough progress."""

METRICS = {
    "NC": ("No Collisions (NC), which assesses whether trajectory points collide with surrounding objects",
           "stays clear of collisions with surrounding objects"),
    "DAC": ("Drivable Area Compliance (DAC), which assesses whether trajectory points remain within the drivable area",
            "stays within the drivable area"),
    "TTC": ("Time-to-Collision (TTC), which assesses whether trajectory points maintain a safe distance from surrounding "
            "objects", "maintains a safe distance from surrounding objects"),
    "EP": ("Ego Progress (EP), which assesses the progress along the route as a share of what a safe reference planner "
           "makes", f"makes at least {ENOUGH_PROGRESS:.2f} of the progress"),
}
"""Metric -> how it is introduced, what a trajectory does that keeps it."""

FORMS = {
    "point": ("DAC",),
    "trajectory": ("NC", "DAC", "TTC", "EP"),
    "trajectory_point": ("NC", "DAC", "TTC"),
    "object": ("NC", "TTC"),
}
"""Form -> the metrics that are asked about so."""

_ROLE = "You are a vehicle trajectory prediction model for an autonomous driving system. One of your key metrics is "
_POINT_FORMAT = "trajectory point is formatted as (x: float, y: float, heading: float)"
_TRAJECTORY_FORMAT = "the trajectory is formatted as [PT, (x: float, y: float, heading: float), ...]"
_OBJECT_FORMAT = "the object as (x, y, z, l, w, h, heading, name) where it is now"
_TASKS = {
    "point": "Given a trajectory prediction point and a front-view image, where {point}, your task is to identify if the "
             "given trajectory point {kept}.",
    "trajectory": "Given a trajectory prediction and a front-view image, where {trajectory}, your task is to identify if "
                  "the given trajectory {kept}.",
    "trajectory_point": "Given a trajectory prediction, one of its points and a front-view image, where {trajectory} and "
                        "{point}, your task is to identify if the given trajectory point {kept}.",
    "object": "Given a trajectory prediction, a surrounding object and a front-view image, where {trajectory} and {object}, "
              "your task is to identify if the score of the given trajectory would change if the object were not there.",
}
_REQUIREMENTS = "Output Requirements:\nFormat: Yes or No\nMaintain numerical precision to two decimal places."


class QuestionError(ValueError):
    """A text that is none of the questions here."""


@dataclass(frozen=True)
class Question:
    """What is asked; parts that the form has no use for are None or empty."""

    metric: str
    form: str
    trajectory: NDArray[np.float64] | None = None
    """[8, 3]"""
    point: NDArray[np.float64] | None = None
    """[3] x, y, heading."""
    obstacle: str = ""
    """`(x, y, z, l, w, h, heading, name)` as feedback writes it, at t = 0."""


def question_text(question: Question) -> str:
    """The question in words, without the image's mark.

    Raises:
        ValueError: an unknown form, a metric that it does not ask about, or a part that is missing.
    """
    if question.metric not in FORMS.get(question.form, ()):
        raise ValueError(f"question: got form {question.form!r} of metric {question.metric!r}, want one of FORMS")
    introduction, kept = METRICS[question.metric]
    task = _TASKS[question.form].format(point=_POINT_FORMAT, trajectory=_TRAJECTORY_FORMAT, object=_OBJECT_FORMAT, kept=kept)
    given = []
    if question.form != "point":
        if question.trajectory is None:
            raise ValueError(f"question: form {question.form} wants a trajectory")
        given.append(f"Trajectory is {_list_of(question.trajectory)}.")
    if question.form in ("point", "trajectory_point"):
        if question.point is None:
            raise ValueError(f"question: form {question.form} wants a point")
        given.append(f"Trajectory point is {format_point(question.point)}.")
    if question.form == "object":
        given.append(f"Object is {question.obstacle}.")
    return "\n".join([f"{_ROLE}{introduction}. {task}", *given, _REQUIREMENTS])


def _list_of(trajectory: NDArray[np.float64]) -> str:
    text = answer_text(trajectory)
    return text[text.index("[PT"):].removesuffix(".")


_NUMBER = r"[+-]?[0-9]+\.[0-9]+"
_GIVEN_POINT = re.compile(rf"^Trajectory point is \(({_NUMBER}), ({_NUMBER}), ({_NUMBER})\)\.$", re.MULTILINE)
_GIVEN_OBJECT = re.compile(r"^Object is (\([^()\n]*\))\.$", re.MULTILINE)


def read_question(text: str) -> Question:
    """The question that `question_text` wrote.

    Raises:
        QuestionError: it is none of them.
    """
    metric = next((name for name, (introduction, _) in METRICS.items() if text.startswith(f"{_ROLE}{introduction}.")), "")
    point, obstacle = _GIVEN_POINT.search(text), _GIVEN_OBJECT.search(text)
    listed = text.partition("\nTrajectory is ")[2].partition("\n")[0]
    trajectory = parse_answer(listed).trajectory if listed else None
    form = "object" if obstacle else "trajectory" if not point else "trajectory_point" if listed else "point"
    question = Question(metric, form, trajectory, np.array([float(value) for value in point.groups()]) if point else None,
                        obstacle[1] if obstacle else "")
    try:
        if question_text(question) == text:
            return question
    except ValueError:
        pass
    raise QuestionError("the question is none of those of the understanding data")
