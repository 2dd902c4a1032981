"""What two gloo ranks do with converted directories; rank 0 writes what it found to DIRECTORY/results.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_mtdrive.models import checkpoint, parallel
from nemo_mtdrive.models.directories import model_config
from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, build_model
from nemo_mtdrive.models.start import load_start
from tests.converters.conftest import read_hf, same_bits

GRIDS = {"tensor": (2, 1), "pipeline": (1, 2)}
DTYPES = {"plain": torch.float32, "tied": torch.bfloat16}


def reads(directory: Path, name: str) -> dict[str, Any]:
    """Start from a NeMo directory of every layout and from the HF directory; save what was read."""
    source = directory / name
    dtype = DTYPES[name]
    options = OptimizerOptions(1.0, 0.0, 0.9, 0.95, 1e-8, distributed=False)
    found: dict[str, Any] = {}
    for start in sorted(directory.glob(f"{name}*")):
        model = build_model(model_config(start), optimizer=options, sequence_parallel=False, dtype=dtype, max_length=64)
        load_start(model, start)
        found[start.name] = same_bits(dict(model.export_hf_state()), read_hf(source))
    ranks = parallel.ranks()
    checkpoint.save(model, directory / "saved" / f"{name}_{ranks.tensor_size}_{ranks.pipeline_size}", carried=source)
    return found


def main(directory: Path) -> None:
    """Every directory on every grid."""
    found: dict[str, Any] = {}
    for grid, (tensor_size, pipeline_size) in GRIDS.items():
        parallel.initialise(tensor_size, pipeline_size, seed=1, timeout_s=120)
        found[grid] = {name: reads(directory, name) for name in DTYPES}
        dist.barrier()
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        (directory / "results.json").write_text(json.dumps(found))
    parallel.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
