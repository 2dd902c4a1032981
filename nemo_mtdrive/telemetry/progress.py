"""What the terminal shows while a run works: bars on a terminal, sparse plain lines in a log. Always stderr.

    with open_progress(sys.stderr, plain_every_s=5.0) as progress:
        with progress.phase("SFT", total=400, unit="steps") as bar:
            bar.advance(1, loss=2.31)
        progress.note("checkpoint: runs/demo/checkpoints/sft")

A phase opened inside another (the rollouts of one RL step) is shown below it and goes away when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Bar(Protocol):
    """One phase's display."""

    def advance(self, count: int = 1, /, **metrics: float) -> None:
        """`count` more units are done; `metrics` replace the last ones of the same names."""
        ...


class Progress(Protocol):
    """The display; see `open_progress`."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """Show a phase of `total` units until the block ends."""
        ...

    def note(self, text: str) -> None:
        """Show a line that stays: a result, a path, a warning."""
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


def open_progress(stream: TextIO, *, plain_every_s: float, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Bars when `stream` is a terminal, else plain lines, at most one every `plain_every_s` seconds besides notes."""
    return _Bars(stream) if stream.isatty() else _Lines(stream, plain_every_s, clock)


def format_metrics(metrics: dict[str, float]) -> str:
    """`loss 2.31  KL 0.0012`: four significant digits at most."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())


def format_seconds(seconds: float) -> str:
    """`42 s`, `3:07 min` or `1:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class _Bars:
    """Rich bars on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._rich = RichProgress(
            SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[unit]}"), TimeElapsedColumn(), TimeRemainingColumn(compact=True),
            TextColumn("[cyan]{task.fields[metrics]}"), console=Console(file=stream), refresh_per_second=4)
        self._depth = 0

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        task = self._rich.add_task("  " * self._depth + escape(name), total=total, unit=unit, metrics="")
        shown: dict[str, float] = {}
        rich, outer = self._rich, self._depth

        class RichBar:
            def advance(self, count: int = 1, /, **metrics: float) -> None:
                shown.update(metrics)
                rich.update(task, advance=count, metrics=escape(format_metrics(shown)))

        self._depth += 1
        try:
            yield RichBar()
        finally:
            self._depth = outer
            rich.stop_task(task)
            if outer:
                rich.remove_task(task)

    def note(self, text: str) -> None:
        self._rich.console.print(escape(text), highlight=False, soft_wrap=True)

    def __enter__(self) -> _Bars:
        self._rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._rich.stop()


class _Lines:
    """Plain lines for logs: a line when an outer phase starts and ends, and now and then in between."""

    def __init__(self, stream: TextIO, every_s: float, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._last = -float("inf")
        self._names: list[str] = []

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        self._names.append(name)
        bar = _LineBar(self, " / ".join(self._names), total, unit)
        outer = len(self._names) == 1
        if outer:
            self.note(f"{name}: {total} {unit}")
        try:
            yield bar
            if outer:
                self.note(bar.line())
        finally:
            self._names.pop()

    def note(self, text: str) -> None:
        self._last = self._clock()
        print(text, file=self._stream, flush=True)

    def sometimes(self, line: Callable[[], str]) -> None:
        """Print the line unless another was printed within `every_s` seconds."""
        if self._clock() - self._last >= self._every_s:
            self.note(line())

    def now(self) -> float:
        return self._clock()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stream.flush()


class _LineBar:
    """A phase of `_Lines`."""

    def __init__(self, lines: _Lines, name: str, total: int, unit: str) -> None:
        self._lines, self._name, self._total, self._unit = lines, name, total, unit
        self._done = 0
        self._metrics: dict[str, float] = {}
        self._start = lines.now()

    def advance(self, count: int = 1, /, **metrics: float) -> None:
        self._done += count
        self._metrics |= metrics
        self._lines.sometimes(self.line)

    def line(self) -> str:
        parts = [f"{self._name}: {self._done}/{self._total} {self._unit}",
                 f"in {format_seconds(self._lines.now() - self._start)}", format_metrics(self._metrics)]
        return "  ".join(part for part in parts if part)
