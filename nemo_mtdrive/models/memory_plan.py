"""How much memory a GPU needs in training, counted from the parameter map and the shapes that a layer keeps.

Counted: bfloat16 weights; float32 gradients (megatron sums them so); Adam's float32 master weights and two moments,
shared out over data-parallel ranks; what each layer keeps for its backward pass, by what `recompute` leaves out; the
block of logits. Attention is a fused kernel that keeps no matrix of scores. Not counted but reserved: CUDA, NCCL,
fragmentation (`RESERVE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models.convert import check_split, hf_shapes
from nemo_mtdrive.models.logprobs import BLOCK_ELEMENTS
from nemo_mtdrive.models.parameters import rules
from nemo_mtdrive.models.whole_directory import ConversionError

GIB = 1 << 30
RESERVE = 4 * GIB
"""For CUDA's context, NCCL's buffers and fragmentation."""
RECOMPUTE = ("none", "selective", "full")
_HALF, _FULL = 2, 4
_ADAM = 12
"""Bytes a parameter: float32 master weight and two moments."""
_LOGIT_COPIES = 3
_SEQUENCE_STEP = 256


@dataclass(frozen=True)
class Split:
    """How the model and a batch are laid out over GPUs."""

    tensor: int = 1
    pipeline: int = 1
    gpus: int = 1
    sequence: int = 11500
    """Tokens of a sequence, images included."""
    micro_batch: int = 1
    """Sequences of a micro-batch."""
    images: int = 1
    """Different images of a micro-batch."""
    image_width: int = 1932
    image_height: int = 1092
    recompute: str = "none"
    sequence_parallel: bool = False
    distributed_optimizer: bool = True

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.tensor * self.pipeline)


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each GPU of one pipeline stage."""

    parameters: int
    """A number, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it with the reserve."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + RESERVE


@dataclass(frozen=True)
class MemoryPlan:
    """The plan of a model on a cluster."""

    split: Split
    parameters: int
    """Of the whole model; a tied embedding counts once."""
    vision_parameters: int
    stages: tuple[StageMemory, ...]
    host_reference: int
    """Bytes of a GPU's share of the reference weights pi_ref, which are kept in host memory."""
    longest: Mapping[str, int]
    """What is recomputed -> longest sequence [tokens] that fits; 0: none does."""
    memory: int
    """Bytes of a GPU."""

    @property
    def fits(self) -> bool:
        """Every stage does."""
        return all(stage.total <= self.memory for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Plain data; bytes."""
        plain = asdict(self) | {"fits": self.fits, "data": self.split.data}
        plain["stages"] = [asdict(stage) | {"total": stage.total} for stage in self.stages]
        return plain


def plan_memory(config: Qwen2_5_VLConfig, split: Split, memory: int) -> MemoryPlan:
    """Plan a model on GPUs of `memory` bytes.

    Raises:
        ConversionError: the model or the GPUs do not divide so; it says what to set.
    """
    check_split(config, split.tensor, split.pipeline)
    if split.gpus % (split.tensor * split.pipeline):
        raise ConversionError(f"--gpus {split.gpus} does not divide by --tp {split.tensor} x --pp {split.pipeline}: set a"
                              f" multiple of {split.tensor * split.pipeline}")
    if split.recompute not in RECOMPUTE:
        raise ConversionError(f"--recompute {split.recompute}: set it to one of {', '.join(RECOMPUTE)}")
    counts = stage_parameters(config, split.tensor, split.pipeline)
    whole = {name: torch.Size(shape).numel() for name, shape in hf_shapes(config, _exported(config))}
    longest = {recompute: _longest(config, split, recompute, counts, memory) for recompute in RECOMPUTE}
    return MemoryPlan(
        split, sum(whole.values()), sum(size for name, size in whole.items() if name.startswith("visual.")),
        tuple(_stage(config, split, split.recompute, split.sequence, stage, count) for stage, count in enumerate(counts)),
        _HALF * max(counts), longest, memory)


def stage_parameters(config: Qwen2_5_VLConfig, tensor_size: int, pipeline_size: int) -> list[int]:
    """Number of parameters on a GPU of each pipeline stage."""
    shapes = dict(hf_shapes(config, _exported(config)))
    counts = [0] * pipeline_size
    for rule in rules(config, pipeline_size):
        size = sum(torch.Size(shapes[name]).numel() for name in rule.hf)
        counts[rule.stage] += size // tensor_size if rule.layout.sharded else size
    return counts


def _exported(config: Qwen2_5_VLConfig) -> list[Any]:
    return [rule for rule in rules(config, 1) if rule.exported]


def _stage(config: Qwen2_5_VLConfig, split: Split, recompute: str, sequence: int, stage: int, count: int) -> StageMemory:
    shared = split.data if split.distributed_optimizer else 1
    return StageMemory(
        count, _HALF * count, _FULL * count, _ADAM * count // shared,
        _activations(config, split, recompute, sequence * split.micro_batch, stage),
        _logits(config, split, sequence * split.micro_batch) if stage == split.pipeline - 1 else 0)


def _activations(config: Qwen2_5_VLConfig, split: Split, recompute: str, tokens: int, stage: int) -> int:
    """Kept for the backward passes of all micro-batches that are under way on a stage (1F1B: as many as stages follow)."""
    language = _Layer(config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads)
    spread = split.tensor if split.sequence_parallel else 1
    kept, working = language.bytes_a_token(split.tensor, spread, recompute)
    held = tokens * kept * (config.num_hidden_layers // split.pipeline)
    working *= tokens
    if stage == 0:
        vision, unit = config.vision_config, config.vision_config.spatial_merge_size**2
        side = vision.patch_size
        patches = split.images * (split.image_width // side) * (split.image_height // side)
        tower = _Layer(vision.hidden_size, vision.intermediate_size, vision.num_heads, vision.num_heads)
        vision_kept, vision_working = tower.bytes_a_token(split.tensor, 1, recompute)
        held += patches * vision_kept * vision.depth
        merged = vision.hidden_size * unit
        held += patches // unit * _HALF * (merged + 2 * merged // split.tensor + config.hidden_size)
        working = max(working, patches * vision_working)
        held += tokens * _HALF * config.hidden_size // spread  # the embeddings
    return held * (split.pipeline - stage) + working


@dataclass(frozen=True)
class _Layer:
    """Sizes of a transformer layer."""

    hidden: int
    mlp: int
    heads: int
    groups: int

    def bytes_a_token(self, tensor_size: int, spread: int, recompute: str) -> tuple[int, int]:
        """(kept until the backward pass, needed besides while one layer is computed again) for each token.

        Kept by a layer in bfloat16: the inputs of its two norms and what they give (4 hidden, shared out with sequence
        parallelism), queries, keys, values and the attention's result with its float32 normaliser, and the MLP's two
        gates and their product.
        """
        head = self.hidden // self.heads
        stream = _HALF * self.hidden // spread
        attention = (_HALF * head * (2 * self.heads + 2 * self.groups) + _FULL * self.heads) // tensor_size
        mlp = _HALF * 3 * self.mlp // tensor_size
        if recompute == "full":
            return stream, 3 * stream + attention + mlp
        if recompute == "selective":
            return 4 * stream + attention, mlp
        return 4 * stream + attention + mlp, 0


def _logits(config: Qwen2_5_VLConfig, split: Split, tokens: int) -> int:
    """A block of float32 logits (`logprobs`) and the float32 gradient of the output projection."""
    width = config.vocab_size // split.tensor
    return _FULL * (_LOGIT_COPIES * min(tokens * width, BLOCK_ELEMENTS) + width * config.hidden_size)


def _longest(config: Qwen2_5_VLConfig, split: Split, recompute: str, counts: list[int], memory: int) -> int:
    """Found by halving: memory grows with the sequence."""
    def fits(sequence: int) -> bool:
        stages = (_stage(config, split, recompute, sequence, stage, count) for stage, count in enumerate(counts))
        return all(stage.total <= memory for stage in stages)

    low, high = 0, config.max_position_embeddings // _SEQUENCE_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _SEQUENCE_STEP) else (low, middle - 1)
    return low * _SEQUENCE_STEP
