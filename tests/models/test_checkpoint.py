"""A run goes on from a checkpoint bit by bit, also of another process grid."""

from __future__ import annotations

from typing import Any

import pytest


def test_resumed_training_is_equal_bit_by_bit(found: dict[str, Any]) -> None:
    resuming = found["tensor"]["resuming"]
    assert resuming["same_steps"] and resuming["same_weights"] and resuming["same_reference"] and resuming["random"]


@pytest.mark.parametrize("grid", ["data", "pipeline"])
def test_checkpoint_fits_another_grid(found: dict[str, Any], grid: str) -> None:
    resuming = found[grid]["resuming"]
    assert resuming["other_grid"]
    for mine, theirs in zip(resuming["other_grid_steps"], found["tensor"]["resuming"]["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
