"""Spans of several processes on one clock: written as they end, read as the files grow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_mtdrive.telemetry import spans
from nemo_mtdrive.telemetry.spans import SpanLog, SpanReader, span


@pytest.fixture(autouse=True)
def nothing_recorded() -> Iterator[None]:
    yield
    spans.stop()


def test_spans_of_threads_and_processes_come_on_one_clock(tmp_path: Path) -> None:
    spans.record(tmp_path, "rank-0")
    reader = SpanReader(tmp_path)
    with span("wait"):
        program = ("from pathlib import Path; from nemo_mtdrive.telemetry import spans\n"
                   f"spans.record(Path({str(tmp_path)!r}), 'worker-0')\n"
                   "with spans.span('generate'): sum(range(10**6))\n"
                   "spans.stop()")
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)

        def send() -> None:
            with span("serialise"):
                pass

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
    spans.flush()
    found = {each.phase: each for each in reader.read()}
    assert found.keys() == {"wait", "generate", "serialise"}
    wait, generate, serialise = found["wait"], found["generate"], found["serialise"]
    assert wait.start_ns < generate.start_ns < generate.stop_ns < serialise.start_ns < wait.stop_ns
    assert (generate.process, wait.process, serialise.process) == ("worker-0", "rank-0", "rank-0")
    assert wait.thread != serialise.thread
    assert reader.read() == []


def test_without_a_log_nothing_is_written_and_names_are_still_checked() -> None:
    with span("update"):
        pass
    spans.flush()
    with pytest.raises(ValueError, match="phase 'lunch': use one of generate"), span("lunch"):
        pass


def test_the_reader_follows_a_growing_file_and_a_new_one_in_its_place(tmp_path: Path) -> None:
    reader, log = SpanReader(tmp_path), SpanLog(tmp_path / "w.jsonl", "w")
    log.add("generate", 10, 20)
    assert reader.read() == []
    log.flush()
    with (tmp_path / "w.jsonl").open("a") as file:
        file.write('["generate", 30, ')
    assert len(reader.read()) == 1
    with (tmp_path / "w.jsonl").open("a") as file:
        file.write("40, 0]\n")
    assert [each.stop_ns - each.start_ns for each in reader.read()] == [10]
    log.close()
    again = SpanLog(tmp_path / "w.jsonl", "w")
    again.add("sync", 1, 2)
    again.close()
    assert [each.phase for each in reader.read()] == ["sync"]

    longer = SpanLog(tmp_path / "w.jsonl", "w")  # has written more than the one before when it is looked at
    for start in range(0, 10**9, 10**6):
        longer.add("sync", start, start + 1)
    longer.close()
    assert len(reader.read()) == 1000 and reader.read() == []


def test_neighbours_are_merged_unless_another_span_stands_between(tmp_path: Path) -> None:
    log = SpanLog(tmp_path / "w.jsonl", "w")
    for phase, start, stop in (("transfer", 0, 10), ("transfer", 20, 30), ("transfer", 10**9, 10**9 + 5)):
        log.begin(phase)
        log.add(phase, start, stop)
    log.begin("reference")
    log.begin("transfer")
    log.add("transfer", 10**9 + 6, 10**9 + 7)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()[1:]]
    assert [line[:3] for line in lines] == [
        ["transfer", 0, 30], ["transfer", 10**9, 10**9 + 5], ["transfer", 10**9 + 6, 10**9 + 7]]


@pytest.mark.parametrize("content", ['{"schema": 2}\n', '["generate", 1, 2, 0]\n', "noise\n"])
def test_another_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"x\.jsonl: not a line of spans"):
        SpanReader(tmp_path).read()
