"""The private Slurm that the other tests stand on: real, apart from everything else, and gone with its owner."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .jobs import ROOT
from .private_slurm import NODES, PrivateSlurm


def test_32_tasks_with_8_gpus_a_node(slurm: PrivateSlurm) -> None:
    said = slurm.run("srun", "--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "bash", "-c",
                     "echo $SLURM_PROCID $(hostname) $(hostname -i) $CUDA_VISIBLE_DEVICES").stdout.splitlines()
    assert sorted(said, key=lambda line: int(line.split()[0])) == [
        f"{rank} node{1 + rank // 8} 10.77.0.{1 + rank // 8} 0,1,2,3,4,5,6,7" for rank in range(32)]


def test_nodes_share_files_and_nothing_else(slurm: PrivateSlurm, tmp_path: Path) -> None:
    slurm.on_node(1, "touch", tmp_path / "file", "/dev/shm/memory")
    slurm.on_node(2, "rm", tmp_path / "file")
    assert slurm.on_node(2, "ls", "-A", "/dev/shm") == ""
    assert not Path("/dev/shm/memory").exists()
    slurm.on_node(1, "rm", "/dev/shm/memory")
    assert slurm.on_node(3, "hostname") == "node3\n"


def test_two_of_them_do_not_meet(slurm: PrivateSlurm) -> None:
    with PrivateSlurm() as other:
        job = other.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 3600").stdout.strip()
        other.wait_for("the job to run", lambda: other.job(job)["JobState"] == "RUNNING")
        assert slurm.jobs() == []
        assert all(slurm.node_state(node) == "idle" for node in NODES)
    assert slurm.run("sinfo", "-h", "-p", "batch", "-o", "%D %T").stdout == "4 idle\n"


@pytest.mark.parametrize("folder", ["with some spaces in it", "deep/" + "a_very_long_name_of_a_folder/" * 6])
def test_killed_with_its_owner_it_leaves_nothing(folder: str, slurm: PrivateSlurm, tmp_path: Path) -> None:
    """From a checkout whose path has spaces, or is longer than the path of a Unix socket may be."""
    checkout = tmp_path / folder
    shutil.copytree(ROOT / "tests" / "slurm", checkout / "tests" / "slurm", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "tests" / "__init__.py").touch()
    mounts = Path("/proc/self/mounts").read_text()
    with subprocess.Popen([sys.executable, "-m", "tests.slurm", "--up"], cwd=checkout, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(checkout)}) as owner:
        assert owner.stdout is not None
        head = owner.stdout.readline().split()[4]
        reach = [sys.executable, "-m", "tests.slurm", "--in", head]
        subprocess.run([*reach, "sbatch", "--nodes=4", "--output=/dev/null", "--wrap=srun sleep 3600"], cwd=checkout,
                       check=True, stdout=subprocess.DEVNULL)
        slurm.wait_for("a task on each node", lambda:
                       sum(command == "/usr/bin/sleep 3600 " for _, command in below(owner.pid)) == len(NODES))
        processes = below(owner.pid)
        assert sum(command.startswith(("slurm", "munged")) for _, command in processes) >= 2 + len(NODES)
        owner.send_signal(signal.SIGKILL)
    slurm.wait_for("the end of its processes", lambda: not [pid for pid, command in processes if command_of(pid) == command])
    assert Path("/proc/self/mounts").read_text() == mounts


def below(process: int) -> list[tuple[int, str]]:
    """A process's descendants and their command lines, in whatever namespaces they are."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [process]
    while left:
        left += (own := children.get(left.pop(), []))
        found += own
    return [(pid, command) for pid in found if (command := command_of(pid))]


def command_of(process: int) -> str:
    """Its command line; empty for one that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
