"""`trainer_process.py DIRECTORY`: the trainer's own model scores the conversations that engines have played.

DIRECTORY holds hf.json, weights.safetensors and a folder of conversations (.npz); results.json gets, by name, the largest
distance of the engine's log-probabilities from the trainer's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.models import parallel
from nemo_mtdrive.models.optimizer import OptimizerOptions
from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel, build_model
from nemo_mtdrive.transfer.images import patchify
from nemo_mtdrive.types import NOT_OURS


def gap(model: Qwen25VLModel, path: Path, image_pad: int, vision_start: int) -> float:
    talk = np.load(path)
    pixels, grid = patchify([talk["image"]])
    tokens = torch.from_numpy(talk["tokens"].astype(np.int64))[None]
    positions = mrope_positions(talk["tokens"], [tuple(grid[0].tolist())], image_pad, vision_start)
    batch = {
        "tokens": tokens, "positions": torch.from_numpy(np.ascontiguousarray(positions))[:, None],
        "lengths": torch.tensor([tokens.shape[1]]), "pixel_values": pixels, "image_grid_thw": grid,
        "image_index": torch.tensor([0]),
    }  # fmt: skip
    model.temperature = float(talk["temperature"])
    (logprobs,) = model.get_inference_log_probs([batch])
    own = talk["turn_of_token"] != NOT_OURS
    return float(np.abs(logprobs[0].numpy() - talk["logprobs"])[own].max())


def main(directory: Path) -> None:
    hf = json.loads((directory / "hf.json").read_text())
    parallel.initialise(1, 1, seed=1, timeout_s=300)
    model = build_model(hf, optimizer=OptimizerOptions(1.0, 0.01, 0.9, 0.95, 1e-3, distributed=False),
                        dtype=torch.float32, max_length=1024, sequence_parallel=False)  # fmt: skip
    model.load_hf_state(load_file(directory / "weights.safetensors"))
    model.prepare_for_training()
    paths = sorted((directory / "conversations").glob("*.npz"))
    found = {path.stem: gap(model, path, hf["image_token_id"], hf["vision_start_token_id"]) for path in paths}
    (directory / "results.json").write_text(json.dumps(found))
    parallel.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
