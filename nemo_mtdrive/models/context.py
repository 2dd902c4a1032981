"""The `context` folder of a NeMo-2 checkpoint directory: what builds the model again, and the files of Hugging Face.

    context/io.json, model.yaml     NeMo's own: `nemo.lightning.io.load_context` builds the model class from them
    context/hf/                     config.json, tokenizer, processor, chat template: all that lay beside the HF weights
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_mtdrive.models.directories import CONTEXT, HF_FILES
from nemo_mtdrive.models.hf_files import carried_files, flat_config

if TYPE_CHECKING:
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel


def write_context(directory: Path, model: Qwen25VLModel, carried: Path | None) -> None:
    """Write `directory`/context for a model, which need not be built (`configure_model`). One process does it.

    Args:
        carried: folder whose tokenizer and processor files go along; its config.json is not taken, the model's is.
    """
    from nemo import lightning as nl
    from nemo.lightning.io.pl import TrainerContext

    context = directory / CONTEXT
    (context / HF_FILES).mkdir(parents=True)
    for path in carried_files(carried) if carried is not None else ():
        shutil.copyfile(path, context / HF_FILES / path.name)
    write_hf_config(context / HF_FILES, model.config.hf, carried)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
                 "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they list this machine's devices
    parallel = model.config.language_transformer_config
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size, ckpt_save_optimizer=False,
        always_save_context=True)
    trainer = nl.Trainer(devices=1, accelerator="cpu", strategy=strategy)
    TrainerContext(model=model, trainer=trainer, extra={}).io_dump(context, yaml_attrs=["model"])


def write_hf_config(folder: Path, config: Mapping[str, Any], carried: Path | None) -> None:
    """The config.json that lay beside the weights, byte for byte, if it says the same; else the model's own."""
    source = carried / "config.json" if carried is not None else None
    if source is None or not source.is_file() or _meaning(json.loads(source.read_text())) != _meaning(config):
        (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig.from_dict(flat_config(config)).to_dict()
