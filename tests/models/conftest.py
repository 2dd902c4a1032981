"""What two gloo ranks found, run once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .launch import run


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{grid: {check: {number: value}}} of `ranks.py`."""
    return run(Path(__file__).with_name("ranks.py"), 2, tmp_path_factory.mktemp("ranks"))
