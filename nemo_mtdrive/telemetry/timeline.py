"""Spans of all processes -> what a step waited for: exposed and overlapped seconds by phase, and RUN/trace.json.

Time of a thread belongs to the innermost of its spans. At each moment of a step several phases may run in different
threads and processes; the moment belongs to the first of them in the order of `PHASES`, and is *exposed* time of that
phase. Time in which a phase ran behind another one is *overlapped*: it cost the step nothing. So the exposed seconds of
all phases and of "other" (no phase ran anywhere) add up to the step.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_mtdrive.telemetry.spans import PHASES, Span, SpanReader
from nemo_mtdrive.whole_file import write_whole

TRACE_FILE = "trace.json"
SPANS_FOLDER = "spans"
OTHER = "other"
TRANSFER_PHASES = ("serialise", "transfer", "wait")
"""What moving data costs a step where it is exposed; "wait" is exposed only while nobody does anything."""


@dataclass(frozen=True)
class Window:
    """A step on the clock of its spans."""

    step: int
    start_ns: int
    stop_ns: int


@dataclass(frozen=True)
class PhaseTime:
    """Of one phase in one window [s]."""

    exposed_s: float
    overlapped_s: float

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one thread was in the phase."""
        return self.exposed_s + self.overlapped_s


def innermost(spans: Iterable[Span]) -> list[Span]:
    """The spans without those parts in which an inner span of the same thread ran: nothing of a thread overlaps."""
    lanes: dict[tuple[str, int], list[Span]] = defaultdict(list)
    for each in spans:
        lanes[each.process, each.thread].append(each)
    parts: list[Span] = []
    for (process, thread), lane in lanes.items():
        def cut(phase: str, start: int, stop: int, process: str = process, thread: int = thread) -> None:
            if stop > start:
                parts.append(Span(phase, start, stop, process, thread))

        open_spans: list[Span] = []
        reached = 0
        for each in sorted(lane, key=lambda s: (s.start_ns, -s.stop_ns)):
            while open_spans and open_spans[-1].stop_ns <= each.start_ns:
                done = open_spans.pop()
                cut(done.phase, reached, done.stop_ns)
                reached = max(reached, done.stop_ns)
            if open_spans:
                cut(open_spans[-1].phase, reached, each.start_ns)
            reached = each.start_ns
            open_spans.append(each)
        while open_spans:
            done = open_spans.pop()
            cut(done.phase, reached, done.stop_ns)
            reached = max(reached, done.stop_ns)
    return parts


def exposure(spans: Iterable[Span], window: Window) -> dict[str, PhaseTime]:
    """Exposed and overlapped seconds of every phase, and of "other", in a window; see the module's docstring."""
    changes: list[tuple[int, str, int]] = [(window.stop_ns, OTHER, 0)]
    for each in innermost(spans):
        start, stop = max(each.start_ns, window.start_ns), min(each.stop_ns, window.stop_ns)
        if stop > start:
            changes += [(start, each.phase, 1), (stop, each.phase, -1)]
    running = dict.fromkeys(PHASES, 0)
    exposed, busy = dict.fromkeys((*PHASES, OTHER), 0), dict.fromkeys((*PHASES, OTHER), 0)
    now = window.start_ns
    for moment, phase, change in sorted(changes):
        active = [name for name in PHASES if running[name]] or [OTHER]
        exposed[active[0]] += moment - now
        for name in active:
            busy[name] += moment - now
        now = moment
        if phase != OTHER:
            running[phase] += change
    return {name: PhaseTime(exposed[name] / 1e9, (busy[name] - exposed[name]) / 1e9) for name in exposed}


def timeline_metrics(spans: Iterable[Span], window: Window) -> dict[str, float]:
    """`timeline/exposed_s/PHASE`, `timeline/overlapped_s/PHASE`, `timeline/step_s`, and `timeline/transfer_share`: the
    exposed share of a step, 0..1, in which data was moved or waited for."""
    times = exposure(spans, window)
    step_s = (window.stop_ns - window.start_ns) / 1e9
    moved = sum(times[name].exposed_s for name in TRANSFER_PHASES)
    return ({f"timeline/exposed_s/{name}": each.exposed_s for name, each in times.items()}
            | {f"timeline/overlapped_s/{name}": each.overlapped_s for name, each in times.items() if name != OTHER}
            | {"timeline/step_s": step_s, "timeline/transfer_share": moved / step_s if step_s else 0.0})


class StepTimeline:
    """Merges the spans of a run's processes step by step; training rank 0 owns it.

    Args:
        run_dir: holds spans/ and gets trace.json, written anew with each step.
        keep_steps: how many of the last steps trace.json shows.
    """

    def __init__(self, run_dir: Path, keep_steps: int) -> None:
        self._reader = SpanReader(run_dir / SPANS_FOLDER)
        self._path = run_dir / TRACE_FILE
        self._keep_steps = keep_steps
        self._spans: list[Span] = []
        self._windows: list[Window] = []

    def close_step(self, step: int, start_ns: int) -> dict[str, float]:
        """A step that began at `start_ns` (time.monotonic_ns) has just ended; returns its metrics.

        A span that is still open (another process at the next step's work) counts from the step in which it ends.
        """
        self._spans += self._reader.read()
        window = Window(step, self._reader.epoch_ns(start_ns), self._reader.epoch_ns(time.monotonic_ns()))
        self._windows = [*self._windows, window][-self._keep_steps :]
        oldest = self._windows[0].start_ns
        self._spans = [each for each in self._spans if each.stop_ns > oldest]
        write_trace(self._path, self._spans, self._windows)
        return timeline_metrics([each for each in self._spans if each.stop_ns > window.start_ns], window)


def write_trace(path: Path, spans: Sequence[Span], windows: Sequence[Window]) -> None:
    """Chrome's trace format (chrome://tracing, ui.perfetto.dev): a row a thread, a row for the steps; whole or not."""
    write_whole(path, json.dumps(chrome_trace(spans, windows)))


def chrome_trace(spans: Sequence[Span], windows: Sequence[Window]) -> dict[str, Any]:
    """The trace as JSON data; times in microseconds from the first step's start."""
    zero = min((window.start_ns for window in windows), default=0)
    processes = sorted({each.process for each in spans})
    number = {name: index + 1 for index, name in enumerate(processes)}
    events: list[dict[str, Any]] = [_named("steps", 0), *(_named(name, number[name]) for name in processes)]
    events += [{"name": f"step {window.step}", "cat": "step", "ph": "X", "ts": (window.start_ns - zero) / 1e3,
                "dur": (window.stop_ns - window.start_ns) / 1e3, "pid": 0, "tid": 0, "args": {"step": window.step}}
               for window in windows]
    events += [{"name": each.phase, "cat": "phase", "ph": "X", "ts": (each.start_ns - zero) / 1e3,
                "dur": (each.stop_ns - each.start_ns) / 1e3, "pid": number[each.process], "tid": each.thread}
               for each in spans]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(name: str, pid: int) -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}}


def read_trace(path: Path) -> tuple[list[Span], list[Window]]:
    """The spans and steps of a trace.json that `write_trace` wrote; times in nanoseconds from its first step.

    Raises:
        ValueError: not such a file; the message names it.
        OSError: it cannot be read.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        names = {event["pid"]: str(event["args"]["name"]) for event in events if event["ph"] == "M"}
        spans, windows = [], []
        for event in events:
            if event["ph"] != "X":
                continue
            start = round(1e3 * event["ts"])
            stop = start + round(1e3 * event["dur"])
            if event["cat"] == "step":
                windows.append(Window(int(event["args"]["step"]), start, stop))
            elif event["name"] in PHASES:
                spans.append(Span(event["name"], start, stop, names[event["pid"]], int(event["tid"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a trace of this program ({type(error).__name__}: {error})") from error
    return spans, windows
