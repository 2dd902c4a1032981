"""The progress display: sparse plain lines in logs, bars on a terminal."""

from __future__ import annotations

import io

from nemo_mtdrive.telemetry.progress import format_metrics, format_seconds, open_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_at_most_every_few_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with open_progress(stream, plain_every_s=5.0, clock=clock) as progress:
        with progress.phase("SFT", total=10, unit="steps") as bar:
            for step in range(10):
                clock.now += 2.0
                bar.advance(1, loss=4.0 - 0.1 * step)
        progress.note("checkpoint: runs/demo/checkpoints/sft")
    assert stream.getvalue().splitlines() == [
        "SFT: 10 steps",
        "SFT: 3/10 steps  in 6 s  loss 3.8",
        "SFT: 6/10 steps  in 12 s  loss 3.5",
        "SFT: 9/10 steps  in 18 s  loss 3.2",
        "SFT: 10/10 steps  in 20 s  loss 3.1",
        "checkpoint: runs/demo/checkpoints/sft",
    ]


def test_inner_phases_are_only_shown_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    with open_progress(stream, plain_every_s=5.0, clock=clock) as progress, \
            progress.phase("mtGRPO", total=2, unit="steps") as bar:
        for _ in range(2):
            with progress.phase("rollouts", total=8, unit="episodes") as rollouts:
                clock.now += 4.0
                rollouts.advance(8)
            bar.advance(1, reward=0.5)
    assert stream.getvalue().splitlines() == [
        "mtGRPO: 2 steps", "mtGRPO / rollouts: 8/8 episodes  in 4 s", "mtGRPO: 2/2 steps  in 8 s  reward 0.5"]


def test_a_failed_phase_does_not_say_that_it_is_done() -> None:
    stream = io.StringIO()
    try:
        with open_progress(stream, plain_every_s=5.0) as progress, progress.phase("SFT", total=3, unit="steps"):
            raise RuntimeError
    except RuntimeError:
        pass
    assert stream.getvalue() == "SFT: 3 steps\n"


def test_a_terminal_shows_bars_and_texts_are_not_markup(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with open_progress(stream, plain_every_s=5.0) as progress:
        with progress.phase("evaluate [bold]x[/nothing]", total=2, unit="scenes") as bar:
            bar.advance(2, PDMS=71.25)
        progress.note("left [red]as it is")
    shown = stream.getvalue()
    assert "2/2" in shown and "PDMS 71.25" in shown and "[bold]x[/nothing]" in shown and "left [red]as it is" in shown


def test_numbers_are_short() -> None:
    assert format_metrics({"loss": 2.30958, "logprob_gap": 0.0000312}) == "loss 2.31  logprob gap 3.12e-05"
    assert [format_seconds(s) for s in (0.4, 59.6, 187, 3900)] == ["0 s", "1:00 min", "3:07 min", "1:05 h"]
