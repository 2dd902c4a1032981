"""What is looked at before GPUs burn: 32 ranks over four nodes, a bad node, a full disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .jobs import Job, assert_over, submit
from .private_slurm import PrivateSlurm

ONLY = {"PREFLIGHT": "only", "MIN_FREE_GB": "0.01"}
SMALL = ("model.init_from=", "model.hidden_size=512", "scenes=procedural", f"rollout.python={sys.executable}")
"""The paper's layout with a model and scenes that are here."""
ONE_A_NODE = ("--ntasks-per-node=1", "--gpus-per-node=8")
DEMO = ("parallel.tensor=1", "parallel.data=2", "mtgrpo.prompts_per_step=2", "mtgrpo.mini_batch_prompts=2")


def said_by_nodes(job: Job, name: str) -> list[list[str]]:
    """Lines of RUN/slurm/try-1/NAME, which nodes said, as they came."""
    return [line.split("\t") for line in (job.run / "slurm" / "try-1" / name).read_text().splitlines()]


def test_32_ranks_on_four_nodes(slurm: PrivateSlurm, tmp_path: Path) -> None:
    """The real script with its own options: allocation, checks of each node, ranks in their places, one all-reduce."""
    job = submit(slurm, tmp_path / "run", overrides=SMALL, environment=ONLY)
    reason = assert_over(job, "COMPLETED", "0:0", "completed", marker=False)
    assert reason["reason"] == "preflight passed"
    said = job.says()
    assert (said["NumNodes"], said["NumTasks"], said["TresPerNode"]) == ("4", "32", "gres:gpu:8")
    assert sorted(said_by_nodes(job, "preflight.txt")) == [[f"node{n}", "ok", f"10.77.0.{n}"] for n in (1, 2, 3, 4)]
    for word in ("placed", "here"):
        rows = [row for row in said_by_nodes(job, "all-reduce.txt") if row[1] == word]
        assert sorted((int(rank), node) for node, _, rank in rows) == [(rank, f"node{1 + rank // 8}") for rank in range(32)]
    (word,) = [row[2] for row in said_by_nodes(job, "all-reduce.txt") if row[1] == "ok"]
    assert word.startswith("32 ranks over gloo")


def fake_nvidia_smi(folder: Path, bad_node: str) -> str:
    """A driver that shows eight GPUs, seven on one node; the PATH that finds it."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"""#!/usr/bin/env bash
last=7
[[ $(hostname) != {bad_node} ]] || last=6
for ((gpu = 0; gpu <= last; gpu++)); do echo "$gpu, 4 MiB, 0"; done
""")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}:/usr/sbin"


def test_a_bad_node_is_named_and_left_out(slurm: PrivateSlurm, tmp_path: Path) -> None:
    path = fake_nvidia_smi(tmp_path / "driver", "node1")
    job = submit(slurm, tmp_path / "run", "--nodes=2", *ONE_A_NODE, overrides=DEMO,
                 environment=ONLY | {"CONFIG_NAME": "scratch_cpu", "PATH": path})
    reason = assert_over(job, "COMPLETED", "0:0", "completed", marker=False)
    (before,) = reason["before"]
    assert (before["state"], before["node"], before["attempt"]) == ("requeued", "node1", 1)
    assert "node1: 7 GPUs answer, the job wants 8" in before["reason"]
    said = job.says()
    assert (said["Restarts"], said["ExcNodeList"]) == ("1", "node1") and 1 not in job.nodes()
    assert reason["attempt"] == 2


def test_no_node_left_to_go_to_fails_in_the_end(slurm: PrivateSlurm, tmp_path: Path) -> None:
    """Bounded: MAX_TRIES without a checkpoint."""
    path = fake_nvidia_smi(tmp_path / "driver", "node1 || $(hostname) == node2")
    job = submit(slurm, tmp_path / "run", "--nodes=2", *ONE_A_NODE, overrides=DEMO,
                 environment=ONLY | {"CONFIG_NAME": "scratch_cpu", "PATH": path, "MAX_TRIES": "1"})
    reason = assert_over(job, "FAILED", "1:0", "failed", marker=False)
    assert "MAX_TRIES=1" in reason["reason"] and "7 GPUs answer" in reason["reason"]
    assert [entry["state"] for entry in reason["before"]] == ["requeued"]


def test_a_disk_without_room(slurm: PrivateSlurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "run", "--nodes=2", *ONE_A_NODE, overrides=DEMO,
                 environment=ONLY | {"CONFIG_NAME": "scratch_cpu", "MIN_FREE_GB": "1000000000"})
    reason = assert_over(job, "FAILED", "1:0", "failed", marker=False)
    assert "MIN_FREE_GB" in reason["reason"] and "disk is full" in reason["reason"]
    assert job.says()["Restarts"] == "0"
