"""metrics.jsonl: a line a step, valid JSON whatever the numbers, truncated on resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nemo_mtdrive.telemetry.metrics import MetricsError, MetricsLogger, flatten, read_metrics


def log(run_dir: Path, phase: str, resume_step: int | None, steps: dict[int, dict[str, Any]]) -> None:
    with MetricsLogger(run_dir, phase=phase, resume_step=resume_step, tensorboard=False, wandb=None) as logger:
        for step, metrics in steps.items():
            logger.log(step, metrics)


def steps_of(run_dir: Path, phase: str) -> list[int]:
    return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if line["phase"] == phase]


def test_a_line_is_flat_json_without_nan(tmp_path: Path) -> None:
    log(tmp_path, "rl", None, {3: {"reward": {"mean": np.float32(0.5), "turn_1": 0.25}, "kl": float("nan"),
                                   "grad_norm": float("inf"), "groups": 4, "unknown": None}})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert text.endswith("\n") and text.count("\n") == 1
    assert line.pop("time") > 1.7e9
    assert line == {"phase": "rl", "step": 3, "reward/mean": 0.5, "reward/turn_1": 0.25, "kl": None, "grad_norm": None,
                    "groups": 4, "unknown": None}


def test_each_line_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, phase="rl", resume_step=None, tensorboard=False, wandb=None) as logger:
        for step in range(3):
            logger.log(step, {"loss": 1.0})
            assert steps_of(tmp_path, "rl") == list(range(step + 1))


def test_resume_drops_lines_beyond_the_step_and_leaves_other_phases(tmp_path: Path) -> None:
    log(tmp_path, "sft", None, {step: {"loss": 1.0} for step in range(4)})
    log(tmp_path, "rl", None, {step: {"loss": float(step)} for step in range(6)})
    log(tmp_path, "rl", 2, {3: {"loss": 33.0}})
    assert steps_of(tmp_path, "sft") == [0, 1, 2, 3]
    assert steps_of(tmp_path, "rl") == [0, 1, 2, 3]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"] == 33.0
    log(tmp_path, "rl", None, {})
    assert steps_of(tmp_path, "rl") == [] and steps_of(tmp_path, "sft") == [0, 1, 2, 3]


def test_a_line_cut_by_a_kill_is_dropped_but_a_broken_one_is_an_error(tmp_path: Path) -> None:
    log(tmp_path, "rl", None, {0: {"loss": 1.0}, 1: {"loss": 2.0}})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"phase": "rl", "step": 2, "lo')
    assert [line["step"] for line in read_metrics(file)] == [0, 1]
    log(tmp_path, "rl", 1, {2: {"loss": 3.0}})
    assert steps_of(tmp_path, "rl") == [0, 1, 2]
    file.write_text("not json\n" + whole)
    with pytest.raises(MetricsError, match=r"metrics\.jsonl:1: not a line of metrics"):
        read_metrics(file)


@pytest.mark.parametrize("step", [0, 4])
def test_a_step_is_logged_once(tmp_path: Path, step: int) -> None:
    with MetricsLogger(tmp_path, phase="rl", resume_step=3, tensorboard=False, wandb=None) as logger:
        logger.log(4, {})
        with pytest.raises(MetricsError, match=f"step {step} of phase 'rl'"):
            logger.log(step, {})


def test_metrics_must_be_numbers_with_names_of_their_own(tmp_path: Path) -> None:
    assert flatten({"a": torch.tensor(2.5), "b": {"c": np.int64(3), "d": True}}) == {"a": 2.5, "b/c": 3, "b/d": 1}
    for bad in ("text", np.zeros(2), torch.zeros(3), [1.0]):
        with pytest.raises(MetricsError, match="metric 'x/y'"):
            flatten({"x": {"y": bad}})
    with MetricsLogger(tmp_path, phase="rl", resume_step=None, tensorboard=False, wandb=None) as logger, \
            pytest.raises(MetricsError, match="metric 'time'"):
        logger.log(0, {"time": 1.0})


def test_tensorboard_has_the_finite_values_and_hides_what_was_resumed_over(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step, steps in ((None, range(4)), (1, range(2, 3))):
        with MetricsLogger(tmp_path, phase="rl", resume_step=resume_step, tensorboard=True, wandb=None) as logger:
            for step in steps:
                logger.log(step, {"reward/mean": step + (resume_step or 0) / 2, "kl": float("nan")})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl")).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(0, 0.0), (1, 1.0), (2, 2.5)]


def test_wandb_is_imported_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    run = SimpleNamespace(log=logged.append, finish=lambda: logged.append({}))
    started: list[dict[str, Any]] = []
    fake = SimpleNamespace(init=lambda **arguments: started.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLogger(tmp_path, phase="rl", resume_step=None, tensorboard=False, wandb={"project": "p"}) as logger:
        logger.log(5, {"kl": 0.5, "gap": float("nan")})
    assert started == [{"project": "p"}]
    assert logged == [{"rl/kl": 0.5, "rl/step": 5}, {}]
    monkeypatch.setitem(sys.modules, "wandb", None)
    log(tmp_path, "rl", None, {0: {"kl": 1.0}})
    with pytest.raises(MetricsError, match="wandb is not installed"):
        MetricsLogger(tmp_path, phase="rl", resume_step=None, tensorboard=False, wandb={"project": "p"})
