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


@pytest.fixture(scope="session")
def reward_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained on a few generated scenes in seconds: poor, but a real one."""
    from nemo_mtdrive.algorithms.reward_model import RewardTraining
    from nemo_mtdrive.algorithms.train_reviewer import train_reviewer
    from nemo_mtdrive.data.curate import SceneArguments
    from nemo_mtdrive.telemetry.progress import open_progress

    folder = tmp_path_factory.mktemp("reward_model")
    arguments = SceneArguments("procedural", "", count=24, seed=900, width=56, height=28)
    with open(os.devnull, "w") as quiet, open_progress(quiet, plain_every_s=60.0) as progress:
        train_reviewer(arguments, folder, "oracle", RewardTraining(hidden=48, epochs=12, batch=64), 0.25, 1, progress)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds a folder: what a change costs is seen where it is paid."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                path = report.nodeid.split("::")[0]
                folder = path.rsplit("/", 1)[0] if path.count("/") > 1 else path
                seconds[folder] = seconds.get(folder, 0.0) + report.duration
    slow = sorted(((value, name) for name, value in seconds.items() if value >= 5.0), reverse=True)
    if slow:
        terminalreporter.section("seconds a folder")
        for value, name in slow:
            terminalreporter.write_line(f"{value:8.0f} s  {name}")
