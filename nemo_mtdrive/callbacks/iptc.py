"""IPTC as a Lightning callback (Section 3.4): the step's device tensors, dropped when the trainer's batch ends."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from nemo_mtdrive.callbacks.base import Callback
from nemo_mtdrive.transfer.tensors import TensorCache


class IPTC(TensorCache, Callback):
    """A `TensorCache` that follows a Lightning trainer; a trainer of one's own calls `on_step_end` itself.

    Args:
        device: where the phases compute.
        budget_bytes: most that is kept on it.
        enabled: False builds tensors anew in each phase, with the same results.
    """

    def __init__(self, device: torch.device | str, budget_bytes: int, enabled: bool) -> None:
        super().__init__(device, budget_bytes, enabled)
        self.last_step: dict[str, float] = {}
        """Metrics of the step that ended last, `iptc/NAME` -> value."""

    def embeddings(
        self, key: Hashable, inputs: Callable[[], torch.Tensor], tower: torch.nn.Module,
        reference_tower: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """`tower(inputs())` without gradient, computed once a step for all phases.

        Args:
            key: names the image within the step.
            inputs: makes the tower's input.
            tower: vision tower and merger, all of it frozen.
            reference_tower: the reference policy's, where that is another module.

        Raises:
            ValueError: the tower is trained, or the reference has other weights: embeddings would not hold in every phase.
        """
        trained = [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(f"embeddings cannot be kept: {trained[0]} and {len(trained) - 1} others are trained, so every "
                             "update changes them; freeze the tower or keep its inputs")
        if reference_tower is not None and reference_tower is not tower:
            theirs = reference_tower.state_dict()
            for name, tensor in tower.state_dict().items():
                if name not in theirs or not torch.equal(theirs[name], tensor):
                    raise ValueError(f"embeddings cannot be kept: the reference has another {name}; keep the tower's inputs")

        def build() -> dict[str, torch.Tensor]:
            with torch.no_grad():
                return {"embeddings": tower(inputs())}

        return self.get(("embeddings", key), build)["embeddings"]

    def on_step_end(self) -> dict[str, float]:
        """Drop everything; returns the step's metrics, `iptc/NAME` -> value."""
        self.last_step = super().on_step_end()
        return self.last_step

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Lightning calls this around each optimizer step: what the old weights computed is void."""
        self.on_weights_changed()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's batch is our step."""
        self.on_step_end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the device memory back."""
        self.on_step_end()
