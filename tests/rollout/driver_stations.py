"""What an engine's process is made of in the tests of the driver pool; importable by that process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from nemo_mtdrive.config import RewardConfig, RolloutConfig
from nemo_mtdrive.rollout.model_driver import ModelDriver

from .fakes import ScriptedEnvironment


def open_driver(directory: str, rollout: RolloutConfig, device: str) -> ModelDriver:
    """A driver with the settings of the test."""
    return ModelDriver.open(Path(directory), rollout=rollout, reward=RewardConfig(), device=device)


def environment(driver: ModelDriver) -> ScriptedEnvironment:
    """Scene a is clean at once, b never."""
    return ScriptedEnvironment({"a": 1, "b": 9}, max_turns=driver.max_turns)


def die(device: str) -> ModelDriver:
    """As the kernel ends a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed before")
