"""The one map between HF's parameter names and Megatron's, used by converters, weight sync and the random start.

A `Rule` says which HF tensors make up one Megatron parameter and how they are laid out in it. Everything else (loading
a rank's shard, exporting whole HF tensors, the layout of a checkpoint on disk, tests of all) follows from the rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from transformers import Qwen2_5_VLConfig

if TYPE_CHECKING:
    from nemo_mtdrive.models.network import Qwen25VLNetwork

Split = Callable[[list[Tensor], int], list[Tensor]]
"""HF tensors, tensor-parallel size -> the shard of each rank."""
Merge = Callable[[list[Tensor]], list[Tensor]]
"""The shard of each rank -> HF tensors."""


@dataclass(frozen=True)
class Layout:
    """How HF tensors lie in a Megatron parameter; `split` and `merge` undo each other bit by bit."""

    split: Split
    merge: Merge
    axis: int | None = 0
    """The axis of the whole parameter that tensor-parallel ranks share out; None: every rank has all of it."""
    parts: int = 1
    """How many equal blocks lie along `axis` in a shard, each the rank's share of a block of the whole parameter."""

    @property
    def sharded(self) -> bool:
        """Whether tensor-parallel ranks hold different parts."""
        return self.axis is not None


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter, the HF tensors in it, and the pipeline stage that holds it."""

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    stage: int
    exported: bool = True
    """False for a second copy of a tied tensor."""
    layer: tuple[int, int] | None = None
    """(index in the whole model, number of layers) of a parameter that every layer of a stack has."""

    @property
    def key(self) -> str:
        """Its name in a checkpoint, where the layers of a stack are one tensor with the layer as first axis."""
        return "module." + re.sub(r"\.layers\.\d+\.", ".layers.", self.megatron)


REPLICATED = Layout(lambda tensors, size: [tensors[0]] * size, lambda shards: [shards[0]], axis=None)
ROWS = Layout(lambda tensors, size: list(tensors[0].chunk(size)), lambda shards: [torch.cat(shards)])
"""Column-parallel linears and embeddings: each rank has some of the output rows."""
COLUMNS = Layout(lambda tensors, size: list(tensors[0].chunk(size, 1)), lambda shards: [torch.cat(shards, 1)], axis=1)
"""Row-parallel linears: each rank has some of the input columns."""


def _gated_split(tensors: list[Tensor], size: int) -> list[Tensor]:
    gate, up = (tensor.chunk(size) for tensor in tensors)
    return [torch.cat(pair) for pair in zip(gate, up, strict=True)]


def _gated_merge(shards: list[Tensor]) -> list[Tensor]:
    halves = [shard.chunk(2) for shard in shards]
    return [torch.cat([half[part] for half in halves]) for part in (0, 1)]


GATED = Layout(_gated_split, _gated_merge, parts=2)
"""gate_proj and up_proj in one linear; every rank has its part of both, gate first."""


def _grouped_split(tensors: list[Tensor], size: int, groups: int) -> list[Tensor]:
    by_group = [tensor.unflatten(0, (groups, tensor.shape[0] // groups)) for tensor in tensors]
    return list(torch.cat(by_group, dim=1).flatten(0, 1).chunk(size))


def _grouped_merge(shards: list[Tensor], groups: int, queries: int) -> list[Tensor]:
    whole = torch.cat(shards)
    by_group = whole.unflatten(0, (groups, whole.shape[0] // groups))
    head = by_group.shape[1] // (queries + 2)
    return [part.flatten(0, 1) for part in by_group.split([queries * head, head, head], dim=1)]


def grouped_qkv(heads: int, groups: int) -> Layout:
    """q, k, v interleaved by query group: [q heads of group 0, k 0, v 0, q heads of group 1, ...]."""
    return Layout(partial(_grouped_split, groups=groups), partial(_grouped_merge, groups=groups, queries=heads // groups))


def fused_qkv(heads: int) -> Layout:
    """As `grouped_qkv` with one head a group, from HF's single [3 * hidden, ...] tensor of the vision tower."""
    grouped = grouped_qkv(heads, heads)
    return Layout(
        lambda tensors, size: grouped.split(list(tensors[0].chunk(3)), size),
        lambda shards: [torch.cat(grouped.merge(shards))],
    )


def rules(hf: Qwen2_5_VLConfig, pipeline_size: int) -> list[Rule]:
    """Every parameter of the model, in the order in which HF lists them."""
    last = pipeline_size - 1
    found = [Rule("vision_model.conv1.weight", ("visual.patch_embed.proj.weight",), REPLICATED, 0)]
    for layer in range(hf.vision_config.depth):
        found += _of_layer(_vision_layer(layer, fused_qkv(hf.vision_config.num_heads)), layer, hf.vision_config.depth)
    found.append(Rule("vision_model.decoder.final_layernorm.weight", ("visual.merger.ln_q.weight",), REPLICATED, 0))
    found += _linear("vision_projection.encoder.linear_fc1", ("visual.merger.mlp.0",), ROWS, ROWS, 0)
    found += _linear("vision_projection.encoder.linear_fc2", ("visual.merger.mlp.2",), COLUMNS, REPLICATED, 0)
    embedding = "model.embed_tokens.weight"
    found.append(Rule("language_model.embedding.word_embeddings.weight", (embedding,), ROWS, 0))
    qkv = grouped_qkv(hf.num_attention_heads, hf.num_key_value_heads)
    for layer in range(hf.num_hidden_layers):
        stacked = _language_layer(layer, hf.num_hidden_layers // pipeline_size, qkv)
        found += _of_layer(stacked, layer, hf.num_hidden_layers)
    found.append(Rule("language_model.decoder.final_layernorm.weight", ("model.norm.weight",), REPLICATED, last))
    output = "language_model.output_layer.weight"
    if not hf.tie_word_embeddings:
        found.append(Rule(output, ("lm_head.weight",), ROWS, last))
    elif last:
        found.append(Rule(output, (embedding,), ROWS, last, exported=False))
    return found


def _of_layer(found: list[Rule], layer: int, layers: int) -> list[Rule]:
    return [replace(rule, layer=(layer, layers)) for rule in found]


def _linear(megatron: str, hf: tuple[str, ...], weight: Layout, bias: Layout | None, stage: int) -> list[Rule]:
    kinds = [("weight", weight)] + ([("bias", bias)] if bias else [])
    return [Rule(f"{megatron}.{kind}", tuple(f"{name}.{kind}" for name in hf), layout, stage) for kind, layout in kinds]


def _vision_layer(layer: int, qkv: Layout) -> list[Rule]:
    here, there = f"vision_model.decoder.layers.{layer}", f"visual.blocks.{layer}"
    attention, mlp = f"{here}.self_attention", f"{here}.mlp"
    return [
        Rule(f"{attention}.linear_qkv.layer_norm_weight", (f"{there}.norm1.weight",), REPLICATED, 0),
        Rule(f"{mlp}.linear_fc1.layer_norm_weight", (f"{there}.norm2.weight",), REPLICATED, 0),
        *_linear(f"{attention}.linear_qkv", (f"{there}.attn.qkv",), qkv, qkv, 0),
        *_linear(f"{attention}.linear_proj", (f"{there}.attn.proj",), COLUMNS, REPLICATED, 0),
        *_linear(f"{mlp}.linear_fc1", (f"{there}.mlp.gate_proj", f"{there}.mlp.up_proj"), GATED, GATED, 0),
        *_linear(f"{mlp}.linear_fc2", (f"{there}.mlp.down_proj",), COLUMNS, REPLICATED, 0),
    ]


def _language_layer(layer: int, layers_a_stage: int, qkv: Layout) -> list[Rule]:
    stage, local = divmod(layer, layers_a_stage)
    here, there = f"language_model.decoder.layers.{local}", f"model.layers.{layer}"
    attention, mlp = f"{here}.self_attention", f"{here}.mlp"
    projections = tuple(f"{there}.self_attn.{kind}_proj" for kind in "qkv")
    return [
        *_linear(f"{attention}.linear_qkv", projections, qkv, qkv, stage),
        *_linear(f"{attention}.linear_proj", (f"{there}.self_attn.o_proj",), COLUMNS, None, stage),
        *_linear(f"{mlp}.linear_fc1", (f"{there}.mlp.gate_proj", f"{there}.mlp.up_proj"), GATED, None, stage),
        *_linear(f"{mlp}.linear_fc2", (f"{there}.mlp.down_proj",), COLUMNS, None, stage),
        Rule(f"{attention}.linear_qkv.layer_norm_weight", (f"{there}.input_layernorm.weight",), REPLICATED, stage),
        Rule(f"{mlp}.linear_fc1.layer_norm_weight", (f"{there}.post_attention_layernorm.weight",), REPLICATED, stage),
    ]


@torch.no_grad()
def load_hf_state(network: Qwen25VLNetwork, hf: Qwen2_5_VLConfig, state: Mapping[str, Tensor]) -> None:
    """Copy this rank's shard of every parameter from whole HF tensors. Needs no other rank.

    Raises:
        KeyError: a tensor is missing. ValueError: one has another shape, or a parameter is covered by no rule.
    """
    parameters = dict(network.named_parameters())
    stage = parallel_state.get_pipeline_model_parallel_rank()
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for rule in rules(hf, parallel_state.get_pipeline_model_parallel_world_size()):
        if rule.stage != stage:
            continue
        parameter = parameters.pop(rule.megatron)
        shard = rule.layout.split([state[name] for name in rule.hf], size)[rank]
        if shard.shape != parameter.shape:
            raise ValueError(
                f"{' + '.join(rule.hf)}: got a shard of {tuple(shard.shape)}, {rule.megatron} has"
                f" {tuple(parameter.shape)}: give the weights that belong to this configuration"
            )
        parameter.copy_(shard)
    if parameters:
        raise ValueError(f"no rule for {', '.join(parameters)}: add it to models/parameters.py")


@torch.no_grad()
def export_hf_state(network: Qwen25VLNetwork, hf: Qwen2_5_VLConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield every HF tensor, whole, on every rank, in one fixed order.

    All ranks of a tensor and pipeline group must run it to the end together: each tensor waits for the shards of the
    others. The tensors are copies; data-parallel ranks need not meet.
    """
    parameters = dict(network.named_parameters())
    pipeline_size = parallel_state.get_pipeline_model_parallel_world_size()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    for rule in rules(hf, pipeline_size):
        if not rule.exported:
            continue
        tensors: list[Tensor] | None = None
        if rule.stage == stage:
            shard = parameters[rule.megatron].detach().contiguous()
            shards = gather_shards(shard) if rule.layout.sharded else [shard]
            tensors = [tensor.clone() if tensor is shard else tensor.contiguous() for tensor in rule.layout.merge(shards)]
        if pipeline_size > 1:
            dtype = next(iter(parameters.values())).dtype
            tensors = [broadcast_stage(tensors[i] if tensors else None, rule.stage, dtype) for i in range(len(rule.hf))]
        assert tensors is not None
        yield from zip(rule.hf, tensors, strict=True)


def gather_shards(shard: Tensor) -> list[Tensor]:
    """The shard of every tensor-parallel rank, in their order. Collective."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return [shard]
    shards = [torch.empty_like(shard) for _ in range(size)]
    dist.all_gather(shards, shard, group=parallel_state.get_tensor_model_parallel_group())
    return shards


def broadcast_stage(tensor: Tensor | None, stage: int, dtype: torch.dtype) -> Tensor:
    """Hand a tensor of one pipeline stage to the others, which do not know its shape yet. Collective."""
    group = parallel_state.get_pipeline_model_parallel_group()
    source = dist.get_process_group_ranks(group)[stage]
    device = torch.cuda.current_device()
    shape = torch.zeros(8, dtype=torch.int64, device=device)
    if tensor is not None:
        shape[0] = tensor.ndim
        shape[1 : 1 + tensor.ndim] = torch.tensor(tensor.shape)
    dist.broadcast(shape, source, group=group)
    ndim, *sizes = shape.tolist()
    if tensor is None:
        tensor = torch.empty(sizes[:ndim], dtype=dtype, device=device)
    dist.broadcast(tensor, source, group=group)
    return tensor
