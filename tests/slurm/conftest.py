"""One private Slurm for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .private_slurm import NODES, PrivateSlurm, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[PrivateSlurm]:
    """The private Slurm as it is."""
    if reason := why_not():
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; in CI Slurm must be there")
        pytest.skip(reason)
    with PrivateSlurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(cluster: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """The private Slurm with all nodes idle; what a test leaves behind when it fails is cleared away."""
    yield cluster
    cluster.clear()
    cluster.wait_for("idle nodes", lambda: all(cluster.node_state(node) == "idle" for node in NODES))


