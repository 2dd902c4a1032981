"""Worker processes and the pool that watches them: tasks, weights, failures, deaths."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_mtdrive.rollout.pool import PoolLimits, WorkerLost, WorkerPool
from nemo_mtdrive.rollout.shares import SharesError
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


def finish(pool: WorkerPool, timeout_s: float = 100.0) -> list:
    heard = []
    deadline = time.monotonic() + timeout_s
    while pool.busy():
        assert time.monotonic() < deadline
        heard += pool.poll(0.2)
    return heard


class Pool(WorkerPool):
    """A pool that notes what it would tell the launcher: (worker, process id, what was seen)."""

    def __init__(self, endpoint: str, names: list[str], *, heartbeat_s: float = 60.0, stuck_s: float = 60.0,
                 losses: int = 5) -> None:
        self.told: list[tuple[str, int, str]] = []
        super().__init__(endpoint, names, limits=PoolLimits(heartbeat_s, stuck_s, losses),
                         on_lost=lambda *seen: self.told.append(seen))

    def poll_until_lost(self, timeout_s: float = 60.0) -> tuple[str, int, str]:
        """The first loss."""
        deadline = time.monotonic() + timeout_s
        while not self.told:
            assert time.monotonic() < deadline
            self.poll(0.1)
        return self.told[0]


def played(workers: Workers, *names: str) -> list[str]:
    """Ids of the episodes that workers finished, in no order, repeats included."""
    lines = [line for name in names if workers.log(name).exists() for line in workers.log(name).read_text().splitlines()]
    return sorted(line.split()[0] for line in lines)


def ids(*slots: int) -> list[str]:
    return sorted(f"train/0/{slot}/s{slot}/{index}" for slot in slots for index in range(2))


def test_two_workers_share_the_tasks_take_weights_and_end(workers):
    pool = Pool(workers.endpoint, ["w0", "w1"], heartbeat_s=10.0)
    processes = [workers.start("w0"), workers.start("w1")]
    pool.wait_ready(START_S)
    pool.load_weights(1, {"norm": 2.0}, timeout_s=10.0)
    batch = pool.start(tasks(5))
    assert pool.busy(batch) and not pool.busy(batch + 1)
    heard = finish(pool)
    done = {name: message for name, message in heard if message.type == "done"}
    assert {name: m["episodes"] for name, m in done.items()} == {"w0": 6, "w1": 4}
    assert done["w0"]["metrics"]["answers"] == 2 * (1 + 3 + 2) and done["w0"]["metrics"]["flushed"] == 1.0
    last = [message for name, message in heard if name == "w1" and message.type == "progress"][-1]
    assert (last["wave"], last["running"], last["done"]) == (2, 0, 4)
    # task i went to worker i % 2, and every episode left as it ended
    assert played(workers, "w0") == ids(0, 2, 4) and played(workers, "w1") == ids(1, 3)
    assert not pool.told

    pool.load_weights(2, {"norm": 3.0}, timeout_s=10.0)
    pool.start(tasks(2, version=2))
    finish(pool)
    pool.stop(5.0)
    assert [process.wait(10) for process in processes] == [0, 0]
    assert workers.log("w0").with_suffix(".closed").exists()


def test_a_worker_that_cannot_start_says_why(workers):
    pool = Pool(workers.endpoint, ["w0"])
    process = workers.start("w0", "fails-to-start")
    assert pool.poll_until_lost() == ("w0", process.pid, "failed: FileNotFoundError: no config.json")
    assert process.wait(30) == 1
    assert "Traceback" in workers.said("w0")
    said = "rollout worker w0 was not ready within 0.5 s (it is starting; lost before, as it failed: FileNotFoundError"
    with pytest.raises(WorkerLost, match=re.escape(said)):
        pool.wait_ready(0.5)
    workers.start("w0")
    pool.wait_ready(START_S)
    assert pool.status()["w0"] == "idle"
    pool.stop(0.1)


def test_tasks_of_another_policy_version_end_the_worker(workers):
    pool = Pool(workers.endpoint, ["w0"])
    process = workers.start("w0")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=60.0)
    pool.start(tasks(1, version=2))
    assert "a task for policy version 2, the engine has 1" in pool.poll_until_lost()[2]
    assert process.wait(30) == 1
    pool.stop(0.1)


def test_what_a_killed_worker_had_is_played_by_the_other(workers):
    pool = Pool(workers.endpoint, ["w0", "w1"])
    workers.start("w0")
    killed = workers.start("w1", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=60.0)
    pool.start(tasks(6))
    while pool.status()["w1"] != "tasks":  # it plays
        pool.poll(0.1)
    os.kill(killed.pid, signal.SIGKILL)
    finish(pool)
    assert [(name, pid) for name, pid, _ in pool.told] == [("w1", killed.pid)]
    assert "its connection is closed" in pool.told[0][2] or "is not connected" in pool.told[0][2]
    assert played(workers, "w0") == ids(*range(6))
    assert (pool.lost, pool.replayed_groups) == (1, 3)
    pool.load_weights(2, {}, timeout_s=60.0)  # waits for those that live
    pool.start(tasks(2, version=2))
    finish(pool)
    pool.stop(0.1)


def test_the_only_worker_is_started_again_and_goes_on(workers):
    """It gets the weights that its tasks need, also where newer ones were published meanwhile."""
    pool = Pool(workers.endpoint, ["w0"])
    first = workers.start("w0", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {"norm": 1.0}, timeout_s=60.0)
    batch = pool.start(tasks(2))
    while pool.status()["w0"] != "tasks":
        pool.poll(0.1)
    first.kill()
    first.wait()
    pool.poll_until_lost()
    assert pool.busy(batch)
    workers.start("w0")
    pool.load_weights(2, {"norm": 2.0}, timeout_s=60.0)  # waits for it to come back
    finish(pool)
    again = pool.start(tasks(1, version=2))
    finish(pool)
    assert not pool.busy(again) and pool.lost == 1
    assert set(played(workers, "w0")) == set(ids(0, 1))
    pool.stop(0.1)


def test_a_worker_that_was_replaced_unseen_has_lost_its_tasks(workers):
    """The trainer trains, a worker dies and starts again meanwhile: its "ready" is the first that is seen of it."""
    pool = Pool(workers.endpoint, ["w0"])
    first = workers.start("w0", "hangs")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=60.0)
    pool.start(tasks(2))
    first.kill()
    first.wait()
    workers.start("w0")
    finish(pool)
    assert played(workers, "w0") == ids(0, 1)
    assert [(name, pid) for name, pid, _ in pool.told] == [("w0", first.pid)]
    pool.stop(0.1)


def test_a_worker_gets_nothing_that_was_meant_for_the_one_before(workers):
    """That one had the weights that these tasks want; its successor is connected, still builds its engine, and has none."""
    pool = Pool(workers.endpoint, ["w0"])
    first = workers.start("w0")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=60.0)
    first.kill()
    first.wait()
    second = workers.start("w0", "starts-slowly")
    while not workers.log("w0").with_suffix(".connected").exists():
        time.sleep(0.02)
    pool.start(tasks(2))  # nothing has said yet that the first is gone
    finish(pool)
    assert [(name, pid) for name, pid, _ in pool.told] == [("w0", first.pid)] and second.poll() is None
    assert played(workers, "w0") == ids(0, 1)
    pool.stop(0.1)


def test_a_silent_worker_is_lost_after_the_heartbeat_limit(workers):
    pool = Pool(workers.endpoint, ["w0"], heartbeat_s=2.0)
    process = workers.start("w0")
    pool.wait_ready(START_S)
    os.kill(process.pid, signal.SIGSTOP)
    name, pid, reason = pool.poll_until_lost()
    assert (name, pid) == ("w0", process.pid)
    assert "is silent for" in reason and "rollout.heartbeat_timeout_s=2" in reason
    os.kill(process.pid, signal.SIGCONT)
    for _ in range(5):
        assert pool.poll(0.2) == []  # it counts as lost until another one of its name is ready
    assert len(pool.told) == 1
    pool.stop(0.1)


def test_a_worker_that_gets_nowhere_is_lost_although_its_heart_beats(workers):
    pool = Pool(workers.endpoint, ["w0"], stuck_s=3.0)
    process = workers.start("w0", "hangs")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=60.0)
    pool.start(tasks(1))
    name, pid, reason = pool.poll_until_lost()
    assert (name, pid) == ("w0", process.pid) and "got nowhere for" in reason and "rollout.stuck_timeout_s=3" in reason
    pool.stop(0.1)


def test_a_worker_is_not_stuck_while_the_trainer_does_not_listen(workers):
    pool = Pool(workers.endpoint, ["w0"], stuck_s=3.0)
    workers.start("w0", "hangs")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=60.0)
    pool.start(tasks(1))
    time.sleep(4.0)
    pool.poll(0.0)
    assert not pool.told
    pool.stop(0.1)


def test_tasks_that_take_down_every_worker_end_the_job(workers):
    pool = Pool(workers.endpoint, ["w0"], losses=1)
    for _ in range(2):
        workers.start("w0", "breaks")
        pool.wait_ready(START_S)
        if not pool.told:
            pool.load_weights(1, {}, timeout_s=60.0)
            pool.start(tasks(2))
            pool.poll_until_lost()
            assert pool.told[0][2] == "failed: RuntimeError: out of memory"
    with pytest.raises(SharesError, match=r"2 workers were lost while they played the same 2 tasks \(s0, s1"):
        finish(pool)
    pool.stop(0.1)


def test_heartbeats_go_on_while_the_engine_works(workers):
    """Twelve answers of 0.2 s each in one wave: longer than the limit, and yet the worker is not lost."""
    pool = Pool(workers.endpoint, ["w0"], heartbeat_s=1.5)
    workers.start("w0", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=10.0)
    pool.start(tasks(6))
    seen = set()
    while pool.busy():
        pool.poll(0.1)
        seen.add(pool.status()["w0"])
    assert "tasks" in seen and not pool.told
    pool.stop(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_cleanly(workers, number):
    pool = Pool(workers.endpoint, ["w0"], heartbeat_s=10.0)
    process = workers.start("w0", "slow")
    pool.wait_ready(START_S)
    pool.load_weights(1, {}, timeout_s=10.0)
    pool.start(tasks(6))
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert workers.log("w0").with_suffix(".closed").exists()
    assert f"ended by {signal.Signals(number).name}" in workers.said("w0")
    pool.stop(0.1)


def test_a_worker_whose_trainer_is_gone_ends_itself(workers):
    pool = Pool(workers.endpoint, ["w0"], heartbeat_s=10.0)
    process = workers.start("w0")
    pool.wait_ready(START_S)
    pool._socket.close(linger=0)  # as if the trainer were killed: no "stop"
    assert process.wait(15) == 1
    assert "has no connection to the trainer" in workers.said("w0")


def test_a_worker_dies_with_its_parent(workers, tmp_path):
    """The parent is killed with SIGKILL and cannot clean up; the kernel ends its worker."""
    pool = Pool(workers.endpoint, ["w0"], heartbeat_s=10.0)
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
