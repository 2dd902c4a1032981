"""The policy's weights under HF's names, piece by piece: what weight sync publishes (Section 3.4's other direction).

No rank ever holds the whole model: a piece is gathered, handed on and dropped before the next one. Embedding and output
layer, far the largest tensors, come in blocks of rows; every other tensor is one piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models.parameters import ROWS, Rule, broadcast_stage, gather_shards, rules
from nemo_mtdrive.transfer.weights import WeightPiece

if TYPE_CHECKING:
    from nemo_mtdrive.models.network import Qwen25VLNetwork


@torch.no_grad()
def export_hf_pieces(network: Qwen25VLNetwork, hf: Qwen2_5_VLConfig, piece_bytes: int) -> Iterator[WeightPiece]:
    """Yield every HF tensor on every rank, in one fixed order, in pieces of at most `piece_bytes` where it can be cut.

    All ranks of a tensor and pipeline group must run it to the end together. A piece may be a view of the live weights:
    copy it before the next one is asked for.
    """
    parameters = dict(network.named_parameters())
    pipeline_size = parallel_state.get_pipeline_model_parallel_world_size()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    dtype = next(iter(parameters.values())).dtype
    for rule in rules(hf, pipeline_size):
        if not rule.exported:
            continue
        held = parameters[rule.megatron].detach() if rule.stage == stage else None
        if rule.layout is ROWS:
            yield from _blocks(rule, held, dtype, piece_bytes)
            continue
        tensors: list[Tensor] | None = None
        if held is not None:
            shards = gather_shards(held.contiguous()) if rule.layout.sharded else [held]
            tensors = [tensor.contiguous() for tensor in rule.layout.merge(shards)]
            del shards
        for index, name in enumerate(rule.hf):
            tensor = tensors[index] if tensors is not None else None
            if pipeline_size > 1:
                tensor = broadcast_stage(tensor, rule.stage, dtype)
            assert tensor is not None
            yield WeightPiece(name, tuple(tensor.shape), 0, tensor)


def _blocks(rule: Rule, held: Tensor | None, dtype: torch.dtype, piece_bytes: int) -> Iterator[WeightPiece]:
    """A tensor whose rows the tensor-parallel ranks share out: each rank's rows, block by block."""
    (name,) = rule.hf
    pipelined = parallel_state.get_pipeline_model_parallel_world_size() > 1
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    mine = parallel_state.get_tensor_model_parallel_rank()
    shape = None if held is None else torch.tensor(held.shape, device=torch.cuda.current_device())
    if pipelined:  # the other stages do not know it
        shape = broadcast_stage(shape, rule.stage, torch.int64)
    assert shape is not None
    rows, *rest = shape.tolist()
    width = math.prod(rest)
    step = max(1, piece_bytes // max(1, width * dtype.itemsize))
    for owner in range(ranks):
        for first in range(0, rows, step):
            block: Tensor | None = None
            if held is not None:
                block = held[first : first + step]
                if ranks > 1:
                    block = block.contiguous() if owner == mine else torch.empty_like(block)
                    group = parallel_state.get_tensor_model_parallel_group()
                    dist.broadcast(block, dist.get_process_group_ranks(group)[owner], group=group)
            if pipelined:
                block = broadcast_stage(block, rule.stage, dtype)
            assert block is not None
            yield WeightPiece(name, (rows * ranks, *rest), (owner * rows + first) * width, block)
