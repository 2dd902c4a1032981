"""A tiny random Qwen2.5-VL, as HF has it and as the native engine has it, with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.conversation import Conversation
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.rollout.native import NativeEngine
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators
from nemo_mtdrive.transfer.images import grid_of, patchify

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration


def small_config(tokenizer: Tokenizer, tied: bool = False) -> dict[str, Any]:
    """HF config of a model with grouped heads (4 queries on 2 keys) and all three rotary sections in use."""
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": tied,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "image_token_id": tokenizer.image_pad,
        "video_token_id": tokenizer.video_pad,
        "vision_start_token_id": tokenizer.vision_start,
        "vision_end_token_id": tokenizer.vision_end,
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "in_channels": 3,
            "tokens_per_second": 2,
        },
    }


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TINY_TOKENIZER)


def build_reference(config: dict[str, Any], scale: float, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """HF's model with random weights; a larger scale makes its distributions sharper."""
    declare_torchvision_operators()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(config))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model


@pytest.fixture(scope="session")
def reference(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    return build_reference(small_config(tokenizer), scale=0.15)


def build_engine(
    config: dict[str, Any],
    tokenizer: Tokenizer,
    weights: dict[str, torch.Tensor] | None,
    max_context: int = 1024,
    prefill_tokens: int = 2048,
    dtype: torch.dtype = torch.float32,
    top_p: float = 1.0,
) -> NativeEngine:
    engine = NativeEngine(
        config,
        stop_token=tokenizer.im_end,
        forbidden_tokens=tokenizer.forbidden,
        max_context=max_context,
        dtype=dtype,
        device=torch.device("cpu"),
        prefill_tokens=prefill_tokens,
        top_p=top_p,
    )
    if weights is not None:
        engine.load_weights(weights.items(), version=0)
    return engine


@pytest.fixture
def engine(tokenizer: Tokenizer, reference: Qwen2_5_VLForConditionalGeneration) -> NativeEngine:
    return build_engine(small_config(tokenizer), tokenizer, reference.state_dict())


def noise_image(seed: int, height: int = 112, width: int = 224) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.no_grad()
def teacher_forced(
    model: Qwen2_5_VLForConditionalGeneration, tokens: NDArray[np.int32], image: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """log p(tokens[t] | tokens[<t]) of HF's model for one conversation with one image; entry 0 is 0."""
    pixels, grid = patchify([image])
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    model.rope_deltas = None
    logits = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, use_cache=False).logits
    logprobs = logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return np.concatenate(([0.0], logprobs.numpy()))


def play(
    engine: NativeEngine,
    tokenizer: Tokenizer,
    questions: list[str],
    images: list[NDArray[np.uint8]],
    feedback: list[list[str]],
    max_new_tokens: int = 12,
    temperature: float = 1.0,
) -> list[Conversation]:
    """Conversations of several turns, all in one batch; `feedback[c]` has one text for each turn after the first."""
    names = [f"c{index}" for index in range(len(questions))]
    talks = [Conversation(tokenizer, q, grid_of(i)) for q, i in zip(questions, images, strict=True)]
    for name, talk, image in zip(names, talks, images, strict=True):
        engine.add([name], talk.tokens, image)
    for turn in range(1 + max(len(texts) for texts in feedback)):
        playing = [c for c in range(len(talks)) if turn <= len(feedback[c])]
        for c in playing:
            if turn:
                known = len(talks[c])
                talks[c].add_feedback(feedback[c][turn - 1])
                engine.extend(names[c], talks[c].tokens[known:])
        answers = engine.generate(
            [names[c] for c in playing], max_new_tokens, temperature, [100 * c + turn for c in playing]
        )
        for c in playing:
            talks[c].add_answer(*answers[names[c]])
    engine.remove(names)
    return talks
