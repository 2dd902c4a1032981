"""The published Qwen2.5-VL sizes as HF configurations: what a plan or a benchmark needs where no weights are at hand.

Training and conversion never read these: they take the config.json that lies beside the weights.
"""

from __future__ import annotations

from typing import Any

_LANGUAGE = {
    # layers, hidden, mlp, heads, groups of keys, vocabulary, tied embeddings, mlp of the vision tower
    "3b": (36, 2048, 11008, 16, 2, 151936, True, 3420),
    "7b": (28, 3584, 18944, 28, 4, 152064, False, 3420),
    "32b": (64, 5120, 27648, 40, 8, 152064, False, 3456),
    "72b": (80, 8192, 29568, 64, 8, 152064, False, 3456),
}

PRESETS = tuple(_LANGUAGE)
"""Names of the sizes."""


def preset_hf_config(name: str) -> dict[str, Any]:
    """config.json of Qwen2.5-VL-{3B,7B,32B,72B}-Instruct.

    Raises:
        ValueError: there is no such size.
    """
    if name not in _LANGUAGE:
        raise ValueError(f"model {name}: set it to one of {', '.join(PRESETS)}")
    layers, hidden, mlp, heads, groups, vocabulary, tied, vision_mlp = _LANGUAGE[name]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": 128000,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "use_cache": True,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": vision_mlp,
            "num_heads": 16,
            "in_channels": 3,
            "in_chans": 3,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    }
