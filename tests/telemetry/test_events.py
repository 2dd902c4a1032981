"""Progress across a pipe: what rank 0 says is what the launcher shows, also when the rank dies in the middle."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_mtdrive.telemetry.events import EventDisplay, EventProgress


class Seen:
    """A Progress that writes down what it is told."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Seen]:
        self.log.append(f"begin {name} {total} {unit}")
        try:
            yield self
        finally:
            self.log.append(f"end {name}")

    def advance(self, count: int = 1, /, **metrics: float) -> None:
        self.log.append(f"advance {count} {metrics}")

    def note(self, text: str) -> None:
        self.log.append(f"note {text}")

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_what_is_said_is_what_is_shown() -> None:
    pipe, seen = io.StringIO(), Seen()
    said = EventProgress(pipe)
    with said.phase("mtGRPO", total=2, unit="steps") as bar:
        bar.advance(1, reward=0.5)
        with said.phase("rollout", total=8, unit="episodes") as inner:
            inner.advance(8)
        said.note("saved")
        bar.advance()
    with EventDisplay(seen) as display:
        for line in pipe.getvalue().splitlines():
            display.show(json.loads(line))
    assert seen.log == [
        "begin mtGRPO 2 steps", "advance 1 {'reward': 0.5}", "begin rollout 8 episodes", "advance 8 {}", "end rollout",
        "note saved", "advance 1 {}", "end mtGRPO"]


def test_open_phases_end_with_the_display() -> None:
    seen = Seen()
    with EventDisplay(seen) as display:
        display.show({"event": "begin", "name": "SFT", "total": 3, "unit": "steps"})
        display.show({"event": "begin", "name": "inner", "total": 3, "unit": "steps"})
    assert seen.log[-2:] == ["end inner", "end SFT"]


def test_stray_and_unknown_events_are_passed_over() -> None:
    seen = Seen()
    with EventDisplay(seen) as display:
        for event in ({"event": "end"}, {"event": "advance", "count": 1, "metrics": {}}, {"event": "of a newer rank"}):
            display.show(event)
    assert seen.log == []


def test_other_ranks_say_nothing() -> None:
    silent = EventProgress(None)
    with silent.phase("SFT", total=1, unit="steps") as bar:
        bar.advance(1, loss=1.0)
    silent.note("nothing")
