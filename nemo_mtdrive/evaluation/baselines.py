"""Drivers without a model, scored like one: rows to hold the model's rows against (the paper's Table 1 has Human)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.driving.scene import Scene, to_ego_frame
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.evaluation.evaluate import Answer, Bootstrap, SceneFacts, facts_of, summarise_answers
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.feedback import POINT_STEPS
from nemo_mtdrive.pdm.review import Review, Reviewer
from nemo_mtdrive.types import Episode, Turn

Array = NDArray[np.float64]
Driver = Callable[[Scene], Array | None]
"""A scene -> its trajectory [8, 3], or None when this driver has none for the scene."""


def human(scene: Scene) -> Array | None:
    """What the human, or the generator's expert, drove."""
    return scene.future


def pdm_closed(agent: PDMAgent, scene: Scene) -> Array:
    """The plan of PDM-Closed, the rule-based planner that EP is held against: [8, 3] of its 41 poses.

    It forecasts the others by constant velocity whatever the agent's perception.
    """
    return to_ego_frame(agent.prepare(scene).reference[POINT_STEPS], scene.ego.rear_axle_pose)


DRIVERS: Mapping[str, Driver] = {"constant_velocity": constant_velocity, "human": human}
"""The names are keys of summary.json."""
DRIVER_NAMES = (*DRIVERS, "pdm_closed")


def drivers_with(agent: PDMAgent) -> dict[str, Driver]:
    """All of `DRIVER_NAMES`; the agent's prepared scenes are those that PDM-Closed plans in."""
    return {**DRIVERS, "pdm_closed": partial(pdm_closed, agent)}


def summarise_drivers(scenes: Iterable[Scene], reviewer: Reviewer, *, drivers: Mapping[str, Driver],
                      bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Driver name -> summary in the form of `evaluate.summarise`; scenes are loaded and scored one by one.

    A scene for which a driver has no trajectory is left out of its row; `scenes` in the row says how many it is of.
    """
    answers: dict[str, list[list[Answer]]] = {name: [] for name in drivers}
    facts: dict[str, SceneFacts] = {}
    for scene in scenes:
        facts[scene.scene_id] = facts_of(scene)
        for name, (trajectory, review) in drive(scene, reviewer, drivers).items():
            answers[name].append([Answer(scene.scene_id, review.scores, trajectory)])
    return {name: summarise_answers(rows, facts=facts, bootstrap=bootstrap) for name, rows in answers.items()}


def drive(scene: Scene, reviewer: Reviewer, drivers: Mapping[str, Driver]) -> dict[str, tuple[Array, Review]]:
    """Driver name -> its trajectory [8, 3] and the review of it; without those that have none."""
    driven = {name: trajectory for name, driver in drivers.items() if (trajectory := driver(scene)) is not None}
    if not driven:
        return {}
    reviews = reviewer.review(scene, np.stack(list(driven.values())))
    return {name: (trajectory, review) for (name, trajectory), review in zip(driven.items(), reviews, strict=True)}


def driver_episode(scene_id: str, trajectory: Array, review: Review) -> Episode:
    """A driver's plan as an episode of one turn, so that it is kept, shown and compared as a model's."""
    turn = Turn(index=0, start=0, stop=0, answer=answer_text(trajectory), trajectory=trajectory, scores=dict(review.scores),
                format_score=1.0, reward=0.0, feedback=review.feedback, violations=list(review.violations))
    return _episode(scene_id, (turn,), "max_turns" if review.violations else "clean")


def lost_episode(scene_id: str, problem: str) -> Episode:
    """In place of an episode that could not be: it counts as invalid and says why."""
    return _episode(scene_id, (), f"error: {problem}")


def _episode(scene_id: str, turns: tuple[Turn, ...], reason: str) -> Episode:
    empty = np.zeros(0)
    return Episode(episode_id=f"evaluation/0/{scene_id}/0", scene_id=scene_id, index=0, seed=0, policy_version=0,
                   tokens=empty.astype(np.int32), turn_of_token=empty.astype(np.int16), logprobs=empty.astype(np.float32),
                   image_keys=(), image_grids=(), turns=turns, valid=not reason.startswith("error"), reason=reason)
