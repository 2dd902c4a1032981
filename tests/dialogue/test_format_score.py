"""f of Eq. 2: parseable, 8 points, finite, within the question's text format."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.format_score import format_score
from nemo_mtdrive.dialogue.prompt import answer_text

PLAN = np.arange(24.0).reshape(8, 3) / 4
TEXT = answer_text(PLAN)


def test_an_answer_in_the_format() -> None:
    assert format_score(TEXT, PLAN) == 1.0
    assert format_score(f"The gap is 3.125 m. {TEXT} It takes 0.625 s.", PLAN) == 1.0  # words around it are not the plan


@pytest.mark.parametrize("plan", [None, PLAN[:7], PLAN[:, :2], np.where(PLAN == 5.0, np.nan, PLAN), PLAN + np.inf])
def test_a_plan_that_is_none(plan: np.ndarray | None) -> None:
    assert format_score(TEXT, plan) == 0.0


def test_more_than_two_decimals_lose_the_format_score_and_are_still_driven() -> None:
    text = TEXT.replace("(+0.25", "(+0.250").replace("(0.0", "(0.001", 1)
    assert text != TEXT
    parsed = parse_answer(text)
    assert parsed.trajectory is not None and parsed.format_score == 0.0 and parsed.problem == ""
