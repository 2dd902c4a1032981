"""Trains the reward model of `pdm.reward_model` on PDM labels: cross-entropy on every head, point and object, AdamW."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional

from nemo_mtdrive.data.reward_set import RewardSet
from nemo_mtdrive.pdm.reward_model import LAYERS, NOTHING_LOGIT, parameter_shapes
from nemo_mtdrive.types import SCORE_NAMES

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RewardTraining:
    """How long and how fast; the defaults took the figures in docs/reviewers.md."""

    hidden: int = 96
    epochs: int = 30
    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-3
    seed: int = 1


class _Network(torch.nn.Module):
    """The three perceptrons of `pdm.reward_model` with the same names."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict()
        for name, shape in parameter_shapes(hidden).items():
            value = torch.zeros(shape)
            if len(shape) == 2:
                torch.nn.init.kaiming_uniform_(value, nonlinearity="relu")
            self.weights[name.replace(".", "/")] = torch.nn.Parameter(value)

    def _perceptron(self, name: str, values: Tensor) -> Tensor:
        for layer in range(LAYERS):
            values = functional.linear(values, self.weights[f"{name}/{layer}/weight"], self.weights[f"{name}/{layer}/bias"])
            if layer < LAYERS - 1:
                values = torch.relu(values)
        return values

    def forward(self, whole: Tensor, points: Tensor, pairs: Tensor, nobody: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the heads [B, 6], of DAC's points [B, 8], of the pairs [B, 8, OBJECTS, 2]."""
        beside = points[:, :, None].expand(-1, -1, pairs.shape[2], -1)
        pair = self._perceptron("pair", torch.cat([pairs, beside], dim=-1))
        pair = pair.masked_fill(nobody[..., None], NOTHING_LOGIT)
        point = self._perceptron("point", points)[..., 0]
        worst = pair.amax(dim=2)
        plan = self._perceptron("plan", torch.cat([whole, worst[..., 0], worst[..., 1], point], dim=1))
        return plan, point, pair


def fit(data: RewardSet, training: RewardTraining, advance: Callable[[int, float], None],
        ) -> dict[str, NDArray[np.float32]]:
    """Train on a set; returns the weights by name. Deterministic for a seed on one machine.

    Args:
        data: labelled plans.
        training: how.
        advance: called after each epoch with 1 and its mean loss.
    """
    torch.manual_seed(training.seed)
    network = _Network(training.hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    features = data.features
    arrays = [torch.from_numpy(value) for value in (
        features.whole, features.points, features.pairs, features.objects < 0, data.heads, data.off_road, data.pairs)]
    count = len(data.heads)
    batches = math.ceil(count / training.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.epochs * batches)
    for _ in range(training.epochs):
        order, total = torch.randperm(count), 0.0
        for batch in range(batches):
            rows = order[batch * training.batch:(batch + 1) * training.batch]
            whole, points, pairs, nobody, heads, off_road, named = (array[rows] for array in arrays)
            plan, point, pair = network(whole, points, pairs, nobody)
            loss = (functional.binary_cross_entropy_with_logits(plan, heads)
                    + functional.binary_cross_entropy_with_logits(point, off_road)
                    + 4.0 * functional.binary_cross_entropy_with_logits(pair, named))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        advance(1, total / count)
    return {name.replace("/", "."): value.detach().numpy() for name, value in network.weights.items()}


def save(weights: dict[str, NDArray[np.float32]], header: dict[str, Any], path: Path) -> None:
    """Write the weights with a JSON header, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(weights, str(temporary), metadata={"header": json.dumps(header)})
    temporary.replace(path)


def area_under_curve(scores: Array, positive: NDArray[np.bool_]) -> float | None:
    """ROC AUC of scores [n]; None where all or none are positive. Ties count half."""
    good, bad = int(positive.sum()), int((~positive).sum())
    if not good or not bad:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    return float((ranks[positive].sum() - good * (good + 1) / 2) / (good * bad))


def accuracy(predicted: Array, chances: dict[str, Array], train: Array, held_out: Array) -> dict[str, dict[str, Any]]:
    """How well scores of held-out plans are predicted, metric by metric, beside the best constant.

    Args:
        predicted: [n, 7] scores that the agent gave.
        chances: metric -> [n] probability of being clean, for the AUC.
        train, held_out: [m, 7], [n, 7] PDM scores of the training and the held-out plans, by `SCORE_NAMES`.

    Returns:
        metric -> {"MAE", "MAE_constant" (the training median for every plan), "AUC" (clean or not; 0.5 for any constant;
        None where there is no model output of it or all are alike), "clean" (share of held-out plans with score 1)}.
    """
    table: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(SCORE_NAMES):
        actual = held_out[:, place]
        row: dict[str, Any] = {
            "MAE": round(float(np.abs(predicted[:, place] - actual).mean()), 4),
            "MAE_constant": round(float(np.abs(np.median(train[:, place]) - actual).mean()), 4),
            "clean": round(float((actual >= 1.0).mean()), 4)}
        if name in chances:
            area = area_under_curve(chances[name], actual >= 1.0)
            row["AUC"] = None if area is None else round(area, 4)
        table[name] = row
    return table
