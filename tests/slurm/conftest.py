"""One private Slurm for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .private_slurm import NODES, PrivateSlurm, why_not


@pytest.fixture(scope="session")
def _slurm() -> Iterator[PrivateSlurm]:
    if reason := why_not():
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; in CI Slurm must be there")
        pytest.skip(reason)
    with PrivateSlurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(_slurm: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """The private Slurm with all nodes idle; what a test leaves behind when it fails is cleared away."""
    yield _slurm
    _slurm.clear()
    _slurm.wait_for("idle nodes", lambda: all(_slurm.node_state(node) == "idle" for node in NODES))


