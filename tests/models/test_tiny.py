"""The demo's model: its size, its seeds, its sizes that ranks can divide."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config

IDS = {"image_pad": 1, "video_pad": 2, "vision_start": 3, "vision_end": 4, "im_start": 5, "im_end": 6}


def _config() -> dict[str, Any]:
    return tiny_hf_config(vocab_size=2048, **IDS)


def test_size_and_sections() -> None:
    config = _config()
    parameters = sum(tensor.numel() for tensor in random_hf_state(config, 0).values())
    assert 2e6 < parameters < 4e6
    assert config["hidden_size"] // config["num_attention_heads"] == 2 * sum(config["rope_scaling"]["mrope_section"])


def test_heads_of_another_size() -> None:
    config = tiny_hf_config(vocab_size=2048, head_size=64, **IDS)
    assert config["num_attention_heads"] == config["num_key_value_heads"] == 4
    assert config["rope_scaling"]["mrope_section"] == [8, 12, 12]


def test_the_seed_decides_every_bit() -> None:
    one, same, other = (random_hf_state(_config(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_start_values() -> None:
    state = random_hf_state(_config(), 0)
    assert state["model.norm.weight"].eq(1).all()
    assert state["visual.blocks.0.attn.qkv.bias"].eq(0).all()
    assert state["model.embed_tokens.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    residual = state["model.layers.0.mlp.down_proj.weight"].std().item()
    assert residual == pytest.approx(0.02 / math.sqrt(6), rel=0.02)


def test_unpadded_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=2047 is not a multiple of 64"):
        tiny_hf_config(vocab_size=2047, **IDS)
