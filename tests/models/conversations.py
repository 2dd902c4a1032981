"""The configurations and conversations on which the model is held against HF's."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.models.tiny import random_hf_state
from tests.models import material

Grid = tuple[int, int, int]
GRIDS: list[Grid] = [(1, 8, 16), (1, 12, 8), (1, 4, 4), (1, 10, 6), (1, 6, 14)]
"""Images of several sizes, in patches; the last three have windows that are not whole."""

Conversation = list[int]
"""Lengths of pieces of text [tokens] where above 0; -1 - i is image i of `GRIDS`."""

CONVERSATIONS: dict[str, list[Conversation]] = {
    "images": [[3, -1, 17], [4, -2, 3, -3, 5, -5, 2], [5, -4, 9]],
    "text": [[21], [8], [13]],
    "six_turns": [[5, -1, 6, *[9, 4] * 6], [6, -2, 4, *[7, 6] * 6]],
    "mixed": [[7], [2, -3, 4, -1, 3], [11, -4, 2]],
}


def hf_configs() -> dict[str, dict[str, Any]]:
    """`material`'s, and one that differs from it in whatever a config.json may say."""
    default = material.hf_config()
    vision = default["vision_config"] | {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_heads": 4,
        "out_hidden_size": 256,
        "window_size": 56,
        "fullatt_block_indexes": [0, 2],
    }
    other = default | {
        "hidden_size": 256,
        "intermediate_size": 320,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "vocab_size": 640,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 7, 5]},
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "image_token_id": 607,
        "video_token_id": 608,
        "vision_start_token_id": 601,
        "vision_end_token_id": 602,
        "vision_config": vision,
    }
    return {"default": default, "other": other}


@lru_cache
def weights(name: str) -> dict[str, Tensor]:
    """HF-named weights of a configuration; norms and biases are random too."""
    state = random_hf_state(hf_configs()[name], seed=7)
    generator = torch.Generator().manual_seed(8)
    for key, tensor in state.items():
        if tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif "embed" not in key:
            tensor.mul_(2.0)
    return state


def batch(config: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """A padded micro-batch of `CONVERSATIONS[kind]`, each image once."""
    generator = torch.Generator().manual_seed(len(kind))
    start, end, image = (config[f"{name}_token_id"] for name in ("vision_start", "vision_end", "image"))
    merge = config["vision_config"]["spatial_merge_size"]
    rows, positions, shown = [], [], []
    for conversation in CONVERSATIONS[kind]:
        tokens: list[int] = []
        images = [-1 - piece for piece in conversation if piece < 0]
        for piece in conversation:
            if piece > 0:
                tokens += torch.randint(5, material.TEXT_TOKENS, (piece,), generator=generator).tolist()
            else:
                frames, height, width = GRIDS[-1 - piece]
                tokens += [start, *[image] * (frames * height * width // merge**2), end]
        rows.append(torch.tensor(tokens))
        place = mrope_positions(np.array(tokens), [GRIDS[index] for index in images], image, start, merge)
        positions.append(torch.from_numpy(place).T)
        shown += images
    unique = list(dict.fromkeys(shown))
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = {
        "tokens": padded,
        "positions": torch.nn.utils.rnn.pad_sequence(positions, batch_first=True).permute(2, 0, 1),
        "lengths": torch.tensor([len(tokens) for tokens in rows]),
        "weight": torch.rand(padded.shape, generator=generator) / padded.numel(),
    }
    if not unique:
        return found
    vision = config["vision_config"]
    pixels = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    grids = torch.tensor([GRIDS[index] for index in unique])
    patches = int(grids.prod(dim=1).sum())
    return found | {
        "pixel_values": torch.randn(patches, pixels, generator=generator),
        "image_grid_thw": grids,
        "image_index": torch.tensor([unique.index(index) for index in shown]),
    }
