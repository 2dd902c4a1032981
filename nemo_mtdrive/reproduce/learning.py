"""How RL went, step by step: rollouts of the trainings that Table 1's and Table 3's RL rows are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nemo_mtdrive.reproduce.curves import (
    FIRST,
    FORMAT,
    KL,
    TOGETHER,
    TRAINED,
    one_after_the_other,
    run_of,
    smooth,
    spans,
    training_curve,
)
from nemo_mtdrive.reproduce.intervals import Estimate
from nemo_mtdrive.reproduce.recipe import MODEL_ESTIMATOR, RL_MODEL, Recipe
from nemo_mtdrive.reproduce.results import Line, Panel, Result, Row, seed_means
from nemo_mtdrive.reproduce.tables import ESTIMATORS, made_of

Curve = Mapping[float, float]
"""RL step -> value."""
DRAWN = ((TRAINED, "Last turn", "PDMS of rollouts"), (FIRST, "Turn 1", "PDMS of rollouts"),
         (FORMAT, "Format", "format score [%]"))
"""Metric, title and axis of each picture."""
SCALE = {FORMAT: 100.0, KL: 1000.0}
"""To percent, and to thousandths of a nat a token."""


def learning(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """The RL model, seed by seed: the steps that Table 3 has, then those that the model has more."""
    trained = {f"seed {seed}": {seed: [run_of(root, base, seed) for base in (f"rl_{MODEL_ESTIMATOR}", RL_MODEL)]}
               for seed in seeds}
    return _result(root, recipe, seeds, "learning", "The RL model's rollouts", "Seed", trained, "table1")


def estimators(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """Table 3's trainings, means over the seeds."""
    trained = {ESTIMATORS[name]: {seed: [run_of(root, f"rl_{name}", seed)] for seed in seeds}
               for name in recipe.rl.estimators}
    return _result(root, recipe, seeds, "estimators", "Rollouts of each estimator", "Advantages", trained, "table3")


def _result(root: Path, recipe: Recipe, seeds: Sequence[int], what: str, title: str, heading: str,
            trained: Mapping[str, Mapping[int, Sequence[Path]]], table: str) -> Result:
    """`trained`: label -> seed -> its runs, each from where the one before ended."""
    rows: list[Row] = []
    lines: dict[str, list[Line]] = {metric: [] for metric, *_ in DRAWN}
    for label, runs in trained.items():
        curves = {metric: {seed: _curve(parts, metric) for seed, parts in runs.items()} for metric in (*lines, KL)}
        rows.append(Row([label], _cells(curves)))
        for metric, of_metric in lines.items():
            means = seed_means({seed: smooth(curve, TOGETHER) for seed, curve in curves[metric].items()})
            of_metric.append(replace(means, label=label))
    panels = [Panel(name, "RL step", axis, lines[metric]) for metric, name, axis in DRAWN]
    return Result(what, title, [heading], list(rows[0].cells), rows, list(seeds), recipe.scenes.held_out,
                  panels=panels, made_of=made_of(root, recipe, seeds, table))


def _curve(runs: Sequence[Path], metric: str) -> dict[float, float]:
    joined = one_after_the_other([training_curve(run, metric) for run in runs])
    return {step: SCALE.get(metric, 1.0) * value for step, value in joined.items()}


def _cells(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Estimate | int | None]:
    """The first and the last steps, means over seeds; the worst steps of any seed."""
    means = {metric: [[mean for *_, mean in spans(curve)] for curve in of_seeds.values()]
             for metric, of_seeds in curves.items()}
    least = min((min(of_seed) for of_seed in means[FORMAT] if of_seed), default=None)
    return {f"PDMS, first {TOGETHER}": _mean(means[TRAINED], 0), f"PDMS, last {TOGETHER}": _mean(means[TRAINED], -1),
            f"Turn 1, first {TOGETHER}": _mean(means[FIRST], 0), f"Turn 1, last {TOGETHER}": _mean(means[FIRST], -1),
            f"Format %, last {TOGETHER}": _mean(means[FORMAT], -1), f"Worst {TOGETHER}": Estimate(least, None),
            "1000 KL": _mean(means[KL], -1)}


def _mean(of_seeds: Sequence[Sequence[float]], at: int) -> Estimate:
    values = [means[at] for means in of_seeds if means]
    return Estimate(float(np.mean(values)) if values else None, None)
