"""What the trainers found on process grids, run once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.launch import run


@pytest.fixture(scope="session")
def grids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{grid: {check: {number: value}}} of `ranks.py`: one rank alone, and two as tensor, pipeline and data ranks."""
    script = Path(__file__).with_name("ranks.py")
    return run(script, 1, tmp_path_factory.mktemp("one")) | run(script, 2, tmp_path_factory.mktemp("two"))
