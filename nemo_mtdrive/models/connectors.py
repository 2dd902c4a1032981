"""The converters under NeMo's own names: `Qwen25VLModel.importer("hf://DIR")`, `io.import_ckpt`, `io.export_ckpt`.

`Qwen25VLModel` imports this module when it is asked for a connector; nothing else happens on import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo.lightning import io
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models.convert import hf_to_nemo, nemo_to_hf, one_dtype, unbuilt_model
from nemo_mtdrive.models.directories import hf_files
from nemo_mtdrive.models.hf_files import HFTensors, read_config
from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel


@io.model_importer(Qwen25VLModel, "hf")
class HFImporter(io.ModelConnector):
    """A Hugging Face directory as a NeMo-2 checkpoint; the connector is the path of the directory."""

    def init(self) -> Qwen25VLModel:
        """The model that the directory describes, without parameters."""
        tensors = HFTensors(Path(self))
        dtype = one_dtype(((name, tensors.dtype(name)) for name in tensors), None)
        return unbuilt_model(Qwen2_5_VLConfig.from_dict(read_config(Path(self))), 1, 1, dtype)

    def apply(self, output_path: Path, **options: Any) -> Path:
        """Convert; `options` are those of `convert.hf_to_nemo`."""
        return hf_to_nemo(Path(self), Path(output_path), **options)


@io.model_exporter(Qwen25VLModel, "hf")
class HFExporter(io.ModelConnector):
    """A NeMo-2 checkpoint as a Hugging Face directory; the connector is the path of the checkpoint."""

    def init(self) -> Qwen2_5_VLConfig:
        """The configuration of the Hugging Face model."""
        return Qwen2_5_VLConfig.from_dict(read_config(hf_files(Path(self))))

    def apply(self, output_path: Path, **options: Any) -> Path:
        """Convert; `options` are those of `convert.nemo_to_hf`."""
        return nemo_to_hf(Path(self), Path(output_path), **options)
