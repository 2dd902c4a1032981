"""Curves over RL steps: scores of the training rollouts, and of the scenes that the run validates on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.reproduce.graph import size_name, size_scenes
from nemo_mtdrive.reproduce.recipe import Recipe
from nemo_mtdrive.reproduce.results import Panel, seed_means
from nemo_mtdrive.reproduce.stages import named, places
from nemo_mtdrive.telemetry.metrics import METRICS_FILE, read_metrics

TRAINED = "rollout/last_turn/PDMS"
"""Mean of a step's rollouts in metrics.jsonl, 0..100."""
FIRST = "rollout/turn_1/PDMS"
"""The same of first turns."""
FORMAT = "format/mean"
"""Mean format score of a step's answers, 0..1."""
KL = "kl"
"""To where the run started, a token."""
TOGETHER = 10
"""RL steps of which the mean is looked at: one step has too few answers for a share of 1%."""
SMOOTHED = 5
"""Steps that a point of a training curve is the mean of: each step has other scenes."""


def size_panels(root: Path, recipe: Recipe, seeds: Sequence[int]) -> tuple[list[Panel], dict[int, float]]:
    """Training and validation curves of each size; and by size the training score of the last steps, 0..100."""
    training, validation, ends = [], [], {}
    for part, count in size_scenes(recipe).items():
        runs = {seed: run_of(root, size_name(part), seed) for seed in seeds}
        label = f"{part} parts: {count} scenes"
        curve = replace(seed_means({seed: smooth(training_curve(run)) for seed, run in runs.items()}), label=label)
        training.append(curve)
        if curve.points:
            ends[part] = curve.points[-1][1]
        validation.append(replace(seed_means({seed: validation_curve(run, recipe.size.steps)
                                              for seed, run in runs.items()}), label=label))
    return [Panel("Training rollouts", "RL step", "PDMS, last turn", training),
            Panel("Validation scenes", "RL step", "PDMS, last turn", validation)], ends


def run_of(root: Path, base: str, seed: int) -> Path:
    """The run directory of a training with a seed."""
    name = named(base, seed)
    return places(root, [name])[name]


def training_curve(run: Path, metric: str = TRAINED) -> dict[float, float]:
    """RL step -> a metric of its rollouts; by default PDMS of their last turns, 0..100.

    Raises:
        ConfigError: the run has no readable metrics.
    """
    try:
        lines = read_metrics(run / METRICS_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run / METRICS_FILE}: {error}; make the stage again") from error
    return {float(line["step"]): float(line[metric]) for line in lines if line["phase"] == "rl" and metric in line}


def smooth(curve: Mapping[float, float], width: int = SMOOTHED) -> dict[float, float]:
    """Means of so many steps that follow each other, at the middle one."""
    steps = sorted(curve)
    width = min(width, len(steps))
    return {float(np.mean(steps[at:at + width])): float(np.mean([curve[step] for step in steps[at:at + width]]))
            for at in range(len(steps) - width + 1)} if steps else {}


def spans(curve: Mapping[float, float]) -> list[tuple[float, float, float]]:
    """First step, last step and mean of every `TOGETHER` steps that follow each other; of the last ones fewer."""
    steps = sorted(curve)
    chosen = [steps[at:at + TOGETHER] for at in range(0, len(steps), TOGETHER)]
    return [(span[0], span[-1], float(np.mean([curve[step] for step in span]))) for span in chosen]


def one_after_the_other(curves: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Curves of runs that go on from each other, as one."""
    joined: dict[float, float] = {}
    for curve in curves:
        past = max(joined) + 1.0 if joined else 0.0
        joined |= {past + step: value for step, value in curve.items()}
    return joined


def validation_curve(run: Path, steps: int) -> dict[float, float]:
    """RL step -> PDMS of the last turns on the run's validation scenes, 0..100, before the first and after the last too."""
    path = run / "summary.json"
    if not path.is_file():
        raise ConfigError(f"{path}: not there; make the stage again")
    summary = json.loads(path.read_text())
    found: dict[float, float] = {}
    for name, row in summary.items():
        between = re.fullmatch(r"rl_step_(\d+)", name)
        step = {"before_rl": 0, "after_rl": steps}.get(name, int(between[1]) if between else None)
        if step is not None:
            found[float(step)] = float(row["last_turn"]["PDMS"])
    return dict(sorted(found.items()))
