"""Two Hugging Face directories of different make, as a user would have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config

CARRIED = {"tokenizer.json": '{"a": 1}\n', "preprocessor_config.json": "{}", "chat_template.jinja": "{{ x }}",
           "LICENSE": "free"}


def plain_config() -> dict[str, Any]:
    """Untied embeddings, heads of 128."""
    return tiny_hf_config(vocab_size=512, image_pad=500, video_pad=501, vision_start=502, vision_end=503, im_start=504,
                          im_end=505, layers=2, mlp=128, vision_hidden=64, vision_mlp=128)


def tied_config() -> dict[str, Any]:
    """Tied embeddings, query groups, other M-RoPE sections, vision depth, windows and token ids."""
    config = tiny_hf_config(vocab_size=256, image_pad=200, video_pad=201, vision_start=190, vision_end=191, im_start=204,
                            im_end=205, layers=4, mlp=128, vision_layers=3, vision_hidden=64, vision_mlp=128)
    config["vision_config"] |= {"fullatt_block_indexes": [1], "window_size": 56}
    return config | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
                     "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}, "torch_dtype": "bfloat16"}


def weights_of(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights with random norms and biases."""
    generator = torch.Generator().manual_seed(3)
    state = random_hf_state(config, seed=4)
    for tensor in state.values():
        if tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def write_hf(folder: Path, config: dict[str, Any], state: dict[str, Tensor], files: int) -> Path:
    """A directory as transformers writes it, with `files` safetensors files of about equal size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name, text in CARRIED.items():
        (folder / name).write_text(text)
    names = list(state)
    parts = [names[at::files] for at in range(files)]
    place = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if files == 1 else f"model-{number:05d}-of-{files:05d}.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(part, file)
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


def read_hf(folder: Path) -> dict[str, Tensor]:
    """All tensors, by the safetensors library."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Names, dtypes, shapes and every bit."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, one file."""
    return write_hf(tmp_path_factory.mktemp("hf") / "plain", plain_config(), weights_of(plain_config(), torch.float32), 1)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16, tied, three files with an index."""
    return write_hf(tmp_path_factory.mktemp("hf") / "tied", tied_config(), weights_of(tied_config(), torch.bfloat16), 3)
