"""A small training on one rank that goes on where it was killed: parameters by name, AdamW, and both in one file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_mtdrive.algorithms.schedule import learning_rate

LR_END = 0.02
"""Of the rate, at the last step."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class ResumableTraining(ABC):
    """Steps of AdamW with a warm-up, a cosine and clipped gradients.

    Args:
        trained: what is trained, by name.
        steps, lr, warmup_steps, weight_decay: of the whole training.
    """

    def __init__(self, trained: dict[str, torch.nn.Parameter], steps: int, lr: float, warmup_steps: int,
                 weight_decay: float) -> None:
        self.step = 0
        """The next one; what it learns from is to depend on this number alone."""
        self._trained = trained
        self._schedule = (steps, lr, warmup_steps, LR_END)
        self._optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.95), weight_decay=weight_decay)
        self.device = next(iter(trained.values())).device

    @abstractmethod
    def train_step(self) -> float:
        """One optimizer step; returns the loss."""

    def update(self, loss: Tensor) -> float:
        """One optimizer step down the loss, whose value is returned."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.step, *self._schedule)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save(self, path: Path, request: str) -> None:
        """Write where the training is, whole or not at all; `request` marks what was asked for."""
        tensors = {f"weights/{name}": value.detach() for name, value in self._trained.items()}
        for name, value in self._trained.items():
            tensors |= {f"{kind}/{name}": self._optimizer.state[value][kind] for kind in MOMENTS}
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, str(temporary),
                  metadata={"step": str(self.step), "request": request})
        temporary.replace(path)

    @torch.no_grad()
    def load(self, path: Path, request: str) -> bool:
        """Go on from there; False, and nothing done, where it was saved for another request."""
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata()
            if about["request"] != request:
                return False
            for name, value in self._trained.items():
                value.copy_(file.get_tensor(f"weights/{name}"))
                state = {kind: file.get_tensor(f"{kind}/{name}").to(value.device) for kind in MOMENTS}
                self._optimizer.state[value] = {"step": torch.tensor(float(about["step"])), **state}
        self.step = int(about["step"])
        return True
