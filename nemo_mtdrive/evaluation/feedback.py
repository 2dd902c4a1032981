"""Who tells the model what is wrong with its trajectory, while the score stays the scorer's own.

The paper's Table 1 has two settings: feedback from the recorded future (oracle, its **) and from constant-velocity
forecasts (kinematic, its *). A third is its open question 1: the model judges its own trajectory by its understanding
skills and writes the feedback itself (`SelfFeedback`). All three are scored by the recorded future.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.questions import Question, question_text
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.feedback import feedback_text
from nemo_mtdrive.pdm.review import Review, Reviewer
from nemo_mtdrive.types import TRAJECTORY_POINTS

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

JUDGED = ("DAC", "NC", "TTC")
"""Metrics that feedback speaks of, in its order (Section 3.1)."""
MAX_ANSWER_TOKENS = 8
"""Of an answer that is to be yes or no."""
_KEPT_IMAGES = 64
_NO = re.compile(r"\W*no\b", re.IGNORECASE)


class Asked(Protocol):
    """What answers questions; `rollout.model_driver.ModelDriver`."""

    def ask(self, image: Image, questions: Sequence[str], max_answer_tokens: int) -> list[str]:
        """The answers, in order."""
        ...


class SeparateFeedback:
    """A reviewer whose scores are one reviewer's and whose feedback is another's."""

    def __init__(self, scores: Reviewer, feedback: Reviewer) -> None:
        self._scores = scores
        self._feedback = feedback

    def review(self, scene: Scene, trajectories: Array) -> list[Review]:
        """Review trajectories [B, 8, 3] of a scene; see `Reviewer.review`."""
        return [Review(score.scores, said.violations, said.feedback)
                for score, said in zip(self._scores.review(scene, trajectories),
                                       self._feedback.review(scene, trajectories), strict=True)]


class SelfFeedback:
    """A reviewer whose scores are another's and whose feedback the model writes about itself.

    Each trajectory is judged by the questions that the model was taught to answer (`dialogue.questions`): of each metric,
    whether the trajectory keeps it; where the answer is no, the same of every point, to name those that fail. Objects are
    not named: the model is not told of any. An answer that is neither yes nor no accuses nothing.
    """

    def __init__(self, scores: Reviewer, model: Asked, image_of: Callable[[str], Image]) -> None:
        """`image_of` gives the front image of a scene by its id."""
        self._scores = scores
        self._model = model
        self._image_of = image_of
        self._images: OrderedDict[str, Image] = OrderedDict()

    def review(self, scene: Scene, trajectories: Array) -> list[Review]:
        """Review trajectories [B, 8, 3] of a scene; see `Reviewer.review`."""
        reviews = self._scores.review(scene, trajectories)
        if not len(reviews):
            return []
        found = self.violations(self._image(scene.scene_id), trajectories)
        return [Review(review.scores, violations, feedback_text(violations, trajectory))
                for review, violations, trajectory in zip(reviews, found, trajectories, strict=True)]

    def violations(self, image: Image, trajectories: Array) -> list[list[dict[str, Any]]]:
        """What the model finds wrong with each of the trajectories [B, 8, 3], as `Review.violations`."""
        pairs = [(number, metric) for number in range(len(trajectories)) for metric in JUDGED]
        failing = self._denied(image, [Question(metric, "trajectory", trajectories[number]) for number, metric in pairs])
        accused = [pair for pair, fails in zip(pairs, failing, strict=True) if fails]
        points = self._denied(image, [
            Question(metric, "trajectory_point", trajectories[number], trajectories[number][point])
            for number, metric in accused for point in range(TRAJECTORY_POINTS)])
        found: list[list[dict[str, Any]]] = [[] for _ in trajectories]
        for place, (number, metric) in enumerate(accused):
            row = points[place * TRAJECTORY_POINTS:(place + 1) * TRAJECTORY_POINTS]
            # a trajectory that fails somewhere, with no point that does: all its points are in doubt
            named = [point for point, fails in enumerate(row) if fails or not any(row)]
            found[number] += [{"metric": metric, "point": point, "object": None} for point in named]
        return found

    def _denied(self, image: Image, questions: Sequence[Question]) -> list[bool]:
        """Whether the model answers no."""
        if not questions:
            return []
        answers = self._model.ask(image, [question_text(question) for question in questions], MAX_ANSWER_TOKENS)
        return [_NO.match(answer) is not None for answer in answers]

    def _image(self, scene_id: str) -> Image:
        """The front image, kept while episodes of the scene go on."""
        if scene_id not in self._images:
            self._images[scene_id] = self._image_of(scene_id)
            if len(self._images) > _KEPT_IMAGES:
                self._images.popitem(last=False)
        self._images.move_to_end(scene_id)
        return self._images[scene_id]
