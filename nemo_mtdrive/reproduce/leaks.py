"""What a prompt may hold, read back from its words: nothing of the human's future, nothing of PDM-Closed.

A question holds the recorded past (four poses) and the command. Feedback holds points of the model's own last answer and
boxes of other road users. Every number in brackets is accounted for; what is left over is a leak.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import first_question, format_point
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.types import Episode

Array = NDArray[np.float64]
_BRACKETS = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
ROUNDING = 0.0051
"""Of two decimals, of a trajectory that is itself kept with four [m, rad]."""
_BOX_NUMBERS = 7
"""x, y, z, l, w, h, heading; the name follows."""


def tuples_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """(what stands between brackets, its parts), where the first part is a number."""
    for found in _BRACKETS.finditer(text):
        parts = [part.strip() for part in found[1].split(",")]
        if _NUMBER.fullmatch(parts[0]):
            yield found[0], parts


def question_leaks(question: str, scene: Scene) -> list[str]:
    """What is in a question beside the scene's past and command; empty where there is nothing."""
    assert scene.history is not None and scene.command is not None
    if question == first_question(scene.history, scene.command):
        return []
    past = {format_point(pose) for pose in scene.history}
    return [text for text, _ in tuples_of(question) if text not in past] or ["words that are not the question's"]


def feedback_leaks(feedback: str, trajectory: Array | None) -> list[str]:
    """What is in a feedback beside points of the trajectory [8, 3] that it speaks of, and boxes."""
    left = []
    for text, parts in tuples_of(feedback):
        box = len(parts) == _BOX_NUMBERS + 1 and not _NUMBER.fullmatch(parts[-1]) and all(
            _NUMBER.fullmatch(part) for part in parts[:-1])
        if not box and not _is_point(parts, trajectory):
            left.append(text)
    return left


def _is_point(parts: Sequence[str], trajectory: Array | None) -> bool:
    """Whether the parts are a point of the trajectory, rounded to two decimals."""
    if trajectory is None or len(parts) != trajectory.shape[1] or not all(_NUMBER.fullmatch(part) for part in parts):
        return False
    return bool((np.abs(trajectory - np.array([float(part) for part in parts])) <= ROUNDING).all(axis=1).any())


def _same(text: str) -> str:
    """Zero is written in two ways."""
    return re.sub(r"[-+]?0\.0+(?=[,)])", "0.0", text)


def poses_in(text: str, poses: Array) -> list[str]:
    """Those of poses [n, 3] that a text holds, as a model would write them."""
    found = {_same(bracketed) for bracketed, _ in tuples_of(text)}
    return [point for point in map(format_point, poses) if _same(point) in found]


def episode_leaks(episode: Episode) -> list[str]:
    """Of all its turns: what their feedback holds beside the turn's own points and boxes."""
    return [f"{episode.episode_id} turn {turn.index + 1}: {left}" for turn in episode.turns if turn.feedback
            for left in feedback_leaks(turn.feedback, turn.trajectory)]


def unlike(poses: Array, others: Sequence[Array]) -> Array:
    """Those of poses [n, 3] that none of the other sets of poses has, as they are written."""
    known = {_same(format_point(point)) for other in others for point in other}
    return np.array([pose for pose in poses if _same(format_point(pose)) not in known]).reshape(-1, 3)
