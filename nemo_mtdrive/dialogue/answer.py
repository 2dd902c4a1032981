"""Read a trajectory out of the model's answer; the other half of `prompt.answer_text`.

The text comes from a model that is being trained and may be anything. Reading takes time linear in a bounded length,
accepts exactly one `[PT, (x, y, heading), ...]` of 8 points in plain ASCII decimals, and says in words of ours what is
wrong otherwise: `problem` never quotes the text, so it can be shown to the model without carrying its tokens back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.format_score import format_score
from nemo_mtdrive.types import TRAJECTORY_POINTS

MAX_ANSWER_CHARACTERS = 8192
"""A longer text is refused unread; a well-formed answer has about 250 characters."""

LARGEST_MAGNITUDE = 1000.0
"""Largest |x|, |y| [m] and |heading| [rad] taken: a kilometre in 4 s is no trajectory, and could overflow scoring."""

_NUMBER = r"[+-]?(?:[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_SPACE = r"[ \t\r\n]*"
_POINT = re.compile(_SPACE.join(("", ",", r"\(", f"({_NUMBER})", ",", f"({_NUMBER})", ",", f"({_NUMBER})", r"\)")))
_END = re.compile(rf"{_SPACE}\]")


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer said: the trajectory [8, 3], or None and the reason."""

    trajectory: NDArray[np.float64] | None
    format_score: float
    """f_ij of Eq. 2, 0.0 or 1.0 (`dialogue.format_score`)."""
    problem: str
    """Empty with a trajectory; else a short clause for the feedback, without a full stop."""


def parse_answer(text: str) -> ParsedAnswer:
    """Read an answer. Never raises on any text.

    Words around the list are allowed; a second list, a wrong number of points, anything but plain finite decimals
    (no exponents, no nan, no digits of other scripts) or a magnitude above `LARGEST_MAGNITUDE` is not.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        return _unreadable("the answer is too long")
    lists = text.count("[PT")
    if lists != 1:
        return _unreadable("there is no [PT, ...] list" if lists == 0 else "there is more than one [PT, ...] list")
    position = text.index("[PT") + len("[PT")
    points: list[tuple[float, float, float]] = []
    while match := _POINT.match(text, position):
        points.append((float(match[1]), float(match[2]), float(match[3])))
        position = match.end()
    if not _END.match(text, position):
        return _unreadable(f"the list is malformed or cut after point {len(points)}")
    if len(points) != TRAJECTORY_POINTS:
        return _unreadable(f"there are {len(points)} points, and {TRAJECTORY_POINTS} are needed")
    trajectory = np.asarray(points, dtype=np.float64)
    if np.abs(trajectory).max() > LARGEST_MAGNITUDE:
        return _unreadable("a number is too large")
    return ParsedAnswer(trajectory, format_score(text, trajectory), "")


def _unreadable(problem: str) -> ParsedAnswer:
    return ParsedAnswer(None, format_score("", None), problem)
