"""Is this node fit to run a job? Found out in seconds, before GPUs burn: GPUs, disks, shared files, ports.

Each node says one line on stdout, which srun brings to the batch script over the network, not over the shared files that
are under test:  NODE <tab> ok <tab> ADDRESS,  NODE <tab> bad <tab> WORDS (the node's fault: it is excluded), or
NODE <tab> run <tab> WORDS (no node's fault: the job fails).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemo_mtdrive.cluster.layout import Layout
from nemo_mtdrive.cluster.meeting import own_address
from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.process import SHM_ROOT, port_is_free
from nemo_mtdrive.transfer.segments import sweep_abandoned
from nemo_mtdrive.whole_file import write_whole

GIGABYTE = 1 << 30
LEAST_LOCAL_BYTES = GIGABYTE
"""Free in the node's temporary folder."""
MOST_USED_MIB = 2048
"""Memory of a GPU that somebody else may hold before our job starts [MiB]."""
CANARY_S = 20.0
"""How long a shared file system may take to show what another node wrote [s]."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
QUERY = "index,memory.used,ecc.errors.uncorrected.volatile.total"
SMI_S = 60.0


@dataclass
class Findings:
    """What is wrong."""

    node: list[str] = field(default_factory=list)
    """With this node."""
    run: list[str] = field(default_factory=list)
    """With what all nodes share or were told."""

    def lines(self, node: str, address: str) -> list[str]:
        """What the node says; see the module."""
        said = [f"{node}\tbad\t{'; '.join(self.node)}"] if self.node else []
        said += [f"{node}\trun\t{'; '.join(self.run)}"] if self.run else []
        return said or [f"{node}\tok\t{address}"]


def check_gpus(expected: int, environment: Mapping[str, str], query: Callable[[], str | None]) -> list[str]:
    """Count and health of the GPUs.

    Args:
        expected: how many the job wants of this node.
        environment: of the task; without a driver, what Slurm handed out is counted.
        query: runs nvidia-smi; None where there is none.
    """
    if not expected:
        return []
    try:
        found = query()
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi failed: {error}"]
    if found is None:
        shown = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return [] if len(shown) >= expected else [f"{len(shown)} GPUs were handed out, the job wants {expected}"]
    problems, count = [], 0
    for line in found.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != 3:
            problems.append(f"nvidia-smi says {line.strip()!r}")
            continue
        index, used, errors = values
        count += 1
        if errors.isdigit() and int(errors):  # [N/A] where ECC is off
            problems.append(f"GPU {index} has {errors} uncorrected memory errors")
        if used.split()[0].isdigit() and int(used.split()[0]) > MOST_USED_MIB:
            problems.append(f"GPU {index}: {used} are in use by another process")
    if count < expected:
        problems.append(f"{count} GPUs answer, the job wants {expected}")
    return problems


def query_gpus() -> str | None:
    """A line a GPU: `QUERY`. None where no nvidia-smi is installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run([program, f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True,
                          timeout=SMI_S, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"exit code {done.returncode}{f' ({said[-1]})' if said else ''}")
    return done.stdout


def check_disks(run_dir: Path, least_free: float, image_bytes: int, found: Findings) -> None:
    """Free room for checkpoints (shared), temporary files and shared memory (the node's own)."""
    free = shutil.disk_usage(run_dir).free
    if free < least_free:
        found.run.append(f"the disk is full: {free / GIGABYTE:.2f} GB are free at {run_dir}, MIN_FREE_GB wants "
                         f"{least_free / GIGABYTE:g}; make room there")
    for path, least, what in ((Path(tempfile.gettempdir()), LEAST_LOCAL_BYTES, "temporary files"),
                              (SHM_ROOT, image_bytes, "images (transfer.image_store_mb)")):
        try:
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"\0" * 4096)
        except OSError as error:
            found.node.append(f"{path} cannot be written: {error.strerror}")
            continue
        if (free := shutil.disk_usage(path).free) < least:
            found.node.append(f"{free >> 20} MB are free at {path}, {what} want {least >> 20}")


def check_canary(canary: Path, word: str, node: str) -> list[str]:
    """Read what the batch script wrote on the shared file system, and answer beside it, where the batch script looks."""
    deadline = time.monotonic() + CANARY_S
    while True:
        try:
            seen = canary.read_text().strip()
        except OSError as error:
            seen, why = "", error.strerror or "cannot be read"
        else:
            why = f"reads {seen!r}"
        if seen == word:
            break
        if time.monotonic() > deadline:
            return [f"the shared file {canary} that another node wrote {why} here: is the file system mounted?"]
        time.sleep(0.2)
    try:
        write_whole(canary.with_name(f"{canary.name}.{node}"), word)
    except OSError as error:
        return [f"{canary.parent} cannot be written from here: {error.strerror}"]
    return []


def check_ports(layout: Layout, node: str, address: str, attempt: int) -> Findings:
    """The job's ports on this node are free, and the kernel gives them to nobody else."""
    found = Findings()
    ports = layout.ports_of(node, attempt)
    busy = [port for port in ports if not port_is_free(address, port)]
    if busy:
        found.node.append(f"port {', '.join(map(str, busy))} is busy at {address}; a process of an earlier job may be left")
    if EPHEMERAL.exists():
        first, last = map(int, EPHEMERAL.read_text().split())
        if taken := [port for port in ports if first <= port <= last]:
            found.run.append(f"port {taken[0]} lies in {node}'s ephemeral range {first}-{last}; set PORT_BASE so that "
                             f"{layout.ports} ports fit below {first}")
    return found


def check_node(layout: Layout | None, run_dir: Path, node: str, attempt: int, *, gpus: int | None, least_free: float,
               image_bytes: int, canary: tuple[Path, str] | None, interface: str) -> tuple[Findings, str]:
    """All checks of this node; returns what is wrong and the node's address.

    Args:
        layout: of the job; None outside of one: then there are no other nodes and no ports.
        run_dir: on the shared file system.
        node: this node's name.
        attempt: number of the try.
        gpus: that this node must have; None: as many as the layout says.
        least_free: bytes that must be free below `run_dir`.
        image_bytes: that must be free in shared memory.
        canary: file and word, see `check_canary`.
        interface: see `meeting.own_address`.
    """
    sweep_abandoned(SHM_ROOT)  # what killed jobs left would take the room that we look for
    if gpus is None:
        gpus = layout.allocation.gpus if layout else 0
    found = Findings(node=check_gpus(gpus, os.environ, query_gpus))
    if canary is not None:
        found.node += check_canary(*canary, node)
    check_disks(run_dir, least_free, image_bytes, found)
    address = ""
    try:
        address = own_address(layout.allocation.nodes if layout else (node,), node, interface)
    except ConfigError as error:
        found.node.append(str(error))
        return found, address
    if layout is not None:
        ports = check_ports(layout, node, address, attempt)
        found.node += ports.node
        found.run += ports.run
    return found, address


def read_addresses(path: Path) -> dict[str, str]:
    """Addresses by node, from the lines that the nodes said."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "ok"}
