"""Two rows over the same scenes, held against each other scene by scene: which is better, and could it be chance?

The interval is of the mean difference, with whole scenes drawn anew (paired bootstrap): it is narrower than those of the
two rows, as easy and hard scenes are so for both. The sign test asks only how often each wins; scenes that are tied are
left out of it, and it gives the probability of a result at least so one-sided between drivers of equal worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.evaluation.evaluate import Bootstrap, SceneFacts, answers_of, confidence_intervals, score_matrix
from nemo_mtdrive.evaluation.grids import Cell, Grid
from nemo_mtdrive.evaluation.tables import heading
from nemo_mtdrive.types import SCORE_NAMES, Episode

METRICS = ("PDMS", "NC", "DAC", "TTC", "C", "EP")
TIE = 1e-9
"""Differences of PDMS in 0..100 up to here are no difference but rounding."""


@dataclass(frozen=True)
class Side:
    """One of the rows."""

    label: str
    episodes: Sequence[Episode]
    facts: Mapping[str, SceneFacts]


def compare(first: Side, second: Side, bootstrap: Bootstrap, turn: int = 0) -> dict[str, Any]:
    """Differences second - first over the scenes that both have::

        {"first": label, "second": label, "turn": 0, "only_first": n, "only_second": n,
         "all": {"scenes": n, "PDMS": {"first": .., "second": .., "difference": .., "ci95": [low, high]}, "NC": ...,
                 "wins": n, "losses": n, "ties": n, "sign_test_p": ..}, "kinds": {kind: {... the same ...}}}

    A scene with several episodes counts by their mean; episodes that are not valid are left out. `turn` takes the answer
    after at most so many turns, 0 the last one.

    Raises:
        ConfigError: they have no scene in common.
    """
    rows = [_by_scene(side.episodes, turn) for side in (first, second)]
    common = sorted(rows[0].keys() & rows[1].keys())
    if not common:
        raise ConfigError(f"compare: {first.label} and {second.label} have no scene in common; evaluate both with the same "
                          "--scenes")
    facts = {**first.facts, **second.facts}
    kinds: dict[str, list[str]] = {}
    for name in common:
        kinds.setdefault(facts[name].kind if name in facts else "unknown", []).append(name)
    return {
        "first": first.label, "second": second.label, "turn": turn,
        "only_first": len(rows[0]) - len(common), "only_second": len(rows[1]) - len(common),
        "all": _compared(rows[0], rows[1], common, bootstrap),
        "kinds": {kind: _compared(rows[0], rows[1], kinds[kind], bootstrap) for kind in sorted(kinds)},
    }


def _by_scene(episodes: Sequence[Episode], turn: int) -> dict[str, NDArray[np.float64]]:
    """Scene -> mean scores [7] in 0..100."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for episode in episodes:
        if episode.valid:
            answers = answers_of(episode)
            end = answers[min(turn, len(answers)) - 1] if turn else answers[-1]
            found.setdefault(episode.scene_id, []).append(score_matrix([end])[0])
    return {name: np.mean(scores, axis=0) for name, scores in found.items()}


def _compared(first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]], names: Sequence[str],
              bootstrap: Bootstrap) -> dict[str, Any]:
    one, other = (np.stack([row[name] for name in names]) for row in (first, second))
    difference = other - one
    intervals = confidence_intervals(difference, names, bootstrap)
    found: dict[str, Any] = {"scenes": len(names)}
    for metric in METRICS:
        at = SCORE_NAMES.index(metric)
        found[metric] = {"first": _rounded(one[:, at]), "second": _rounded(other[:, at]),
                         "difference": _rounded(difference[:, at]), "ci95": None if intervals is None else intervals[at]}
    pdms = difference[:, SCORE_NAMES.index("PDMS")]
    wins, losses = int((pdms > TIE).sum()), int((pdms < -TIE).sum())
    chance = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return found | {"wins": wins, "losses": losses, "ties": len(names) - wins - losses,
                    "sign_test_p": float(f"{chance:.6g}")}


def _rounded(values: NDArray[np.float64]) -> float:
    return round(float(values.mean()), 4)


def by_metric(found: Mapping[str, Any]) -> Grid:
    """Each metric of both, and the difference."""
    rows = []
    for metric in METRICS:
        row = found["all"][metric]
        rows.append(((heading(metric),), [Cell(row["first"]), Cell(row["second"]), Cell(row["difference"], row["ci95"])]))
    return Grid(f"{found['second']} against {found['first']}, {found['all']['scenes']} scenes", ("Metric",),
                (found["first"], found["second"], "Difference"), rows, digits=2)


def by_kind(found: Mapping[str, Any]) -> Grid:
    """PDMS of both for each kind of scene, and who wins how often."""
    rows = []
    for kind, row in [("all", found["all"]), *found["kinds"].items()]:
        pdms = row["PDMS"]
        rows.append(((kind,), [Cell(pdms["first"]), Cell(pdms["second"]), Cell(pdms["difference"], pdms["ci95"]),
                               Cell(row["wins"]), Cell(row["losses"]), Cell(row["ties"]), Cell(row["sign_test_p"]),
                               Cell(row["scenes"])]))
    return Grid("PDMS by kind of scene", ("Kind",), (found["first"], found["second"], "Difference", "Wins", "Losses", "Ties",
                                                      "Sign test p", "Scenes"), rows, digits=2)


def verdict(found: Mapping[str, Any]) -> str:
    """One line: which is better, as far as the interval says."""
    row = found["all"]
    pdms = row["PDMS"]
    if pdms["ci95"] is None:
        return f"one scene in common: no interval; PDMS differs by {pdms['difference']:+.2f}"
    low, high = pdms["ci95"]
    better = (f"{found['second']} is better" if low > 0 else f"{found['first']} is better" if high < 0
              else "no difference that these scenes show")
    return (f"{better}: PDMS {pdms['difference']:+.2f} [{low:+.2f}, {high:+.2f}], {row['wins']} scenes won, {row['losses']} "
            f"lost, {row['ties']} tied, sign test p = {row['sign_test_p']:.2g}")
