"""The model as its own reviewer: what it is asked, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.questions import Question, read_question
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.feedback import MAX_ANSWER_TOKENS, SelfFeedback, SeparateFeedback
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.review import Review

IMAGE = np.zeros((28, 56, 3), dtype=np.uint8)


class Answering:
    """Denies what is in `denied`: (metric, None) of a trajectory, (metric, point) of a point."""

    def __init__(self, denied: dict[tuple[str, int | None], str]) -> None:
        self.denied = denied
        self.asked: list[Question] = []
        self.images: list[NDArray[np.uint8]] = []

    def ask(self, image: NDArray[np.uint8], questions: Sequence[str], max_answer_tokens: int) -> list[str]:
        assert max_answer_tokens == MAX_ANSWER_TOKENS
        self.images.append(image)
        read = [read_question(text) for text in questions]
        self.asked += read
        return [self.denied.get((question.metric, _point(question)), "Yes.") for question in read]


def _point(question: Question) -> int | None:
    if question.point is None or question.trajectory is None:
        return None
    return int(np.flatnonzero((question.trajectory == question.point).all(axis=1))[0])


class Perfect:
    """Everything is well."""

    def review(self, scene: Scene, trajectories: NDArray[np.float64]) -> list[Review]:
        return [Review({"PDMS": 1.0}, [], "") for _ in trajectories]


def plan(offset: float = 0.0) -> NDArray[np.float64]:
    return np.column_stack([2.5 * np.arange(1, 9), np.full(8, offset), np.zeros(8)])


def test_points_are_asked_about_only_where_the_trajectory_is_denied(generated: Scene) -> None:
    model = Answering({("DAC", None): "No.", ("DAC", 6): "No.", ("DAC", 7): " no", ("NC", 2): "No."})
    drawn: list[str] = []

    def image_of(scene_id: str) -> NDArray[np.uint8]:
        drawn.append(scene_id)
        return IMAGE

    reviewer = SelfFeedback(Perfect(), model, image_of)
    (review,) = reviewer.review(generated, plan()[None])
    assert review.violations == [{"metric": "DAC", "point": point, "object": None} for point in (6, 7)]
    assert review.scores == {"PDMS": 1.0}, "scores are the scorer's, whatever the model thinks"
    assert "Trajectory Point 1: (+17.50, 0.0, 0.0)." in review.feedback
    assert [(question.form, question.metric) for question in model.asked] == [
        ("trajectory", "DAC"), ("trajectory", "NC"), ("trajectory", "TTC"), *[("trajectory_point", "DAC")] * 8]
    reviewer.review(generated, plan()[None])
    assert drawn == [generated.scene_id] and all(image is IMAGE for image in model.images)


def test_what_the_model_leaves_open(generated: Scene) -> None:
    model = Answering({("TTC", None): "No, it does not.", ("NC", None): "Note that I am a model", ("DAC", None): "maybe"})
    first, second = SelfFeedback(Perfect(), model, lambda _: IMAGE).review(generated, np.stack([plan(), plan(1.0)]))
    assert [violation["point"] for violation in first.violations] == list(range(8)), "no point is named: all are in doubt"
    assert {violation["metric"] for violation in first.violations} == {"TTC"}, "only a plain no denies"
    assert second.violations == first.violations and "(+2.50, +1.00, 0.0)" in second.feedback
    silent = SelfFeedback(Perfect(), Answering({}), lambda _: IMAGE)
    assert silent.review(generated, plan()[None])[0].feedback == ""
    assert silent.review(generated, np.zeros((0, 8, 3))) == []


def test_scores_of_one_reviewer_and_feedback_of_another(generated: Scene) -> None:
    oracle, kinematic = PDMAgent("oracle", 2), PDMAgent("kinematic", 2)
    plans = np.stack([plan(), plan(12.0)])
    both = SeparateFeedback(oracle, kinematic).review(generated, plans)
    scored, said = oracle.review(generated, plans), kinematic.review(generated, plans)
    assert [review.scores for review in both] == [review.scores for review in scored]
    assert [(review.feedback, review.violations) for review in both] == [(r.feedback, r.violations) for r in said]
