"""Progress across processes: training rank 0 says what it does on a pipe, the launcher shows it on the terminal.

One JSON line an event: {"event": "begin", "name", "total", "unit"}, {"event": "advance", "count", "metrics"},
{"event": "end"}, {"event": "note", "text"}. Phases nest; `advance` means the innermost. {"event": "restart"} ends all.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, TextIO

from nemo_mtdrive.telemetry.progress import Bar, Progress


class EventProgress:
    """A `Progress` that writes events to a stream; None says nothing (ranks other than 0)."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._writing = threading.Lock()

    def _say(self, **event: Any) -> None:
        if self._stream is not None:
            with self._writing:  # rollouts that are gathered beside the training tell of their workers
                self._stream.write(json.dumps(event) + "\n")
                self._stream.flush()

    def tell(self, event: str, **fields: Any) -> None:
        """Tell the launcher of something that is no progress; see `launch`."""
        self._say(event=event, **fields)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """Show a phase of `total` units until the block ends."""
        self._say(event="begin", name=name, total=total, unit=unit)
        try:
            yield _EventBar(self)
        finally:
            self._say(event="end")

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self._say(event="note", text=text)

    def __enter__(self) -> EventProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        pass


class _EventBar:
    def __init__(self, progress: EventProgress) -> None:
        self._progress = progress

    def advance(self, count: int = 1, /, **metrics: float) -> None:
        self._progress._say(event="advance", count=count, metrics=metrics)


class EventDisplay:
    """Shows events on a `Progress`; close it (or leave the context) so that open phases end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: list[tuple[ExitStack, Bar]] = []

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event; an unknown one is passed over, so that a newer rank may say more."""
        kind = event.get("event")
        if kind == "begin":
            stack = ExitStack()
            bar = stack.enter_context(self._progress.phase(event["name"], event["total"], event["unit"]))
            self._open.append((stack, bar))
        elif kind == "advance" and self._open:
            self._open[-1][1].advance(event["count"], **event["metrics"])
        elif kind == "end" and self._open:
            self._open.pop()[0].close()
        elif kind == "restart":
            self._close_all()
        elif kind == "note":
            self._progress.note(event["text"])

    def __enter__(self) -> EventDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._close_all(kind, error, trace)

    def _close_all(self, kind: type[BaseException] | None = None, error: BaseException | None = None,
                   trace: TracebackType | None = None) -> None:
        while self._open:
            stack, _ = self._open.pop()
            stack.__exit__(kind, error, trace)
