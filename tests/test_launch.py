"""A job's processes end together: a killed or failing child, an interrupt, a launcher that is killed; no orphan is left."""

from __future__ import annotations

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
from nemo_mtdrive.launch import (
    Job,
    JobFailed,
    JobInterrupted,
    interruptible,
    make_endpoints,
    read_endpoints,
    write_endpoints,
)
from nemo_mtdrive.process import describe_exit, free_port, port_is_free

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def pids(job: Job) -> list[int]:
    return [child.process.pid for child in job._children]


def test_a_killed_child_ends_the_job_and_is_named(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        job.start("environment-server", SLEEP, {})
        job.start("training-rank-0", SLEEP, {}, main=True)
        running = pids(job)
        os.kill(running[0], signal.SIGKILL)
        with pytest.raises(JobFailed, match=r"environment-server was killed by SIGKILL; its log: .*environment-server\.log"):
            job.watch(lambda: None)
    assert not any(map(alive, running))


def test_a_failing_child_is_quoted(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        job.start("training-rank-0", [sys.executable, "-c", "import sys; print('first'); sys.exit('out of memory')"], {},
                  main=True)
        with pytest.raises(JobFailed, match=r"training-rank-0 exited with code 1 \(out of memory\)"):
            job.watch(lambda: None)


def test_of_several_that_end_at_once_the_killed_one_is_the_cause(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        job.start("training-rank-0", [sys.executable, "-c", "raise SystemExit(1)"], {}, main=True)
        job.start("training-rank-1", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}, main=True)
        for child in job._children:
            child.process.wait()
        with pytest.raises(JobFailed, match="training-rank-1 was killed by SIGKILL"):
            job.watch(lambda: None)


def test_a_job_ends_well_with_its_main_processes(tmp_path: Path) -> None:
    polls = []
    with Job(tmp_path) as job:
        job.start("environment-server", SLEEP, {})
        job.start("training-rank-0", [sys.executable, "-c", "print('done')"], {}, main=True)
        job.watch(lambda: polls.append(1))
        running = pids(job)
        assert alive(running[0])
    assert not any(map(alive, running)) and polls
    assert (tmp_path / "training-rank-0.log").read_text() == "done\n"


def test_a_child_that_ignores_sigterm_and_its_grandchild_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mtdrive.launch.STOP_S", 0.5)
    code = textwrap.dedent("""
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
    """)
    with Job(tmp_path) as job:
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
        from nemo_mtdrive.launch import Job
        job = Job(Path({str(tmp_path)!r}))
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_an_exception_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(JobInterrupted, match=f"stopped by {number.name}"), interruptible():
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_endpoints_are_the_owners_only(tmp_path: Path) -> None:
    endpoints = make_endpoints(load_config("demo_cpu", []), tmp_path)
    path = tmp_path / "endpoints.json"
    write_endpoints(endpoints, path)
    write_endpoints(endpoints, path)  # a resumed run writes it anew
    assert read_endpoints(path) == endpoints
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(endpoints.environment_token) >= 32 and len(endpoints.episodes) == 2


def test_a_busy_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"environment.port={port}: it is busy"):
            make_endpoints(load_config("demo_cpu", [f"environment.port={port}"]), tmp_path)
    assert port_is_free("127.0.0.1", free_port())


@pytest.mark.parametrize(("code", "words"), [(3, "exited with code 3"), (-9, "was killed by SIGKILL"),
                                             (-250, "was killed by signal 250")])
def test_exits_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
