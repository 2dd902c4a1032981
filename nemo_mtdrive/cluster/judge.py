"""What became of a try, from what its tasks left behind; srun's exit code is not believed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_mtdrive.cluster.files import Ended, read_ended
from nemo_mtdrive.process import GAVE_UP, WRONG_REQUEST

FULL_BYTES = 16 << 20
"""A file system with less room than this is full."""
_TERMINATED = (-15, 143)


@dataclass(frozen=True)
class Verdict:
    """What to do next, and why."""

    word: Literal["finished", "stopped", "again", "failed"]
    reason: str
    node: str = ""


def judge(run_dir: Path, attempt: int) -> Verdict:
    """Read status.json, which the try wrote if it came to an end of its own, and how its tasks ended."""
    status = run_dir / "status.json"
    if status.exists():
        found = json.loads(status.read_text())
        return Verdict("finished", "all steps are done") if found["finished"] else Verdict("stopped", found["reason"])
    ended = read_ended(run_dir, attempt)
    free = shutil.disk_usage(run_dir).free
    if free < FULL_BYTES:
        return Verdict("failed", f"the disk is full: {free >> 20} MB are free at {run_dir}; make room and submit again")
    if not ended:
        return Verdict("again", "the tasks ended without a word: one was killed with its supervisor, or its node is lost")
    cause = cause_of(ended)
    hopeless = cause.code in (WRONG_REQUEST, GAVE_UP) or cause.role != "training-rank"  # helpers were started again already
    return Verdict("failed" if hopeless else "again", f"on {cause.node}: {cause.reason}", cause.node)


def cause_of(ended: list[Ended]) -> Ended:
    """The task that took the others along: one that refused or gave up, else a helper that died too often, else one that
    was killed, else the first. What ended by SIGTERM was told to."""
    def weight(one: Ended) -> tuple[int, float]:
        if one.code in (WRONG_REQUEST, GAVE_UP):
            return 0, one.time
        if one.code in _TERMINATED:
            return 4, one.time
        if one.role != "training-rank":
            return 1, one.time
        return (2 if one.code < 0 else 3), one.time

    return min(ended, key=weight)
