"""The whole main job with all its processes, small: two RL steps, then the same with other switches, stopped and resumed,
on real logs, and with a process killed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.metrics_reference import PAGE, differences, rows

from .digests import digests

pytestmark = pytest.mark.end_to_end

SMALL = (
    "scenes.count=12", "scenes.held_out=3", "validation.scenes=3", "rollout.max_turns=3", "rollout.max_answer_tokens=96",
    "sft.stages=[{steps: 3}]", "sft.batch_size=8", "model.layers=1", "model.vision_layers=1",
    "mtgrpo.steps=2", "mtgrpo.prompts_per_step=2", "mtgrpo.mini_batch_prompts=1", "mtgrpo.group_size=4",
    "checkpoint.every_steps=1", "logging.recorded_episodes=2",
)
SAME_RUN = ("loss", "grad_norm", "reward/mean", "kl", "turns/mean", "logprob_gap/max", "rollout/last_turn/PDMS", "ratio")


def start(run_dir: Path, *overrides: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nemo_mtdrive.cli", "rl", "--config-name", "scratch_cpu", *SMALL,
               f"run_dir={run_dir}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(run_dir: Path, *overrides: str) -> str:
    """Run to the end; returns stdout."""
    with start(run_dir, *overrides) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:] + logs(run_dir)
    return out


def logs(run_dir: Path) -> str:
    return "".join(f"\n--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted((run_dir / "logs").glob("*.log")))


def steps(run_dir: Path, phase: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def weights(run_dir: Path, name: str) -> dict[str, str]:
    """Digest of every tensor of a checkpoint: weights, optimizer, reference."""
    return digests([run_dir / "checkpoints" / name])[0]


def processes_of(run_dir: Path) -> list[int]:
    """Processes whose command line names the run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(run_dir) in command:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One whole run, with the scenes and data that the other runs of this module start from."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    out = run(run_dir)
    assert "After RL" in out and "report.html" in out and "checkpoint" in out
    yield run_dir
    assert processes_of(run_dir) == []


def sibling(finished: Path, name: str) -> Path:
    """Another run directory that shares the scenes and SFT data of the finished one, so that they are not made again."""
    run_dir = finished.with_name(name)
    run_dir.mkdir()
    for part in ("scenes", "sft_data"):
        (run_dir / part).symlink_to(finished / part)
    return run_dir


def test_two_rl_steps_leave_what_a_run_leaves(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for row in ("before_sft", "after_sft", "after_rl", "constant_velocity", "human"):
        assert summary[row]["scenes"] == 3
        assert 0 <= summary[row]["turn_1"]["PDMS"] <= 100 and 0 <= summary[row]["last_turn"]["PDMS"] <= 100
    assert summary["human"]["last_turn"]["PDMS"] > 70
    assert len(steps(finished, "sft")) == 3
    assert (finished / "report.html").stat().st_size > 20_000
    assert {p.name for p in (finished / "checkpoints").iterdir()} >= {"rl-000001", "rl-000002", "latest"}
    assert list((finished / "rollouts").glob("*.jsonl")) and list((finished / "tensorboard").rglob("events*"))


def test_every_step_reports_the_gap_between_engine_and_trainer(finished: Path) -> None:
    lines = steps(finished, "rl")
    assert [line["step"] for line in lines] == [0, 1]
    for line in lines:
        assert 0 < line["logprob_gap/max"] < 1e-4
        assert line["episodes/invalid"] == 0
        assert line["ratio"] == pytest.approx(1.0, abs=0.05) and math.isfinite(line["loss"])
        assert line["iptc/hits"] > 0
        assert line["timers/rollout"] > 0 and line["timers/update"] > 0 and line["timers/weight_sync"] > 0


def test_the_metrics_page_names_what_is_logged(finished: Path) -> None:
    found = differences(rows(PAGE.read_text()), steps(finished, "sft") + steps(finished, "rl"))
    assert not found, "docs/metrics.md:\n" + "\n".join(found)


def test_without_ipss_and_iptc_the_same_results(finished: Path) -> None:
    """The baseline transfer (wait for all, pixels per rollout, decode for each phase) changes bytes and time only."""
    run_dir = sibling(finished, "baseline")
    run(run_dir, "transfer.ipss=false", "transfer.iptc=false")
    for mine, theirs in zip(steps(run_dir, "rl"), steps(finished, "rl"), strict=True):
        assert {name: mine[name] for name in SAME_RUN} == {name: theirs[name] for name in SAME_RUN}
        assert mine["iptc/hits"] == 0
        assert mine["transfer/wire_bytes"] > 3 * theirs["transfer/wire_bytes"]
    assert weights(run_dir, "rl-000002") == weights(finished, "rl-000002")


def test_stopped_by_ctrl_c_and_resumed_is_the_same_run(finished: Path) -> None:
    run_dir = sibling(finished, "resumed")
    with start(run_dir) as process:
        deadline = time.monotonic() + 400
        while not (run_dir / "checkpoints" / "rl-000001").exists():
            assert process.poll() is None and time.monotonic() < deadline, logs(run_dir)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGINT; run it again with resume=true" in err
    assert processes_of(run_dir) == []
    assert not (run_dir / "checkpoints" / "rl-000002").exists()
    assert not list(Path("/dev/shm").glob(f"mtdrive-{json.loads((run_dir / 'endpoints.json').read_text())['run_id']}"))

    run(run_dir, "resume=true")
    assert [line["step"] for line in steps(run_dir, "rl")] == [0, 1]
    for mine, theirs in zip(steps(run_dir, "rl"), steps(finished, "rl"), strict=True):
        assert {name: mine[name] for name in SAME_RUN} == {name: theirs[name] for name in SAME_RUN}
    assert weights(run_dir, "rl-000002") == weights(finished, "rl-000002")


def test_a_finished_run_goes_on_with_more_steps(finished: Path) -> None:
    """One step to the end, then a second: the weights of two steps in one go, and the last evaluation is of them."""
    run_dir = sibling(finished, "longer")
    run(run_dir, "mtgrpo.steps=1")
    assert [line["step"] for line in steps(run_dir, "rl")] == [0]
    run(run_dir, "resume=true")
    assert [line["step"] for line in steps(run_dir, "rl")] == [0, 1]
    assert weights(run_dir, "rl-000002") == weights(finished, "rl-000002")
    mine, theirs = (json.loads((folder / "summary.json").read_text())["after_rl"] for folder in (run_dir, finished))
    assert mine == theirs


def test_rollouts_ahead_of_the_trainer_survive_a_stop(finished: Path) -> None:
    """One step off: every step but the first lags one update; a run that is asked to stop is the same run afterwards."""
    ahead = ("mtgrpo.max_staleness=1", "mtgrpo.importance_cap=2", "mtgrpo.steps=5")
    whole, stopped = sibling(finished, "ahead"), sibling(finished, "ahead-stopped")
    run(whole, *ahead)
    assert [line["staleness"] for line in steps(whole, "rl")] == [0.0, 1.0, 1.0, 1.0, 1.0]
    with start(stopped, *ahead) as process:
        deadline = time.monotonic() + 400
        while not (stopped / "checkpoints" / "rl-000001").exists():
            assert process.poll() is None and time.monotonic() < deadline, logs(stopped)
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "a stop was asked for: mtGRPO step" in out and "resume=true goes on" in out
    assert json.loads((stopped / "status.json").read_text())["finished"] is False

    run(stopped, *ahead, "resume=true")
    assert json.loads((stopped / "status.json").read_text()) == {"finished": True, "reason": ""}
    assert weights(stopped, "rl-000005") == weights(whole, "rl-000005")


def test_resumed_on_another_process_grid_goes_on_alike(finished: Path) -> None:
    """Saved by two tensor-parallel ranks, resumed by two data-parallel ones: weights, optimizer, reference, step."""
    run_dir = sibling(finished, "other-grid")
    shutil.copytree(finished / "checkpoints", run_dir / "checkpoints", symlinks=True)
    shutil.rmtree(run_dir / "checkpoints" / "rl-000002")
    for name in ("config.yaml", "metrics.jsonl", "splits.json"):
        shutil.copyfile(finished / name, run_dir / name)
    run(run_dir, "resume=true", "parallel.tensor=1", "parallel.data=2")
    mine, theirs = steps(run_dir, "rl")[1], steps(finished, "rl")[1]
    for name in ("loss", "grad_norm", "reward/mean", "kl", "turns/mean", "rollout/last_turn/PDMS"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("victim", ["rollout-worker", "train-rank", "serve-env"])
def test_a_killed_process_that_may_not_start_again_ends_the_job_with_a_reason(finished: Path, victim: str) -> None:
    run_dir = sibling(finished, f"killed-{('rollout-worker', 'train-rank', 'serve-env').index(victim)}")
    with start(run_dir, "max_restarts=0", "rollout.max_restarts=0", "environment.max_restarts=0") as process:
        deadline = time.monotonic() + 200
        chosen: list[int] = []
        while not chosen:
            assert process.poll() is None and time.monotonic() < deadline, logs(run_dir)
            chosen = [pid for pid in processes_of(run_dir)
                      if victim in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
            time.sleep(0.02)
        time.sleep(1.0)
        os.kill(chosen[-1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was killed by SIGKILL; its log:" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert processes_of(run_dir) == []


def test_the_same_job_on_real_logs(shared_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "av2"
    run(run_dir, "scenes=av2", f"scenes.path={shared_dir / 'data' / 'av2' / 'logs'}", "mtgrpo.steps=1")
    splits = json.loads((run_dir / "splits.json").read_text())
    assert len(splits["train"]) == 12 and len(splits["held_out"]) == 3
    assert len({i.rpartition("-")[0] for i in splits["train"] + splits["held_out"]}) > 1
    assert not {i.rpartition("-")[0] for i in splits["train"]} & {i.rpartition("-")[0] for i in splits["held_out"]}
    (line,) = steps(run_dir, "rl")
    assert line["episodes/invalid"] == 0 and line["logprob_gap/max"] < 1e-4
