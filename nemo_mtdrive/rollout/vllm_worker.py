"""What runs inside vLLM's own worker processes: the sampler of our policy, new weights in place, memory given back.

vLLM mixes `WorkerExtension` into its worker class (`worker_extension_cls`), and `AsyncLLM.collective_rpc` calls it by
name in every tensor-parallel rank.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import select
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.sampler import Sampler

from nemo_mtdrive.process import die_with_parent

GREEDY_BELOW = 1e-5
"""vLLM samples greedily below this temperature."""
MADV_DONTNEED = 4

Entry = Sequence[Any]
"""Name, dtype and shape of a weight, and where its bytes start in the shared memory."""


class PolicySampler(Sampler):
    """vLLM's sampler with the log-probabilities that the trainer computes: log softmax(logits / temperature), unmasked.

    vLLM offers them at temperature 1, or with the mask in them. Here the logits are divided before vLLM takes its "raw"
    log-probabilities from them, and tokens that must not be drawn are masked after that.
    """

    def __init__(self, like: Sampler, forbidden: Tensor) -> None:
        super().__init__(logprobs_mode="raw_logprobs", use_fp64_gumbel=like.use_fp64_gumbel)
        self._forbidden = forbidden

    def forward(self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        """`logits` [B, V]; see `Sampler.forward`. Greedy rows keep temperature 1, as the native engine has it."""
        temperature = sampling_metadata.temperature
        if temperature is not None:  # None where all rows are greedy
            greedy = temperature < GREEDY_BELOW
            logits = logits.float() / torch.where(greedy, 1.0, temperature).unsqueeze(1)
            sampling_metadata = replace(sampling_metadata, temperature=torch.where(greedy, temperature, 1.0))
        return super().forward(logits, sampling_metadata, *args, **kwargs)

    def apply_logits_processors(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Called after the log-probabilities are taken and before the draw."""
        logits = super().apply_logits_processors(logits, *args, **kwargs)
        return logits.index_fill_(1, self._forbidden, -torch.inf)


class WorkerExtension:
    """Methods that vLLM's worker gains; `self` is that worker."""

    model_runner: Any
    device: torch.device

    def mtdrive_prepare(self, engine: int, forbidden: list[int]) -> None:
        """Replace the sampler, so that `forbidden` tokens are never drawn; end when process `engine` ends."""
        _end_with(engine)
        # it warns at every update of modules that have tables and no weights, as the rotary embeddings
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        runner = self.model_runner
        if type(runner.sampler) is not Sampler:
            raise TypeError(f"the model runner samples with {type(runner.sampler)}: set VLLM_USE_V2_MODEL_RUNNER=0")
        runner.sampler = PolicySampler(runner.sampler, torch.tensor(forbidden, dtype=torch.long, device=self.device))

    def mtdrive_load_weights(self, path: str, size: int, entries: list[Entry]) -> None:
        """Copy weights out of shared memory into the model, in place (`reload_weights`)."""
        file = os.open(path, os.O_RDONLY)
        try:  # a private mapping: torch has no read-only tensors
            memory = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
        finally:
            os.close(file)
        self.reload_weights(weights_iterator=_views(memory, entries))  # type: ignore[attr-defined]

    def mtdrive_free_cache(self) -> None:
        """Give the pages of the KV cache back to the kernel (CPU); they read as zeros after."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        page = mmap.PAGESIZE
        for cache in self.model_runner.kv_caches:
            storage = cache.untyped_storage()
            start = -(-storage.data_ptr() // page) * page  # whole pages only: what lies beside them is not ours
            size = (storage.data_ptr() + storage.nbytes() - start) // page * page
            if size > 0 and libc.madvise(start, size, MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), "madvise")

    def mtdrive_resident_bytes(self) -> int:
        """Memory of this process that is in RAM."""
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE


def _end_with(engine: int) -> None:
    """When the process that holds the engine is gone, however it ended, take vLLM's core and this process along: the core
    would wait for requests for ever."""
    die_with_parent()
    core = os.getppid()
    gone = os.pidfd_open(engine)

    def watch() -> None:
        select.select([gone], [], [])  # a process's descriptor is readable when it has ended
        os.kill(core, signal.SIGKILL)

    threading.Thread(target=watch, name="engine-watch", daemon=True).start()


def _views(memory: mmap.mmap, entries: Sequence[Entry]) -> Iterator[tuple[str, Tensor]]:
    for name, dtype_name, shape, offset in entries:
        dtype, count = getattr(torch, dtype_name), torch.Size(shape).numel()
        yield name, torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(shape)
