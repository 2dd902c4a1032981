"""Converting holds a few tensors, never a file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from nemo_mtdrive.models.convert import hf_shapes, hf_to_nemo, nemo_to_hf
from nemo_mtdrive.models.hf_files import HFTensors
from nemo_mtdrive.models.parameters import rules

from .conftest import plain_config

SHARD = 40_000_000


def sparse_model(folder: Path) -> Path:
    """About 160 MB of zeros in files of about 40 MB, with holes where the numbers are."""
    from transformers import Qwen2_5_VLConfig

    config = plain_config() | {"num_hidden_layers": 10, "intermediate_size": 4096, "max_window_layers": 10}
    hf = Qwen2_5_VLConfig.from_dict(config)
    shapes = dict(hf_shapes(hf, [rule for rule in rules(hf, 1) if rule.exported]))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(shapes)
    for number in range(4):
        header, offset = {}, 0
        for name in names[number::4]:
            end = offset + 4 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        with (folder / f"part{number}.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + offset)
    return folder


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process [bytes]."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


@pytest.mark.parametrize("tensor", [1, 2])
def test_peak_memory_stays_below_twice_the_largest_shard(tensor: int, plain: Path, tmp_path: Path) -> None:
    reset = Path("/proc/self/clear_refs")
    hf_to_nemo(plain, tmp_path / "first")  # what is imported and set up once
    source = sparse_model(tmp_path / "hf")
    largest = HFTensors(source).largest_file
    assert largest > 0.8 * SHARD
    reset.write_text("5")  # VmHWM starts anew
    before = memory("VmRSS")
    nemo = hf_to_nemo(source, tmp_path / "nemo", tensor_size=tensor)
    nemo_to_hf(nemo, tmp_path / "back", shard_bytes=SHARD)
    assert memory("VmHWM") - before < 2 * largest
