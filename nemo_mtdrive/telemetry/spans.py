"""When each process of a run did what: spans of named phases, written by every process, merged by training rank 0.

    with span("generate"):          anywhere, in any thread; free of cost until `record` was called in the process
        ...

    RUN/spans/worker-0.jsonl        {"schema": 1, "process": "worker-0", "pid": 17, "boot": "...", "epoch_ns": ...}
                                    ["generate", 81234567890, 81334567890, 0]        phase, start, stop, thread

Times are the machine's monotonic clock [ns], which all its processes share; `epoch_ns` (wall clock minus monotonic)
ties machines together, as well as their wall clocks agree. `SpanReader` gives all spans on one clock.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
PHASES = ("generate", "log_prob", "reference", "update", "environment", "sync", "serialise", "transfer", "assemble", "wait")
"""All phases, those first that a step is for: where several run at once, time belongs to the first (`exposure`)."""

_MERGE_NS = 100_000
"""Spans of one phase and thread with a gap below this are one."""
_FLUSH_LINES = 256
_LARGEST_FILE = 64 << 20
"""Bytes after which a process starts its file anew; what was in it has long been merged."""


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of one thread of one process."""

    phase: str
    start_ns: int
    stop_ns: int
    process: str
    thread: int
    """Counted from 0 in the order of their first span."""


class SpanLog:
    """The spans of this process, appended to a file; safe for threads.

    Args:
        path: the file, made anew; its folder is made when absent.
        process: the name by which the timeline shows it.
    """

    def __init__(self, path: Path, process: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._process = process
        self._lock = threading.Lock()
        self._threads: dict[int, int] = {}
        self._last: dict[int, list[Any]] = {}
        self._lines: list[list[Any]] = []
        self._start_file()

    def begin(self, phase: str) -> int:
        """A span of the calling thread begins; returns the time [ns]. Nothing before it is merged with what it holds."""
        with self._lock:
            thread = self._thread()
            if thread in self._last and self._last[thread][0] != phase:
                del self._last[thread]
        return time.monotonic_ns()

    def add(self, phase: str, start_ns: int, stop_ns: int) -> None:
        """Note a span of the calling thread; written with the next `flush`, or when many wait."""
        with self._lock:
            thread = self._thread()
            last = self._last.get(thread)
            if last is not None and last[0] == phase and 0 <= start_ns - last[2] < _MERGE_NS:
                last[2] = stop_ns
                return
            line = [phase, start_ns, stop_ns, thread]
            self._last[thread] = line
            self._lines.append(line)
            if len(self._lines) >= _FLUSH_LINES:
                self._write()

    def flush(self) -> None:
        """Write what is noted, so that rank 0 sees it."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write the rest and close the file."""
        with self._lock:
            self._write()
            self._file.close()

    def _thread(self) -> int:
        return self._threads.setdefault(threading.get_ident(), len(self._threads))

    def _start_file(self) -> None:
        header = {"schema": SCHEMA, "process": self._process, "pid": os.getpid(), "boot": boot_id(),
                  "epoch_ns": time.time_ns() - time.monotonic_ns()}
        self._file = self._path.open("w", encoding="utf-8")
        self._file.write(json.dumps(header) + "\n")
        self._file.flush()

    def _write(self) -> None:
        if self._lines:
            if self._file.tell() > _LARGEST_FILE:
                self._file.close()
                self._start_file()
            self._file.write("".join(json.dumps(line) + "\n" for line in self._lines))
            self._file.flush()
            self._lines.clear()
        self._last.clear()  # a written span grows no more


_log: SpanLog | None = None


def record(folder: Path, process: str) -> SpanLog:
    """From now on `span` of this process writes to `folder`/`process`.jsonl; an earlier log is closed."""
    global _log
    if not re.fullmatch(r"[A-Za-z0-9._-]+", process):
        raise ValueError(f"process {process!r}: use letters, digits, dots, dashes; it names a file")
    stop()
    _log = SpanLog(folder / f"{process}.jsonl", process)
    return _log


def flush() -> None:
    """Write the spans that this process has noted; nothing where it records none."""
    if _log is not None:
        _log.flush()


def stop() -> None:
    """`span` records nothing any more."""
    global _log
    if _log is not None:
        _log.close()
        _log = None


@contextmanager
def span(phase: str) -> Iterator[None]:
    """Time what is done inside as `phase`. A span inside another one takes its time from it.

    Raises:
        ValueError: not one of `PHASES`.
    """
    if phase not in PHASES:
        raise ValueError(f"phase {phase!r}: use one of {', '.join(PHASES)}")
    if _log is None:
        yield
        return
    log = _log
    start = log.begin(phase)
    try:
        yield
    finally:
        if log is _log:  # recording may have ended inside
            log.add(phase, start, time.monotonic_ns())


class SpanReader:
    """Reads the span files of a run as they grow.

    Args:
        folder: RUN/spans; need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, tuple[bytes, int]] = {}
        """File -> (its first line, which no two processes share; bytes read)."""
        self._headers: dict[Path, dict[str, Any]] = {}
        self._epoch_of_boot: dict[str, int] = {}

    def epoch_ns(self, monotonic_ns: int) -> int:
        """A moment of this machine's monotonic clock on the clock of the spans."""
        return monotonic_ns + self._epoch(boot_id(), time.time_ns() - time.monotonic_ns())

    def read(self) -> list[Span]:
        """The spans that were written since the last call, of all processes, in nanoseconds since the epoch.

        Raises:
            ValueError: a file that is no span file of this schema; the message names it and the line.
        """
        return [span for path in sorted(self._folder.glob("*.jsonl")) for span in self._read(path)]

    def _read(self, path: Path) -> Iterator[Span]:
        with path.open("rb") as file:
            first = file.readline()
            known, offset = self._offsets.get(path, (first, 0))
            if known != first:  # a process that was started again, however much it has written since
                offset = 0
            if not first.endswith(b"\n"):  # it is just starting
                return
            file.seek(offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # the rest of a line comes with the next call
        self._offsets[path] = (first, offset + len(whole))
        for row in whole.splitlines():
            try:
                line = json.loads(row)
                if isinstance(line, dict):
                    if line["schema"] != SCHEMA:
                        raise ValueError(f"schema {line['schema']}, want {SCHEMA}")
                    self._headers[path] = line
                    continue
                phase, start, stop_ns, thread = line
                header = self._headers[path]
                shift = self._epoch(str(header["boot"]), int(header["epoch_ns"]))
                yield Span(str(phase), int(start) + shift, int(stop_ns) + shift, str(header["process"]), int(thread))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: not a line of spans: {row[:60]!r} ({error})") from error

    def _epoch(self, boot: str, epoch_ns: int) -> int:
        """One shift a machine, so that its processes keep their exact order."""
        return self._epoch_of_boot.setdefault(boot, epoch_ns)


def boot_id() -> str:
    """Names the monotonic clock of this machine: two processes with the same id share it."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else os.uname().nodename
