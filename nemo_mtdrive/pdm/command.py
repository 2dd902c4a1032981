"""`nemo-mtdrive score`: one JSON line for each case of each scene."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import SceneError, load_scene
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.simulate import check_trajectories

COLUMNS = ("NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS")
"""Scores of a line, in its order, after scene_id and case."""


def read_trajectory(path: str) -> NDArray[np.float64]:
    """A trajectory file: JSON, 8 x [x, y, heading] in the ego frame, 0.5 s apart.

    Raises:
        SceneError: not JSON, or not 8 finite points; the message starts with the file's name.
        OSError: the file cannot be read.
    """
    try:
        return check_trajectories(np.asarray([json.loads(Path(path).read_text())], dtype=np.float64))[0]
    except (ValueError, TypeError) as error:
        raise SceneError(f"{path}: want JSON of 8 x [x, y, heading]; {error}") from error


def score(paths: Sequence[str], perception: str, trajectory: str | None) -> Iterator[dict[str, Any]]:
    """Score scene files.

    Args:
        paths: scene files.
        perception: oracle or kinematic.
        trajectory: a trajectory file that is scored in each scene in place of the scene's own cases.

    Yields:
        {"scene_id", "case", then `COLUMNS`}, file by file as they are read.

    Raises:
        SceneError: a file is not a scene or not a trajectory, or has no cases where no trajectory is given.
        OSError: a file cannot be read.
    """
    agent = PDMAgent(perception, cache_size=1)
    given = None if trajectory is None else read_trajectory(trajectory)
    for path in paths:
        scene = load_scene(path)
        if given is not None:
            cases = [(Path(str(trajectory)).stem, given)]
        else:
            cases = [(case.name, case.trajectory) for case in scene.cases]
        if not cases:
            raise SceneError(f"{path}: the scene has no cases, set --trajectory FILE")
        try:
            reviews = agent.review(scene, np.stack([plan for _, plan in cases]))
        except ValueError as error:
            raise SceneError(f"{path}: {error}") from error
        for (name, _), review in zip(cases, reviews, strict=True):
            yield {"scene_id": scene.scene_id, "case": name} | {column: review.scores[column] for column in COLUMNS}
