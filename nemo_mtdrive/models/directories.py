"""Where things lie in a model directory: Hugging Face's, NeMo 2's, or a checkpoint of a run. Imports no megatron."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_mtdrive.models.hf_files import read_config
from nemo_mtdrive.models.whole_directory import ConversionError

WEIGHTS, CONTEXT, HF_FILES = "weights", "context", "hf"


def nemo_directory(path: Path) -> Path:
    """`path` itself or, for a checkpoint of a run, the model in it; it holds `weights`.

    Raises:
        ConversionError: there are no weights.
    """
    for found in (path, path / "model"):
        if (found / WEIGHTS).is_dir():
            return found
    raise ConversionError(f"{path}: no {WEIGHTS} folder there; give a NeMo 2 checkpoint directory")


def hf_files(directory: Path) -> Path:
    """The folder with config.json and tokenizer of a NeMo-2 directory or a Hugging Face directory.

    Raises:
        ConversionError: it has none.
    """
    if (directory / "config.json").is_file():
        return directory
    found = nemo_directory(directory) / CONTEXT / HF_FILES
    if not (found / "config.json").is_file():
        raise ConversionError(f"{directory}: no {CONTEXT}/{HF_FILES}/config.json there: another program wrote it; name the"
                              " directory of its Hugging Face model with --hf")
    return found


def model_directory(path: Path) -> Path:
    """`path` itself or, for the folder of a run, its last checkpoint.

    Raises:
        ConversionError: no model is there.
    """
    for found in (path, path / "checkpoints" / "latest"):
        if (found / "config.json").is_file() or any((found / part / WEIGHTS).is_dir() for part in ("", "model")):
            return found
    raise ConversionError(f"{path}: neither config.json nor a {WEIGHTS} folder there; give a Hugging Face directory of"
                          " Qwen2.5-VL, a NeMo 2 directory, a run or one of its checkpoints")


def is_nemo(directory: Path) -> bool:
    """Whether a directory holds NeMo weights (else it is taken for Hugging Face's)."""
    return any((found / WEIGHTS / "metadata.json").is_file() for found in (directory, directory / "model"))


def model_config(directory: Path) -> dict[str, Any]:
    """HF's configuration of the model in a NeMo-2 or Hugging Face directory. Raises ConversionError."""
    return read_config(hf_files(directory))
