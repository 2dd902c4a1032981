"""A run goes on from a checkpoint bit by bit, also of another process grid; half a checkpoint is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_mtdrive.models import checkpoint


def test_resumed_training_is_equal_bit_by_bit(found: dict[str, Any]) -> None:
    resuming = found["tensor"]["resuming"]
    assert resuming["same_steps"] and resuming["same_weights"] and resuming["same_reference"] and resuming["random"]
    assert resuming["notes"] == {"step": 2}


@pytest.mark.parametrize("grid", ["data", "pipeline"])
def test_checkpoint_fits_another_grid(found: dict[str, Any], grid: str) -> None:
    resuming = found[grid]["resuming"]
    assert resuming["other_grid"]
    for mine, theirs in zip(resuming["other_grid_steps"], found["tensor"]["resuming"]["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_incomplete_checkpoints_are_passed_over(found: dict[str, Any]) -> None:
    assert found["tensor"]["resuming"]["latest"] == "step_000002"  # step_000003 is there and has no marker
    assert found["tensor"]["resuming"]["incomplete"].endswith("is not a complete checkpoint: complete.json is absent")


def test_latest_counts_numbers_and_needs_the_marker(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for name in ("step_9", "step_10", ".step_11.partial", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoint.MARKER).write_text("{}")
    (tmp_path / "step_12").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step_10"
