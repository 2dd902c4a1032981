"""`nemo-mtdrive evaluate`: rows of models and drivers over a set of scenes, as tables, and kept episode by episode.

    OUT/summary.json             row -> `evaluate.summarise`, with `label`, `sweep` and `verdicts`
    OUT/table.{md,csv,tex}       the columns of Table 1; by_kind.* and by_turn.* likewise, verdicts.* of feedback,
                                 pictures.* where rows are played with other pictures too
    OUT/trajectories/ROW.jsonl   {"token", "trajectory": 8 x [x, y, heading], "scores"}: a line a scene
    OUT/episodes/ROW/            every episode (`row_files`), which is what is gone on with, and what `compare` reads
    OUT/rollouts/                some of them with pictures, for `nemo-mtdrive report OUT`
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.evaluation.evaluate import BOOTSTRAP, SceneFacts, summarise
from nemo_mtdrive.evaluation.outputs import write_tables, write_trajectories
from nemo_mtdrive.evaluation.players import ModelPlay, play_drivers, play_model
from nemo_mtdrive.evaluation.recording import record_rows
from nemo_mtdrive.evaluation.row_files import RowFiles
from nemo_mtdrive.evaluation.scene_sets import SceneSet
from nemo_mtdrive.evaluation.settings import row_settings, scene_settings
from nemo_mtdrive.evaluation.shuffled import SUFFIX, picture_effect
from nemo_mtdrive.evaluation.sweep import sweep
from nemo_mtdrive.evaluation.tables import label_of
from nemo_mtdrive.evaluation.verdicts import verdicts
from nemo_mtdrive.telemetry.progress import Progress
from nemo_mtdrive.types import Episode
from nemo_mtdrive.whole_file import write_whole


@dataclass(frozen=True)
class ModelRow:
    """A row that a model plays."""

    name: str
    """Of its folder and its key in summary.json."""
    label: str
    """In tables."""
    play: ModelPlay


@dataclass(frozen=True)
class Evaluation:
    """What `nemo-mtdrive evaluate` was asked for."""

    out: Path
    scenes: SceneSet
    models: Sequence[ModelRow]
    drivers: Sequence[str]
    """Names of `baselines.DRIVER_NAMES`."""
    batch: int
    """Scenes that an engine plays together; part of what decides a model's answers, by float noise."""
    engines: int
    """Engines, each a process; drivers take as many processes."""
    recorded: int
    """Scenes whose episodes are kept with pictures, for the report."""


def evaluate(asked: Evaluation, progress: Progress) -> dict[str, Any]:
    """Play what is not there yet, then write tables; returns summary.json.

    The same request gives the same tables, whether it was stopped and run again or not, and however many engines it has.

    Raises:
        ConfigError: a row of the folder was made with other settings, or a model or agent that cannot be opened.
        ProcessDied: see `stations`.
    """
    started = time.monotonic()
    names = [row.name for row in asked.models] + list(asked.drivers)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)}: two rows of one name; give models names, as --model NAME=DIR")
    files = {name: RowFiles(asked.out, name) for name in names}
    for row in asked.models:
        files[row.name].open(row_settings(row.play, asked.scenes) | {"label": row.label})
    for name in asked.drivers:
        files[name].open({"kind": "driver", "driver": name, "batch": asked.batch, "label": label_of(name),
                          **scene_settings(asked.scenes)})
    _drive(asked, files, progress)
    for row in asked.models:
        _play(asked, row, files[row.name], progress)
    return _conclude(asked, files, progress, started)


def _drive(asked: Evaluation, files: Mapping[str, RowFiles], progress: Progress) -> None:
    """Score all drivers of a batch together: its scenes are loaded once."""
    done = {name: files[name].done() for name in asked.drivers}
    batches = {number: (batch, missing) for number, batch in asked.scenes.batches(asked.batch).items()
               if (missing := [name for name in asked.drivers if number not in done[name]])}
    if not batches:
        return
    total = sum(len(batch) for batch, _ in batches.values())
    with progress.phase("drivers", total=total, unit="scenes") as bar:
        for number, found in play_drivers(asked.scenes.arguments, batches, asked.engines):
            episodes, facts = found
            for name in episodes:
                files[name].write(number, episodes[name], facts)
            bar.advance(len(batches[number][0]))


def _play(asked: Evaluation, row: ModelRow, files: RowFiles, progress: Progress) -> None:
    """Play the batches of a model's row that are not there."""
    done = files.done()
    batches = {number: batch for number, batch in asked.scenes.batches(asked.batch).items() if number not in done}
    if not batches:
        return
    rollout = row.play.config.rollout
    nucleus = f", rollout.top_p={rollout.top_p:g}" if rollout.top_p < 1 else ""
    progress.note(f"{row.label}: samples at rollout.temperature={rollout.temperature:g}{nucleus}, up to {rollout.max_turns} "
                  "turns")
    with progress.phase(row.label, total=len(asked.scenes.ids), unit="scenes") as bar:
        bar.advance(len(asked.scenes.ids) - sum(map(len, batches.values())))
        for number, (episodes, facts) in play_model(row.play, batches, asked.engines):
            files.write(number, episodes, facts)
            bar.advance(len(batches[number]), PDMS=_mean_pdms(episodes))


def _mean_pdms(episodes: Sequence[Episode]) -> float:
    return 100.0 * float(np.mean([episode.turns[-1].pdm_score if episode.turns else 0.0 for episode in episodes] or [0.0]))


def _conclude(asked: Evaluation, files: Mapping[str, RowFiles], progress: Progress, started: float) -> dict[str, Any]:
    """Summary, tables, trajectories and the report's episodes from what is on disk."""
    episodes: dict[str, list[Episode]] = {}
    facts: dict[str, SceneFacts] = {}
    for name, kept in files.items():
        episodes[name], known = kept.read()
        facts |= known
    summary: dict[str, Any] = {}
    for name in episodes:
        summary[name] = summarise(episodes[name], facts=facts, bootstrap=BOOTSTRAP)
    for row in asked.models:
        played = episodes[row.name]
        summary[row.name] |= {
            "label": row.label,
            "sweep": sweep(played, row.play.config.rollout.max_turns, facts=facts, bootstrap=BOOTSTRAP)}
        if not row.play.scorer_speaks:
            summary[row.name]["verdicts"] = verdicts(played)
        own = row.name.removesuffix(SUFFIX)
        if row.play.pictures and own in episodes:
            summary[row.name]["picture_effect"] = picture_effect(episodes[own], played, facts, BOOTSTRAP)
    summary["settings"] = {name: kept.settings() for name, kept in files.items()}
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_whole(asked.out / "summary.json", json.dumps(summary, indent=1))
    write_tables(asked.out, summary)
    write_trajectories(asked.out, episodes)
    record_rows(asked.out, asked.scenes.arguments.open(), episodes, asked.recorded, progress,
                {row.name: row.play.pictures for row in asked.models})
    return summary
