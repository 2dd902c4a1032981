"""One optimizer step of either trainer, and what happens where its loss or gradient is not finite.

Such an update is skipped on all ranks alike: weights and optimizer state stay as they were. Its micro-batches are dumped for
inspection, a folder an update and data-parallel rank::

    RUN/nan/rl-000012-00/rank-0/about.json      loss, gradient norm, contents, which tensors are not finite
    RUN/nan/rl-000012-00/rank-0/micro-00.npz    its tensors by name; read with numpy.load(path) (no pickle)

More than `allowed` skipped updates since the process started, in a row or not, end the run.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nemo_mtdrive.algorithms.policy import MicroBatch, Policy

CONFIG_KEYS = {"sft": "sft", "rl": "mtgrpo"}
"""Phase -> the part of the config that is its own."""


class NotFinite(RuntimeError):
    """Too many updates had a loss or gradient that is not finite; one line."""


@dataclass(frozen=True)
class DumpPlace:
    """Where this rank dumps a skipped update."""

    folder: Path
    """RUN/nan."""
    rank: int
    """Data-parallel replica."""
    writes: bool
    """One rank of a replica dumps; its tensor- and pipeline-parallel peers hold the same micro-batches."""


class Updates:
    """Does the optimizer steps of one phase of a run.

    Args:
        phase: "sft" or "rl".
        allowed: so many updates may be skipped; one more raises `NotFinite`.
    """

    def __init__(self, phase: str, policy: Policy, allowed: int, dump: DumpPlace) -> None:
        self.skipped = 0
        """Since the process started."""
        self._phase = phase
        self._policy = policy
        self._allowed = allowed
        self._dump = dump

    def run(self, step: int, number: int, batch: Sequence[MicroBatch],
            contents: Sequence[Sequence[str]]) -> dict[str, float]:
        """Forward, backward and one optimizer step; collective.

        Args:
            step, number: of the trainer, and of the update inside it: the name of a dump.
            batch: this rank's micro-batches.
            contents: what each of them holds (episode ids), for a dump.

        Returns:
            The loss, its metrics, "grad_norm" (before clipping; NaN where the loss is not finite) and "skipped_updates",
            0 or 1.

        Raises:
            NotFinite: more updates than allowed were skipped.
        """
        self._policy.prepare_for_training_step()
        loss, metrics = self._policy.get_loss_and_metrics(batch, forward_only=False)
        norm = self._policy.finish_training_step() if math.isfinite(loss) else math.nan
        skipped = not math.isfinite(norm)  # loss and norm are the same numbers on every rank
        if skipped:
            self.skipped += 1
            name = f"{self._phase}-{step:06d}-{number:02d}"
            if self._dump.writes:
                write_dump(self._dump.folder / name / f"rank-{self._dump.rank}", batch, contents, loss, norm)
            if self.skipped > self._allowed:
                key = CONFIG_KEYS[self._phase]
                raise NotFinite(f"{self._phase} step {step}: loss {loss}, gradient norm {norm}; {self.skipped} updates were "
                                f"not finite, {key}.max_skipped_updates={self._allowed}: look into "
                                f"{self._dump.folder / name}, lower {key}.lr, resume from a checkpoint before it")
        return {"loss": loss, "grad_norm": norm, "skipped_updates": float(skipped)} | metrics


def write_dump(folder: Path, batch: Sequence[MicroBatch], contents: Sequence[Sequence[str]], loss: float,
               norm: float) -> None:
    """Write micro-batches and what is known of them to `folder`, whole or not at all; bfloat16 becomes float32."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    micro_batches = []
    for number, (micro, held) in enumerate(zip(batch, contents, strict=True)):
        file = f"micro-{number:02d}.npz"
        np.savez_compressed(temporary / file, **{name: _array(tensor) for name, tensor in micro.items()})
        spoilt = [name for name, tensor in micro.items() if not bool(torch.isfinite(tensor).all())]
        micro_batches.append({"file": file, "contents": list(held), "not_finite": spoilt})
    about = {"loss": repr(loss), "grad_norm": repr(norm), "micro_batches": micro_batches}
    (temporary / "about.json").write_text(json.dumps(about, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def _array(tensor: torch.Tensor) -> NDArray[np.generic]:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
