"""How far feedback can be trusted: its verdicts on each metric against the scorer's, as precision and recall.

A verdict is of one trajectory and one metric: the feedback accuses it where it names a violation of the metric, and the
scorer where the score is below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_mtdrive.types import Episode, Turn

METRICS = ("NC", "DAC", "TTC")


def verdicts(episodes: Sequence[Episode]) -> dict[str, dict[str, Any]]:
    """Metric -> {"precision", "recall", "accused", "failing", "both", "trajectories"}.

    Precision is the share of accused trajectories that fail, recall the share of failing ones that are accused, both in
    0..100 and None where nothing was accused, or nothing fails. Answers without a trajectory and episodes that are not
    valid have no verdict. "any" is of a trajectory as a whole: something accused, something failing.
    """
    turns = [turn for episode in episodes if episode.valid for turn in episode.turns if turn.scores is not None]
    found = {metric: _counted([(_accuses(turn, (metric,)), _fails(turn, (metric,))) for turn in turns])
             for metric in METRICS}
    return found | {"any": _counted([(_accuses(turn, METRICS), _fails(turn, METRICS)) for turn in turns])}


def _accuses(turn: Turn, metrics: Sequence[str]) -> bool:
    return any(violation["metric"] in metrics for violation in turn.violations)


def _fails(turn: Turn, metrics: Sequence[str]) -> bool:
    return turn.scores is not None and any(turn.scores[metric] < 1.0 for metric in metrics)


def _counted(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    accused = sum(said for said, _ in pairs)
    failing = sum(true for _, true in pairs)
    both = sum(said and true for said, true in pairs)
    return {"precision": _share(both, accused), "recall": _share(both, failing), "accused": accused, "failing": failing,
            "both": both, "trajectories": len(pairs)}


def _share(part: int, whole: int) -> float | None:
    return round(100.0 * part / whole, 4) if whole else None
