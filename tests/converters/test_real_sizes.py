"""The published sizes without weights: every HF name has a place, and Megatron's own modules have these shapes.

A fake process group of as many ranks as wanted is joined, and each pipeline stage is built on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models import cpu
from nemo_mtdrive.models.architecture import megatron_config
from nemo_mtdrive.models.convert import check_split, hf_shapes
from nemo_mtdrive.models.memory_plan import stage_parameters
from nemo_mtdrive.models.parameters import rules
from nemo_mtdrive.models.presets import PRESETS, preset_hf_config
from nemo_mtdrive.models.whole_directory import ConversionError

TENSOR, PIPELINE = (1, 2, 4, 8), (1, 2, 4)
PUBLISHED = {"3b": 3_754_622_976, "7b": 8_292_166_656, "32b": 33_452_718_336, "72b": 73_410_777_344}
POSSIBLE = {"3b": (1, 2), "7b": (1, 2, 4), "32b": (1, 2, 4, 8), "72b": (1, 2, 4, 8)}
BUILT = [(name, tensor, pipeline) for name in PRESETS for tensor in POSSIBLE[name] for pipeline in PIPELINE
         if name == "7b" or (tensor, pipeline) == (POSSIBLE[name][-1], PIPELINE[-1])]
"""The 7B on every grid, the others on their widest."""


def config_of(name: str) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig.from_dict(preset_hf_config(name))


@contextmanager
def stage_of(tensor: int, pipeline: int, stage: int) -> Iterator[None]:
    """This process stands for the last tensor-parallel rank of a stage."""
    cpu.install()
    rank = stage * tensor + tensor - 1
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=tensor * pipeline)
    try:
        parallel_state.initialize_model_parallel(tensor, pipeline, create_gloo_process_groups=False)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def shapes_of_stage(config: Qwen2_5_VLConfig, tensor: int, pipeline: int) -> dict[str, tuple[int, ...]]:
    """Megatron's parameters on this rank."""
    translated = megatron_config(config, tensor_size=tensor, pipeline_size=pipeline, sequence_parallel=False,
                                 dtype=torch.bfloat16, max_length=11500)
    for part in (translated, translated.language_transformer_config, translated.vision_transformer_config,
                 translated.vision_projection_config):
        part.perform_initialization = False
    with torch.device("meta"):
        network = translated.configure_model(None)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_hf_name_is_mapped_once(name: str) -> None:
    config = config_of(name)
    mapped = [rule for rule in rules(config, 1) if rule.exported]
    shapes = hf_shapes(config, mapped)  # HF's own model, on the meta device
    assert sum(torch.Size(shape).numel() for _, shape in shapes) == PUBLISHED[name]
    assert len(dict(shapes)) == len(list(shapes))


@pytest.mark.parametrize(("name", "tensor", "pipeline"), BUILT)
def test_every_shape_is_megatrons(name: str, tensor: int, pipeline: int) -> None:
    config = config_of(name)
    shapes = dict(hf_shapes(config, [rule for rule in rules(config, 1) if rule.exported]))
    counts = stage_parameters(config, tensor, pipeline)
    for stage in range(pipeline):
        with stage_of(tensor, pipeline, stage):
            built = shapes_of_stage(config, tensor, pipeline)
        mapped = {rule.megatron: rule for rule in rules(config, pipeline) if rule.stage == stage}
        assert mapped.keys() == built.keys()
        for parameter, rule in mapped.items():
            whole = [torch.empty(shapes[part], device="meta") for part in rule.hf]
            assert {tuple(shard.shape) for shard in rule.layout.split(whole, tensor)} == {built[parameter]}, parameter
        assert counts[stage] == sum(torch.Size(shape).numel() for shape in built.values())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tensor", TENSOR)
def test_splits_that_heads_do_not_allow_are_refused(name: str, tensor: int) -> None:
    """At TP=8 the 7B's 28 heads, and at TP=4 the 3B's 2 groups of keys, cannot be shared out."""
    if tensor in POSSIBLE[name]:
        check_split(config_of(name), tensor, 4)
    else:
        with pytest.raises(ConversionError, match=f"--tp {tensor} does not divide the (28 attention|2 groups)"):
            check_split(config_of(name), tensor, 4)
