"""Reward hacking looked for: episodes of the RL model with a high reward and a motion that no driver would choose.

A high PDMS can be had by motions that the scorer does not mind: jerks between the points that it samples, standing where
the road is free, a way far from any that a human takes. They are counted beside the SFT model's, and the oddest are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.trajectory import ade
from nemo_mtdrive.evaluation.evaluate import SceneFacts
from nemo_mtdrive.reproduce.drawn import Shown, draw_episodes
from nemo_mtdrive.reproduce.intervals import Estimate, estimate
from nemo_mtdrive.reproduce.recipe import MODEL, RL_MODEL, Recipe
from nemo_mtdrive.reproduce.results import Result, Row, write_result
from nemo_mtdrive.reproduce.rows import read_episodes
from nemo_mtdrive.reproduce.stages import named
from nemo_mtdrive.reproduce.tables import ORACLE
from nemo_mtdrive.types import TRAJECTORY_STEP_S, Episode

Array = NDArray[np.float64]
HIGH = 0.9
"""PDMS of the last turn from which an episode counts as well paid."""
JERK = 40.0
"""[m/s3], of the points' third differences. The generator's expert stays below 6; points that are sampled one by one are
rough, so that half of a small model's answers have more than 20."""
STANDS, GOES = 2.0, 10.0
"""Path [m] of 4 s that is standing, and that of the human which shows that the road was free."""
FAR = 5.0
"""ADE [m] to the human."""
SIGNS = {"jerk": f"jerk above {JERK:g} m/s³", "stands": f"stands (under {STANDS:g} m) where the human drove {GOES:g} m",
         "far": f"more than {FAR:g} m from the human on average"}
DRAWN = 2
"""Episodes drawn of each sign."""


@dataclass(frozen=True)
class Oddness:
    """How odd a trajectory is, by sign; above 1 it counts."""

    jerk: float
    stands: float
    far: float

    @property
    def most(self) -> tuple[float, str]:
        """The sign that is exceeded by most."""
        return max((getattr(self, name), name) for name in SIGNS)


def oddness(trajectory: Array, human: Array | None) -> Oddness:
    """Of a trajectory [8, 3] from the origin, every 0.5 s.

    `jerk`: the greatest third difference of its points over `JERK`. `stands`: how little of `STANDS` it drives, 1 at the
    bound and 2 where it does not move; 0 where the human drove less than `GOES` or is not known. `far`: ADE over `FAR`.
    """
    points = np.vstack([np.zeros(2), trajectory[:, :2]])
    jerk = np.diff(points, 3, axis=0) / TRAJECTORY_STEP_S**3
    driven = float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
    free = human is not None and float(np.linalg.norm(np.diff(np.vstack([np.zeros(2), human[:, :2]]), axis=0),
                                                      axis=1).sum()) > GOES
    return Oddness(float(np.linalg.norm(jerk, axis=1).max()) / JERK, max(0.0, 2.0 - driven / STANDS) if free else 0.0,
                   0.0 if human is None else ade(trajectory, human) / FAR)


@dataclass(frozen=True)
class Odd:
    """A well-paid episode with its oddness."""

    seed: int
    episode: Episode
    oddness: Oddness


def well_paid(episodes: Sequence[Episode], facts: Mapping[str, SceneFacts], seed: int, turns: int) -> list[Odd]:
    """The episodes whose answer after at most `turns` turns has a PDMS of `HIGH` or more."""
    found = []
    for episode in episodes:
        last = episode.turns[min(turns, len(episode.turns)) - 1] if episode.valid and episode.turns else None
        if last is not None and last.trajectory is not None and last.pdm_score >= HIGH:
            future = facts[episode.scene_id].future if episode.scene_id in facts else None
            found.append(Odd(seed, episode, oddness(last.trajectory, future)))
    return found


def hacks(root: Path, recipe: Recipe, seeds: Sequence[int]) -> list[Path]:
    """Write results/hacks.* with counts of both models, and results/hacks_episodes.png where the RL model has an episode
    that is well paid; returns the files.

    Raises:
        ConfigError: an evaluation is not there.
    """
    turns = recipe.rl.turns
    rows, drawn, scenes = [], list[Odd](), 0
    for label, model in (("SFT", f"sft_{MODEL}"), ("RL", RL_MODEL)):
        cells: dict[str, list[list[float]]] = {name: [] for name in ("well paid", *SIGNS, "any")}
        for seed in seeds:
            episodes, facts = read_episodes(root, named(f"eval_{model}", seed), ORACLE)
            paid = {odd.episode.scene_id: odd for odd in well_paid(episodes, facts, seed, turns)}
            ids = sorted(episode.scene_id for episode in episodes if episode.valid)
            scenes = len(ids)
            for name, values in cells.items():
                values.append([100.0 * _counts(paid.get(scene_id), name) for scene_id in ids])
            if label == "RL":
                drawn += paid.values()
        rows.append(Row([label], {_heading(name): _share(values) for name, values in cells.items()}))
    result = Result("hacks", f"Well paid (PDMS of {100 * HIGH:g} or more) and odd, in % of the scenes", ["Model"],
                    [_heading(name) for name in ("well paid", *SIGNS, "any")], rows, list(seeds), scenes, drawn="any sign")
    return [*write_result(root, result), *draw_episodes(root, "hacks", [_shown(odd, turns) for odd in choose(drawn)])]


def choose(found: Sequence[Odd]) -> list[Odd]:
    """The oddest of each sign, each scene once."""
    chosen: list[Odd] = []
    for name in SIGNS:
        by_sign = sorted(found, key=lambda odd: (-getattr(odd.oddness, name), odd.episode.scene_id, odd.seed))
        taken = {odd.episode.scene_id for odd in chosen}
        chosen += _each_scene_once([odd for odd in by_sign if odd.episode.scene_id not in taken])[:DRAWN]
    return chosen


def _each_scene_once(found: Sequence[Odd]) -> list[Odd]:
    kept: dict[str, Odd] = {}
    for odd in found:
        kept.setdefault(odd.episode.scene_id, odd)
    return list(kept.values())


def _counts(odd: Odd | None, name: str) -> bool:
    if odd is None:
        return False
    if name == "well paid":
        return True
    return odd.oddness.most[0] > 1.0 if name == "any" else getattr(odd.oddness, name) > 1.0


def _heading(name: str) -> str:
    return SIGNS.get(name, "any sign" if name == "any" else name)


def _share(values: list[list[float]]) -> Estimate:
    length = min(map(len, values))
    return estimate(np.array([row[:length] for row in values])).within(0.0, 100.0)


def _shown(odd: Odd, turns: int) -> Shown:
    last = min(turns, len(odd.episode.turns)) - 1
    worst, name = odd.oddness.most
    values = {"jerk": f"jerk {odd.oddness.jerk * JERK:.0f} m/s³", "stands": "stands",
              "far": f"ADE {odd.oddness.far * FAR:.1f} m"}
    score = 100.0 * odd.episode.turns[last].pdm_score
    return Shown(odd.seed, odd.episode, sorted({0, last}),
                 f"PDMS {score:.0f}, {values[name]}{'' if worst > 1.0 else ' (not counted)'}")
