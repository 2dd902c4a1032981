"""Rows of finished evaluations as arrays: seed x scene x most turns, over the same scenes in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.driving.trajectory import ade
from nemo_mtdrive.evaluation.evaluate import SceneFacts, answers_of
from nemo_mtdrive.evaluation.row_files import RowFiles
from nemo_mtdrive.reproduce.stages import named, places
from nemo_mtdrive.types import SCORE_NAMES, Episode

Array = NDArray[np.float64]
DERIVED = ("ADE", "parsed", "collision", "off_road", "turns", "format")
"""Beside `SCORE_NAMES`: metres; 0 or 100 an answer that was read, whose NC or DAC fails; turns taken; format score."""


@dataclass(frozen=True)
class Played:
    """A row: what was measured of each seed on each scene."""

    seeds: tuple[int, ...]
    """Empty for a driver that has none; the arrays then have one."""
    scenes: tuple[str, ...]
    kinds: tuple[str, ...]
    metrics: Mapping[str, Array]
    """Name -> [seeds, scenes, most turns] after at most 1, 2, ... turns; scores in 0..100. An answer that cannot be read
    has score 0, and no ADE, collision or off-road (NaN)."""

    @property
    def turns(self) -> int:
        """The most turns."""
        return int(next(iter(self.metrics.values())).shape[2])

    def after(self, metric: str, turns: int) -> Array:
        """[seeds, scenes] after at most so many turns; of an evaluation with fewer, after its last."""
        return self.metrics[metric][:, :, min(turns, self.turns) - 1]

    def of(self, scenes: Sequence[str]) -> Played:
        """Only these scenes, in this order."""
        place = {name: at for at, name in enumerate(self.scenes)}
        chosen = [place[name] for name in scenes]
        return replace(self, scenes=tuple(scenes), kinds=tuple(self.kinds[at] for at in chosen),
                       metrics={name: values[:, chosen] for name, values in self.metrics.items()})


def read_row(root: Path, stage: str, row: str, seeds: Sequence[int]) -> Played:
    """A row of the evaluations `STAGE-sSEED`, over the scenes that all seeds have results of.

    Raises:
        ConfigError: an evaluation is not there; the message says which.
    """
    return joined([read_episodes(root, named(stage, seed), row) for seed in seeds], tuple(seeds))


def read_driver(root: Path, stage: str, row: str) -> Played:
    """A row of an evaluation that has no seed."""
    return joined([read_episodes(root, stage, row)], ())


def read_episodes(root: Path, stage: str, row: str) -> tuple[list[Episode], dict[str, SceneFacts]]:
    """The episodes of a row and what is known of their scenes.

    Raises:
        ConfigError: they are not there.
    """
    files = RowFiles(places(root, [stage])[stage], row)
    if not files.folder.is_dir():
        raise ConfigError(f"{files.folder}: not evaluated; run `nemo-mtdrive reproduce` for its table first")
    return files.read()


def joined(read: Sequence[tuple[Sequence[Episode], Mapping[str, SceneFacts]]], seeds: tuple[int, ...]) -> Played:
    """One row of the episodes of each seed, over the scenes of which all have a valid episode."""
    by_scene = [{episode.scene_id: episode for episode in episodes if episode.valid} for episodes, _ in read]
    scenes = sorted(set.intersection(*(set(known) for known in by_scene)))
    facts = {name: known for _, found in read for name, known in found.items()}
    most = max((len(answers_of(known[name])) for known in by_scene for name in scenes), default=1)
    names = (*SCORE_NAMES, *DERIVED)
    values = np.full((len(names), len(read), len(scenes), most), np.nan)
    for at_seed, known in enumerate(by_scene):
        for at_scene, name in enumerate(scenes):
            values[:, at_seed, at_scene] = _measured(known[name], facts.get(name), most)
    kinds = tuple(facts[name].kind if name in facts else "unknown" for name in scenes)
    return Played(seeds, tuple(scenes), kinds, dict(zip(names, values, strict=True)))


def _measured(episode: Episode, facts: SceneFacts | None, most: int) -> Array:
    """[metrics, most] after at most 1 .. `most` turns."""
    answers = answers_of(episode)
    formats = [turn.format_score for turn in episode.turns] or [0.0]
    columns = []
    for number, (answer, form) in enumerate(zip(answers, formats, strict=True), start=1):
        scores = answer.scores
        scored = [0.0 if scores is None else 100.0 * scores[name] for name in SCORE_NAMES]
        human = None if facts is None else facts.future
        error = float("nan")
        if answer.trajectory is not None and human is not None:
            error = ade(answer.trajectory, human)
        fails = [float("nan")] * 2 if scores is None else [100.0 * (scores[name] < 1.0) for name in ("NC", "DAC")]
        columns.append([*scored, error, 0.0 if scores is None else 100.0, *fails, float(number), 100.0 * form])
    columns += [columns[-1]] * (most - len(columns))
    return np.array(columns).T


def same_scenes(rows: Sequence[Played]) -> list[Played]:
    """The rows over the scenes that all of them have, in one order, so that their differences are paired."""
    common = sorted(set.intersection(*(set(row.scenes) for row in rows)))
    return [row.of(common) for row in rows]


def paired(first: Array, second: Array) -> Array:
    """second - first of [seeds, scenes]; a side without seeds is held against each seed of the other."""
    return second - first
