"""Checkpoints from which training goes on bit by bit: weights, optimizer, reference weights, random states.

A checkpoint is a directory::

    step_000120/
        weights/          megatron dist_checkpointing, keys as NeMo 2 writes them ("module."), plus "reference."
        optimizer/        megatron dist_checkpointing: Adam's moments and step (absent for weights alone)
        random/           rank_00000.safetensors ...: random states of each rank
        config.json       HF's configuration of the model
        complete.json     written last: what is in it; a directory without this file is not a checkpoint

Weights and optimizer may be loaded on another number of ranks. `save` writes beside the target and renames, so that a
crash never leaves a half-written directory under a good name.
"""

from __future__ import annotations

import json
import queue
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel

MARKER = "complete.json"
FORMAT = 1


def save(model: Qwen25VLModel, directory: Path, notes: dict[str, Any]) -> Path:
    """Write a checkpoint; every rank takes part and returns when it is complete.

    Args:
        directory: where it will be; parents are made. An existing checkpoint there is replaced.
        notes: JSON values of the trainer's (step, sampler state), read back by `load`.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        for part in ("weights", "optimizer", "random"):
            (partial / part).mkdir(parents=True)
    dist.barrier()
    _save_sharded(_weights(model), partial / "weights")
    if model.optimizer is not None:
        _save_sharded(_optimizer(model, is_loading=False), partial / "optimizer")
    save_file(_random_states(), partial / "random" / f"rank_{dist.get_rank():05d}.safetensors")
    dist.barrier()
    if dist.get_rank() == 0:
        (partial / "config.json").write_text(json.dumps(model.config.hf, indent=1))
        contents = {
            "format": FORMAT,
            "world_size": dist.get_world_size(),
            "optimizer": model.optimizer is not None,
            "reference": model.reference is not None,
            "notes": notes,
        }
        (partial / MARKER).write_text(json.dumps(contents, indent=1))
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    dist.barrier()
    return directory


def load(model: Qwen25VLModel, directory: Path) -> dict[str, Any]:
    """Read a checkpoint into a built model; every rank takes part. Returns the notes given to `save`.

    Where the model is prepared for training its optimizer is restored too, and reference weights where there are some.
    Random states are restored when the number of ranks is the same.

    Raises:
        FileNotFoundError: there is no complete checkpoint. ValueError: it lacks the optimizer, or its format is newer.
    """
    contents = _contents(directory)
    weights = _weights(model, with_reference=contents["reference"])
    loaded = dist_checkpointing.load(weights, str(directory / "weights"))
    reference = loaded.pop("reference", None)
    model.module.load_state_dict(loaded["module"])
    if reference is not None:
        model.reference = {name: reference[name].cpu() for name, _ in model.module.named_parameters()}
    if model.optimizer is not None:
        if not contents["optimizer"]:
            raise ValueError(f"{directory} holds weights only: start training from them instead of resuming")
        state = dist_checkpointing.load(_optimizer(model, is_loading=True), str(directory / "optimizer"))
        model.optimizer.load_state_dict(state["optimizer"])
    if contents["world_size"] == dist.get_world_size():
        _restore_random_states(load_file(directory / "random" / f"rank_{dist.get_rank():05d}.safetensors"))
    dist.barrier()
    return contents["notes"]


def latest(directory: Path) -> Path | None:
    """The complete checkpoint in `directory` with the highest number at the end of its name, or None."""
    complete = [path.parent for path in directory.glob(f"*/{MARKER}") if not path.parent.name.startswith(".")]
    numbered = [(int(path.name.rpartition("_")[2]), path) for path in complete if path.name.rpartition("_")[2].isdigit()]
    return max(numbered)[1] if numbered else None


def _contents(directory: Path) -> dict[str, Any]:
    marker = directory / MARKER
    if not marker.is_file():
        raise FileNotFoundError(f"{directory} is not a complete checkpoint: {MARKER} is absent")
    contents = json.loads(marker.read_text())
    if contents["format"] != FORMAT:
        raise ValueError(f"{directory} has format {contents['format']}, this version reads {FORMAT}")
    return contents


def _weights(model: Qwen25VLModel, with_reference: bool | None = None) -> dict[str, Any]:
    """megatron's description of this rank's shards: which slice of which whole tensor each is."""
    sharded: dict[str, Any] = {"module": model.module.sharded_state_dict(prefix="module.")}
    sharded["module"] = {name.removeprefix("module."): part for name, part in sharded["module"].items()}
    if with_reference if with_reference is not None else model.reference is not None:
        sharded["reference"] = {}
        described = model.module.sharded_state_dict(prefix="reference.")
        for name, parameter in model.module.named_parameters():
            part = described[f"reference.{name}"]
            part.data = model.reference[name] if model.reference is not None else torch.empty_like(parameter, device="cpu")
            sharded["reference"][name] = part
    return sharded


def _optimizer(model: Qwen25VLModel, is_loading: bool) -> dict[str, Any]:
    assert model.optimizer is not None
    described = model.module.sharded_state_dict(prefix="module.")
    return {"optimizer": model.optimizer.sharded_state_dict(described, is_loading=is_loading)}


def _save_sharded(state: dict[str, Any], directory: Path) -> None:
    # mcore hands results over through a manager process, which it spawns with the whole program imported again. We save
    # synchronously, in this process: a plain queue will do.
    filesystem_async._results_queue = queue.Queue()
    dist_checkpointing.save(state, str(directory))


def _random_states() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states | {f"megatron.{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}


def _restore_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    prefix = "megatron."
    tracked = {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
    get_cuda_rng_tracker().set_states(tracked)
