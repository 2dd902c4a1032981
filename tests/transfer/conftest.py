"""A shared-memory root of its own for each test, and a run in it that is gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nemo_mtdrive.transfer.segments import RunFolder

RUN = "test-run"


@pytest.fixture
def shm_root() -> Iterator[Path]:
    """A folder on the machine's shared memory."""
    with TemporaryDirectory(dir="/dev/shm", prefix="mtdrive-tests-") as folder:
        yield Path(folder)


@pytest.fixture
def run_folder(shm_root: Path) -> Iterator[RunFolder]:
    """This process's membership of a run."""
    with RunFolder(shm_root, RUN) as folder:
        yield folder
