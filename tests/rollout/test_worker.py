"""Worker processes and the pool that watches them: tasks, weights, failures, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_mtdrive.rollout.pool import WorkerLost, WorkerPool
from nemo_mtdrive.types import RolloutTask

SCRIPT = Path(__file__).with_name("worker_process.py")
START_S = 60.0


class Workers:
    """Worker processes of a test; none outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = f"ipc://{folder}/control"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, mode: str = "plain") -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.err").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), self.endpoint, name, str(self.log(name)), mode], stderr=errors
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    for process in workers.processes.values():
        process.kill()
        process.wait()


def tasks(count: int, version: int = 1) -> list[RolloutTask]:
    return [
        RolloutTask(scene_id=f"s{i}", group_size=2, seed=i, policy_version=version, step=0, temperature=1.0, slot=i)
        for i in range(count)
    ]


def finish(pool: WorkerPool, timeout_s: float = 30.0) -> list:
    heard = []
    deadline = time.monotonic() + timeout_s
    while pool.busy():
        assert time.monotonic() < deadline
        heard += pool.poll(0.2)
    return heard


def poll_until_lost(pool: WorkerPool, timeout_s: float) -> WorkerLost:
    deadline = time.monotonic() + timeout_s
    with pytest.raises(WorkerLost) as caught:
        while time.monotonic() < deadline:
            pool.poll(0.1)
    return caught.value


def test_two_workers_share_the_tasks_take_weights_and_end(workers):
    pool = WorkerPool(workers.endpoint, ["w0", "w1"], heartbeat_timeout_s=10.0)
    processes = [workers.start("w0"), workers.start("w1")]
    pool.wait_ready(START_S)
    pool.load_weights(1, {"norm": 2.0}, timeout_s=10.0)
    batch = pool.start(tasks(5))
    heard = finish(pool)
    done = {name: message for name, message in heard if message.type == "done"}
    assert {name: (m["batch"], m["episodes"]) for name, m in done.items()} == {"w0": (batch, 6), "w1": (batch, 4)}
    assert done["w0"]["metrics"]["answers"] == 2 * (1 + 3 + 2) and done["w0"]["metrics"]["flushed"] == 1.0
    last = [message for name, message in heard if name == "w1" and message.type == "progress"][-1]
    assert (last["wave"], last["running"], last["done"]) == (2, 0, 4)
    # task i went to worker i % 2, and every episode left as it ended
    for name, mine in (("w0", (0, 2, 4)), ("w1", (1, 3))):
        played = sorted(line.split()[0] for line in workers.log(name).read_text().splitlines())
        assert played == sorted(f"train/0/{i}/s{i}/{g}" for i in mine for g in range(2))

    pool.load_weights(2, {"norm": 3.0}, timeout_s=10.0)
    pool.start(tasks(2, version=2))
    finish(pool)
    pool.stop(5.0)
    assert [process.wait(10) for process in processes] == [0, 0]
    assert workers.log("w0").with_suffix(".closed").exists()


def test_a_worker_that_cannot_start_says_why(workers):
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=10.0)
    process = workers.start("w0", "fails-to-start")
    with pytest.raises(WorkerLost, match=r"rollout worker w0 failed: FileNotFoundError: no config\.json") as caught:
        pool.wait_ready(START_S)
    assert caught.value.worker == "w0"
    assert process.wait(10) == 1
    assert "Traceback" in workers.said("w0")
    pool.stop(0.1)


def test_tasks_of_another_policy_version_end_the_worker(workers):
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=10.0)
    process = workers.start("w0")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=10.0)
    pool.start(tasks(1, version=2))
    lost = poll_until_lost(pool, 10.0)
    assert "a task for policy version 2, the engine has 1" in str(lost)
    assert process.wait(10) == 1
    pool.stop(0.1)


def test_a_killed_worker_is_seen_long_before_the_heartbeat_limit(workers):
    pool = WorkerPool(workers.endpoint, ["w0", "w1"], heartbeat_timeout_s=100.0)
    workers.start("w0"), workers.start("w1", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=10.0)
    pool.start(tasks(6))
    time.sleep(0.5)
    os.kill(workers.processes["w1"].pid, signal.SIGKILL)
    lost = poll_until_lost(pool, 15.0)
    assert lost.worker == "w1" and "its connection is closed" in str(lost)
    pool.stop(0.1)


def test_a_silent_worker_is_lost_after_the_heartbeat_limit(workers):
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=2.0)
    process = workers.start("w0")
    pool.wait_ready(START_S)
    os.kill(process.pid, signal.SIGSTOP)
    lost = poll_until_lost(pool, 10.0)
    assert "is silent for" in str(lost) and "rollout.heartbeat_timeout_s=2" in str(lost)
    os.kill(process.pid, signal.SIGCONT)
    pool.stop(0.1)


def test_heartbeats_go_on_while_the_engine_works(workers):
    """Twelve answers of 0.2 s each in one wave: longer than the limit, and yet the worker is not lost."""
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=1.5)
    workers.start("w0", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=10.0)
    pool.start(tasks(6))
    seen = set()
    while pool.busy():
        pool.poll(0.1)
        seen.add(pool.status()["w0"])
    assert "tasks" in seen
    pool.stop(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_cleanly(workers, number):
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=10.0)
    process = workers.start("w0", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=10.0)
    pool.start(tasks(6))
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(10) == 0
    assert workers.log("w0").with_suffix(".closed").exists()
    assert f"ended by {signal.Signals(number).name}" in workers.said("w0")
    pool.stop(0.1)


def test_a_worker_whose_trainer_is_gone_ends_itself(workers):
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=10.0)
    process = workers.start("w0")
    pool.wait_ready(START_S)
    pool._socket.close(linger=0)  # as if the trainer were killed: no "stop"
    assert process.wait(15) == 1
    assert "has no connection to the trainer" in workers.said("w0")


def test_a_worker_dies_with_its_parent(workers, tmp_path):
    """The parent is killed with SIGKILL and cannot clean up; the kernel ends its worker."""
    pool = WorkerPool(workers.endpoint, ["w0"], heartbeat_timeout_s=10.0)
    command = [sys.executable, str(SCRIPT), workers.endpoint, "w0", str(workers.log("w0")), "plain"]
    launcher = f"import subprocess; print(subprocess.Popen({command!r}).pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    workers.processes["parent"] = parent
    child = int(parent.stdout.readline())
    pool.wait_ready(START_S)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5.0
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)
    pool.stop(0.1)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
