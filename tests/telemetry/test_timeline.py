"""What a step waited for: hand-made spans with known answers, and random ones against a count of every nanosecond."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from nemo_mtdrive.evaluation.timeline import last_step, picture, rows_by_exposure
from nemo_mtdrive.telemetry import spans as spans_module
from nemo_mtdrive.telemetry.spans import PHASES, Span
from nemo_mtdrive.telemetry.timeline import (
    OTHER,
    StepTimeline,
    Window,
    exposure,
    innermost,
    read_trace,
    timeline_metrics,
    write_trace,
)

S = 10**9


def of(phase: str, start: float, stop: float, process: str = "rank-0", thread: int = 0) -> Span:
    return Span(phase, int(start * S), int(stop * S), process, thread)


STEP = [
    of("wait", 0, 4), of("transfer", 2, 2.5), of("log_prob", 4, 6), of("transfer", 4, 4.5), of("update", 6, 9),
    of("generate", 0.5, 3, "worker-0"), of("environment", 3, 3.5, "worker-0"),
    of("serialise", 2.5, 3.75, "worker-0", 1), of("sync", 9, 9.5),
]
WINDOW = Window(3, 0, 10 * S)


def test_exposed_seconds_add_up_to_the_step_and_hidden_ones_cost_nothing() -> None:
    times = exposure(STEP, WINDOW)
    exposed = {name: each.exposed_s for name, each in times.items() if each.exposed_s}
    assert exposed == pytest.approx({"generate": 2.5, "environment": 0.5, "serialise": 0.25, "wait": 0.75, "transfer": 0.5,
                                     "log_prob": 1.5, "update": 3.0, "sync": 0.5, OTHER: 0.5})
    assert sum(each.exposed_s for each in times.values()) == pytest.approx(10)
    assert times["serialise"].overlapped_s == pytest.approx(1.0)
    assert times["transfer"].overlapped_s == pytest.approx(0.5)
    assert times["wait"].overlapped_s == pytest.approx(2.75)  # 0.5..3.75 less the transfer inside it
    assert timeline_metrics(STEP, WINDOW)["timeline/transfer_share"] == pytest.approx(0.15)


def test_time_belongs_to_the_innermost_span_of_its_thread() -> None:
    parts = innermost([of("update", 0, 10), of("sync", 2, 6), of("transfer", 3, 4), of("transfer", 8, 10)])
    assert sorted((part.start_ns // S, part.stop_ns // S, part.phase) for part in parts) == [
        (0, 2, "update"), (2, 3, "sync"), (3, 4, "transfer"), (4, 6, "sync"), (6, 8, "update"), (8, 10, "transfer")]


@pytest.mark.parametrize("seed", range(20))
def test_random_spans_against_a_count_of_every_tick(seed: int) -> None:
    draw = random.Random(seed)
    found: list[Span] = []

    def nest(start: int, stop: int, lane: tuple[str, int], depth: int) -> None:
        while start < stop and depth:
            begin = draw.randint(start, stop)
            end = draw.randint(begin, stop)
            found.append(Span(draw.choice(PHASES), begin, end, *lane))
            nest(begin, end, lane, depth - 1)
            start = end + 1

    for lane in (("a", 0), ("a", 1), ("b", 0)):
        nest(0, 60, lane, 3)
    window = Window(0, 10, 50)
    exposed = dict.fromkeys((*PHASES, OTHER), 0)
    busy = dict.fromkeys((*PHASES, OTHER), 0)
    for tick in range(10, 50):
        active = set()
        for lane in {(each.process, each.thread) for each in found}:
            inside = [each for each in found if (each.process, each.thread) == lane and each.start_ns <= tick < each.stop_ns]
            if inside:
                active.add(inside[-1].phase)  # the innermost was made last
        first = next((name for name in PHASES if name in active), OTHER)
        exposed[first] += 1
        for name in active or {OTHER}:
            busy[name] += 1
    times = exposure(found, window)
    assert {name: round(each.exposed_s * S) for name, each in times.items()} == exposed
    assert {name: round(each.busy_s * S) for name, each in times.items()} == busy


def test_a_step_is_closed_with_the_spans_of_all_processes(tmp_path: Path) -> None:
    timeline = StepTimeline(tmp_path, keep_steps=2)
    worker = spans_module.SpanLog(tmp_path / "spans" / "worker-0.jsonl", "worker-0")
    for step in range(3):
        start = time.monotonic_ns()
        worker.add("generate", start + 1000, start + 3000)
        worker.flush()
        while time.monotonic_ns() < start + 4000:
            pass
        metrics = timeline.close_step(step, start)
        assert metrics["timeline/exposed_s/generate"] == pytest.approx(2e-6)
        assert metrics["timeline/step_s"] >= 4e-6
    worker.close()
    found, windows = read_trace(tmp_path / "trace.json")
    assert [window.step for window in windows] == [1, 2] and len(found) == 2
    assert exposure(found, windows[-1])["generate"].exposed_s == pytest.approx(2e-6)


def test_the_trace_is_what_chrome_reads(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", STEP, [WINDOW])
    trace = json.loads((tmp_path / "trace.json").read_text())
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "M") and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert event["ph"] == "M" or (event["ts"] >= 0 and event["dur"] >= 0)
    assert {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"} == {"steps", "rank-0", "worker-0"}
    found, windows = read_trace(tmp_path / "trace.json")
    assert sorted(found, key=repr) == sorted(STEP, key=repr) and windows == [WINDOW]
    (tmp_path / "trace.json").write_text('{"traceEvents": [{"ph": "X"}]}')
    with pytest.raises(ValueError, match=r"trace\.json: not a trace of this program"):
        read_trace(tmp_path / "trace.json")


def test_the_picture_shows_every_lane_and_the_table_adds_up(tmp_path: Path) -> None:
    assert last_step(tmp_path) is None
    named = [*STEP, of("generate", 1, 2, "<script>")]
    write_trace(tmp_path / "trace.json", named, [WINDOW])
    shown = last_step(tmp_path)
    assert shown is not None and shown.step == 3
    assert shown.svg.startswith("<svg") and shown.svg.endswith("</svg>")
    for name in ("rank-0", "worker-0, thread 1", "&lt;script&gt;", "log-prob"):
        assert name in shown.svg
    assert "<script" not in shown.svg
    assert sum(each.exposed_s for _, each in shown.rows) == pytest.approx(shown.step_s) == 10
    update = dict(rows_by_exposure(shown))["update"]
    assert (update.exposed_s, update.overlapped_s) == pytest.approx((3.0, 0.0))
    exposed = [each.exposed_s for _, each in rows_by_exposure(shown)]
    assert exposed == sorted(exposed, reverse=True)


def test_the_bar_of_a_picture_is_the_exposure() -> None:
    """Its pieces cover the step without a gap, in the order of time."""
    shown = picture(STEP, WINDOW)
    bar = [piece for piece in shown.svg.split("<rect ")[1:] if 'height="26"' in piece]
    widths = [float(piece.split('width="')[1].split('"')[0]) for piece in bar]
    lefts = [float(piece.split('x="')[1].split('"')[0]) for piece in bar]
    assert lefts == sorted(lefts)
    assert all(left + wide == pytest.approx(following, abs=0.02)
               for left, wide, following in zip(lefts, widths, lefts[1:], strict=False))
    assert sum(widths) == pytest.approx(960 - 150 - 8, abs=0.1)
