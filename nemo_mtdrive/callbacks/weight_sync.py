"""Weight sync as a Lightning callback: after each step the engines can read the policy's weights by version.

The policy version of an episode is the version whose weights sampled it; version 0 is what training starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from nemo_mtdrive.callbacks.base import Callback
from nemo_mtdrive.transfer.weights import WeightPiece, WeightPublisher


class WeightSync(Callback):
    """Publishes what `export` yields.

    Args:
        publisher: this rank's; only rank 0's writes.
        export: HF names and whole tensors of the current weights, or pieces of them, so that no rank needs memory for
            more than a piece (`Qwen25VLModel.export_hf_pieces`); all ranks call it together (it gathers).
        version: the version that training starts from, 0 or the resumed one.
    """

    def __init__(
        self, publisher: WeightPublisher, export: Callable[[], Iterable[tuple[str, torch.Tensor] | WeightPiece]],
        version: int,
    ) -> None:
        self._publisher = publisher
        self._export = export
        self.version = version
        """Of the current weights; published or about to be."""
        self.bytes_published = 0
        """Of the last publication."""

    def publish(self) -> int:
        """Publish the current weights under `version`; returns it. Collective: all training ranks take part."""
        self.bytes_published = self._publisher.publish(self.version, self._export())
        return self.version

    def on_step_end(self) -> int:
        """The weights changed: publish them as the next version; returns it. Collective."""
        self.version += 1
        return self.publish()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning: the first rollouts need the weights that training starts from."""
        self.publish()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's batch is our step."""
        self.on_step_end()

    def state_dict(self) -> dict[str, Any]:
        """Lightning: kept in checkpoints."""
        return {"version": self.version}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning: goes on counting where the checkpoint was."""
        self.version = int(state_dict["version"])
