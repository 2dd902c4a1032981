"""Conversations about vehicles that nobody has seen: what a language model can know of driving before it has a picture.

A motion is a handful of numbers: a speed, a curvature, and how both change. Its past and the command stand in the question
as a scene's do, its next four seconds are the answer. Where a conversation goes on, feedback in the agent's own words names
points of that plan, and the next plan gives way: slower where it is told of an object, curved otherwise where it is told
that it leaves the road. There is no road and no object: only form, counting, and how vehicles move can be learned here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import HISTORY_POINTS, answer_text, first_question
from nemo_mtdrive.driving.scene import COMMANDS
from nemo_mtdrive.pdm.feedback import feedback_text
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S

MOST_ANSWERS = 3
"""Of a conversation; each further one comes with `GOES_ON`."""
GOES_ON = 0.4
TURN_M = 3.0
"""Metres aside after four seconds from which the command is to turn."""
FINE_STEPS = 5
"""Steps of the integration between two points."""
OBJECTS = {"vehicle": (4.6, 1.9, 1.6), "pedestrian": (0.7, 0.7, 1.7), "bicycle": (1.8, 0.7, 1.6)}
"""Length, width and height [m]."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    """A vehicle at t = 0 and how it goes on."""

    speed: float
    """[m/s]"""
    acceleration: float
    """[m/s²] from t = 0; a vehicle that has stopped stands."""
    past_acceleration: float
    curvature: float
    """[1/m]"""
    bend: float
    """How fast the curvature changes [1/(m s)]."""


@dataclass(frozen=True)
class Talk:
    """A question, and answers with the feedback between them."""

    question: str
    turns: list[tuple[str, str | None]]
    """(answer, feedback); the last feedback is None."""


def talk(rng: np.random.Generator) -> Talk:
    """A conversation drawn from `rng`."""
    motion = draw_motion(rng)
    plan = poses(motion, TRAJECTORY_STEP_S * np.arange(1, TRAJECTORY_POINTS + 1))
    past = poses(motion, TRAJECTORY_STEP_S * np.arange(1 - HISTORY_POINTS, 1))
    aside = plan[-1, 1]
    command = COMMANDS[1 if abs(aside) < TURN_M else 0 if aside > 0 else 2]
    turns: list[tuple[str, str | None]] = []
    while len(turns) + 1 < MOST_ANSWERS and rng.random() < GOES_ON:
        faults = draw_faults(rng, plan)
        turns.append((answer_text(plan), feedback_text(faults, plan)))
        motion = giving_way(rng, motion, faults)
        plan = poses(motion, TRAJECTORY_STEP_S * np.arange(1, TRAJECTORY_POINTS + 1))
    return Talk(first_question(past, command), [*turns, (answer_text(plan), None)])


def draw_motion(rng: np.random.Generator) -> Motion:
    """One in eight is at rest, three in eight move straight on."""
    kind = rng.integers(8)
    speed = 0.0 if kind == 0 else abs(rng.normal(6.0, 4.0))
    curvature, bend = (0.0, 0.0) if kind < 4 else (rng.normal(0.0, rng.choice([0.005, 0.05])), rng.normal(0.0, 0.005))
    return Motion(speed, rng.normal(0.0, 1.0), rng.normal(0.0, 0.5), curvature, bend)


def poses(motion: Motion, times: Array) -> Array:
    """[n, 3] x, y, heading at times [s] of the past or of the future, in the frame of the vehicle at t = 0."""
    return np.array([_pose(motion, time) for time in times.tolist()])


def _pose(motion: Motion, time: float) -> Array:
    steps = max(1, round(abs(time) / TRAJECTORY_STEP_S)) * FINE_STEPS
    middles = (np.arange(steps) + 0.5) * time / steps
    acceleration = motion.acceleration if time > 0 else motion.past_acceleration
    ways = np.maximum(0.0, motion.speed + acceleration * middles) * time / steps
    turned = ways * (motion.curvature + motion.bend * middles)
    heading = np.cumsum(turned) - 0.5 * turned
    return np.array([ways @ np.cos(heading), ways @ np.sin(heading), turned.sum()])


def draw_faults(rng: np.random.Generator, plan: Array) -> list[dict[str, Any]]:
    """Violations as the agent's `violations_of` writes them, of one to three metrics."""
    metrics = [metric for metric in ("DAC", "NC", "TTC") if rng.random() < 0.5] or ["TTC"]
    faults: list[dict[str, Any]] = []
    for metric in metrics:
        first = int(rng.integers(TRAJECTORY_POINTS))
        last = int(rng.integers(first, min(first + 3, TRAJECTORY_POINTS)))
        thing = None if metric == "DAC" else str(rng.choice(sorted(OBJECTS)))
        for point in range(first, last + 1):
            faults.append({"metric": metric, "point": point, "object": thing and _box(rng, plan[point], thing)})
    return faults


def _box(rng: np.random.Generator, point: Array, name: str) -> list[Any]:
    """[x, y, z, l, w, h, heading, name] near a point."""
    length, width, height = (size * rng.uniform(0.9, 1.1) for size in OBJECTS[name])
    x, y = point[:2] + rng.normal(0.0, 1.5, 2)
    return [float(x), float(y), 0.5 * height, length, width, height, float(rng.uniform(-np.pi, np.pi)), name]


def giving_way(rng: np.random.Generator, motion: Motion, faults: list[dict[str, Any]]) -> Motion:
    """The next plan's motion: from the same past, slower for objects, otherwise curved for the road."""
    metrics = {fault["metric"] for fault in faults}
    if metrics & {"NC", "TTC"}:
        motion = replace(motion, acceleration=motion.acceleration - rng.uniform(0.3, 2.0))
    if "DAC" in metrics:
        less = rng.uniform(0.0, 1.0)
        motion = replace(motion, curvature=motion.curvature * (0.6 + 0.5 * less), bend=motion.bend * less)
    return motion
