"""A job of the launchers on the private Slurm: submitted, looked at, and what it must have left when it is over."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .private_slurm import NODES, PrivateSlurm

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHERS = ROOT / "slurm"
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
ORPHANS_S = 60.0
"""How long the last processes of a job may take to go once Slurm holds it for over."""
SITE = {"SITE_ENV": "/dev/null", "CONTAINER": "none", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1"}
"""What a site would set; a test sets more, or other."""


@dataclass(frozen=True)
class Job:
    """A submitted job and its run directory, by the path that the nodes know."""

    slurm: PrivateSlurm
    job_id: str
    run_dir: Path
    output: Path
    """What the batch script says."""
    submitted: float
    """When sbatch was called [s since the epoch]."""

    @property
    def run(self) -> Path:
        """The run directory as this process can read it: the cluster's mounts are not ours."""
        return self.slurm.seen(self.run_dir)

    def says(self) -> dict[str, str]:
        """What Slurm says of it now."""
        return self.slurm.job(self.job_id)

    def reason(self) -> dict[str, Any]:
        """RUN/reason.json, whole whenever it is read; empty before it is there."""
        path = self.run / "reason.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def marker(self) -> bool:
        """Whether the run says that it is complete."""
        return (self.run / "complete.json").exists()

    def checkpoints(self) -> list[int]:
        """Steps of the RL checkpoints that are whole."""
        return sorted(int(path.parent.name.removeprefix("rl-"))
                      for path in (self.run / "checkpoints").glob("rl-*/complete.json"))

    def is_over(self) -> bool:
        """Whether Slurm is done with it on all of its nodes."""
        return self.says()["JobState"] in OVER and self.job_id not in self.slurm.jobs()

    def wait_over(self) -> dict[str, str]:
        """Wait for its end; what Slurm then says of it."""
        self.slurm.wait_for(f"the end of job {self.job_id}:\n{self.tale()}", self.is_over)
        return self.says()

    def processes(self) -> list[int]:
        """Process ids, as this machine counts, of all that runs for it anywhere: its steps and whatever they started."""
        mark = b"SLURM_JOB_ID=" + self.job_id.encode()
        home = os.readlink(f"/proc/{self.slurm.head}/ns/uts")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0") and os.readlink(entry / "ns/uts") != home:
                        found.append(int(entry.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
        return [pid for pid in found if self.slurm.holds(pid)]

    def role(self, word: str) -> list[int]:
        """Its processes with a word in their command line, e.g. `rollout-worker`, that are no launchers of such."""
        found = []
        for pid in self.processes():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if word in command and "nemo_mtdrive.cli" in command and "task" not in command:
                found.append(pid)
        return found

    def nodes(self) -> list[int]:
        """Numbers of the nodes that it runs on."""
        said = self.slurm.run("scontrol", "show", "hostnames", self.says()["NodeList"]).stdout.split()
        return [int(name.removeprefix("node")) for name in said]

    def batch_node(self) -> int:
        """Where its script runs."""
        return int(self.says()["BatchHost"].removeprefix("node"))

    def tale(self) -> str:
        """All there is to read of it, for a test that fails."""
        parts = [self.output, self.run / "reason.json", *sorted((self.run / "slurm").glob("**/*.t*")),
                 *sorted((self.run / "logs").glob("*.log"))]
        return "".join(f"\n--- {path}\n{path.read_text(errors='replace').strip()[-3000:]}"
                       for path in parts if path.exists())


def submit(slurm: PrivateSlurm, run_dir: Path, *options: str, script: str = "rl_32gpu.sh", overrides: tuple[str, ...] = (),
           environment: Mapping[str, str] | None = None, output: Path | None = None) -> Job:
    """`sbatch OPTIONS slurm/SCRIPT OVERRIDES` from the root of the checkout."""
    output = output or run_dir.with_name(f"{run_dir.name}.out")
    moment = time.time()
    done = slurm.run("sbatch", "--parsable", f"--output={output}", *options, LAUNCHERS / script, *overrides,
                     folder=ROOT, environment=SITE | {"RUN_DIR": str(run_dir)} | dict(environment or {}))
    return Job(slurm, done.stdout.strip(), run_dir, slurm.seen(output), moment)


def assert_over(job: Job, slurm_state: str, exit_code: str, state: str, *, marker: bool) -> dict[str, Any]:
    """Wait for the job's end and hold everything that it must have left, or not; returns reason.json.

    Args:
        slurm_state: Slurm's JobState.
        exit_code: of the batch script, as Slurm writes it: CODE:SIGNAL.
        state: of RUN/reason.json.
        marker: whether the run must be complete; else it must not be.
    """
    said = job.wait_over()
    assert (said["JobState"], said["ExitCode"]) == (slurm_state, exit_code), f"{said}\n{job.slurm.describe()}{job.tale()}"
    reason = job.reason()
    assert reason["state"] == state and reason["reason"], job.tale()
    assert reason["job"] == job.job_id, reason
    assert job.marker() is marker, job.tale()
    nothing_left(job)
    return reason


def nothing_left(job: Job) -> None:
    """No process of the job on any node, and no shared memory where no other job runs."""
    job.slurm.wait_for(f"the last processes of job {job.job_id}", lambda: not job.processes(), ORPHANS_S)
    others = job.slurm.run("squeue", "-h", "-t", "running", "-o", "%i").stdout.split()
    busy = {node for other in others for node in replace(job, job_id=other).nodes()}
    for node in NODES:
        if job.slurm.is_on(node) and node not in busy:
            assert job.slurm.on_node(node, "ls", "-A", "/dev/shm") == "", f"node{node}"


def freeze(pids: list[int], frozen: bool) -> None:
    """Stop processes, or let them go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)
