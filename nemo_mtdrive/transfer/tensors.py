"""Intra-Process Tensor Cache (IPTC, Section 3.4): one device-resident set of inputs for all phases of a step.

Log-prob recomputation, reference inference and the update read the same token ids, masks, positions and pixels. Without
the cache each phase deserialises and uploads them anew; with it the first phase does, and the others find them.

    phase        iptc=true                         iptc=false
    log-probs    build, upload, keep               build, upload
    reference    found                             build, upload
    update       found (once per inner update)     build, upload
    step end     dropped                           -

`callbacks.iptc` wraps this for a Lightning trainer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass

import torch

from nemo_mtdrive.telemetry.spans import span

Tensors = dict[str, torch.Tensor]


@dataclass
class CacheMetrics:
    """One step's use of the cache."""

    hits: int = 0
    misses: int = 0
    refused: int = 0
    """Sets that were built and not kept, because the byte budget was full."""
    bytes_kept: int = 0
    """On the device at the step's end, before it is dropped."""
    bytes_uploaded: int = 0
    build_s: float = 0.0
    """Seconds in `build` and upload, hits excluded."""


class TensorCache:
    """Keeps named tensors by key on the device until the step ends.

    Phases visit all micro-batches in turn, and for such a cycle dropping the least recently used set would miss every
    time. So a full cache keeps what it has, and what does not fit is built in each phase.

    Args:
        device: where the phases compute.
        budget_bytes: most that is kept.
        enabled: False builds anew each time (`transfer.iptc=false`), with the same results.
    """

    def __init__(self, device: torch.device | str, budget_bytes: int, enabled: bool) -> None:
        self.device = torch.device(device)
        self.budget_bytes = budget_bytes
        self.enabled = enabled
        self.metrics = CacheMetrics()
        self._watched: list[Callable[[], Mapping[str, float]]] = []
        self._kept: dict[Hashable, tuple[Tensors, dict[str, int], bool]] = {}

    def watch(self, collect: Callable[[], Mapping[str, float]]) -> None:
        """Add further metrics to the step's, such as how often the vision tower ran; `collect` is called at its end."""
        self._watched.append(collect)

    def get(self, key: Hashable, build: Callable[[], Tensors], *, of_weights: bool = False) -> Tensors:
        """The tensors of `key` on the device; from the cache, or from `build`.

        Args:
            key: names the micro-batch (and the kind of tensors) within the step.
            build: makes the tensors on any device; called outside inference mode, so that a backward pass may use them.
            of_weights: computed with the policy's weights (such as visual embeddings): dropped by `on_weights_changed`.

        Raises:
            RuntimeError: a phase changed a kept tensor in place; the others would compute on other inputs.
        """
        if key in self._kept:
            tensors, versions, _ = self._kept[key]
            for name, tensor in tensors.items():
                if tensor._version != versions[name]:
                    raise RuntimeError(f"tensor {name!r} of {key!r} was changed in place: clone it in the phase first")
            self.metrics.hits += 1
            return dict(tensors)
        start = time.perf_counter()
        with span("transfer"), torch.inference_mode(False):
            tensors = {name: self._upload(tensor) for name, tensor in build().items()}
        size = bytes_of(tensors)
        self.metrics.misses += 1
        self.metrics.bytes_uploaded += size
        if self.enabled and self.metrics.bytes_kept + size <= self.budget_bytes:
            self._kept[key] = (tensors, {name: tensor._version for name, tensor in tensors.items()}, of_weights)
            self.metrics.bytes_kept += size
        elif self.enabled:
            self.metrics.refused += 1
        self.metrics.build_s += time.perf_counter() - start
        return dict(tensors)

    def drop(self, key: Hashable) -> None:
        """Forget the tensors of a key, where something made of them takes their place. Unknown keys are ignored."""
        if key in self._kept:
            self.metrics.bytes_kept -= bytes_of(self._kept.pop(key)[0])

    def _upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """To the device; from page-locked memory where that is a GPU, so that the copy runs beside the CPU's next work."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def on_weights_changed(self) -> None:
        """The optimizer stepped: drop what was computed with the old weights."""
        for key in [key for key, (_, _, of_weights) in self._kept.items() if of_weights]:
            self.metrics.bytes_kept -= bytes_of(self._kept.pop(key)[0])

    def on_step_end(self) -> dict[str, float]:
        """Drop everything; returns the step's metrics, `iptc/NAME` -> value, and starts new ones."""
        self._kept.clear()
        metrics, self.metrics = self.metrics, CacheMetrics()
        found = {f"iptc/{name}": float(value) for name, value in asdict(metrics).items()}
        for collect in self._watched:
            found |= collect()
        return found


def bytes_of(tensors: Tensors) -> int:
    """What tensors take; views of one storage are counted each with its own elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
