"""A rank that gives up, and looking at jobs: status and attach helpers."""

from __future__ import annotations

from pathlib import Path

from .jobs import LAUNCHERS, ROOT, assert_over, submit
from .private_slurm import PrivateSlurm

TINY = (
    "scenes.count=3", "scenes.held_out=1", "scenes.image_width=56", "scenes.image_height=28", "validation.scenes=1",
    "model.layers=1", "model.vision_layers=1", "parallel.tensor=1", "parallel.data=2", "rollout.workers=2", "sft.stages=[]",
    "mtgrpo.steps=1", "mtgrpo.prompts_per_step=2", "mtgrpo.mini_batch_prompts=2",
)
GIVES_UP = """
import os, sys
if "train-rank" in sys.orig_argv and "task" not in sys.orig_argv:
    print("nothing to be done", file=sys.stderr, flush=True)
    os._exit(3)
"""
"""Stands in for a training rank: what it trains is not what this is about."""


def test_a_task_that_exits_3_ends_the_job(slurm: PrivateSlurm, tmp_path: Path) -> None:
    """At once and once: going on from a checkpoint would come to the same end. The helpers say what happened."""
    (tmp_path / "sitecustomize.py").write_text(GIVES_UP)
    settings = {"CONFIG_NAME": "scratch_cpu", "MIN_FREE_GB": "0.01", "PREFLIGHT": "off", "PYTHONPATH": str(tmp_path)}
    job = submit(slurm, tmp_path / "run", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", overrides=TINY,
                 environment=settings)
    reason = assert_over(job, "FAILED", "1:0", "failed", marker=False)
    assert "training-rank-" in reason["reason"] and "exited with code 3 (nothing to be done)" in reason["reason"]
    assert reason["attempt"] == 1 and reason["before"] == [] and job.says()["Restarts"] == "0"
    shown = slurm.run("bash", LAUNCHERS / "status.sh", job.run_dir, folder=ROOT).stdout
    assert "state    failed, try 1" in shown and "exited with code 3" in shown and "training-rank-" in shown


def test_a_shell_beside_a_running_job(slurm: PrivateSlurm, tmp_path: Path) -> None:
    job_id = slurm.run("sbatch", "--parsable", "--nodes=2", "--exclusive", "--gpus-per-node=8", "--job-name=mtdrive-x",
                       "--output=/dev/null", "--wrap=sleep 3600").stdout.strip()
    slurm.wait_for("the job to run", lambda: slurm.job(job_id)["JobState"] == "RUNNING")
    assert slurm.run("bash", LAUNCHERS / "attach.sh", job_id, "node2", "hostname").stdout == "node2\n"
    assert job_id in slurm.run("bash", LAUNCHERS / "status.sh").stdout
    refused = slurm.run("bash", LAUNCHERS / "attach.sh", job_id, "node4", "hostname", check=False)
    assert refused.returncode == 2 and "node4 is none of the nodes" in refused.stderr
    refused = slurm.run("bash", LAUNCHERS / "attach.sh", "4711", check=False)
    assert refused.returncode == 2 and "job 4711 does not run" in refused.stderr
