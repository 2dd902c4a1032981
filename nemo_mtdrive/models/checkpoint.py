"""Checkpoints from which training goes on bit by bit: weights, optimizer, reference weights, random states.

A checkpoint is a NeMo-2 directory with a little more::

    context/          the model's configuration, tokenizer and processor (`context`)
    weights/          megatron dist_checkpointing, keys as NeMo 2 writes them ("module."), plus "reference."
    optimizer/        megatron dist_checkpointing: Adam's moments and step (absent for weights alone)
    random/           rank_00000.safetensors ...: random states of each rank
    training.json     what is in it

Weights and optimizer may be loaded on any other tensor, pipeline and data-parallel sizes. `callbacks.retention` makes a
checkpoint whole or not there, and decides which stay; it gives the directory to write in.
"""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_mtdrive.models.context import write_context
from nemo_mtdrive.models.directories import WEIGHTS, nemo_directory
from nemo_mtdrive.models.nemo_files import read_metadata

if TYPE_CHECKING:
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel

OPTIMIZER, RANDOM = "optimizer", "random"
CONTENTS = "training.json"
FORMAT = 2
_EXTRA = "_extra_state"
"""What transformer-engine keeps for fp8, which is not used here."""


def save(model: Qwen25VLModel, directory: Path, carried: Path | None = None) -> None:
    """Write a checkpoint; every rank takes part and returns when all have written.

    Args:
        directory: new, or empty.
        carried: folder of tokenizer and processor files that go along, so that the checkpoint can be used by itself.
    """
    if dist.get_rank() == 0:
        for part in (WEIGHTS, OPTIMIZER, RANDOM):
            (directory / part).mkdir(parents=True)
        write_context(directory, model, carried)
    dist.barrier()
    _save_sharded(_weights(model, with_reference=model.reference is not None), directory / WEIGHTS)
    if model.optimizer is not None:
        _save_sharded(_optimizer(model, is_loading=False), directory / OPTIMIZER)
    save_file(_random_states(), directory / RANDOM / f"rank_{dist.get_rank():05d}.safetensors")
    if dist.get_rank() == 0:
        contents = {
            "format": FORMAT,
            "world_size": dist.get_world_size(),
            "optimizer": model.optimizer is not None,
            "reference": model.reference is not None,
        }
        (directory / CONTENTS).write_text(json.dumps(contents, indent=1))
    dist.barrier()


def load(model: Qwen25VLModel, directory: Path) -> None:
    """Read a checkpoint into a built model, on any process grid; every rank takes part.

    Where the model is prepared for training its optimizer is restored too, and reference weights where there are some.
    Random states are restored when the number of ranks is the same.

    Raises:
        FileNotFoundError: there is no checkpoint of a training. ValueError: it lacks the optimizer, has another format,
        or belongs to another model.
    """
    contents = _contents(directory)
    reference = _load_weights(model, directory / WEIGHTS, with_reference=contents["reference"])
    if reference is not None:
        model.reference = {name: reference[name].cpu() for name, _ in model.module.named_parameters()}
    if model.optimizer is not None:
        if not contents["optimizer"]:
            raise ValueError(f"{directory} holds weights only: start training from them instead of resuming")
        state = _load_sharded(_optimizer(model, is_loading=True), directory / OPTIMIZER)
        model.optimizer.load_state_dict(state["optimizer"])
    if contents["world_size"] == dist.get_world_size():
        _restore_random_states(load_file(directory / RANDOM / f"rank_{dist.get_rank():05d}.safetensors"))
    dist.barrier()


def load_weights(model: Qwen25VLModel, directory: Path) -> None:
    """Read the weights alone, of any NeMo-2 directory of this architecture or a checkpoint; every rank takes part.

    Raises:
        ConversionError: the directory is not whole. ValueError: it belongs to another model.
    """
    _load_weights(model, nemo_directory(directory) / WEIGHTS, with_reference=False)
    if model.optimizer is not None:
        model.optimizer.reload_model_params()
    dist.barrier()


def _contents(directory: Path) -> dict[str, Any]:
    path = directory / CONTENTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a checkpoint of a training: {CONTENTS} is absent")
    contents = json.loads(path.read_text())
    if contents["format"] != FORMAT:
        raise ValueError(f"{directory} has format {contents['format']}, this version reads {FORMAT}")
    return contents


def _load_weights(model: Qwen25VLModel, weights: Path, with_reference: bool) -> dict[str, Tensor] | None:
    """Returns this rank's reference weights, if they are asked for."""
    wanted = _weights(model, with_reference)
    wanted["module"] = {name: part for name, part in wanted["module"].items() if not name.endswith(_EXTRA)}
    loaded = _load_sharded(wanted, weights)
    reference = loaded.pop("reference", None)
    problems = model.module.load_state_dict(loaded["module"], strict=False)
    wrong = [name for name in (*problems.missing_keys, *problems.unexpected_keys) if not name.endswith(_EXTRA)]
    if wrong:
        raise ValueError(f"{weights}: {', '.join(wrong[:3])} do not belong to this model; take another checkpoint")
    return reference


def _load_sharded(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    read_metadata(directory)  # refuses what megatron would unpickle
    try:
        return dist_checkpointing.load(state, str(directory))
    except (dist_checkpointing.core.CheckpointingException, KeyError) as error:
        raise ValueError(f"{directory} does not belong to this model: {str(error)[:200]}") from error


def _weights(model: Qwen25VLModel, with_reference: bool) -> dict[str, Any]:
    """megatron's description of this rank's shards: which slice of which whole tensor each is."""
    sharded: dict[str, Any] = {"module": model.module.sharded_state_dict(prefix="module.")}
    sharded["module"] = {name.removeprefix("module."): part for name, part in sharded["module"].items()}
    if with_reference:
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
