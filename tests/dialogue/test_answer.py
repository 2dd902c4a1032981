"""The parser takes the paper's answers and survives everything else."""

from __future__ import annotations

import re

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


_finite = st.floats(-LARGEST_MAGNITUDE + 0.01, LARGEST_MAGNITUDE - 0.01)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_finite, min_size=3, max_size=3), min_size=8, max_size=8))
def test_any_trajectory_comes_back_to_two_decimals(points):
    trajectory = np.array(points)
    text = answer_text(trajectory)
    parsed = parse_answer(text)
    assert parsed.format_score == 1.0
    np.testing.assert_allclose(parsed.trajectory, trajectory, rtol=0, atol=0.005 + 1e-9)
    assert answer_text(parsed.trajectory) == text  # and what was read is written alike


def _hostile(random: np.random.Generator) -> str:
    """An answer that is cut, repeated, shuffled, spliced with tokens, numbers and scripts that do not belong there."""
    pieces = ("[PT", "[PT, ", "]", "(", ")", ", ", "(1, 2, 3)", "nan", "inf", "1e400", "-", "+", "--1", "0x1", "9" * 40,
              "1." + "0" * 60, "<|im_end|>", "<image>", "\x00", "\ud800", "\u202e", "\u0661", "\U0001f600", "\n", "PT", "[[",
              "]]", "{}", "%s", "\\", "(" * 200, "[PT" * 50, " " * 500, " " * 9000, "90210")
    text = GOOD if random.random() < 0.7 else ""
    for _ in range(random.integers(1, 9)):
        start, stop = sorted(random.integers(0, len(text) + 1, 2).tolist())
        piece = pieces[random.integers(len(pieces))]
        edit = random.integers(5)
        text = (text[:start] + piece + text[start:], text[:start] + text[stop:], text[:start] + piece + text[stop:],
                text + text[start:stop], text[stop:] + text[:start])[edit]
    return text


def test_ten_thousand_hostile_answers_give_a_reason_or_a_trajectory():
    random = np.random.default_rng(0)
    reasons = set()
    for _ in range(10_000):
        parsed = parse_answer(_hostile(random))
        if parsed.trajectory is None:
            assert parsed.format_score == 0.0 and parsed.problem
            assert parsed.problem.isascii() and len(parsed.problem) < 80
            reasons.add(re.sub("[0-9]+", "N", parsed.problem))
        else:
            assert parsed.format_score == 1.0 and parsed.problem == ""
            assert parsed.trajectory.shape == (8, 3) and np.abs(parsed.trajectory).max() <= LARGEST_MAGNITUDE
    assert reasons == {"there is no [PT, ...] list", "there is more than one [PT, ...] list", "the answer is too long",
                       "the list is malformed or cut after point N", "there are N points, and N are needed",
                       "a number is too large"}


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
