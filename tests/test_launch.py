"""A job's processes end together: a killed or failing child, an interrupt, a launcher that is killed; no orphan is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from nemo_mtdrive.config import ConfigError, load_config
from nemo_mtdrive.environment.server import listen
from nemo_mtdrive.launch import make_endpoints, new_meeting_place, read_endpoints, write_endpoints
from nemo_mtdrive.process import GAVE_UP, WRONG_REQUEST, describe_exit, free_port, port_is_free, reserve_port
from nemo_mtdrive.supervision import Job, JobFailed, JobInterrupted, MainFailed, Restarts, interruptible

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


class Journal(Restarts):
    """Restarts with a progress that the test sets, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.newest = 0.0
        self.told: list[str] = []
        super().__init__(lambda: self.newest, folder / "restarts.jsonl", self.told.append)

    def lines(self) -> list[tuple[str, int]]:
        return [(line["name"], line["number"]) for line in map(json.loads, self.journal.read_text().splitlines())]


def open_job(folder: Path) -> Job:
    return Job(folder, Journal(folder))


def pids(job: Job) -> list[int]:
    return [child.process.pid for child in job._children]


def test_a_killed_child_ends_the_job_and_is_named(tmp_path: Path) -> None:
    with open_job(tmp_path) as job:
        job.start("environment-server", SLEEP, {})
        job.start("training-rank-0", SLEEP, {}, main=True)
        running = pids(job)
        os.kill(running[0], signal.SIGKILL)
        with pytest.raises(JobFailed, match=r"environment-server was killed by SIGKILL; its log: .*environment-server\.log"):
            job.watch(lambda: None)
    assert not any(map(alive, running))


def test_a_failing_child_is_quoted(tmp_path: Path) -> None:
    with open_job(tmp_path) as job:
        job.start("training-rank-0", [sys.executable, "-c", "import sys; print('first'); sys.exit('out of memory')"], {},
                  main=True)
        with pytest.raises(JobFailed, match=r"training-rank-0 exited with code 1 \(out of memory\)"):
            job.watch(lambda: None)


def test_of_several_that_end_at_once_the_killed_one_is_the_cause(tmp_path: Path) -> None:
    with open_job(tmp_path) as job:
        job.start("training-rank-0", [sys.executable, "-c", "raise SystemExit(1)"], {}, main=True)
        job.start("training-rank-1", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}, main=True)
        for child in job._children:
            child.process.wait()
        with pytest.raises(JobFailed, match="training-rank-1 was killed by SIGKILL"):
            job.watch(lambda: None)


def test_a_job_ends_well_with_its_main_processes(tmp_path: Path) -> None:
    polls = []
    with open_job(tmp_path) as job:
        job.start("environment-server", SLEEP, {})
        job.start("training-rank-0", [sys.executable, "-c", "print('done')"], {}, main=True)
        job.watch(lambda: polls.append(1))
        running = pids(job)
        assert alive(running[0])
    assert not any(map(alive, running)) and polls
    assert (tmp_path / "training-rank-0.log").read_text() == "done\n"


def test_a_child_that_ignores_sigterm_and_its_grandchild_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mtdrive.supervision.STOP_S", 0.5)
    code = textwrap.dedent("""
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
    """)
    with open_job(tmp_path) as job:
        job.start("stubborn", [sys.executable, "-c", code], {})
        assert wait_until(lambda: (tmp_path / "stubborn.log").read_text().strip() != "")
        grandchild = int((tmp_path / "stubborn.log").read_text())
        running = pids(job)
    assert not alive(running[0])
    assert wait_until(lambda: not alive(grandchild))


def test_children_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from nemo_mtdrive.supervision import Job, Restarts
        folder = Path({str(tmp_path)!r})
        job = Job(folder, Restarts(lambda: 0.0, folder / "restarts.jsonl", print))
        job.start("child", [sys.executable, "-c", "import time; time.sleep(600)"], {{}})
        print(job._children[0].process.pid, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        assert alive(child)
        launcher.kill()
    assert wait_until(lambda: not alive(child))


COUNTED = [sys.executable, "-c", "import time; print('start', flush=True); time.sleep(600)"]


def starts(log: Path) -> int:
    return log.read_text().count("start") if log.exists() else 0


def test_a_helper_that_dies_is_started_again_and_told_of(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with Job(tmp_path, journal) as job:
        job.start("rollout-worker-0", COUNTED, {}, max_restarts=2, limit_key="rollout.max_restarts")
        job.start("training-rank-0", SLEEP, {}, main=True)
        killed: list[int] = []

        def kill_thrice() -> None:
            pid = pids(job)[0]
            if pid not in killed and starts(tmp_path / "rollout-worker-0.log") == len(killed) + 1:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(JobFailed, match=r"rollout-worker-0 was killed by SIGKILL; its log: .*worker-0\.log; it was "
                                            r"started again 2 times since the last checkpoint \(rollout\.max_restarts=2\)"):
            job.watch(kill_thrice)
    assert len(killed) == 3 and journal.lines() == [("rollout-worker-0", 1), ("rollout-worker-0", 2)]
    assert "rollout-worker-0 started again (2 of 2)" in journal.told[1]


def test_progress_gives_the_restarts_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for _ in range(2):
        journal.count("a server", "it was killed", 2, "environment.max_restarts")
    journal.newest = 1.0
    for _ in range(2):
        journal.count("a server", "it was killed", 2, "environment.max_restarts")
    journal.newest = 0.5  # older than what was seen is none
    with pytest.raises(JobFailed, match="it was killed; it was started again 2 times"):
        journal.count("a server", "it was killed", 2, "environment.max_restarts")
    journal.count("another", "it was killed", 1, "environment.max_restarts")
    with pytest.raises(JobFailed, match="^it was killed$"):
        journal.count("a third", "it was killed", 0, "environment.max_restarts")


def test_a_helper_that_hangs_is_killed_for_a_reason_and_only_that_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with Job(tmp_path, journal) as job:
        job.start("rollout-worker-0", SLEEP, {}, max_restarts=1, limit_key="rollout.max_restarts")
        until_told = "import sys, time\nwhile not open(sys.argv[1]).read(): time.sleep(0.05)"
        journal.journal.touch()
        job.start("training-rank-0", [sys.executable, "-c", until_told, str(journal.journal)], {}, main=True)
        (first, _) = pids(job)
        job.kill("rollout-worker-0", first + 1, "is not meant")
        assert alive(first)
        job.kill("rollout-worker-0", first, "is silent for 9 s")
        job.watch(lambda: None)
        assert not alive(first) and alive(pids(job)[0])
    assert journal.told[0].startswith("rollout-worker-0 was killed because it is silent for 9 s; its log: ")


def test_an_orderly_end_of_a_helper_is_one_only_where_it_may_end_by_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    done = [sys.executable, "-c", "print('start', flush=True)"]
    with Job(tmp_path, journal) as job:
        job.start("rollout-worker-0", done, {}, ends_itself=True, max_restarts=5)
        job.start("environment-server-0", done, {}, max_restarts=1, limit_key="environment.max_restarts")
        job.start("training-rank-0", SLEEP, {}, main=True)
        with pytest.raises(JobFailed, match="environment-server-0 exited with code 0"):
            job.watch(lambda: None)
    assert journal.lines() == [("environment-server-0", 1)] and starts(tmp_path / "rollout-worker-0.log") == 1


@pytest.mark.parametrize("code", [WRONG_REQUEST, GAVE_UP])
def test_what_would_come_to_the_same_end_is_not_tried_again(tmp_path: Path, code: int) -> None:
    wrong = [sys.executable, "-c", f"import sys; print('set it to 3'); sys.exit({code})"]
    for main in (False, True):
        with open_job(tmp_path) as job:
            job.start("helper", wrong, {}, main=main, max_restarts=5)
            job.start("training-rank-0", SLEEP, {}, main=True)
            with pytest.raises(JobFailed, match=rf"helper exited with code {code} \(set it to 3\)") as caught:
                job.watch(lambda: None)
            assert not isinstance(caught.value, MainFailed)


def test_all_main_processes_can_be_dropped_and_started_again(tmp_path: Path) -> None:
    with open_job(tmp_path) as job:
        job.start("environment-server-0", SLEEP, {})
        for rank in range(2):
            job.start(f"training-rank-{rank}", SLEEP, {}, main=True)
        server, first, second = pids(job)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(MainFailed, match="training-rank-1 was killed by SIGKILL"):
            job.watch(lambda: None)
        job.drop(["training-rank-0", "training-rank-1"])
        assert not alive(first) and not alive(second) and alive(server)
        job.start("training-rank-0", [sys.executable, "-c", ""], {}, main=True)
        job.watch(lambda: None)
        assert alive(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_an_exception_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(JobInterrupted, match=f"stopped by {number.name}"), interruptible():
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_endpoints_are_the_owners_only(tmp_path: Path) -> None:
    endpoints = make_endpoints(load_config("scratch_cpu", []), tmp_path)
    path = tmp_path / "endpoints.json"
    write_endpoints(endpoints, path)
    write_endpoints(endpoints, path)  # a resumed run writes it anew
    assert read_endpoints(path) == endpoints
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(endpoints.environment_token) >= 32 and len(endpoints.episodes) == 2
    assert not list(tmp_path.glob(".*"))


def test_ranks_that_start_again_meet_elsewhere_and_find_the_same_servers(tmp_path: Path) -> None:
    config = load_config("scratch_cpu", ["environment.servers=3"])
    first = make_endpoints(config, tmp_path / "0")
    again = new_meeting_place(first, config, tmp_path / "1")
    assert len(set(first.environment_urls)) == 3
    assert (again.environment_urls, again.environment_token) == (first.environment_urls, first.environment_token)
    assert again.run_id != first.run_id and again.control != first.control
    assert not set(again.episodes) & set(first.episodes)


def test_a_reserved_port_is_kept_for_the_server_that_shares_it() -> None:
    with reserve_port("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), timeout=30):
            pass
        assert port not in {free_port() for _ in range(20)}
        for _ in range(2):  # a server, and the one that takes its place
            with listen("127.0.0.1", port, shared=True), socket.create_connection(("127.0.0.1", port), timeout=30):
                pass


def test_a_busy_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"environment.port={port}: {port} is busy"):
            make_endpoints(load_config("scratch_cpu", [f"environment.port={port}"]), tmp_path)
    assert port_is_free("127.0.0.1", free_port())


@pytest.mark.parametrize(("code", "words"), [(3, "exited with code 3"), (-9, "was killed by SIGKILL"),
                                             (-250, "was killed by signal 250")])
def test_exits_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
