"""`nemo-mtdrive plan`: what a GPU's memory goes to, and what fits, before a cluster is asked for."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from nemo_mtdrive.config import ConfigError

if TYPE_CHECKING:
    from nemo_mtdrive.models.memory_plan import MemoryPlan


def run(options: argparse.Namespace) -> int:
    """Print the plan; returns 0, or 1 where it does not fit.

    Raises:
        ConfigError: no such model, or it does not divide so.
    """
    from transformers import Qwen2_5_VLConfig

    from nemo_mtdrive.models.directories import model_config
    from nemo_mtdrive.models.memory_plan import GIB, Split, plan_memory
    from nemo_mtdrive.models.presets import PRESETS, preset_hf_config
    from nemo_mtdrive.models.whole_directory import ConversionError

    if options.model.lower() not in PRESETS and not Path(options.model).is_dir():
        raise ConfigError(f"--model {options.model}: set it to {', '.join(PRESETS)} or a model directory")
    width, height = options.image
    split = Split(options.tp, options.pp, options.gpus, options.sequence, options.micro_batch, options.images, width, height,
                  options.recompute, options.sequence_parallel, not options.no_distributed_optimizer)
    try:
        known = options.model.lower() in PRESETS
        config = preset_hf_config(options.model.lower()) if known else model_config(Path(options.model))
        plan = plan_memory(Qwen2_5_VLConfig.from_dict(config), split, options.memory * GIB)
    except ConversionError as error:
        raise ConfigError(str(error)) from error
    if options.json:
        print(json.dumps({"model": options.model} | plan.as_json()))
    else:
        _show(options.model, plan)
    return 0 if plan.fits else 1


def _show(name: str, plan: MemoryPlan) -> None:
    from nemo_mtdrive.models.memory_plan import GIB, RESERVE

    split = plan.split
    print(f"Qwen2.5-VL {name}: {plan.parameters / 1e9:.2f} B parameters, {plan.vision_parameters / 1e9:.2f} B of them in the"
          " vision tower")
    images = f"{split.images} image{'s' * (split.images != 1)}"
    print(f"{split.gpus} GPUs of {plan.memory / GIB:.0f} GiB = tensor {split.tensor} x pipeline {split.pipeline} x data"
          f" {split.data}; {split.micro_batch} x {split.sequence} tokens with {images}; recompute {split.recompute}")
    table = Table(title="GiB on each GPU of a stage", title_justify="left")
    table.add_column("")
    for stage in range(split.pipeline):
        table.add_column(f"stage {stage}", justify="right")
    for label in ("weights", "gradients", "optimizer", "activations", "logits"):
        table.add_row(label, *(f"{getattr(stage, label) / GIB:.2f}" for stage in plan.stages))
    table.add_row("reserve", *[f"{RESERVE / GIB:.2f}"] * split.pipeline, end_section=True)
    table.add_row("total", *(f"{stage.total / GIB:.2f}" for stage in plan.stages))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)
    print(f"{'fits' if plan.fits else 'does NOT fit'}; besides, {plan.host_reference / GIB:.2f} GiB of host memory a GPU for"
          " the reference weights")
    print("longest sequence that fits: " + ", ".join(
        f"{length or 'none'} (recompute {recompute})" for recompute, length in plan.longest.items()))
