"""Activation recomputation, frozen parts, sequence parallelism, and which config.json this model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_mtdrive.models.architecture import megatron_config
from nemo_mtdrive.models.presets import PRESETS, preset_hf_config
from nemo_mtdrive.models.vision import VisionTower

from . import material
from .conversations import hf_configs

GRIDS = pytest.mark.parametrize("grid", ["data", "pipeline", "sequence"])


@GRIDS
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_no_bit_of_a_gradient(found: dict[str, Any], grid: str, recompute: str) -> None:
    assert found[grid]["options"][recompute]


@GRIDS
@pytest.mark.parametrize(("part", "tensors"), [("vision", 26), ("projector", 4)])
def test_what_is_frozen_stays_and_the_rest_learns_as_before(
    found: dict[str, Any], grid: str, part: str, tensors: int
) -> None:
    frozen = found[grid]["options"][part]
    assert frozen == {"tensors": tensors, "gradients": 0.0, "others": True, "kept": True, "moved": True}


def test_a_frozen_model_goes_on_from_its_checkpoint_bit_by_bit(found: dict[str, Any]) -> None:
    assert found["tensor"]["frozen_resuming"] == {"steps": True, "weights": True}


def _config(**changes: Any) -> dict[str, Any]:
    return material.hf_config() | changes


def _translate(config: dict[str, Any], **options: Any) -> Any:
    given = {"tensor_size": 1, "pipeline_size": 1, "sequence_parallel": False, "dtype": torch.float32, "max_length": 64}
    return megatron_config(config, **(given | options))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"hidden_act": "gelu"}, {}, "hidden_act=gelu: this model computes silu only"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [16, 24, 24]}},
            {},
            "rope_scaling.type=linear: this model computes mrope or default only",
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 20]}},
            {},
            "sum of rope_scaling.mrope_section=60: this model computes 64 only",
        ),
        ({"use_sliding_window": True, "sliding_window": 32}, {}, "sliding_window=32 is in use: set max_length=64 no higher"),
        ({"num_hidden_layers": 3}, {"pipeline_size": 2}, "num_hidden_layers=3 is not a multiple of pipeline_parallel=2"),
        ({}, {"tensor_size": 4}, "num_key_value_heads=2 is not a multiple of tensor_parallel=4: lower tensor_parallel"),
        ({}, {"recompute": "some"}, "recompute=some: set it to one of none, selective, full"),
        ({}, {"dtype": torch.float16}, "dtype=torch.float16: set it to float32 or bfloat16"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        _translate(_config(**changes), **options)
    assert message in str(refused.value)


def test_every_number_comes_from_the_hf_file() -> None:
    hf = hf_configs()["other"]
    config = _translate(hf)
    language, vision = config.language_transformer_config, config.vision_transformer_config
    assert language.mrope_section == [4, 7, 5] and language.rotary_base == 1e6 and language.layernorm_epsilon == 1e-5
    assert (language.num_query_groups, language.share_embeddings_and_output_weights) == (2, True)
    assert (vision.num_layers, vision.attention_window, vision.fullatt_block_indexes) == (3, 56, [0, 2])
    assert config.image_token_id == 607


@pytest.mark.parametrize(
    ("name", "tensor", "refused"),
    [("3b", 2, None), ("3b", 4, "num_key_value_heads=2"), ("7b", 4, None), ("7b", 8, "num_attention_heads=28"),
     ("32b", 8, None), ("72b", 8, None)],
)
def test_published_sizes_divide_over_tensor_ranks_or_say_why_not(name: str, tensor: int, refused: str | None) -> None:
    options = {"tensor_size": tensor, "pipeline_size": 4, "dtype": torch.bfloat16, "sequence_parallel": True}
    if refused:
        with pytest.raises(ValueError, match=refused):
            _translate(preset_hf_config(name), **options)
    else:
        assert _translate(preset_hf_config(name), **options).language_transformer_config.sequence_parallel


@pytest.mark.parametrize(
    ("name", "parameters"), zip(PRESETS, (3754622976, 8292166656, 33452718336, 73410777344), strict=True)
)
def test_published_sizes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(preset_hf_config(name)))
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(ValueError, match="model 8b: set it to one of 3b, 7b, 32b, 72b"):
        preset_hf_config("8b")


def test_the_tower_is_nemos() -> None:
    from nemo.collections.vlm.qwen2vl.model.vision import Qwen25VisionModel

    assert issubclass(VisionTower, Qwen25VisionModel)
