"""What the parts of a cluster job leave for each other in RUN/slurm, and what the batch script tells them by environment.

    layout.json          nodes, steps and ports                      layout.tsv     the same steps, for the batch script
    baselines.json       rows of the baseline drivers, and when the run began
    try-N/ROLE-I.ended   how a task of the N-th try ended, if not well
    try-N/lost-I.json    rank 0 has given rollout worker I up: its supervisor is to kill it
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_mtdrive.cluster.layout import Allocation, Kind, Layout, Role, Step
from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.whole_file import write_whole

FOLDER = "slurm"
MARKER = "complete.json"
"""In RUN; there when the whole job is done, and only then."""


@dataclass(frozen=True)
class Ended:
    """How a task ended, in its own words."""

    role: str
    index: int
    node: str
    code: int
    """As Popen's: below 0 for a signal."""
    reason: str
    time: float
    """time.time()."""


def allocation_from(environment: Mapping[str, str]) -> Allocation:
    """What the batch script found out about its job: MTDRIVE_NODES, MTDRIVE_GPUS, ... (see slurm/job.sh).

    Raises:
        ConfigError: a variable is missing, or no number.
    """
    def get(name: str) -> str:
        if name not in environment:
            raise ConfigError(f"{name} is not set: this runs in the steps of a job, see slurm/job.sh")
        return environment[name]

    def number(name: str) -> int:
        if not (text := get(name)).isdigit():
            raise ConfigError(f"{name}={text!r}: set it to a whole number")
        return int(text)

    kind = get("MTDRIVE_LAYOUT")
    if kind not in ("colocated", "disaggregated"):
        raise ConfigError(f"LAYOUT={kind}: set it to colocated or disaggregated")
    kinds: dict[str, Kind] = {"colocated": "colocated", "disaggregated": "disaggregated"}
    nodes = tuple(get("MTDRIVE_NODES").split())
    if not nodes:
        raise ConfigError("MTDRIVE_NODES is empty: it names the nodes of the job")
    return Allocation(nodes, number("MTDRIVE_GPUS"), number("MTDRIVE_RANKS_PER_NODE"), kinds[kind],
                      number("MTDRIVE_ROLLOUT_NODES"), number("MTDRIVE_PORT_BASE"))


def current_try() -> int:
    """Number of the try that this process belongs to; it counts on over restarts of the job."""
    return int(os.environ.get("MTDRIVE_TRY", "1"))


def this_node() -> str:
    """This node's name, as the scheduler calls it."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename.partition(".")[0]


def folder(run_dir: Path) -> Path:
    """RUN/slurm, made when absent."""
    path = run_dir / FOLDER
    path.mkdir(parents=True, exist_ok=True)
    return path


def try_folder(run_dir: Path, attempt: int) -> Path:
    """RUN/slurm/try-N, made when absent."""
    path = folder(run_dir) / f"try-{attempt}"
    path.mkdir(exist_ok=True)
    return path


def write_layout(layout: Layout, run_dir: Path) -> None:
    """layout.json and layout.tsv (role, tasks, nodes, most tasks of a node, distribution, names of the nodes)."""
    lines = ["\t".join([step.role, str(step.tasks), str(len(step.nodes)), str(step.tasks_per_node), step.distribution,
                        ",".join(step.nodes)]) for step in layout.steps]
    write_whole(folder(run_dir) / "layout.json", json.dumps(asdict(layout) | {"tasks": layout.table()}, indent=1))
    write_whole(folder(run_dir) / "layout.tsv", "\n".join(lines) + "\n")


def read_layout(run_dir: Path) -> Layout:
    """Read what `write_layout` wrote."""
    found = json.loads((run_dir / FOLDER / "layout.json").read_text())
    allocation = Allocation(**found["allocation"] | {"nodes": tuple(found["allocation"]["nodes"])})
    steps = tuple(Step(**step | {"nodes": tuple(step["nodes"])}) for step in found["steps"])
    return Layout(allocation, steps, found["gpus_of_a_worker"])


def write_ended(run_dir: Path, attempt: int, role: Role, index: int, code: int, reason: str) -> None:
    """Say how this task ended; the batch script's judge reads it."""
    ended = Ended(role, index, this_node(), code, reason, time.time())
    write_whole(try_folder(run_dir, attempt) / f"{role}-{index}.ended", json.dumps(asdict(ended)))


def read_ended(run_dir: Path, attempt: int) -> list[Ended]:
    """How the tasks of a try ended that did not end well, the earliest first."""
    found = [Ended(**json.loads(path.read_text())) for path in (run_dir / FOLDER / f"try-{attempt}").glob("*.ended")]
    return sorted(found, key=lambda ended: ended.time)
