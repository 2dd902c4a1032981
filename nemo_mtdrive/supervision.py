"""Processes of a job on this machine: started, watched, started again a bounded number of times, and ended together.

A helper (environment server, rollout worker) that dies is started again by itself. When a main process (training rank)
dies its peers cannot go on without it: `MainFailed` is raised, and the caller starts all of them again. Both are bounded
by `Restarts`, and each restart is a line in RUN/restarts.jsonl.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from nemo_mtdrive.process import GAVE_UP, WRONG_REQUEST, describe_exit, die_with_parent

POLL_S = 0.1
STOP_S = 10.0
"""How long a process may take to end after SIGTERM before SIGKILL."""
RESTARTS_FILE = "restarts.jsonl"


class JobFailed(RuntimeError):
    """A process of the job ended when it should not have; the message says which, how, and where its log is."""


class MainFailed(JobFailed):
    """A main process ended when it should not have; all of them may be started again."""


class JobInterrupted(RuntimeError):
    """The user or the scheduler asked the job to end."""


@dataclass
class Child:
    """A process of the job, and how to start it again."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes]
    main: bool
    """The job ends well when all of these have exited with 0."""
    ends_itself: bool
    """Exit code 0 is no failure of this helper: it was told to end."""
    max_restarts: int
    limit_key: str
    """The config key that `max_restarts` came from."""
    killed_because: str = ""
    """Why we killed it, if we did."""

    def how_it_ended(self) -> str:
        """In words, with the last line that it said."""
        code = self.process.returncode
        if self.killed_because:
            return f"{self.name} was killed because it {self.killed_because}; its log: {self.log}"
        said = _last_line(self.log) if code > 0 else ""  # one that was killed by a signal said nothing of it
        return f"{self.name} {describe_exit(code)}{f' ({said})' if said else ''}; its log: {self.log}"


@dataclass
class Restarts:
    """Counts restarts since the last progress; a process that dies again and again without any is not started again.

    Args:
        progress: a number that has grown when the job got somewhere; the counts then begin anew.
        journal: file that gets a JSON line a restart.
        tell: shows a line to the user.
    """

    progress: Callable[[], float]
    journal: Path
    tell: Callable[[str], None]
    _seen: float = -1.0
    _counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, reason: str, limit: int, key: str) -> None:
        """Note that `name` is about to be started again because of `reason`.

        Raises:
            JobFailed: it was started again `limit` times since the last progress.
        """
        newest = self.progress()
        if newest > self._seen:
            self._seen = newest
            self._counts.clear()
        number = self._counts[name] = self._counts.get(name, 0) + 1
        if number > limit:
            often = f"; it was started again {limit} times since the last checkpoint ({key}={limit})" if limit else ""
            raise JobFailed(f"{reason}{often}")
        with self.journal.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "name": name, "number": number, "reason": reason}) + "\n")
        self.tell(f"{reason}; {name} started again ({number} of {limit})")


class Job:
    """The processes of a job; use it as a context manager, so that nothing outlives it."""

    def __init__(self, log_dir: Path, restarts: Restarts, *, suffix: str = ".log") -> None:
        """What a process prints goes to LOG_DIR/NAME + suffix."""
        self._log_dir = log_dir
        self._suffix = suffix
        self._restarts = restarts
        self._children: list[Child] = []
        log_dir.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, main: bool = False,
              ends_itself: bool = False, max_restarts: int = 0, limit_key: str = "", pass_fds: Sequence[int] = ()) -> None:
        """Start a process; what it prints goes to its log (appended, so that a resumed job keeps both).

        A helper is started again at most `max_restarts` times without progress in between; with `ends_itself` its exit
        code 0 is as it should be. `pass_fds` are for main processes, which are never started again here.
        """
        log = self._log_dir / f"{name}{self._suffix}"
        process = _spawn(command, environment, log, pass_fds)
        self._children.append(Child(name, command, environment, log, process, main, ends_itself, max_restarts, limit_key))

    def watch(self, each_poll: Callable[[], None]) -> None:
        """Wait until every main process ended well; `each_poll` is called about ten times a second.

        A job without main processes ends when every helper that ends itself has; one of servers alone never does.

        Raises:
            MainFailed: a main process ended with another code than 0.
            JobFailed: one was asked for what cannot be done or gave up, or a helper died too often.
        """
        while True:
            codes = [(child, child.process.poll()) for child in self._children]
            each_poll()  # after the codes: what a process said before it ended is heard first
            self._raise_failure([child for child, code in codes if child.main and code])
            awaited = [code for child, code in codes if child.main] or [code for child, code in codes if child.ends_itself]
            if all(code == 0 for code in awaited or [None for _ in codes]):
                return
            for child, code in codes:
                if not child.main and code is not None and not (code == 0 and child.ends_itself):
                    self._start_again(child)
            time.sleep(POLL_S)

    def worst_code(self) -> int:
        """Return code of the process that failed, the first by a signal if any; 1 where none has ended."""
        return min((child.process.returncode for child in self._children if child.process.returncode), default=1)

    def kill(self, name: str, pid: int, because: str) -> None:
        """Kill a helper, as long as it is this process; it is then started again as any other that died."""
        for child in self._children:
            if child.name == name and child.process.pid == pid and child.process.poll() is None:
                child.killed_because = because
                _signal_session(child.process, signal.SIGKILL)

    def drop(self, names: Iterable[str]) -> None:
        """End some of the processes at once, with SIGKILL: nothing that they hold is wanted any more."""
        gone = set(names)
        dropped = [child for child in self._children if child.name in gone]
        for child in dropped:
            _signal_session(child.process, signal.SIGKILL)
        for child in dropped:
            child.process.wait()
        self._children = [child for child in self._children if child.name not in gone]

    def stop(self) -> None:
        """End all processes: SIGTERM to their sessions, SIGKILL after a while. Safe to call twice."""
        running = [child for child in self._children if child.process.poll() is None]
        for child in running:
            _signal_session(child.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for child in running:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_session(child.process, signal.SIGKILL)
                child.process.wait()
        for child in self._children:  # what a process left behind in its session
            _signal_session(child.process, signal.SIGKILL)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _raise_failure(self, failed: Sequence[Child]) -> None:
        if failed:
            # one that is killed takes its peers down within a poll: what was killed is the cause, the rest follow
            cause = min(failed, key=lambda child: child.process.returncode)
            raise (MainFailed if _may_help(cause) else JobFailed)(cause.how_it_ended())

    def _start_again(self, child: Child) -> None:
        if not _may_help(child):
            raise JobFailed(child.how_it_ended())
        self._restarts.count(child.name, child.how_it_ended(), child.max_restarts, child.limit_key)
        _signal_session(child.process, signal.SIGKILL)  # what it left behind
        child.killed_because = ""
        child.process = _spawn(child.command, child.environment, child.log, ())


def _may_help(child: Child) -> bool:
    """Whether to start it again."""
    return child.process.returncode not in (WRONG_REQUEST, GAVE_UP)


def _spawn(command: Sequence[str], environment: Mapping[str, str], log: Path,
           pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                env={**os.environ, **environment}, start_new_session=True, pass_fds=pass_fds,
                                preexec_fn=die_with_parent)


def _signal_session(process: subprocess.Popen[bytes], sig: int) -> None:
    try:
        os.killpg(process.pid, sig)
    except ProcessLookupError:
        return


def _last_line(log: Path) -> str:
    """The last line of a log that says something, cut to a readable length."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


@contextmanager
def saves_on_request(stop_file: Path) -> Iterator[None]:
    """SIGUSR1, which schedulers send before a time limit, asks the run to end after its step with a checkpoint."""
    stop_file.unlink(missing_ok=True)
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: stop_file.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)
        stop_file.unlink(missing_ok=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `JobInterrupted` inside the block, once; a second one is left to the default."""
    def interrupt(number: int, frame: FrameType | None) -> None:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
        raise JobInterrupted(f"stopped by {signal.Signals(number).name}")

    previous = {sig: signal.signal(sig, interrupt) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
