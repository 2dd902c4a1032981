"""A small reward model that imitates the PDM score: three perceptrons in numpy, weights from a safetensors file.

One looks at a point and an object beside it (does NC fail with it, does TTC), one at a point and its road (DAC), and one
at the whole plan and at what the first two said. Trained by `algorithms.reward_model`; nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from nemo_mtdrive.pdm.features import NOBODY, PAIR, POINT, WHOLE, Features
from nemo_mtdrive.types import TRAJECTORY_POINTS

Float32 = NDArray[np.float32]

FORMAT = "nemo-mtdrive-reward-model/1"
FILE = "reward_model.safetensors"
"""Name of the weights in the folder that `train-reviewer` writes."""

HEADS = ("NC", "DAC", "TTC", "C", "DDC", "EP")
"""Order of the whole plan's outputs."""

INPUTS = {"pair": PAIR + POINT, "point": POINT, "plan": WHOLE + 3 * TRAJECTORY_POINTS}
OUTPUTS = {"pair": 2, "point": 1, "plan": len(HEADS)}
LAYERS = 3
"""Layers of each perceptron; those between have ReLU."""

NOTHING_LOGIT = -8.0
"""Stands for the logits of an object that is not there."""


class RewardModelError(ValueError):
    """A file that is no reward model, or one that was trained for something else; one line."""


@dataclass(frozen=True)
class Predictions:
    """What the model expects of B plans; probabilities."""

    heads: Float32
    """[B, 6] by `HEADS`: of being clean (NC, DAC, TTC, C, DDC at 1), and EP itself."""
    off_road: Float32
    """[B, 8] of each point violating DAC."""
    collides: Float32
    """[B, 8, OBJECTS] of each point violating NC with each object."""
    too_close: Float32
    """[B, 8, OBJECTS] the same for TTC."""


def parameter_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights for a hidden width: `pair.0.weight` [hidden, inputs], `pair.0.bias`, ..."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, inputs in INPUTS.items():
        widths = [inputs, *[hidden] * (LAYERS - 1), OUTPUTS[name]]
        for layer in range(LAYERS):
            shapes[f"{name}.{layer}.weight"] = (widths[layer + 1], widths[layer])
            shapes[f"{name}.{layer}.bias"] = (widths[layer + 1],)
    return shapes


class RewardModel:
    """The weights, and the forward pass."""

    def __init__(self, weights: Mapping[str, Float32], perception: str) -> None:
        """Take weights as `parameter_shapes` names them.

        Raises:
            RewardModelError: a weight is missing, unknown, of another shape, or not finite.
        """
        first = weights.get("pair.0.weight")
        shapes = parameter_shapes(len(first) if first is not None and first.ndim else 1)
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise RewardModelError("the weights are not those of a reward model of this version")
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise RewardModelError("some weights are not finite: the training went wrong")
        self.perception = perception
        self._weights = {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        """Read the model in a folder that `train-reviewer` wrote.

        Raises:
            RewardModelError: no such file, or not a reward model; the message names the file.
        """
        path = folder / FILE
        if not path.is_file():
            raise RewardModelError(f"{path}: no such file; set the folder that `nemo-mtdrive train-reviewer` wrote")
        try:
            with safe_open(str(path), framework="numpy") as file:
                header: dict[str, Any] = json.loads((file.metadata() or {}).get("header", "{}"))
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if header.get("format") != FORMAT:
                raise RewardModelError(f"format {header.get('format')!r}, want {FORMAT!r}")
            return cls(weights, str(header["perception"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RewardModelError(f"{path}: not a reward model: {error}") from error

    def _perceptron(self, name: str, values: Float32) -> Float32:
        for layer in range(LAYERS):
            values = values @ self._weights[f"{name}.{layer}.weight"].T + self._weights[f"{name}.{layer}.bias"]
            if layer < LAYERS - 1:
                values = np.maximum(values, 0.0)
        return values

    def predict(self, features: Features) -> Predictions:
        """Predict for B plans, each by itself."""
        beside = np.broadcast_to(features.points[:, :, None], (*features.pairs.shape[:3], POINT))
        pair = self._perceptron("pair", np.concatenate([features.pairs, beside], axis=-1))
        pair = np.where((features.objects == NOBODY)[..., None], np.float32(NOTHING_LOGIT), pair)
        point = self._perceptron("point", features.points)[..., 0]
        worst = pair.max(axis=2)
        plan = self._perceptron("plan", np.concatenate([features.whole, worst[..., 0], worst[..., 1], point], axis=1))
        return Predictions(_sigmoid(plan), _sigmoid(point), _sigmoid(pair[..., 0]), _sigmoid(pair[..., 1]))


def _sigmoid(logits: Float32) -> Float32:
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0)))


