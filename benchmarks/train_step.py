"""Training step on a packed row: our Megatron model beside HF transformers, forward and backward, same shapes.

    python benchmarks/train_step.py [--json] [--config tiny|3b|7b] [--tokens 11500] [--conversations 6]

Ours runs the conversations packed in one row; HF runs them padded in one batch with its fastest attention (flash where
flash-attn is installed, else SDPA), which is what its users do. Weights are random. Each side has a process of its own,
so that peak memory is its own. Every real token but the first of a conversation is scored on both sides.

MFU counts 6 floating-point operations for each weight of a matrix product and token (12 width x length for attention,
half of it causal), without recomputation, over the dense bf16 peak of the GPU. Without a GPU it is null: a CPU run
shows that the program works and how the two compare there, nothing more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DENSE_BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
TEXT_TOKENS = 500
GRIDS = {"tiny": (1, 8, 16), "3b": (1, 36, 64), "7b": (1, 36, 64)}
"""Image of a conversation in patches: 504 x 896 pixels for the real sizes."""


def hf_config(name: str) -> dict[str, Any]:
    """The model: the demo's, or a published one."""
    from nemo_mtdrive.models.presets import preset_hf_config
    from nemo_mtdrive.models.tiny import tiny_hf_config

    if name != "tiny":
        return preset_hf_config(name)
    ids = {"image_pad": 600, "video_pad": 601, "vision_start": 602, "vision_end": 603, "im_start": 604, "im_end": 605}
    return tiny_hf_config(vocab_size=2048, max_length=16384, **ids)


def padded_batch(config: dict[str, Any], grid: tuple[int, int, int], tokens: int, conversations: int) -> dict[str, Tensor]:
    """Conversations of different lengths with an image each, `tokens` real tokens in all."""
    from nemo_mtdrive.dialogue.conversation import mrope_positions

    generator = np.random.default_rng(0)
    merge, image = config["vision_config"]["spatial_merge_size"], config["image_token_id"]
    start, end = config["vision_start_token_id"], config["vision_end_token_id"]
    shares = generator.uniform(0.7, 1.3, conversations)
    lengths = np.floor(tokens * shares / shares.sum()).astype(int)
    lengths[0] += tokens - lengths.sum()
    cells = grid[0] * grid[1] * grid[2] // merge**2
    if lengths.min() < cells + 4:
        raise ValueError(f"--tokens {tokens}: too few for {conversations} images of {cells} tokens, raise it")
    rows = [
        np.concatenate(([5, start], [image] * cells, [end], generator.integers(5, TEXT_TOKENS, length - cells - 3)))
        for length in lengths
    ]
    positions = [torch.from_numpy(mrope_positions(row, [grid], image, start, merge)).T for row in rows]
    vision = config["vision_config"]
    pixels = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    patches = conversations * grid[0] * grid[1] * grid[2]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "tokens": pad([torch.from_numpy(row).long() for row in rows], batch_first=True),
        "positions": pad(positions, batch_first=True).permute(2, 0, 1),
        "lengths": torch.from_numpy(lengths).long(),
        "pixel_values": torch.from_numpy(generator.standard_normal((patches, pixels), dtype=np.float32)),
        "image_grid_thw": torch.tensor([grid] * conversations),
        "image_index": torch.arange(conversations),
    }


def flops(config: dict[str, Any], batch: dict[str, Tensor]) -> float:
    """Floating-point operations of one forward and backward pass; see the module's docstring."""
    hidden, layers, mlp = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] / config["num_attention_heads"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * mlp) + hidden * config["vocab_size"]
    lengths = batch["lengths"].double()
    total = 6 * weights * lengths.sum() + 6 * layers * hidden * lengths.square().sum()
    vision = config["vision_config"]
    width, patches = vision["hidden_size"], batch["image_grid_thw"].prod(dim=1).double()
    merged = width * vision["spatial_merge_size"] ** 2
    tower = vision["depth"] * (4 * width * width + 3 * width * vision["intermediate_size"])
    merger = (merged * merged + merged * hidden) / vision["spatial_merge_size"] ** 2
    full = len(vision["fullatt_block_indexes"])
    seen = full * patches + (vision["depth"] - full) * (vision["window_size"] // vision["patch_size"]) ** 2
    return float(total + 6 * (tower + merger) * patches.sum() + (12 * width * patches * seen).sum())


def our_side(options: argparse.Namespace) -> Callable[[], float]:
    """A function that does one forward and backward pass and returns the loss."""
    from nemo_mtdrive.models import parallel
    from nemo_mtdrive.models.packing import pack
    from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, build_model

    config = hf_config(options.config)
    parallel.initialise(1, 1, seed=1, timeout_s=60)
    distributed = parallel.device().type == "cuda"
    model = build_model(
        config, optimizer=OptimizerOptions(1.0, 0.0, 0.9, 0.95, 1e-8, distributed), sequence_parallel=False,
        dtype=dtype(), max_length=options.tokens, recompute=options.recompute,
    )  # fmt: skip
    batch = pack(padded_batch(config, GRIDS[options.config], options.tokens, options.conversations))
    model.loss_function = lambda logprobs, _: (-logprobs.sum() / options.tokens, {})
    model.prepare_for_training()

    def step() -> float:
        model.prepare_for_training_step()
        return model.get_loss_and_metrics([batch], forward_only=False)[0]

    return step


def hf_side(options: argparse.Namespace) -> Callable[[], float]:
    """The same with HF's model."""
    from nemo_mtdrive.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config, device = hf_config(options.config), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(dtype())
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            Qwen2_5_VLConfig.from_dict(config), attn_implementation=hf_attention()
        )
    torch.set_default_dtype(torch.float32)
    model.train()
    if options.recompute != "none":
        model.gradient_checkpointing_enable()
    batch = padded_batch(config, GRIDS[options.config], options.tokens, options.conversations)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    real = torch.arange(batch["tokens"].shape[1], device=device) < batch["lengths"][:, None]
    labels = batch["tokens"].masked_fill(~real, -100)

    def step() -> float:
        model.zero_grad()
        output = model(
            input_ids=batch["tokens"], attention_mask=real.long(), position_ids=batch["positions"], labels=labels,
            pixel_values=batch["pixel_values"].to(dtype()), image_grid_thw=batch["image_grid_thw"], use_cache=False,
        )  # fmt: skip
        output.loss.backward()
        return float(output.loss)

    return step


def hf_attention() -> str:
    """HF's fastest attention on this machine."""
    return "flash_attention_2" if torch.cuda.is_available() and installed("flash_attn") else "sdpa"


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def dtype() -> torch.dtype:
    """bf16 on a GPU; float32 on a CPU, many of which have no bf16 arithmetic."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest step (other work on the machine only ever slows one down), peak memory, loss."""
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time  # a CPU is shared, a lent GPU is not
    start = our_side(options) if options.side == "ours" else hf_side(options)
    seconds, loss = [], 0.0
    for _ in range(options.warm_up + options.steps):
        begin = clock()
        loss = start()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return {"seconds": min(seconds[options.warm_up :]), "peak_memory_gb": peak / 1e9, "loss": loss}


def run_side(side: str) -> dict[str, float]:
    """One side in its own process."""
    with tempfile.TemporaryFile("w+") as errors:
        environment = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29671"}
        command = [sys.executable, "-W", "ignore", *sys.argv, "--side", side]
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
        errors.seek(0)
        if ran.returncode:
            raise RuntimeError(f"{side} failed with {ran.returncode}: {errors.read()[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides and what follows from them."""
    config = hf_config(options.config)
    operations = flops(config, padded_batch(config, GRIDS[options.config], options.tokens, options.conversations))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    peak = next((rate for name, rate in DENSE_BF16_PEAK.items() if name in device), None)
    sides = {}
    for side in ("ours", "hf"):
        print(f"{side}: {options.warm_up + options.steps} steps on {device}", file=sys.stderr)
        found = run_side(side)
        sides[side] = found | {
            "tokens_per_s": options.tokens / found["seconds"],
            "mfu": None if peak is None else operations / found["seconds"] / peak,
        }
    machine = {"device": device, "measured_on_gpu": device != "cpu", "cpu": platform.processor() or platform.machine(),
               "cpus": os.cpu_count(), "threads": options.threads, "torch": torch.__version__}  # fmt: skip
    setting = {"config": options.config, "tokens": options.tokens, "conversations": options.conversations,
               "dtype": str(dtype()), "recompute": options.recompute, "hf_attention": hf_attention(),
               "transformer_engine": torch.cuda.is_available() and installed("transformer_engine"),
               "timed": "forward and backward, without the optimizer; CPU time on a CPU",
               "tflop_a_step": operations / 1e12}  # fmt: skip
    ratio = sides["hf"]["seconds"] / sides["ours"]["seconds"]
    return {"benchmark": "train_step", "command": " ".join(["python", *sys.argv]), "machine": machine, "setting": setting,
            "figures": sides["ours"], "peers": {"hf": sides["hf"]}, "ratios": {"tokens_per_s_to_hf": ratio}}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--config", choices=sorted(GRIDS), default="3b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--tokens", type=int, default=11500, help="real tokens of the packed row")
    parser.add_argument("--conversations", type=int, default=6, help="conversations in the row, an image each")
    choices, usual = ("none", "selective", "full"), "full" if torch.cuda.is_available() else "none"
    parser.add_argument("--recompute", choices=choices, default=usual, help="of activations; HF knows none or all")
    parser.add_argument("--steps", type=int, default=3, help="timed steps; the fastest counts")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--side", choices=("ours", "hf"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    result = compare(options)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{result['machine']['device']}, {options.config}, {options.tokens} tokens, {result['setting']['timed']}")
    for side, found in (("ours", result["figures"]), ("hf", result["peers"]["hf"])):
        mfu = "not on a GPU" if found["mfu"] is None else f"{found['mfu']:.1%}"
        print(f"{side:5} {found['tokens_per_s']:10.0f} tok/s  MFU {mfu}  peak {found['peak_memory_gb']:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
