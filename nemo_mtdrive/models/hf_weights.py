"""The weights of a model directory under Hugging Face's names, whatever program wrote it: what an engine loads.

A Hugging Face directory is read without megatron, so that an engine's own Python environment can do it too; the
`.metadata` of a NeMo-2 directory names megatron's records and needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from nemo_mtdrive.models.directories import is_nemo, model_config
from nemo_mtdrive.models.hf_files import HFTensors


def hf_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight, each read when it is asked for.

    Args:
        directory: Hugging Face's, NeMo 2's, or a checkpoint of a run.

    Raises:
        ConversionError: it is not whole, or of another family.
    """
    if is_nemo(directory):
        from nemo_mtdrive.models.convert import nemo_weights

        yield from nemo_weights(directory)
        return
    tied = bool(model_config(directory).get("tie_word_embeddings"))
    tensors = HFTensors(directory)
    for name in tensors:
        if name.endswith("inv_freq") or (tied and name == "lm_head.weight"):
            continue  # copies that some programs write
        yield name, tensors[name]
