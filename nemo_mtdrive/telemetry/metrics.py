"""The numbers of a run, a line a step: metrics.jsonl always, TensorBoard and Weights & Biases when asked.

metrics.jsonl is append-only JSON Lines. Every line holds `phase` ("sft", "rl", ...), `step` (counted inside its phase),
`time` (seconds since the epoch) and the metrics of that step, flat, with `/` between the parts of a name::

    {"phase": "rl", "step": 3, "time": 1767225600.0, "reward/mean": 0.71, "kl/mean": null, "timers/rollout": 12.5}

A number that is not finite is written as null, because NaN is not JSON. The report (`evaluation.report`) draws these
names without being told: `loss`, `reward/mean`, `reward/turn_1` ..., `kl`, `logprob_gap/max`, `.../PDMS`, `turns/mean`,
`groups/with_spread`, `timers/...`; any other name gets a chart of its own.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from nemo_mtdrive.whole_file import write_whole

METRICS_FILE = "metrics.jsonl"
RESERVED = ("phase", "step", "time")
"""Keys of a line that are not metrics."""


class MetricsError(ValueError):
    """A metric or a step that cannot be logged; the message names it."""


class _Sink(Protocol):
    """A further place for the same numbers."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLogger:
    """Writes the metrics of one phase of a run; one process (training rank 0) owns it.

    Args:
        run_dir: where metrics.jsonl and tensorboard/ lie; made when absent.
        phase: "sft", "rl" or another name; steps are counted inside it, lines of other phases are left alone.
        resume_step: the step of the checkpoint that the run goes on from: lines of this phase beyond it are dropped.
            None starts the phase anew and drops all its lines.
        tensorboard: also write run_dir/tensorboard/PHASE.
        wandb: arguments of `wandb.init` (project, name, ...), or None for no W&B; only then is wandb imported.

    Raises:
        MetricsError: wandb was asked for and is not installed.
        OSError: the run directory cannot be written.
    """

    def __init__(self, run_dir: str | os.PathLike[str], *, phase: str, resume_step: int | None, tensorboard: bool,
                 wandb: Mapping[str, Any] | None) -> None:
        self.phase = phase
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        truncate(self.path, phase, resume_step)
        self._last_step = -1 if resume_step is None else resume_step
        self._sinks: list[_Sink] = []
        if tensorboard:
            self._sinks.append(_TensorBoard(self.path.parent / "tensorboard" / phase, self._last_step + 1))
        if wandb is not None:
            self._sinks.append(_WandB(phase, wandb))
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one step: nested mappings are flattened with `/`; the line is on disk when this returns.

        Raises:
            MetricsError: the step was logged before, or a value is not a number.
        """
        if step <= self._last_step:
            raise MetricsError(f"step {step} of phase {self.phase!r}: step {self._last_step} was logged already; "
                               "log a step once, with all its metrics")
        values = flatten(metrics)
        clash = [name for name in RESERVED if name in values]
        if clash:
            raise MetricsError(f"metric {clash[0]!r}: the name is taken by the line itself, choose another")
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"phase": self.phase, "step": step, "time": round(time.time(), 3)} | finite
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self._last_step = step
        for sink in self._sinks:
            sink.write(step, values)

    def close(self) -> None:
        """Close all sinks; logging afterwards fails."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics -> flat names with `/`. NumPy and torch scalars become floats, None becomes NaN.

    Raises:
        MetricsError: a value is neither a number nor a mapping.
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}/")
        else:
            flat[key] = _number(key, value)
    return flat


def _number(key: str, value: Any) -> float:
    if value is None:
        return math.nan
    if (isinstance(value, (np.ndarray, np.generic)) and value.size == 1) or (
            hasattr(value, "numel") and value.numel() == 1):
        value = value.item()  # NumPy's or torch's; torch itself is not imported for it
    if isinstance(value, (bool, int, float)):
        return int(value) if isinstance(value, (bool, int)) else value
    raise MetricsError(f"metric {key!r}: got {type(value).__name__}, want a number or a mapping of numbers")


def truncate(path: Path, phase: str, keep_until: int | None) -> None:
    """Drop the lines of `phase` beyond step `keep_until` (all of them for None), and a last line cut by a kill."""
    if not path.exists():
        return
    lines = [line for line in read_metrics(path)
             if line["phase"] != phase or (keep_until is not None and line["step"] <= keep_until)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order. A last line without its newline was cut by a kill and is left out.

    Raises:
        MetricsError: another line is not JSON with `phase` and `step`; the message names file and line.
        OSError: the file cannot be read.
    """
    lines: list[dict[str, Any]] = []
    text = Path(path).read_text(encoding="utf-8")
    for number, row in enumerate(text.split("\n")[:-1], start=1):
        try:
            line = json.loads(row)
            lines.append({"phase": str(line["phase"]), "step": int(line["step"])} | line)
        except (ValueError, KeyError, TypeError) as error:
            raise MetricsError(f"{path}:{number}: not a line of metrics: {row[:60]!r}") from error
    return lines


class _TensorBoard:
    """TensorBoard events of one phase; `first_step` hides what an earlier run wrote beyond the resumed step."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first_step)  # type: ignore[no-untyped-call]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _WandB:
    """Weights & Biases; names get the phase in front, because one run holds all phases."""

    def __init__(self, phase: str, arguments: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MetricsError("logging.wandb_project is set and wandb is not installed: install wandb, or set it "
                               "to ''") from error
        self._phase = phase
        self._run = wandb.init(**arguments)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {f"{self._phase}/{name}": value for name, value in values.items() if math.isfinite(value)}
        self._run.log(finite | {f"{self._phase}/step": step})

    def close(self) -> None:
        self._run.finish()
