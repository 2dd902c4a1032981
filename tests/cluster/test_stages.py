"""A job's data is prepared once; a restart finds it without importing what makes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_mtdrive import jobs
from nemo_mtdrive.cluster import files, stages
from nemo_mtdrive.config import Config, load_config, read_config
from nemo_mtdrive.telemetry.progress import Progress

OVERRIDES = ("scenes.count=3", "scenes.held_out=1", "validation.scenes=1", "scenes.image_width=56", "scenes.image_height=28",
             "sft.stages=[]")


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Config]:
    return lambda *more: load_config("scratch_cpu", [*OVERRIDES, f"run_dir={tmp_path}", *more])


@pytest.fixture
def calls(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Times that data was looked through; one config is prepared already."""
    seen: list[Config] = []
    real = jobs.prepare_run

    def noted(config: Config, progress: Progress) -> Path:
        seen.append(config)
        return real(config, progress)

    monkeypatch.setattr(jobs, "prepare_run", noted)
    stages.prepare(configure())
    assert len(seen) == 1 and not seen[0].resume
    return seen


def test_a_restart_prepares_nothing_and_says_that_it_is_one(
        configure: Callable[..., Config], calls: list[Config], tmp_path: Path) -> None:
    before = (files.folder(tmp_path) / stages.BASELINES).read_bytes()
    stages.prepare(configure())
    assert len(calls) == 1
    assert read_config(tmp_path / "config.yaml").resume, "the ranks would begin anew"
    assert (files.folder(tmp_path) / stages.BASELINES).read_bytes() == before
    stages.prepare(configure())
    assert len(calls) == 1


def test_another_request_is_looked_at(configure: Callable[..., Config], calls: list[Config], tmp_path: Path) -> None:
    stages.prepare(configure("checkpoint.every_steps=7"))
    assert len(calls) == 2 and calls[-1].resume
    assert read_config(tmp_path / "config.yaml").checkpoint.every_steps == 7


@pytest.mark.parametrize("name", ["splits.json", "scenes"])
def test_what_is_gone_is_made_again(
        configure: Callable[..., Config], calls: list[Config], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    stages.prepare(configure())
    assert len(calls) == 2 and path.exists()
