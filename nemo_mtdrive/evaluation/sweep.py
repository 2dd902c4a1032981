"""How many turns are enough (the paper's open question 4): every metric after at most 1, 2, ... turns, and the knee.

The model is not told how many turns it may take, and every turn draws from a seed of its own. So an episode with at most n
turns is the beginning of one with more, and one evaluation with the most turns holds all the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_mtdrive.evaluation.evaluate import Answer, Bootstrap, SceneFacts, answers_of, confidence_interval, row_of
from nemo_mtdrive.types import Episode

_PDMS = "PDMS"


def sweep(episodes: Sequence[Episode], max_turns: int, *, facts: Mapping[str, SceneFacts],
          bootstrap: Bootstrap) -> dict[str, Any] | None:
    """The rows after at most 1 .. `max_turns` turns::

        {"turns": {"1": {the values of `evaluate.row_of`, "mean_turns": .., "behind_best": {"PDMS": .., "ci95": [..]}}},
         "best": n, "knee": n, "paired_knee": n}

    `best` is the n of the highest PDMS (the smallest of equals), `knee` the smallest n whose PDMS is within the 95%
    interval of the best one's. `behind_best` is how far n lies behind it on the same scenes, with the interval of that
    difference, which is the narrower one; `paired_knee` is the smallest n where it reaches 0. None without valid episodes.
    """
    answers = [answers_of(episode) for episode in episodes if episode.valid]
    if not answers:
        return None
    ends = {turns: [_until(said, turns) for said in answers] for turns in range(1, max_turns + 1)}
    rows = {turns: row_of([said[-1] for said in cut], facts, bootstrap) | {"mean_turns": _mean_length(cut)}
            for turns, cut in ends.items()}
    best = max(rows, key=lambda turns: (rows[turns][_PDMS], -turns))
    interval = rows[best]["PDMS_ci95"]
    lowest = rows[best][_PDMS] if interval is None else interval[0]
    scenes = [said[0].scene_id for said in answers]
    at_best = _pdms(ends[best])
    for turns, row in rows.items():
        behind = at_best - _pdms(ends[turns])
        row["behind_best"] = {_PDMS: round(float(behind.mean()), 4), "ci95": confidence_interval(behind, scenes, bootstrap)}
    return {"turns": {str(turns): row for turns, row in rows.items()}, "best": best,
            "knee": min(turns for turns, row in rows.items() if row[_PDMS] >= lowest),
            "paired_knee": min(turns for turns, row in rows.items() if _reaches(row["behind_best"]))}


def _reaches(behind: Mapping[str, Any]) -> bool:
    return behind[_PDMS] <= 0.0 if behind["ci95"] is None else behind["ci95"][0] <= 0.0


def _until(answers: Sequence[Answer], turns: int) -> Sequence[Answer]:
    return answers[:min(turns, len(answers))]


def _mean_length(cut: Sequence[Sequence[Answer]]) -> float:
    return round(float(np.mean([len(answers) for answers in cut])), 4)


def _pdms(cut: Sequence[Sequence[Answer]]) -> np.ndarray:
    """[episodes] PDMS of the last answers, 0..100."""
    return np.array([0.0 if answers[-1].scores is None else 100.0 * answers[-1].scores[_PDMS] for answers in cut])
