"""The parser takes the paper's answers and survives everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mtdrive.dialogue.answer import LARGEST_MAGNITUDE, MAX_ANSWER_CHARACTERS, parse_answer
from nemo_mtdrive.dialogue.prompt import answer_text

GOOD = "[PT, " + ", ".join(["(1, 2, 3)"] * 8) + "]"


def test_answers_of_the_appendix(appendix):
    for text, trajectory in ((appendix.first_answer, appendix.first_trajectory),
                             (appendix.second_answer, appendix.second_trajectory)):
        parsed = parse_answer(text)
        assert parsed.format_score == 1.0 and parsed.problem == ""
        np.testing.assert_array_equal(parsed.trajectory, np.array(trajectory))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-99_999, 99_999), min_size=3, max_size=3), min_size=8, max_size=8))
def test_what_we_write_we_read(hundredths):
    trajectory = np.array(hundredths) / 100.0
    parsed = parse_answer(answer_text(trajectory))
    np.testing.assert_array_equal(parsed.trajectory, trajectory)


@pytest.mark.parametrize("number", ["1", "+1", "-1", "1.", ".5", "+.5", "-0.25", "007", "0.123456", "1000"])
def test_plain_decimals_are_taken(number):
    parsed = parse_answer(GOOD.replace("(1,", f"({number},", 1))
    assert parsed.trajectory is not None and parsed.trajectory[0, 0] == float(number)
    assert parsed.format_score == (0.0 if number == "0.123456" else 1.0)


@pytest.mark.parametrize("number", [
    "nan", "inf", "-inf", "1e3", "1e400", "1_0", "0x1", "\u0661", "\uff11", "\u00b2", "1.2.3", "--1", "+-1", "", ".",
    "+", "1 2", "1,2", "9999999", "1.0000000", "(1", "None", "<|im_end|>",
])
def test_other_numbers_are_not(number):
    parsed = parse_answer(GOOD.replace("(1,", f"({number},", 1))
    assert parsed.trajectory is None and parsed.format_score == 0.0
    assert parsed.problem == "the list is malformed or cut after point 0"


@pytest.mark.parametrize(("text", "problem"), [
    ("", "there is no [PT, ...] list"),
    ("I would rather stop.", "there is no [PT, ...] list"),
    (GOOD + " " + GOOD, "there is more than one [PT, ...] list"),
    ("[PT, " + GOOD + "]", "there is more than one [PT, ...] list"),
    (GOOD[:-1], "the list is malformed or cut after point 8"),
    (GOOD[:-12] + "]", "there are 7 points, and 8 are needed"),
    (GOOD[:-1] + ", (1, 2, 3)]", "there are 9 points, and 8 are needed"),
    ("[PT]", "there are 0 points, and 8 are needed"),
    (GOOD.replace("PT, ", "PT "), "the list is malformed or cut after point 0"),
    (GOOD.replace("(1, 2, 3)", "(1, 2)", 1), "the list is malformed or cut after point 0"),
    (GOOD.replace("(1, 2, 3)", "(1, 2, 1001)", 1), "a number is too large"),
    (GOOD + " " * MAX_ANSWER_CHARACTERS, "the answer is too long"),
])
def test_problems(text, problem):
    parsed = parse_answer(text)
    assert (parsed.trajectory, parsed.format_score, parsed.problem) == (None, 0.0, problem)


def test_words_and_spaces_around_are_allowed():
    spaced = GOOD.replace("), (", ")\n , ( ").replace("]", " ]")
    assert parse_answer(f"A cyclist is near (2, 3).\n{spaced}\nDone.").format_score == 1.0
    assert parse_answer(f"text before {GOOD} text after").format_score == 1.0


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="[]PT,()+-.0123456789e \n\x00é\u0661nif", max_size=400).map(lambda text: "[PT, (1, 2" + text)
       | st.text(max_size=300))
def test_no_text_breaks_it(text):
    parsed = parse_answer(text)
    if parsed.trajectory is None:
        assert parsed.format_score == 0.0 and parsed.problem
    else:
        assert parsed.trajectory.shape == (8, 3) and np.abs(parsed.trajectory).max() <= LARGEST_MAGNITUDE


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="<|im_end>zq$", min_size=3, max_size=60))
def test_the_problem_never_quotes_the_model(text):
    assert "<|" not in parse_answer(text).problem and "zq" not in parse_answer(text).problem
