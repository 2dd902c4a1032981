"""Summaries of evaluated episodes in the form of the paper's Table 1, at the first and at the last turn.

An episode counts once, however many turns it had. Every rate and score is in 0..100, distances are metres::

    {"turn_1":    {"NC": .., "DAC": .., "TTC": .., "C": .., "EP": .., "DDC": .., "PDMS": .., "PDMS_ci95": [low, high],
                   "ci95": {"NC": [low, high], ...}, "parse_rate": .., "unparsed": n, "collision_rate": .., "ADE": ..,
                   "FDE": .., "human_known": n},
     "last_turn": {... the same ...},
     "gain": {"PDMS": last - first, "PDMS_ci95": [low, high]},
     "by_turn": {"1": PDMS after at most 1 turn, "2": ...}, "turns": {"mean": .., "counts": {"1": n, ...}},
     "kinds": {kind: {"turn_1": {...}, "last_turn": {...}, "scenes": n}},
     "scenes": n, "episodes": n, "invalid": n}

An answer that cannot be parsed counts as PDMS 0 with every part 0; it has no ADE, FDE or collision, so those are means
over parsed answers only. Invalid episodes (machinery failed) are left out and counted. A mean over nothing is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import ade, fde
from nemo_mtdrive.types import SCORE_NAMES, Episode

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SceneFacts:
    """What a summary needs to know of a scene."""

    kind: str
    future: Array | None
    """[8, 3] of the human, or None."""


@dataclass(frozen=True)
class Answer:
    """One answer to one scene, scored: SCORE_NAMES -> 0..1 and trajectory [8, 3], both None when it did not parse."""

    scene_id: str
    scores: Mapping[str, float] | None
    trajectory: Array | None


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals are made: resamples of scenes (0: none) and the seed of their draws."""

    resamples: int
    seed: int


BOOTSTRAP = Bootstrap(resamples=1000, seed=0)
"""Of every row of a run, so that their intervals are made alike."""
UNANSWERED: Mapping[str, float] = dict.fromkeys(SCORE_NAMES, 0.0)


def facts_of(scene: Scene) -> SceneFacts:
    """The facts of a loaded scene."""
    return SceneFacts(scene.kind, scene.future)


def summarise(episodes: Sequence[Episode], *, facts: Mapping[str, SceneFacts], bootstrap: Bootstrap) -> dict[str, Any]:
    """Summarise evaluated episodes; the module's docstring gives the form.

    Args:
        episodes: any number per scene, in any order; the result does not depend on the order.
        facts: scene id -> facts; a scene that is not there is of kind "unknown" without a human trajectory.
        bootstrap: for the 95% intervals; scenes are drawn, not episodes, as episodes of one scene are alike.
    """
    valid = sorted((e for e in episodes if e.valid), key=lambda e: (e.scene_id, e.index, e.episode_id))
    answers = [answers_of(episode) for episode in valid]
    summary = summarise_answers(answers, facts=facts, bootstrap=bootstrap)
    return summary | {"invalid": len(episodes) - len(valid)}


def summarise_answers(episodes: Sequence[Sequence[Answer]], *, facts: Mapping[str, SceneFacts],
                      bootstrap: Bootstrap) -> dict[str, Any]:
    """The same for bare answers: one inner sequence, of at least one answer, an episode."""
    scenes = [answers[0].scene_id for answers in episodes]
    kinds = [facts[scene].kind if scene in facts else "unknown" for scene in scenes]
    counts = Counter(len(answers) for answers in episodes)
    last_pdms = np.array([_pdms(answers[-1]) for answers in episodes])
    first_pdms = np.array([_pdms(answers[0]) for answers in episodes])
    kind_rows = {
        kind: _both([answers for answers, own in zip(episodes, kinds, strict=True) if own == kind], facts, bootstrap)
        for kind in sorted(set(kinds))
    }
    return _both(episodes, facts, bootstrap) | {
        "gain": {"PDMS": _mean(last_pdms - first_pdms, 4),
                 "PDMS_ci95": confidence_interval(last_pdms - first_pdms, scenes, bootstrap)},
        "by_turn": {str(turn): _mean(np.array([_pdms(answers[min(turn, len(answers)) - 1]) for answers in episodes]), 4)
                    for turn in range(1, max(counts, default=0) + 1)},
        "turns": {"mean": _mean(np.array([len(answers) for answers in episodes]), 4),
                  "counts": {str(turns): counts[turns] for turns in sorted(counts)}},
        "kinds": kind_rows,
        "episodes": len(episodes),
        "invalid": 0,
    }


def confidence_interval(values: Array, clusters: Sequence[str], bootstrap: Bootstrap) -> list[float] | None:
    """The 2.5% and 97.5% percentiles of the mean of `values` when whole clusters (scenes) are drawn anew.

    The same values, clusters and bootstrap give the same interval. None with fewer than two clusters or no resamples.
    """
    found = confidence_intervals(values[:, None], clusters, bootstrap)
    return None if found is None else found[0]


def confidence_intervals(values: Array, clusters: Sequence[str], bootstrap: Bootstrap) -> list[list[float]] | None:
    """`confidence_interval` of each column of `values` [n, m], all with the same draws."""
    names, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2 or bootstrap.resamples == 0:
        return None
    sums = np.stack([np.bincount(member, weights=column, minlength=len(names)) for column in values.T], axis=1)
    sizes = np.bincount(member, minlength=len(names)).astype(np.float64)
    draws = np.random.default_rng(bootstrap.seed).integers(len(names), size=(bootstrap.resamples, len(names)))
    drawn = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws]).astype(np.float64)
    means = (drawn @ sums) / (drawn @ sizes)[:, None]
    return [[round(float(low), 4), round(float(high), 4)] for low, high in np.percentile(means, [2.5, 97.5], axis=0).T]


def score_matrix(answers: Sequence[Answer]) -> Array:
    """[n, 7] scores of answers in 0..100, in the order of `SCORE_NAMES`; all 0 where one did not parse."""
    scores = [UNANSWERED if answer.scores is None else answer.scores for answer in answers]
    return 100.0 * np.array([[score[name] for name in SCORE_NAMES] for score in scores]).reshape(-1, len(SCORE_NAMES))


def answers_of(episode: Episode) -> list[Answer]:
    """An episode without a turn (the context was full at once) counts as one answer that did not parse."""
    if not episode.turns:
        return [Answer(episode.scene_id, None, None)]
    return [Answer(episode.scene_id, turn.scores, turn.trajectory) for turn in episode.turns]


def _pdms(answer: Answer) -> float:
    return 100.0 * (UNANSWERED if answer.scores is None else answer.scores)["PDMS"]


def _both(episodes: Sequence[Sequence[Answer]], facts: Mapping[str, SceneFacts],
          bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        "turn_1": row_of([answers[0] for answers in episodes], facts, bootstrap),
        "last_turn": row_of([answers[-1] for answers in episodes], facts, bootstrap),
        "scenes": len({answers[0].scene_id for answers in episodes}),
    }


def row_of(answers: Sequence[Answer], facts: Mapping[str, SceneFacts], bootstrap: Bootstrap) -> dict[str, Any]:
    """The values of one line of the table ("turn_1" in the module's docstring) from one answer an episode."""
    values = score_matrix(answers)
    row: dict[str, Any] = {name: _mean(column, 4) for name, column in zip(SCORE_NAMES, values.T, strict=True)}
    intervals = confidence_intervals(values, [answer.scene_id for answer in answers], bootstrap)
    row["ci95"] = None if intervals is None else dict(zip(SCORE_NAMES, intervals, strict=True))
    row["PDMS_ci95"] = None if intervals is None else intervals[SCORE_NAMES.index("PDMS")]
    parsed = [answer for answer in answers if answer.scores is not None]
    errors = np.array([(ade(answer.trajectory, human), fde(answer.trajectory, human)) for answer in parsed
                       if answer.trajectory is not None and (human := _human(answer, facts)) is not None])
    return row | {
        "parse_rate": _mean(np.array([100.0 * (answer.scores is not None) for answer in answers]), 4),
        "unparsed": len(answers) - len(parsed),
        "collision_rate": _mean(np.array([100.0 * (answer.scores["NC"] < 1.0) for answer in parsed
                                          if answer.scores is not None]), 4),
        "ADE": _mean(errors[:, 0], 4) if len(errors) else None,
        "FDE": _mean(errors[:, 1], 4) if len(errors) else None,
        "human_known": len(errors),
    }


def _human(answer: Answer, facts: Mapping[str, SceneFacts]) -> Array | None:
    return facts[answer.scene_id].future if answer.scene_id in facts else None


def _mean(values: NDArray[Any], digits: int) -> float | None:
    return round(float(values.mean()), digits) if len(values) else None
