"""Processes of every kind killed with -9 at ten random moments of a six-step run, which goes on as if nothing had happened.

The runs are real and small: every kind of process, a model that was taught to answer, rewards, checkpoints, metrics and
recorded episodes. A moment is a random time after the run got so far, so slow machines have the same test.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .digests import digests

pytestmark = pytest.mark.end_to_end

KILLS, STEPS = 10, 6
LONGEST_S = 2400.0
"""Of one run, on a machine that is ten times slower."""
COMMON = (
    "scenes.count=12", "scenes.held_out=1", "scenes.image_width=112", "scenes.image_height=56", "validation.scenes=1",
    "parallel.tensor=1", "rollout.max_turns=2", "rollout.max_answer_tokens=80", "rollout.temperature=1.0",
)
TAUGHT = ("model.layers=1", "model.vision_layers=1", "sft.stages=[{steps: 140}]", "sft_data.kinds=[single_turn]",
          "sft.batch_size=4", "sft.warmup_steps=10", "sft.lr=2e-3", "mtgrpo.steps=0", "rollout.workers=1")
PLAYED = (
    "sft.stages=[]", f"mtgrpo.steps={STEPS}", "mtgrpo.prompts_per_step=2", "mtgrpo.mini_batch_prompts=1",
    "mtgrpo.group_size=3", "mtgrpo.lr=1e-4", "mtgrpo.entropy_coefficient=0.001", "checkpoint.every_steps=1",
    "logging.recorded_episodes=100", "environment.timeout_s=900", "rollout.heartbeat_timeout_s=900",
    f"max_restarts={2 * KILLS}", f"rollout.max_restarts={2 * KILLS}", f"environment.max_restarts={2 * KILLS}",
)
KINDS = {
    "training rank": "train-rank",
    "rollout worker": "rollout-worker",
    "environment server": "serve-env",
    "scoring worker": "nemo_mtdrive.environment.worker",
}
"""Kind of process -> a word of its command line."""
SAME = ("loss", "grad_norm", "reward/mean", "kl", "turns/mean", "entropy", "logprob_gap/max", "ratio")


LAUNCHER = """
import sys
from pathlib import Path
from nemo_mtdrive.config import load_config, save_config
from nemo_mtdrive.data.prepare import prepare
from nemo_mtdrive.launch import run_processes
from nemo_mtdrive.ranks import tokenizer_files
from nemo_mtdrive.telemetry.events import EventDisplay
from nemo_mtdrive.telemetry.progress import open_progress
config = load_config("scratch_cpu", sys.argv[1:])
run_dir = Path(config.run_dir)
run_dir.mkdir(exist_ok=True)
save_config(config, run_dir / "config.yaml")
with open_progress(sys.stderr, plain_every_s=10.0) as progress:
    prepare(config, run_dir, tokenizer_files(config), progress)
    with EventDisplay(progress) as display:
        run_processes(config, run_dir, display.show)
"""
"""The processes of `nemo-mtdrive rl`, without the baseline drivers and the report, which take most of a small run's time."""


def start(run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCHER, *COMMON, f"run_dir={run_dir}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], run_dir: Path) -> str:
    """What the run said, after it ended well."""
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, err[-3000:] + logs(run_dir)
    return err


def logs(run_dir: Path) -> str:
    return "".join(f"\n--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted((run_dir / "logs").glob("*.log")))


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of the RL steps that are done; a line that is being written is left out."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [line for line in lines if line["phase"] == "rl"]


def living(run_dir: Path, word: str) -> list[int]:
    """Processes of the run with a word in their command line; one that was killed and not reaped has none.

    What one of them has just forked has its command line until it starts another program, and is left out.
    """
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(run_dir) in command and word in command.split("\0"):
                found[int(entry.name)] = parent
    return [pid for pid, parent in found.items() if parent not in found]


def wait_for(process: subprocess.Popen[str], run_dir: Path, what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LONGEST_S
    while not (found := condition()):
        assert process.poll() is None, f"ended before {what}" + logs(run_dir)
        assert time.monotonic() < deadline, f"no {what}" + logs(run_dir)
        time.sleep(0.02)
    return found


def prepare(taught: Path, name: str) -> tuple[Path, list[str]]:
    """A run directory beside the one whose scenes and model it starts from, and what the run is asked for."""
    run_dir = taught.with_name(name)
    run_dir.mkdir()
    (run_dir / "scenes").symlink_to(taught / "scenes")
    return run_dir, [*PLAYED, f"model.init_from={taught / 'checkpoints' / 'rl-000000'}"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends with SFT: its scenes, and a model that mostly answers with trajectories."""
    run_dir = tmp_path_factory.mktemp("kills") / "taught"
    finish(start(run_dir, *TAUGHT), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def undisturbed(taught: Path) -> Path:
    run_dir, asked = prepare(taught, "undisturbed")
    finish(start(run_dir, *asked), run_dir)
    return run_dir


def play_and_kill(taught: Path, undisturbed: Path, kind: str, seed: int) -> tuple[Path, str, int]:
    """A run in which ten processes of a kind are killed: its directory, what it said, and how many were killed.

    Kills 0, 2, 4, ... come within about a step after the run has reached a further step, the others soon after the one
    before, while the process starts again or anew plays. A step that ends first cuts a delay short, so that all ten fit
    into the run however fast it is.
    """
    run_dir, asked = prepare(taught, kind.replace(" ", "-"))
    times = [(undisturbed / "endpoints.json").stat().st_mtime] + [row["time"] for row in rows(undisturbed)]
    start_s, step_s = times[1] - times[0], (times[-1] - times[1]) / (STEPS - 1)
    chance, killed = random.Random(seed), set[int]()
    process = start(run_dir, *asked)
    try:
        for number in range(KILLS):
            so_far = number * (STEPS - 1) // KILLS
            wait_for(process, run_dir, f"step {so_far}", lambda so_far=so_far: len(rows(run_dir)) >= so_far)
            moment = time.monotonic() + chance.uniform(0.0, start_s if number % 2 else step_s)
            wait_for(process, run_dir, "the moment", lambda so_far=so_far, moment=moment:
                     time.monotonic() >= moment or len(rows(run_dir)) > so_far)
            left = wait_for(process, run_dir, f"another {kind}", lambda: sorted(
                pid for pid in living(run_dir, KINDS[kind]) if pid not in killed))
            killed.add(victim := chance.choice(left))
            os.kill(victim, signal.SIGKILL)
        return run_dir, finish(process, run_dir), len(killed)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def runs(taught: Path, undisturbed: Path) -> Iterator[dict[str, Future[tuple[Path, str, int]]]]:
    """The run of each kind, two at a time: most of their time processes start, one after another."""
    with ThreadPoolExecutor(2) as lanes:
        yield {kind: lanes.submit(play_and_kill, taught, undisturbed, kind, seed) for seed, kind in enumerate(KINDS)}
    assert living(taught.parent, "-m") == []
    shutil.rmtree(taught.parent)


def played(run_dir: Path) -> dict[str, list[tuple[str, int, float, str]]]:
    """Of each training step, every episode: id, tokens, reward, last answer; sorted."""
    found = {}
    for path in sorted((run_dir / "rollouts").glob("train-*.jsonl")):
        episodes = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.stem] = sorted((e["episode_id"], e["tokens"], sum(turn["reward"] for turn in e["turns"]),
                                   e["turns"][-1]["answer"]) for e in episodes)
    return found


def restarts(run_dir: Path) -> list[str]:
    path = run_dir / "restarts.jsonl"
    return [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.exists() else []


def test_the_undisturbed_run_is_worth_comparing_with(undisturbed: Path) -> None:
    lines = rows(undisturbed)
    assert [line["step"] for line in lines] == list(range(STEPS)) and restarts(undisturbed) == []
    assert any(line["reward/mean"] > 0 for line in lines) and all(line["grad_norm"] > 0 for line in lines)
    first, last = digests([undisturbed / "checkpoints" / f"rl-{step:06d}" for step in (STEPS - 1, STEPS)])
    assert first.keys() == last.keys() and first != last


@pytest.mark.parametrize("kind", KINDS)
def test_ten_kills_change_nothing(kind: str, undisturbed: Path, runs: dict[str, Future[tuple[Path, str, int]]]) -> None:
    run_dir, _, killed = runs[kind].result()
    assert killed == KILLS
    mine, theirs = rows(run_dir), rows(undisturbed)
    assert [line["step"] for line in mine] == list(range(STEPS))  # none lost, none twice
    for row, other in zip(mine, theirs, strict=True):
        assert {name: row.get(name) for name in SAME} == {name: other.get(name) for name in SAME}
        assert row["episodes/invalid"] == 0
    assert played(run_dir) == played(undisturbed)  # every scene of every step, once
    assert json.loads((run_dir / "summary.json").read_text())["after_rl"] == \
        json.loads((undisturbed / "summary.json").read_text())["after_rl"]
    own, other = digests([path / "checkpoints" / f"rl-{STEPS:06d}" for path in (run_dir, undisturbed)])
    assert own == other


@pytest.mark.parametrize("kind", KINDS)
def test_every_kill_is_told_of(kind: str, runs: dict[str, Future[tuple[Path, str, int]]]) -> None:
    run_dir, said, _ = runs[kind].result()
    names = restarts(run_dir)
    if kind == "scoring worker":  # the server starts it again by itself, but not before it is ready for the first time
        log = (run_dir / "logs" / "environment-server-0.log").read_text()
        assert log.count("was killed by SIGKILL") == KILLS and set(names) <= {"environment-server-0"}
        assert len(names) == log.count("cannot start")
        return
    about = {"training rank": "the training ranks", "rollout worker": "rollout-worker-",
             "environment server": "environment-server-0"}[kind]
    assert len(names) == KILLS and all(name.startswith(about) for name in names), said
    assert said.count("was killed by SIGKILL; its log: ") == KILLS and said.count("started again (") == KILLS, said
    assert said.count("resumed from rl-") <= (KILLS if kind == "training rank" else 0)
