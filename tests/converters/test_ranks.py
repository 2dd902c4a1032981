"""Real ranks read converted directories of any layout, and what they save converts back, bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_mtdrive.models.convert import hf_to_nemo, nemo_to_hf
from tests.models.launch import run

from .conftest import CARRIED, read_hf, same_bits

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.fixture(scope="module")
def found(plain: Path, tied: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("ranks")
    for source in (plain, tied):
        shutil.copytree(source, directory / source.name)
        for tensor, pipeline in LAYOUTS:
            hf_to_nemo(source, directory / f"{source.name}_{tensor}_{pipeline}", tensor_size=tensor, pipeline_size=pipeline)
    return directory, run(Path(__file__).with_name("ranks.py"), 2, directory)


@pytest.mark.parametrize("grid", ["tensor", "pipeline"])
@pytest.mark.parametrize("name", ["plain", "tied"])
def test_every_layout_is_read_by_every_grid(found: tuple[Path, dict[str, Any]], name: str, grid: str) -> None:
    read = found[1][grid][name]
    assert read == dict.fromkeys([name, *(f"{name}_{tensor}_{pipeline}" for tensor, pipeline in LAYOUTS)], True)


@pytest.mark.parametrize("grid", ["2_1", "1_2"])
@pytest.mark.parametrize("name", ["plain", "tied"])
def test_what_ranks_save_converts_to_hf(found: tuple[Path, dict[str, Any]], name: str, grid: str, tmp_path: Path) -> None:
    back = nemo_to_hf(found[0] / "saved" / f"{name}_{grid}", tmp_path / "hf", shard_bytes=500_000)
    source = found[0] / name
    assert same_bits(read_hf(back), read_hf(source))
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert all((back / path).read_text() == text for path, text in CARRIED.items())
