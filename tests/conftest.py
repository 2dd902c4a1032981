"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with golden scores and real logs (MTDRIVE_SHARED, else ../shared); skips where it is absent."""
    path = Path(os.environ.get("MTDRIVE_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is absent, and in CI it must be there")
        pytest.skip(f"{path} is absent: set MTDRIVE_SHARED to the folder with data/av2")
    return path
