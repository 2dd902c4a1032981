"""The texts that we write are those of the paper's appendix, byte for byte."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemo_mtdrive.dialogue.prompt import answer_text, first_question, format_number, unreadable_feedback


def test_question_is_the_appendix(appendix):
    assert first_question(np.array(appendix.history), appendix.command) == appendix.question


def test_appendix_is_in_the_paper(appendix, shared_dir):
    paper = next((shared_dir / "seeds").glob("001_*.txt")).read_text().replace("\\n", "\n")
    first_two_turns = (
        f"<image>\n{appendix.question}<|im_end|>\n<|im_start|>assistant\n{appendix.first_answer}<|im_end|>"
        f"<|im_start|>user\n{appendix.feedback}\n\nAnswer: {appendix.second_answer}"
    )
    assert first_two_turns in paper


def test_human_answer_is_the_appendix(appendix):
    assert answer_text(np.array(appendix.second_trajectory)) == appendix.second_answer


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0.0"), (-0.0, "0.0"), (0.004, "0.0"), (-0.004, "0.0"), (0.006, "+0.01"), (-0.006, "-0.01"), (3.1, "+3.10"),
    (-1.1, "-1.10"), (12.0, "+12.00"), (-9.444, "-9.44"), (123.456, "+123.46"), (0.9999, "+1.00"),
])
def test_format_number(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_format_number_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match="want a finite number"):
        format_number(value)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"history: got shape \(3, 3\), want \(4, 3\)"):
        first_question(np.zeros((3, 3)), "GO STRAIGHT")
    with pytest.raises(ValueError, match=r"trajectory: got shape \(7, 3\), want \(8, 3\)"):
        answer_text(np.zeros((7, 3)))


def test_unreadable_feedback_keeps_the_frame_of_the_paper(appendix):
    text = unreadable_feedback("there is no [PT, ...] list")
    assert text.startswith(appendix.feedback.split(" Analyze")[0])
    assert text.endswith(appendix.feedback.splitlines()[-1])
    assert "It could not be read: there is no [PT, ...] list." in text
