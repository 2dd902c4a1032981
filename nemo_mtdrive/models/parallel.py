"""Start and stop torch.distributed and megatron's process groups, and say which rank this is."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from nemo_mtdrive.models import cpu


@dataclass(frozen=True)
class Ranks:
    """Where this process stands. World = tensor x pipeline x data."""

    rank: int
    world: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int

    @property
    def is_first_stage(self) -> bool:
        """This rank holds the embeddings and the vision tower."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """This rank holds the output layer: logits, losses and log-probs come to be here."""
        return self.pipeline_rank == self.pipeline_size - 1


def initialise(tensor_size: int, pipeline_size: int, seed: int, timeout_s: float) -> Ranks:
    """Join the process group named by RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and build megatron's groups.

    gloo on CPU, nccl on GPU. Waits up to `timeout_s` for the other ranks, which this call unblocks in turn.

    Raises:
        ValueError: WORLD_SIZE is not a multiple of tensor_size x pipeline_size, or a variable is missing.
    """
    cpu.install()
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"{', '.join(missing)} not set: start the training ranks with srun, torchrun or nemo-mtdrive")
    world = int(os.environ["WORLD_SIZE"])
    if world % (tensor_size * pipeline_size):
        raise ValueError(
            f"WORLD_SIZE={world} is not a multiple of tensor_parallel={tensor_size} x"
            f" pipeline_parallel={pipeline_size}: set them so that it is"
        )
    if not cpu.needed():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("gloo" if cpu.needed() else "nccl", timeout=timedelta(seconds=timeout_s))
    parallel_state.initialize_model_parallel(tensor_size, pipeline_size)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return ranks()


def ranks() -> Ranks:
    """Where this process stands; `initialise` must have been called."""
    return Ranks(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
    )


def device() -> torch.device:
    """The device that this rank computes on."""
    return torch.device("cpu") if cpu.needed() else torch.device("cuda", torch.cuda.current_device())


def shutdown() -> None:
    """Leave the process group; safe to call when it was never joined."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def share_from_last_stage(values: dict[str, float] | None) -> dict[str, float]:
    """Sum the last stage's named numbers over the data-parallel ranks and hand them to every stage.

    All ranks take part; every data-parallel rank must name the same numbers. Other stages pass None.
    """
    numbers: dict[str, float] = {}
    if values is not None:
        numbers = dict(sorted(values.items()))
        if parallel_state.get_data_parallel_world_size() > 1 and numbers:
            total = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device())
            dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
            numbers = dict(zip(numbers, total.tolist(), strict=True))
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return numbers
    text = broadcast_from_last_stage(torch.frombuffer(bytearray(json.dumps(numbers), "ascii"), dtype=torch.uint8))
    return json.loads(bytes(text.tolist()))


def broadcast_from_last_stage(tensor: torch.Tensor) -> torch.Tensor:
    """Hand a one-dimensional tensor of the last stage to every stage; only its dtype must be right elsewhere."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return tensor
    group = parallel_state.get_pipeline_model_parallel_group()
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    size = torch.tensor([tensor.numel()], device=device())
    dist.broadcast(size, source, group=group)
    is_source = dist.get_rank() == source
    buffer = tensor.to(device()) if is_source else torch.empty(int(size), dtype=tensor.dtype, device=device())
    dist.broadcast(buffer, source, group=group)
    return buffer


def barrier() -> None:
    """Wait for all ranks; unblocked when the last one calls."""
    dist.barrier()


def follow_rank_0(code: int) -> int:
    """Rank 0's number on every rank, for decisions that all must take alike."""
    decided = torch.tensor([code], device=device())
    dist.broadcast(decided, 0)
    return int(decided)


def check_agreement(digest: str) -> None:
    """All ranks name the same digest, or all fail: ranks that train on different data would drift apart in silence.

    Raises:
        RuntimeError: they differ; the message shows each rank's.
    """
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, digest)
    if len(set(found)) > 1:
        raise RuntimeError(f"training ranks hold different episodes (digests {found}): resume from the last checkpoint")
