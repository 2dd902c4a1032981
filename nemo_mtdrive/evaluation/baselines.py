"""Drivers without a model, scored like one: rows to hold the model's rows against (the paper's Table 1 has Human)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.evaluation.evaluate import Answer, Bootstrap, SceneFacts, facts_of, summarise_answers
from nemo_mtdrive.pdm.review import Reviewer

Array = NDArray[np.float64]
Driver = Callable[[Scene], Array | None]
"""A scene -> its trajectory [8, 3], or None when this driver has none for the scene."""


def human(scene: Scene) -> Array | None:
    """What the human, or the generator's expert, drove."""
    return scene.future


DRIVERS: Mapping[str, Driver] = {"constant_velocity": constant_velocity, "human": human}
"""The names are keys of summary.json."""


def summarise_drivers(scenes: Iterable[Scene], reviewer: Reviewer, *, drivers: Mapping[str, Driver],
                      bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Driver name -> summary in the form of `evaluate.summarise`; scenes are loaded and scored one by one.

    A scene for which a driver has no trajectory is left out of its row; `scenes` in the row says how many it is of.
    """
    answers: dict[str, list[list[Answer]]] = {name: [] for name in drivers}
    facts: dict[str, SceneFacts] = {}
    for scene in scenes:
        facts[scene.scene_id] = facts_of(scene)
        driven = {name: trajectory for name, driver in drivers.items() if (trajectory := driver(scene)) is not None}
        if not driven:
            continue
        reviews = reviewer.review(scene, np.stack(list(driven.values())))
        for (name, trajectory), review in zip(driven.items(), reviews, strict=True):
            answers[name].append([Answer(scene.scene_id, review.scores, trajectory)])
    return {name: summarise_answers(rows, facts=facts, bootstrap=bootstrap) for name, rows in answers.items()}
