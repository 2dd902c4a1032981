"""A private Slurm on this machine: a controller and four nodes with eight GPUs each, in namespaces of their own.

Real daemons (slurmctld, slurmd, munged), real clients, real jobs; the GPUs are links to /dev/null. Each node has its own
host name, address, processes and /dev/shm; the file system is the machine's, as a cluster's shared one. Nothing outside
is touched, and all of it ends with the process that started it (head.sh).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nemo_mtdrive.process import die_with_parent

HERE = Path(__file__).resolve().parent
NODES = (1, 2, 3, 4)
LONGEST_S = 1800.0
"""What any condition is waited for, on a machine that is ten times slower."""
REVOKED_S = 3.0
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "pgrep")
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
_APART = ("unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc")
_SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

Found = TypeVar("Found")


class NotPossible(RuntimeError):
    """This machine cannot run it; the message says why."""


def why_not() -> str:
    """Why a private Slurm cannot run here; empty where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_SBIN) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (requirements/install_debian.sh installs Slurm)"
    if os.geteuid() != 0:
        return "only root may make the namespaces of virtual nodes"
    made = subprocess.run([*_APART, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {made.stderr.strip()}" if made.returncode else ""


class PrivateSlurm:
    """A running private Slurm; a context manager.

    Raises:
        NotPossible: this machine cannot run it.
    """

    def __init__(self) -> None:
        if reason := why_not():
            raise NotPossible(reason)
        self._outside = subprocess.Popen([*_APART, HERE / "head.sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env=clean_environment(), preexec_fn=die_with_parent)
        assert self._outside.stdin is not None and self._outside.stdout is not None
        self._ask, self._answers = self._outside.stdin, self._outside.stdout
        if not self._answers.readline().startswith("ready"):
            self.stop()
            raise NotPossible("the private Slurm did not come up; what it said is above")
        self._killed = set[int]()
        self._waiting: dict[str, float] = {}
        self.head = _child_of(self._outside.pid)
        """Process 1 of the cluster, as this machine counts."""

    def stop(self) -> None:
        """End it and everything in it. Safe to call twice."""
        self._ask.close()
        self._outside.kill()
        self._outside.wait()
        self._answers.close()

    def __enter__(self) -> PrivateSlurm:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def command(self, arguments: Sequence[str | Path], folder: Path | None = None) -> list[str]:
        """The command that runs `arguments` on the cluster's login node, in a folder."""
        return inside(self.head, arguments, folder)

    def run(self, *arguments: str | Path, folder: Path | None = None, check: bool = True,
            environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end.

        Raises:
            AssertionError: it failed, and `check` is set.
        """
        done = subprocess.run(self.command(arguments, folder), capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              env=clean_environment() | dict(environment or {}), timeout=LONGEST_S, check=False,
                              restore_signals=False)  # SIGPIPE would end a Slurm client that could try again
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def on_node(self, node: int, *arguments: str | Path) -> str:
        """What a command says that runs on a node, outside of any job."""
        inner = self.run("cat", f"/run/slurm/nodes/{node}").stdout.strip()
        return self.run("nsenter", "--target", inner, *_NAMESPACES, "env", "--chdir=/", *arguments).stdout

    def is_on(self, node: int) -> bool:
        """Whether the node has power."""
        return node not in self._killed

    def seen(self, path: Path) -> Path:
        """A path of the cluster as this process reaches it, also where only the cluster has a file system mounted."""
        return Path(f"/proc/{self.head}/root{path}")

    def holds(self, process: int) -> bool:
        """Whether a process of this machine runs inside the cluster."""
        while process > 1 and process != self.head:
            try:
                process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                return False
        return process == self.head

    def start_node(self, node: int) -> None:
        """Turn a node on that was killed; it serves when `node_state` says so."""
        self._tell(f"start {node}")
        self._killed.discard(node)

    def kill_node(self, node: int) -> None:
        """Power loss: its cable goes first, so that nobody hears of it, then all of its processes."""
        self._tell(f"kill {node}")
        self._killed.add(node)

    def node_state(self, node: int) -> str:
        """As sinfo shortens it: idle, mix, alloc, drain, down, ..., with `*` where it does not answer."""
        return self.run("sinfo", "-h", "-N", "-p", "batch", "-n", f"node{node}", "-o", "%t").stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What scontrol says of a job: JobState, Reason, Restarts, ExitCode, NodeList, ExcNodeList, ...

        The names stand once; a value ends where the next name begins, so values may hold spaces.
        """
        said = self.run("scontrol", "--oneliner", "show", "job", job_id).stdout
        return {name: value.strip() for name, value in re.findall(r"(\w[\w/:]*)=(.*?)(?=\s+\w[\w/:]*=|$)", said, re.S)}

    def jobs(self) -> list[str]:
        """Ids of all jobs that are waiting or running."""
        return self.run("squeue", "-h", "-o", "%i").stdout.split()

    def hurry(self) -> None:
        """Start requeued jobs soon. Slurm lets them wait for two minutes, as nodes refuse credentials of the second in which
        they revoked the last start's; three seconds after its last process is gone are enough."""
        waiting = {}
        for line in self.run("squeue", "-h", "-t", "PD", "-o", "%i %r").stdout.splitlines():
            job_id, _, reason = line.partition(" ")
            if reason == "BeginTime" and self.run("pgrep", "-f", rf"^slurmstepd: \[{job_id}\.", check=False).returncode:
                waiting[job_id] = self._waiting.get(job_id, time.monotonic())
                if time.monotonic() - waiting[job_id] > REVOKED_S:
                    self.run("scontrol", "update", f"jobid={job_id}", "StartTime=now", check=False)  # it may start just then
        self._waiting = waiting

    def clear(self) -> None:
        """Cancel all jobs, and turn on and put back into service all nodes."""
        self.run("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        self.run("scancel", "--user=root", check=False)
        for node in sorted(self._killed):
            self.start_node(node)
        self.wait_for("an empty queue", lambda: not self.jobs())
        for node in NODES:
            if self.node_state(node) != "idle":
                self.run("scontrol", "update", f"nodename=node{node}", "state=resume", check=False)  # idle by now, perhaps

    def wait_for(self, what: str, condition: Callable[[], Found], longest_s: float = LONGEST_S) -> Found:
        """Poll until the condition holds something true, and return that; requeued jobs start meanwhile.

        Raises:
            AssertionError: it never did.
        """
        deadline = time.monotonic() + longest_s
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.describe()}"
            self.hurry()
            time.sleep(0.1)
        return found

    def describe(self) -> str:
        """The queue, the nodes and the end of the controller's log."""
        return self.run("bash", "-c", "squeue; sinfo -N -l; tail -n 25 /run/slurm/log/slurmctld.log", check=False).stdout

    def _tell(self, line: str) -> None:
        self._ask.write(f"{line}\n")
        self._ask.flush()
        answer = self._answers.readline()
        assert answer == "done\n", f"{line}: {answer}"


def inside(head: int, arguments: Sequence[str | Path], folder: Path | None = None) -> list[str]:
    """The command that runs `arguments` in the namespaces of the process `head`, in a folder."""
    return ["nsenter", "--target", str(head), *_NAMESPACES, "env", f"--chdir={folder or Path.cwd()}", *map(str, arguments)]


def clean_environment() -> dict[str, str]:
    """Ours without what a Slurm job around us may have set, and with the folders of the daemons."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "MTDRIVE_", "SITE_"))}
    return kept | {"PATH": _SBIN}


def _child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])
