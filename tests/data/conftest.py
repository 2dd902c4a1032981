"""A folder of SFT data of a few generated scenes, with all kinds, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_mtdrive.config import SFTDataConfig
from nemo_mtdrive.data.curate import CurationTask, SceneArguments, curate

SCENES = SceneArguments("", "", 0, 0, 0, 0, "procedural://?count=24&seed=0&width=224&height=112")
SETTINGS = SFTDataConfig(mock_share=0.7, pairs=3)


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of 24 scenes: two chunks."""
    out = tmp_path_factory.mktemp("sft_data")
    curate(CurationTask(SCENES, out, "oracle", SETTINGS), list(SCENES.open().ids()), 1, lambda _: None)
    return out


def lines_of(folder: Path, kind: str = "*") -> list[dict[str, Any]]:
    """The lines of a folder."""
    return [json.loads(line) for path in sorted(folder.glob(f"{kind}.jsonl")) for line in path.read_text().splitlines()]
