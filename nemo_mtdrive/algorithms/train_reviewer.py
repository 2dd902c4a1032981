"""`nemo-mtdrive train-reviewer`: label plans, train the reward model, measure it on scenes that it has not seen."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.algorithms.reward_model import RewardTraining, accuracy, fit, save
from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.plans import PLANS, sample_plans
from nemo_mtdrive.data.reward_set import RewardSet, build, split
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.learned import LearnedAgent
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.pdm.reward_model import FILE, FORMAT, HEADS, RewardModel
from nemo_mtdrive.telemetry.progress import Progress
from nemo_mtdrive.types import SCORE_NAMES

REPORT = "report.json"
POINTED = ("NC", "DAC", "TTC")


def train_reviewer(arguments: SceneArguments, out: Path, perception: str, training: RewardTraining, held_out: float,
                   workers: int, progress: Progress) -> dict[str, Any]:
    """Train a reward model on PDM labels and write it with its report into `out`.

    Args:
        arguments: the scenes; a share `held_out` of them, drawn with the training's seed, is only measured on.
        out: the folder for `reward_model.safetensors` and `report.json`.
        perception: oracle or kinematic, of the labels and of what the model sees.
        training: how long, how fast, which seed.
        held_out: share of the scenes to measure on, in (0, 1).
        workers: processes that label.
        progress: display.

    Returns:
        The report: sizes, settings, and the accuracy on held-out scenes beside the best constant.

    Raises:
        ConfigError: fewer than two scenes, or a share that is none.
        SceneError: a scene cannot be read.
    """
    if not 0.0 < held_out < 1.0:
        raise ConfigError(f"--held-out {held_out:g}: set it between 0 and 1, e.g. 0.2")
    scenes = arguments.open()
    try:
        learned_ids, measured_ids = split(list(scenes.ids()), held_out, training.seed)
    except ValueError as error:
        raise ConfigError(f"scenes: {error}") from error
    sets: list[RewardSet] = []
    for name, ids in (("label training plans", learned_ids), ("label held-out plans", measured_ids)):
        with progress.phase(name, total=len(ids), unit="scenes") as bar:
            sets.append(build(arguments, ids, perception, training.seed, workers, bar.advance))
    learned, measured = sets
    with progress.phase("train", total=training.epochs, unit="epochs") as bar:
        weights = fit(learned, training, lambda count, loss: bar.advance(count, loss=loss))
    header = {"format": FORMAT, "perception": perception, "training": asdict(training), "scenes": len(learned_ids)}
    save(weights, header, out / FILE)
    with progress.phase("measure", total=len(measured_ids), unit="scenes") as bar:
        table, pointed = _measure(out, scenes, measured_ids, perception, training.seed, (learned, measured), bar.advance)
    report = {**header, "held_out_scenes": len(measured_ids), "plans_a_scene": PLANS,
              "objects_out_of_sight": learned.missed + measured.missed, "held_out": table, "points": pointed}
    temporary = out / f".{REPORT}.{os.getpid()}"
    temporary.write_text(json.dumps(report, indent=1))
    temporary.replace(out / REPORT)
    return report


def _measure(out: Path, scenes: SceneSource, ids: Sequence[str], perception: str, seed: int,
             sets: tuple[RewardSet, RewardSet], advance: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The accuracy of the scores that the agent gives, and of the points that it names, on held-out scenes."""
    agent, rules = LearnedAgent(out, perception, cache_size=1), PDMAgent(perception, cache_size=1)
    given: list[list[float]] = []
    counts = {metric: np.zeros(3, dtype=np.int64) for metric in POINTED}
    for place, scene_id in enumerate(ids):
        scene = scenes.load(scene_id)
        plans = sample_plans(scene, seed + place)
        for ours, theirs in zip(agent.review(scene, plans), rules.review(scene, plans), strict=True):
            given.append([ours.scores[name] for name in SCORE_NAMES])
            for metric in POINTED:
                counts[metric] += _agreement(ours, theirs, metric)
        advance(1)
    learned, measured = sets
    chances: NDArray[np.float32] = RewardModel.load(out).predict(measured.features).heads
    clean = {name: chances[:, place].astype(np.float64) for place, name in enumerate(HEADS) if name != "EP"}
    return accuracy(np.array(given), clean, learned.scores, measured.scores), {
        metric: {"precision": _share(right, named), "recall": _share(right, true)}
        for metric, (right, named, true) in counts.items()}


def _agreement(ours: Review, theirs: Review, metric: str) -> NDArray[np.int64]:
    """[right, named by us, named by them] points of one metric."""
    named, true = ({violation["point"] for violation in review.violations if violation["metric"] == metric}
                   for review in (ours, theirs))
    return np.array([len(named & true), len(named), len(true)])


def _share(part: int, whole: int) -> float | None:
    return round(int(part) / int(whole), 4) if whole else None
