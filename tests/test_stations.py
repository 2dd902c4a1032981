"""One kind of work over processes: stations opened once, results whole, a killed process said."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from nemo_mtdrive.stations import ProcessDied, work_at_stations


@contextmanager
def opened(notes: Path, number: int) -> Iterator[int]:
    """A station that writes when it is opened and closed."""
    (notes / f"opened-{number}-{os.getpid()}").touch()
    yield number
    (notes / f"closed-{number}-{os.getpid()}").touch()


def square(station: int, item: int) -> tuple[int, int]:
    return item * item, os.getpid()


def fail(station: int, item: int) -> None:
    raise ValueError(f"no {item}")


def die(station: int, item: signal.Signals) -> None:
    os.kill(os.getpid(), item)


def names(notes: Path, what: str) -> list[str]:
    return sorted(path.name.split("-", 1)[1] for path in notes.glob(f"{what}-*"))


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_item_once_at_stations_that_are_opened_and_closed_once(processes: int, tmp_path: Path) -> None:
    done = dict(work_at_stations(partial(opened, tmp_path), square, [3, 1, 4, 1], processes))
    assert {place: result[0] for place, result in done.items()} == {0: 9, 1: 1, 2: 16, 3: 1}
    assert (os.getpid() in {result[1] for result in done.values()}) == (processes == 1)
    used = names(tmp_path, "opened")
    assert names(tmp_path, "closed") == used and 1 <= len(used) <= min(processes, 4)
    assert sorted(int(name.split("-")[0]) for name in used) == list(range(len(used)))


def test_one_item_needs_no_other_process_and_none_no_station(tmp_path: Path) -> None:
    assert list(work_at_stations(partial(opened, tmp_path), square, [5], 4)) == [(0, (25, os.getpid()))]
    assert len(names(tmp_path, "closed")) == 1
    assert list(work_at_stations(partial(opened, tmp_path), square, [], 4)) == []
    assert len(names(tmp_path, "opened")) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_work_raises_comes_out(processes: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no [12]"):
        list(work_at_stations(partial(opened, tmp_path), fail, [1, 2], processes))
    assert names(tmp_path, "opened")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_said(how: signal.Signals, tmp_path: Path) -> None:
    with pytest.raises(ProcessDied, match="run it again to go on"):
        list(work_at_stations(partial(opened, tmp_path), die, [how] * 3, 2))
