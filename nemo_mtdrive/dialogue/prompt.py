"""The texts that we write, exactly as Appendix A.1 of the paper prints them.

A choice the appendix leaves open is how numbers are written: its history and its human answer show two decimals and a
sign (`-9.44`, `+0.02`, `-1.10`), while the trajectory of a model shows `+3.1`. We always write two decimals ("Maintain
numerical precision to 2 decimal places"), zero as `0.0`; the model's own words are kept as they came, and
`dialogue.answer` reads any plain decimal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.types import TRAJECTORY_POINTS

SYSTEM = "You are a helpful assistant."
"""The system message of Qwen2.5-VL's own chat template."""

HISTORY_POINTS = 4
"""Poses of the past in the question: t-3 .. t-0, 0.5 s apart."""


def format_number(value: float) -> str:
    """A coordinate [m] or heading [rad] with a sign and two decimals: `+3.10`, `-0.02`; what rounds to zero is `0.0`.

    Raises:
        ValueError: the value is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"got {value}, want a finite number")
    text = f"{value:+.2f}"
    return "0.0" if text in ("+0.00", "-0.00") else text


def format_point(point: Sequence[float] | NDArray[np.float64]) -> str:
    """One pose [x, y, heading] as `(+3.10, 0.0, -0.02)`."""
    return "(" + ", ".join(format_number(float(value)) for value in point) + ")"


def first_question(history: NDArray[np.float64], command: str) -> str:
    """The question of Appendix A.1, without its image mark (`dialogue.conversation` places the image before it).

    Args:
        history: [4, 3] ego poses at t = -1.5, -1.0, -0.5, 0 s in the ego frame of t = 0.
        command: navigation command as the scene has it, for example `GO STRAIGHT`.

    Raises:
        ValueError: the history has another shape or is not finite.
    """
    history = np.asarray(history, dtype=np.float64)
    if history.shape != (HISTORY_POINTS, 3):
        raise ValueError(f"history: got shape {history.shape}, want ({HISTORY_POINTS}, 3)")
    past = " ".join(f"- t-{HISTORY_POINTS - 1 - index}: {format_point(pose)}" for index, pose in enumerate(history))
    return (
        "As an autonomous driving system, predict the vehicle's trajectory based on:\n"
        "1. Visual perception from front camera view\n"
        f"2. Historical motion context (last {HISTORY_POINTS} timesteps): {past}\n"
        f"3. Active navigation command: [{command}]\n"
        "Output requirements:\n"
        f"- Predict {TRAJECTORY_POINTS} future trajectory points\n"
        "- Each point format: (x:float, y:float, heading:float)\n"
        "- Use [PT, ...] to encapsulate the trajectory\n"
        "- Maintain numerical precision to 2 decimal places"
    )


def answer_text(trajectory: NDArray[np.float64]) -> str:
    """A trajectory [8, 3] as the answer that a model is taught to give.

    Raises:
        ValueError: another shape, or not finite.
    """
    trajectory = np.asarray(trajectory, dtype=np.float64)
    if trajectory.shape != (TRAJECTORY_POINTS, 3):
        raise ValueError(f"trajectory: got shape {trajectory.shape}, want ({TRAJECTORY_POINTS}, 3)")
    return "Here is the planning trajectory [PT, " + ", ".join(format_point(point) for point in trajectory) + "]."


def unreadable_feedback(problem: str) -> str:
    """The user message after an answer without a trajectory, in the frame of the paper's feedback.

    The paper says nothing about this case. `problem` comes from `dialogue.answer` and never quotes the model.
    """
    return (
        f"This was your previous trajectory prediction. It could not be read: {problem}. The format is: "
        "[PT, (x, y, heading), ...] with 8 points.\n"
        "Based on these issues, provide an improved trajectory prediction."
    )
