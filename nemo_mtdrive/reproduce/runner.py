"""Stages are made here: each command a child process, as many at once as asked for, stopped in order, gone on with later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from nemo_mtdrive.process import available_cpus, describe_exit
from nemo_mtdrive.reproduce.marks import Mark, begin, done, expected_s, folder_of, measured, read_mark, write_mark
from nemo_mtdrive.reproduce.stages import Graph, Stage, missing_for, places, spelled
from nemo_mtdrive.supervision import JobFailed
from nemo_mtdrive.telemetry.progress import Bar, Progress, format_seconds

POLL_S = 0.2
STOP_S = 120.0
"""Time that a command has to end in order before it is killed [s]."""
LOG = "log.txt"
LAST_LINES = 5
TAKES_WORKERS = ("generate", "curate")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
"""Each stage has a core; what runs side by side must not take the others'."""


@dataclass
class Running:
    """A stage that is being made."""

    stage: Stage
    commands: list[list[str]]
    mark: Mark
    process: subprocess.Popen[bytes]
    at: int = 0
    """Which of the commands runs."""
    began: float = field(default_factory=time.monotonic)
    shown_s: int = 0
    """Seconds of the expectation that the bar has been told."""


class Runner:
    """Makes what is missing of a graph."""

    def __init__(self, root: Path, graph: Graph, made_of: Mapping[str, str], jobs: int, progress: Progress,
                 asked: Sequence[str] | None = None) -> None:
        """`jobs`: stages made at the same time; `asked`: those that are wanted, the first ones first, with what they stand
        on (default: all, in the graph's order)."""
        self._root, self._graph, self._made_of, self._jobs, self._progress = root, graph, made_of, jobs, progress
        self._expected = expected_s(root, graph)
        self._done = done(root, graph, made_of)
        known = measured(root, graph, made_of)
        self._missing = missing_for(graph, graph if asked is None else asked, known, self._done)
        self._running: list[Running] = []
        self._stopped: signal.Signals | None = None

    def run(self, on_stage: Callable[[], None] = lambda: None) -> None:
        """Make it all; `on_stage` is called after each stage that is done.

        Raises:
            JobFailed: a command failed; the message names its stage and log.
            KeyboardInterrupt: SIGINT or SIGTERM came; what runs has ended in order, and the same call goes on.
        """
        missing = self._missing
        if not missing:
            return
        total = sum(max(1, round(self._expected[name])) for name in missing)
        with _signals(self._stop), self._progress.phase("reproduce", total=total, unit="CPU s") as bar:
            try:
                while missing or self._running:
                    self._start(missing)
                    self._look(bar, on_stage)
                    if self._stopped is not None:
                        raise KeyboardInterrupt
                    time.sleep(POLL_S)
            finally:
                self._end_all()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = signal.Signals(number)

    def _start(self, missing: list[str]) -> None:
        """Begin stages that have all they need, in order."""
        for name in list(missing):
            if len(self._running) >= self._jobs:
                return
            stage = self._graph[name]
            if set(stage.needs) <= self._done:
                missing.remove(name)
                self._begin(stage, alone=self._jobs == 1 or not any(set(self._graph[other].needs) <= self._done
                                                                    for other in missing))

    def _begin(self, stage: Stage, alone: bool) -> None:
        before = read_mark(self._root, stage.name)
        goes_on = before is not None and before.whole
        plain = spelled(stage, self._root)
        mark = begin(self._root, stage, self._made_of[stage.name], plain)
        workers = available_cpus() if alone and not self._running else 1
        commands = [at_work(command, workers, self._root, stage) for command in plain]
        self._progress.note(f"{stage.name}: {'goes on' if goes_on else 'begins'}, about "
                            f"{format_seconds(self._expected[stage.name])} of CPU; {self._log(stage)}")
        self._running.append(Running(stage, commands, mark, self._open(stage, commands[0])))

    def _open(self, stage: Stage, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log(stage).open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen([sys.executable, "-m", "nemo_mtdrive.reproduce.child", str(os.getpid()), *command],
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                    env=os.environ | ONE_THREAD)

    def _look(self, bar: Bar, on_stage: Callable[[], None]) -> None:
        """See what has ended and go on with it."""
        for running in list(self._running):
            code, cpu = _ended(running.process)
            self._show(bar, running, code)
            if code is None:
                continue
            running.mark = replace(running.mark, cpu_seconds=running.mark.cpu_seconds + cpu)
            running.at += 1
            if code != 0:
                self._running.remove(running)
                self._keep(running)
                raise JobFailed(self._complaint(running, code))
            if running.at < len(running.commands):
                running.process = self._open(running.stage, running.commands[running.at])
                continue
            self._running.remove(running)
            self._keep(running, is_done=True)
            self._done.add(running.stage.name)
            self._progress.note(f"{running.stage.name}: done in {format_seconds(time.monotonic() - running.began)}")
            on_stage()

    def _show(self, bar: Bar, running: Running, code: int | None) -> None:
        whole = max(1, round(self._expected[running.stage.name]))
        last = code == 0 and running.at + 1 == len(running.commands)
        reached = whole if last else min(int(time.monotonic() - running.began), int(0.95 * whole))
        bar.advance(reached - running.shown_s)
        running.shown_s = reached

    def _keep(self, running: Running, *, is_done: bool = False) -> None:
        spent = running.mark.seconds + time.monotonic() - running.began
        write_mark(self._root, running.stage.name, replace(running.mark, done=is_done, seconds=round(spent, 1),
                                                           cpu_seconds=round(running.mark.cpu_seconds, 3)))

    def _complaint(self, running: Running, code: int) -> str:
        lines = self._log(running.stage).read_text(errors="replace").splitlines()[-LAST_LINES:]
        said = "\n".join(f"  {line}" for line in lines)
        return (f"stage {running.stage.name} {describe_exit(code)}; the same command goes on there. "
                f"{self._log(running.stage)} ends with\n{said}")

    def _log(self, stage: Stage) -> Path:
        return folder_of(self._root, stage.name) / LOG

    def _end_all(self) -> None:
        """Ask what still runs to end, and wait for it."""
        for running in self._running:
            running.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_S
        for running in self._running:
            while (found := _ended(running.process))[0] is None:
                if time.monotonic() > deadline:
                    running.process.kill()
                time.sleep(POLL_S)
            running.mark = replace(running.mark, cpu_seconds=running.mark.cpu_seconds + found[1])
            self._keep(running)
        if self._running:
            self._progress.note("stopped; the same command goes on where it was")
        self._running = []


def at_work(command: Sequence[str], workers: int, root: Path, stage: Stage) -> list[str]:
    """The command with what changes nothing of its result: worker processes, and going on from a checkpoint."""
    words = list(command)
    if any(word in words[1:3] for word in TAKES_WORKERS) and "rl-set" not in words and "--model" not in words:
        words += ["--workers", str(workers)]
    elif words[1] in ("sft", "rl") and (places(root, [stage.name])[stage.name] / "config.yaml").is_file():
        words.append("resume=true")
    return words


def _ended(process: subprocess.Popen[bytes]) -> tuple[int | None, float]:
    """(exit code, or None while it runs; CPU seconds of it and of its children that it waited for)."""
    if process.returncode is not None:
        return process.returncode, 0.0
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None, 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


@contextmanager
def _signals(handler: object) -> Iterator[None]:
    """SIGINT and SIGTERM call the handler meanwhile."""
    before = {sig: signal.signal(sig, handler) for sig in (signal.SIGINT, signal.SIGTERM)}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for sig, previous in before.items():
            signal.signal(sig, previous)
