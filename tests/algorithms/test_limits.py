"""A run ends early when its time is up or somebody asks, and all ranks with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_mtdrive.algorithms.limits import RunLimit
from nemo_mtdrive.process import STARTED, STOP_FILE


def test_time_counts_from_the_jobs_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED, "1000")
    now = [1059.0]
    limit = RunLimit(tmp_path, 60.0, lambda code: code, clock=lambda: now[0])
    assert limit.reason() == ""
    now[0] = 1060.0
    assert limit.reason() == "max_time_per_run is over"
    assert RunLimit(tmp_path, None, lambda code: code, clock=lambda: 1e12).reason() == ""


def test_a_stop_file_ends_it_and_rank_0_decides(tmp_path: Path) -> None:
    limit = RunLimit(tmp_path, None, lambda code: code)
    follower = RunLimit(tmp_path, None, lambda code: 0)
    (tmp_path / STOP_FILE).touch()
    assert limit.reason() == "a stop was asked for"
    assert follower.reason() == ""  # it saw the file, but rank 0 had looked before it was there
