"""Points of a trajectory found in texts, exactly; and texts that name none."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mtdrive.evaluation.highlights import answer_segments, feedback_segments, metrics_of_points
from nemo_mtdrive.pdm.feedback import feedback_text
from tests.evaluation.pages import OBSTACLE

PATH = [[2.0 * k, -0.5, 0.004] for k in range(1, 9)]
ANSWER = "Here: [PT, " + ", ".join(f"({x:+.2f}, {y:+.2f}, {h:+.2f})" for x, y, h in PATH) + "]."
VIOLATIONS = [{"metric": "DAC", "point": 6, "object": None}, {"metric": "DAC", "point": 7, "object": None},
              {"metric": "TTC", "point": 7, "object": OBSTACLE},
              {"metric": "TTC", "point": 7, "object": [30.0, *OBSTACLE[1:]]}]


def joined(segments: list) -> str:
    return "".join(segment if isinstance(segment, str) else segment[0] for segment in segments)


def test_metrics_by_point() -> None:
    assert metrics_of_points(VIOLATIONS) == [[], [], [], [], [], [], ["DAC"], ["DAC", "TTC"]]
    assert metrics_of_points([{"metric": "NC", "point": None}, {"metric": "NC", "point": 9}]) == [[]] * 8


def test_the_answer_s_points_are_those_of_the_trajectory() -> None:
    segments = answer_segments("First (1, 2, 3), then " + ANSWER, PATH)
    assert joined(segments) == "First (1, 2, 3), then " + ANSWER
    assert [segment[1] for segment in segments if not isinstance(segment, str)] == list(range(8))
    assert segments[1] == ["(+2.00, -0.50, +0.00)", 0]


def test_the_feedback_s_points_carry_their_metric() -> None:
    text = feedback_text(VIOLATIONS, np.array(PATH))
    segments = feedback_segments(text, PATH, VIOLATIONS)
    assert joined(segments) == text
    assert [segment for segment in segments if not isinstance(segment, str)] == [
        ["(+14.00, -0.50, 0.0)", 6, "DAC"], ["(+16.00, -0.50, 0.0)", 7, "DAC"], ["(+16.00, -0.50, 0.0)", 7, "TTC"]]


@pytest.mark.parametrize("text", ["", "[PT, (1, 2)]", "(., +, -)", "\ud800 (+2.00, -0.50, nan)", "(" * 9000])
def test_texts_without_points_stay_whole(text: str) -> None:
    whole = [text] if text else []
    assert answer_segments(text, PATH) == answer_segments(text, None) == whole
    assert feedback_segments(text, PATH, VIOLATIONS) == feedback_segments(text, None, VIOLATIONS) == whole
