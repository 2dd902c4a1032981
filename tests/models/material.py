"""Weights and batches of the model tests: small, seeded, with nothing at its trivial value."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config

TEXT_TOKENS = 480
"""Ids below this are plain text."""
IMAGE, VIDEO, START, END = 500, 501, 502, 503


def hf_config() -> dict[str, Any]:
    """Two layers, four heads on two groups of keys, windows and full attention in the vision tower."""
    config = tiny_hf_config(
        vocab_size=512,
        image_pad=IMAGE,
        video_pad=VIDEO,
        vision_start=START,
        vision_end=END,
        im_start=504,
        im_end=505,
        layers=2,
        hidden=512,
        mlp=192,
    )
    return config | {"num_key_value_heads": 2}


@lru_cache
def weights() -> dict[str, Tensor]:
    """HF-named weights whose norms and biases are random too."""
    state = random_hf_state(hf_config(), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in state.items():
        if tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif "embed" not in name:
            tensor.mul_(2.0)
    return state


def hf_model() -> Any:
    """HF's own model with these weights, in float32."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(hf_config())).float().eval()
    model.load_state_dict(weights(), strict=True)
    return model


def batch() -> dict[str, Tensor]:
    """Three sequences of different lengths with images of different sizes."""
    return _batch([(1, 8, 16), (1, 12, 8), (1, 8, 8)], [0, 1, 2], [17, 9, 13], seed=3)


def microbatches() -> list[dict[str, Tensor]]:
    """Four micro-batches of two sequences; their lengths differ."""
    grids = [(1, 8, 8), (1, 4, 8)]
    return [_batch(grids, [0, 1], [9 + 2 * index, 14 - index], seed=10 + index) for index in range(4)]


def shared_images() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Four sequences of which three show one image: the images once, and the same with a copy for each."""
    index, lengths = [1, 0, 1, 1], [8, 9, 10, 11]
    shared = _batch([(1, 8, 8), (1, 8, 16)], index, lengths, seed=5)
    first, second = shared["pixel_values"].split([64, 128])
    parts = [(first, second)[image] for image in index]
    grids = shared["image_grid_thw"][index]
    copied = shared | {"pixel_values": torch.cat(parts), "image_grid_thw": grids, "image_index": torch.arange(4)}
    return shared, copied


def row(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One sequence of a batch by itself, without padding."""
    length = int(batch["lengths"][index])
    patches = batch["image_grid_thw"].prod(dim=1).tolist()
    return {
        "tokens": batch["tokens"][index : index + 1, :length],
        "positions": batch["positions"][:, index : index + 1, :length],
        "lengths": batch["lengths"][index : index + 1],
        "pixel_values": batch["pixel_values"].split(patches)[index],
        "image_grid_thw": batch["image_grid_thw"][index : index + 1],
        "image_index": torch.tensor([0]),
    }


def dense_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B, T] log p(tokens[t] | tokens[<t]) from whole logits; entry 0 is 0."""
    table = torch.log_softmax(logits.float(), dim=-1)[:, :-1]
    return torch.nn.functional.pad(table.gather(-1, tokens[:, 1:, None]).squeeze(-1), (1, 0))


def _batch(grids: list[tuple[int, int, int]], index: list[int], text: list[int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, positions = [], []
    for image, length in zip(index, text, strict=True):
        _, height, width = grids[image]
        words = torch.randint(5, TEXT_TOKENS, (length,), generator=generator).tolist()
        cells = height * width // 4
        rows.append([5, 6, START, *[IMAGE] * cells, END, *words])
        positions.append(_positions(3, height // 2, width // 2, 1 + length))
    lengths = torch.tensor([len(tokens) for tokens in rows])
    longest = int(lengths.max())
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    place = torch.zeros(3, len(rows), longest, dtype=torch.int64)
    for at, (ids, position) in enumerate(zip(rows, positions, strict=True)):
        tokens[at, : len(ids)] = torch.tensor(ids)
        place[:, at, : len(ids)] = position
    patches = sum(frames * height * width for frames, height, width in grids)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {
        "tokens": tokens,
        "positions": place,
        "lengths": lengths,
        "attention_mask": mask,
        "pixel_values": torch.randn(patches, 1176, generator=generator),
        "image_grid_thw": torch.tensor(grids),
        "image_index": torch.tensor(index),
        "weight": torch.rand(tokens.shape, generator=generator) / 50,
    }


def _positions(before: int, height: int, width: int, after: int) -> Tensor:
    """[3, T] M-RoPE positions of text, an image of height x width merged cells, text."""
    cells = torch.stack(
        (
            torch.zeros(height, width, dtype=torch.int64),
            torch.arange(height)[:, None].expand(height, width),
            torch.arange(width).expand(height, width),
        )
    ).flatten(1)
    next_one = before + max(height, width)
    return torch.cat(
        (torch.arange(before).expand(3, -1), cells + before, torch.arange(next_one, next_one + after).expand(3, -1)), 1
    )
