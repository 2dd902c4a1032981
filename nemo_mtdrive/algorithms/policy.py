"""What the trainers need of a policy pi_theta; `models.qwen25_vl.Qwen25VLModel` is one.

The names of the methods are NeMo-Aligner's (`AlignableGenerativeInterface`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MicroBatch = dict[str, Tensor]
LossFunction = Callable[[Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
"""(log-probs [B, T], micro-batch) -> (loss, metrics); losses of micro-batches and data ranks are summed."""


class Policy(Protocol):
    """A trainable policy, sharded over tensor, pipeline and data ranks; every rank calls every method."""

    loss_function: LossFunction | None
    want_entropy: bool
    """Whether the loss function's micro-batch gets "entropy" [B, T], with gradient."""
    temperature: float
    """Of softmax(logits / temperature), which is what is trained and scored."""

    def set_lr(self, lr: float, weight_decay: float = 0.0) -> None:
        """Learning rate and decoupled weight decay of the next optimizer steps."""

    def set_reference(self) -> None:
        """pi_ref <- pi_theta (Algorithm 1, line 4)."""

    def prepare_for_training_step(self) -> None:
        """Zero the gradients."""

    def get_loss_and_metrics(self, batch: Sequence[MicroBatch], forward_only: bool) -> tuple[float, dict[str, float]]:
        """Sum of losses and metrics over micro-batches and data ranks; gradients unless `forward_only`."""

    def finish_training_step(self) -> float:
        """One optimizer step; returns the gradient's norm before clipping. Where that is not finite there is no step:
        weights and optimizer state stay as they are."""

    def get_inference_log_probs(self, batch: Sequence[MicroBatch]) -> list[Tensor]:
        """[B, T] fp32 log pi_theta of each token, a tensor a micro-batch, without gradient."""

    def get_init_policy_logprobs(self, batch: Sequence[MicroBatch]) -> list[Tensor]:
        """The same under pi_ref."""

    def export_hf_state(self) -> Iterator[tuple[str, Tensor]]:
        """(HF name, whole tensor) of every weight on every rank; all ranks run it to the end together."""


@dataclass(frozen=True)
class DataShare:
    """Which part of a batch this rank computes, and where."""

    rank: int
    """Data-parallel replica, 0..size-1."""
    size: int
    device: torch.device
