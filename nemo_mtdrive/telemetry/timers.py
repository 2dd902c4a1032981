"""Where a step's time goes: nested timers by phase.

    timers = StepTimers()
    with timers("rollout"):
        with timers("generate"):
            ...
    metrics |= timers.collect()

`collect` gives seconds as `timers/rollout`, `timers/rollout/generate`; the whole step since the last collect as
`timers/step`; what no outer timer covered as `timers/other`; and each outer phase's share of the step, 0..1, as
`timers/share/rollout`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from nemo_mtdrive.telemetry.spans import span

TAKEN_NAMES = ("step", "other", "share")
"""Names that `collect` uses itself."""
PHASE_OF = {"rollout": "wait", "advantage": "assemble", "log_prob": "log_prob", "reference": "reference",
            "update": "update", "weight_sync": "sync"}
"""Names that stand in the timeline too (`telemetry.spans`): a training rank waits while the workers roll out."""


class StepTimers:
    """Sums the time of named phases between two `collect` calls; a phase may be entered many times.

    Nesting is per thread. Time of other threads overlaps the step's, so give it a name of its own by `add` under a
    phase (`add("rollout/serialise", s)`), where no share is taken.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._open = threading.local()
        self._start = clock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a phase; its full name is that of the phase around it, `/`, `name`.

        Raises:
            ValueError: the name is empty, has a `/`, or is one that `collect` uses itself.
        """
        if not name or "/" in name or name in TAKEN_NAMES:
            raise ValueError(f"timer {name!r}: choose a name without '/' that is not one of {', '.join(TAKEN_NAMES)}")
        outer: list[str] = getattr(self._open, "names", [])
        self._open.names = [*outer, name]
        start = self._clock()
        try:
            with span(PHASE_OF[name]) if name in PHASE_OF else nullcontext():
                yield
        finally:
            self.add("/".join([*outer, name]), self._clock() - start)
            self._open.names = outer

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured elsewhere (another thread or process) to the phase with this full name."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def collect(self) -> dict[str, float]:
        """The metrics since the last call, in order of first use, and start anew."""
        with self._lock:
            seconds, self._seconds = self._seconds, {}
            now = self._clock()
            step, self._start = now - self._start, now
        outer = {name: value for name, value in seconds.items() if "/" not in name}
        metrics = {f"timers/{name}": value for name, value in seconds.items()}
        metrics["timers/other"] = max(0.0, step - sum(outer.values()))
        metrics["timers/step"] = step
        if step > 0.0:
            metrics |= {f"timers/share/{name}": value / step for name, value in outer.items()}
        return metrics
