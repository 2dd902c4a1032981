"""When a run ends before its last step: its time is up (`max_time_per_run`), or somebody asked (RUN/stop, SIGUSR1).

The run ends after a step, with a checkpoint; `resume=true` goes on. Ranks must end after the same step, so rank 0
decides and the others follow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from nemo_mtdrive.process import STARTED, STOP_FILE

_REASONS = ("", "max_time_per_run is over", "a stop was asked for")


class RunEnded(Exception):
    """The run ends here and is saved; the message says why."""


class RunLimit:
    """Asked after each step whether the run is to end.

    Args:
        run_dir: where the stop file would be.
        limit_s: seconds from the job's start; None for no limit.
        agree: hands rank 0's number to every rank (collective).
        clock: time.time.
    """

    def __init__(self, run_dir: Path, limit_s: float | None, agree: Callable[[int], int],
                 clock: Callable[[], float] = time.time) -> None:
        self._stop_file = run_dir / STOP_FILE
        self._clock = clock
        self._end = None if limit_s is None else float(os.environ.get(STARTED, clock())) + limit_s
        self._agree = agree

    def reason(self) -> str:
        """Why the run is to end now; empty to go on. Collective: every rank gets rank 0's answer."""
        code = 1 if self._end is not None and self._clock() >= self._end else 2 if self._stop_file.exists() else 0
        return _REASONS[self._agree(code)]
