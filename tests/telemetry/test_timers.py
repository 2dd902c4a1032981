"""Step timers: nested names, sums, shares, other threads."""

from __future__ import annotations

import threading

import pytest

from nemo_mtdrive.telemetry.timers import StepTimers


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_and_shares_of_a_step() -> None:
    clock = Clock()
    timers = StepTimers(clock)
    clock.now += 1.0
    with timers("rollout"):
        clock.now += 2.0
        for _ in range(2):
            with timers("generate"):
                clock.now += 1.5
    with timers("update"):
        clock.now += 4.0
    timers.add("rollout/serialise", 7.0)
    assert timers.collect() == {
        "timers/rollout/generate": 3.0, "timers/rollout": 5.0, "timers/update": 4.0, "timers/rollout/serialise": 7.0,
        "timers/other": 1.0, "timers/step": 10.0, "timers/share/rollout": 0.5, "timers/share/update": 0.4}
    clock.now += 2.0
    assert timers.collect() == {"timers/other": 2.0, "timers/step": 2.0}


def test_a_phase_that_fails_is_timed_and_closed() -> None:
    clock = Clock()
    timers = StepTimers(clock)
    with pytest.raises(RuntimeError), timers("rollout"), timers("environment"):
        clock.now += 3.0
        raise RuntimeError("server gone")
    with timers("update"):
        clock.now += 1.0
    assert timers.collect() == {
        "timers/rollout/environment": 3.0, "timers/rollout": 3.0, "timers/update": 1.0, "timers/other": 0.0,
        "timers/step": 4.0, "timers/share/rollout": 0.75, "timers/share/update": 0.25}


@pytest.mark.parametrize("name", ["", "a/b", "step", "other", "share"])
def test_names_that_would_clash_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="choose a name"), StepTimers()(name):
        pass


def test_nesting_is_per_thread() -> None:
    timers = StepTimers()

    def work() -> None:
        with timers("sender"):
            pass

    with timers("rollout"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert {"timers/rollout", "timers/sender"} <= timers.collect().keys()
