"""Evaluations that were never played: rows of episodes with the scores that a test wants, as `evaluate` keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nemo_mtdrive.evaluation.evaluate import SceneFacts
from nemo_mtdrive.evaluation.row_files import RowFiles
from nemo_mtdrive.reproduce.stages import named, places
from nemo_mtdrive.types import Episode, Turn

HUMAN = np.column_stack([3.0 * np.arange(1, 9), np.zeros((8, 2))])


def turn(index: int, pdms: float | None, *, nc: float = 1.0, dac: float = 1.0, off: float = 0.0,
         trajectory: np.ndarray | None = None, feedback: str = "") -> Turn:
    """A turn with this PDMS in 0..1 (None: it could not be read), `off` metres beside the human."""
    if pdms is None:
        return Turn(index, 0, 10, "what?", None, None, 0.0, 0.0, feedback, [])
    scores = {"NC": nc, "DAC": dac, "TTC": 1.0, "EP": pdms, "C": 1.0, "DDC": 1.0, "PDMS": pdms}
    path = HUMAN + np.array([0.0, off, 0.0]) if trajectory is None else trajectory
    return Turn(index, 0, 10, "answer", path, scores, 1.0, 0.8 * pdms + 0.2, feedback, [])


def episode(scene_id: str, *turns: Turn, valid: bool = True) -> Episode:
    """An episode of these turns."""
    return Episode(f"evaluation/0/{scene_id}/0", scene_id, 0, 1, 1, np.zeros(0, np.int32), np.zeros(0, np.int16),
                   np.zeros(0, np.float32), (), (), turns, valid, "clean" if valid else "error: lost")


def write_row(root: Path, stage: str, row: str, episodes: Sequence[Episode], kinds: Mapping[str, str] | None = None) -> None:
    """Keep the episodes of a row of a stage's evaluation."""
    files = RowFiles(places(root, [stage])[stage], row)
    files.open({"kind": "model"})
    facts = {made.scene_id: SceneFacts((kinds or {}).get(made.scene_id, "straight/free"), HUMAN) for made in episodes}
    files.write(0, episodes, facts)


def write_scores(root: Path, stage: str, row: str, seeds: Sequence[int], scores: Sequence[Sequence[float]]) -> None:
    """Rows of `STAGE-sSEED`: of each scene the PDMS of its turns, the same for every seed."""
    for seed in seeds:
        write_row(root, named(stage, seed), row, [
            episode(f"s{number}", *(turn(index, pdms, nc=float(pdms > 0.0)) for index, pdms in enumerate(said)))
            for number, said in enumerate(scores)])
