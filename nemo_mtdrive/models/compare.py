"""Are two directories the same model? The logits of Hugging Face's model and of Megatron's on one image prompt."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from nemo_mtdrive.models import checkpoint, parallel
from nemo_mtdrive.models.directories import WEIGHTS, nemo_directory
from nemo_mtdrive.models.hf_files import HFTensors, read_config
from nemo_mtdrive.models.nemo_files import NemoTensors
from nemo_mtdrive.models.optimizer import OptimizerOptions

TOLERANCE = 1e-4
"""Largest difference of two logits over the largest logit: float32 sums in another order, through all layers."""
_GRID = (1, 16, 24)
"""Patches of the prompt's image (frames, height, width)."""
_TEXT = 48


@dataclass(frozen=True)
class Comparison:
    """What was found on the prompt."""

    tokens: int
    largest_logit: float
    difference: float
    """Largest absolute difference of two logits."""
    same_choice: float
    """Share of positions where both rank the same token first."""

    @property
    def equal(self) -> bool:
        """Within `TOLERANCE`."""
        return self.difference <= TOLERANCE * self.largest_logit

    def __str__(self) -> str:
        return (f"logits differ by {self.difference:.2e} at most (largest {self.largest_logit:.2f}) on {self.tokens} tokens;"
                f" the first choice agrees on {self.same_choice:.1%}")


def compare_logits(hf: Path, nemo: Path) -> Comparison:
    """Run both in float32, one after the other, in this process (host memory: twice that of bfloat16 weights).

    Where one side stores bfloat16, the other's weights are rounded to it: what is lost by --dtype is no difference. The
    prompt has an image and text of random tokens, seeded. Takes the process group: call it once, at the end.
    """
    config = Qwen2_5_VLConfig.from_dict(read_config(hf))
    prompt = _prompt(config)
    stored = HFTensors(hf)
    rounded = torch.bfloat16 in {stored.dtype(name) for name in stored} | NemoTensors(nemo_directory(nemo) / WEIGHTS).dtypes
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(hf, torch_dtype=torch.float32, attn_implementation="sdpa")
    _round(model, rounded)
    with torch.inference_mode():
        positions, _ = model.get_rope_index(prompt["input_ids"], prompt["image_grid_thw"])
        expected = model.eval()(**prompt, position_ids=positions).logits
    del model
    found = _megatron_logits(config, nemo, prompt, positions, rounded)
    return Comparison(expected.shape[1], expected.abs().max().item(), (found - expected).abs().max().item(),
                      (found.argmax(-1) == expected.argmax(-1)).float().mean().item())


def _round(model: torch.nn.Module, rounded: bool) -> None:
    if rounded:
        for parameter in model.parameters():
            parameter.data.copy_(parameter.data.bfloat16())


def _prompt(config: Qwen2_5_VLConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    special = (config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)
    vision = config.vision_config
    words = torch.randint(0, min(special), (_TEXT,), generator=generator).tolist()
    cells = _GRID[0] * _GRID[1] * _GRID[2] // vision.spatial_merge_size**2
    tokens = [*words[:8], config.vision_start_token_id, *[config.image_token_id] * cells, config.vision_end_token_id,
              *words[8:]]
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = torch.randn(_GRID[0] * _GRID[1] * _GRID[2], values, generator=generator)
    return {"input_ids": torch.tensor([tokens]), "pixel_values": patches, "image_grid_thw": torch.tensor([_GRID])}


def _megatron_logits(config: Qwen2_5_VLConfig, nemo: Path, prompt: dict[str, Tensor], positions: Tensor,
                     rounded: bool) -> Tensor:
    from nemo_mtdrive.models.qwen25_vl import build_model

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    parallel.initialise(1, 1, seed=0, timeout_s=60)
    try:
        tokens = prompt["input_ids"]
        model = build_model(config, optimizer=OptimizerOptions(1.0, 0.0, 0.9, 0.95, 1e-8, distributed=False),
                            sequence_parallel=False, dtype=torch.float32, max_length=tokens.shape[1])
        checkpoint.load_weights(model, nemo)
        _round(model.module, rounded)
        device = parallel.device()
        with torch.inference_mode():
            logits = model.module.eval()(tokens.to(device), positions.to(device), prompt["pixel_values"].to(device),
                                         prompt["image_grid_thw"].to(device))
        return logits.cpu()
    finally:
        parallel.shutdown()
