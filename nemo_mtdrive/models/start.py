"""The weights that training starts from: a Hugging Face directory or a NeMo-2 directory, read shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models.convert import check_source, check_split
from nemo_mtdrive.models.directories import WEIGHTS, is_nemo, model_config, nemo_directory
from nemo_mtdrive.models.hf_files import HFTensors
from nemo_mtdrive.models.nemo_files import read_metadata

if TYPE_CHECKING:
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel


def check_start(directory: Path, tensor_size: int, pipeline_size: int) -> None:
    """Refuse, before any process is started, a directory that training cannot start from.

    Raises:
        ConversionError: it is not whole, of another family, or does not divide over the ranks.
    """
    config = Qwen2_5_VLConfig.from_dict(model_config(directory))
    check_split(config, tensor_size, pipeline_size, names=("parallel.tensor=", "parallel.pipeline="))
    if is_nemo(directory):
        read_metadata(nemo_directory(directory) / WEIGHTS)
    else:
        check_source(HFTensors(directory), config)


def load_start(model: Qwen25VLModel, directory: Path) -> None:
    """Read a directory's weights into a built model; every rank takes part and holds one tensor beside its own.

    Raises:
        ConversionError: it is not whole. ValueError: it belongs to another model.
    """
    from nemo_mtdrive.models import checkpoint

    if is_nemo(directory):
        checkpoint.load_weights(model, directory)
    else:
        model.load_hf_state(HFTensors(directory))
