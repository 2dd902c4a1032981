"""Checkpointing as a Lightning callback: when to save, and a rank's random state as plain data.

`retention` says where and which stay; the weights are written by a function that is passed in (`models.checkpoint`).
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_mtdrive.callbacks.base import Callback
from nemo_mtdrive.callbacks.retention import CheckpointStore


class Checkpointing(Callback):
    """Saves every `every_steps` steps, and when asked.

    Args:
        store: where checkpoints go and which stay.
        every_steps: 0 saves only when asked.
        write_weights: writes weights and optimizer into a folder; collective.
        trainer_state: this rank's plain JSON data at the time of the call (step, sampler, RNG, version).
    """

    def __init__(
        self, store: CheckpointStore, *, every_steps: int, write_weights: Callable[[Path], None],
        trainer_state: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.store = store
        self._every_steps = every_steps
        self._write_weights = write_weights
        self._trainer_state = trainer_state

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> Path | None:
        """Save if `step` is due; returns the checkpoint's folder or None. Collective.

        Args:
            step: steps done, from 1.
            metrics: of this step; the retention's metric is looked up in it.
        """
        due = self._every_steps and step % self._every_steps == 0
        return self.save(step, metrics) if due else None

    def save(self, step: int, metrics: Mapping[str, float]) -> Path:
        """Save now, as rl-STEP. Collective."""
        return self.store.save(f"rl-{step:06d}", self._write_weights, self._trainer_state(), metrics)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's batch is our step; its logged scalars are the metrics."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.on_step_end(trainer.global_step, metrics)


def random_state() -> dict[str, Any]:
    """Python's, NumPy's, torch's and each CUDA device's generator state, as JSON data."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002  libraries draw from it
    version, words, gauss_next = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss_next],
        "numpy": [name, _text(torch.from_numpy(np.array(keys).view(np.uint8))), position, has_gauss, gauss],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in cuda],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from what `random_state` returned.

    Raises:
        ValueError: saved with another number of CUDA devices.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise ValueError(f"random state of {len(state['cuda'])} CUDA devices, here are {devices}: resume on as many")
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, _bytes(keys).numpy().view(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(_bytes(state["torch"]))
    if devices:
        torch.cuda.set_rng_state_all([_bytes(each) for each in state["cuda"]])


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), np.uint8).copy())
