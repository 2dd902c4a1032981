"""The tiny Qwen2.5-VL of the demo and the tests: the real architecture, about 3 M parameters, random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def tiny_hf_config(
    *,
    vocab_size: int,
    image_pad: int,
    video_pad: int,
    vision_start: int,
    vision_end: int,
    im_start: int,
    im_end: int,
    layers: int = 3,
    hidden: int = 256,
    head_size: int = 128,
    mlp: int = 512,
    vision_layers: int = 2,
    vision_hidden: int = 128,
    vision_mlp: int = 256,
    max_length: int = 2048,
) -> dict[str, Any]:
    """HF's `config.json` of the tiny model, as a plain dict.

    Heads of `head_size` with their own keys and values, by default two of 128, so that it splits over two tensor-parallel
    ranks; a quarter of a head's frequencies turns with the time and the rest with row and column, half each (of 128:
    16 + 24 + 24, as in the real models). Embeddings are untied, as in the 7B. `vocab_size` must be a multiple of 64.
    """
    if vocab_size % 64:
        raise ValueError(f"vocab_size={vocab_size} is not a multiple of 64: pad the vocabulary")
    heads = hidden // head_size
    of_time, of_place = head_size // 8, 3 * head_size // 16
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": im_start,
        "eos_token_id": im_end,
        "image_token_id": image_pad,
        "video_token_id": video_pad,
        "vision_start_token_id": vision_start,
        "vision_end_token_id": vision_end,
        "vision_token_id": image_pad,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": max_length,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [of_time, of_place, of_place]},
        "rope_theta": 10000.0,
        "sliding_window": max_length,
        "use_sliding_window": False,
        "use_cache": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": vision_layers,
            "hidden_act": "silu",
            "hidden_size": vision_hidden,
            "intermediate_size": vision_mlp,
            "num_heads": 2,
            "in_channels": 3,
            "in_chans": 3,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [vision_layers - 1],
            "tokens_per_second": 2,
        },
    }


def random_hf_state(hf_config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A whole set of random float32 weights under HF's names; the same seed gives the same bits whatever the ranks.

    Norms 1, biases 0, weights normal with HF's standard deviation, except the matrices that write into the residual
    stream (scaled by 1 / sqrt(2 layers), as GPT-2 does) and the vision tower's (by their fan-in).
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig.from_dict(hf_config)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen2_5_VLForConditionalGeneration(config).named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, config, generator) for name, shape in shapes.items()}


def _random(name: str, shape: torch.Size, config: Any, generator: torch.Generator) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    deviation = config.initializer_range
    if name.endswith("patch_embed.proj.weight"):
        deviation = 1.0 / math.sqrt(math.prod(shape[1:]))
    elif name == "visual.merger.mlp.2.weight":  # features about as large as the embeddings that they stand among
        deviation = 0.14 / math.sqrt(shape[1])
    elif name.startswith("visual."):
        deviation = 0.7 / math.sqrt(shape[1])
    residual = ("o_proj.weight", "down_proj.weight", "attn.proj.weight")
    if name.endswith(residual):
        depth = config.vision_config.depth if name.startswith("visual.") else config.num_hidden_layers
        deviation /= math.sqrt(2 * depth)
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)
