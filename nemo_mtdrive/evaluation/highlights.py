"""Where the points of a trajectory stand in a conversation's texts, so that the page can mark the violated ones.

Which points are violated is read from the review's violations; the texts are only searched for those points' numbers, so
wording that we do not know is shown as it is. A text becomes segments: a string is plain, [text, point] is a point of
the trajectory (0..7), [text, point, metric] a point named for a metric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_mtdrive.pdm.feedback import format_point
from nemo_mtdrive.types import TRAJECTORY_POINTS

Segment = str | list[Any]

_NUMBER = r"([+-]?[0-9]{0,6}\.?[0-9]{0,6})"
_TRIPLE = re.compile(r"\( ?" + " ?, ?".join([_NUMBER] * 3) + r" ?\)")
_HALF_UNIT = 0.00501
"""Answers have two decimals, records of them four."""


def metrics_of_points(violations: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each of the 8 points the metrics that it violates, in the order of the review."""
    found: list[list[str]] = [[] for _ in range(TRAJECTORY_POINTS)]
    for violation in violations:
        point, metric = violation.get("point"), violation["metric"]
        if point is not None and 0 <= point < TRAJECTORY_POINTS and metric not in found[point]:
            found[point].append(metric)
    return found


def answer_segments(text: str, trajectory: Sequence[Sequence[float]] | None) -> list[Segment]:
    """The model's answer with the points of the trajectory that was read from it."""
    if trajectory is None:
        return [text] if text else []
    segments: list[Segment] = []
    start = point = 0
    for match in _TRIPLE.finditer(text):
        if point == len(trajectory) or not _same(match.groups(), trajectory[point]):
            continue
        segments += [text[start:match.start()], [match[0], point]]
        start, point = match.end(), point + 1
    return [segment for segment in (*segments, text[start:]) if segment]


def feedback_segments(text: str, trajectory: Sequence[Sequence[float]] | None,
                      violations: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """The agent's feedback with the points that it names for each violated metric."""
    segments: list[Segment] = []
    start = 0
    named = dict.fromkeys((violation["metric"], violation["point"]) for violation in violations
                          if violation.get("point") is not None)
    for metric, point in named if trajectory is not None else ():
        assert trajectory is not None
        shown = format_point(trajectory[point])
        at = text.find(shown, start)
        if at >= 0:
            segments += [text[start:at], [shown, point, metric]]
            start = at + len(shown)
    return [segment for segment in (*segments, text[start:]) if segment]


def _same(written: Sequence[str], point: Sequence[float]) -> bool:
    try:
        return all(abs(float(text) - value) < _HALF_UNIT for text, value in zip(written, point, strict=True))
    except ValueError:  # "." and "+" look like numbers to the pattern
        return False
