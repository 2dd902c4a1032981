"""The launchers as scripts: clean, small, and right in what they submit; what they refuse, and say of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .jobs import LAUNCHERS, ROOT, SITE, assert_over, submit
from .private_slurm import PrivateSlurm

LITTLE_ROOM = {"MIN_FREE_GB": "0.01"}
NAMES = ("rl_32gpu.sh", "sft_64gpu.sh", "evaluate.sh", "convert.sh", "curate.sh")
SCRIPTS = sorted([*LAUNCHERS.glob("*.sh"), *LAUNCHERS.glob("*.example"), *Path(__file__).parent.glob("*.sh")])


@pytest.mark.parametrize("script", [*SCRIPTS, *sorted(LAUNCHERS.glob("job/*.sh"))], ids=lambda path: path.name)
def test_bash_reads_it(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        if os.environ.get("CI"):
            pytest.fail("shellcheck is not installed, and in CI it must be there")
        pytest.skip("shellcheck is not installed (requirements/install_debian.sh installs it)")
    done = subprocess.run(["shellcheck", "--shell=bash", "--external-sources", "--source-path", ROOT, script],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_launcher_is_short_and_names_no_site(name: str) -> None:
    lines = (LAUNCHERS / name).read_text().splitlines()
    assert len(lines) <= 80
    options = {match[1] for line in lines if (match := re.match(r"#SBATCH --([a-z-]+)", line))}
    assert options >= {"nodes", "time", "signal", "requeue", "open-mode", "output"}
    assert not options & {"account", "partition", "qos", "reservation", "constraint", "nodelist", "mail-user"}


def bash(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A launcher run by hand where there is no Slurm."""
    return subprocess.run(["bash", LAUNCHERS / name, *arguments], capture_output=True, text=True, cwd=ROOT, check=False,
                          env={"PATH": os.environ["PATH"], "HOME": "/", **SITE, **environment}, timeout=600)


ARGUMENTS = {
    "rl_32gpu.sh": ("model.init_from=", "model.hidden_size=512", "scenes=procedural"),
    "sft_64gpu.sh": ("sft.data=", "model.init_from=", "model.hidden_size=512", "scenes=procedural"),
    "evaluate.sh": ("--driver", "human", "--scenes", "runs/a", "--out", "runs/b"),
    "convert.sh": ("hf_to_nemo", "--hf", "a", "--out", "b"),
    "curate.sh": ("single-turn", "--scenes", "runs/a", "--out", "b"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_prints_the_job_and_all_steps(name: str) -> None:
    """Where there is neither Slurm nor anything to submit to."""
    done = bash(name, *ARGUMENTS[name], DRYRUN="1", ACCOUNT="team", PARTITION="gpu", SBATCH_EXTRA="--comment=x --nice=5")
    assert done.returncode == 0, done.stderr
    submitted, *steps = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    for word in ("sbatch", "--account=team", "--partition=gpu", "--comment=x", "--nice=5", *ARGUMENTS[name]):
        assert word in submitted.split(), submitted
    assert steps and all(step.startswith("srun --overlap ") for step in steps)
    named = [line.removeprefix("# ") for line in done.stdout.splitlines() if line.startswith("# ")]
    if name.startswith(("rl", "sft")):
        assert named == ["plan", "preflight", "all-reduce", "prepare", "meet", "environment-server", "rollout-worker",
                         "training-rank", "finish"]
    else:
        assert named == ["preflight", name.removesuffix(".sh")]


def test_a_dry_run_shows_the_ranks_of_32_gpus() -> None:
    done = bash("rl_32gpu.sh", *ARGUMENTS["rl_32gpu.sh"], DRYRUN="1")
    (ranks,) = [line for line in done.stdout.splitlines() if "task training-rank" in line]
    assert {"--nodes=4", "--ntasks=32", "--ntasks-per-node=8"} <= set(ranks.split())


def test_a_dry_run_of_separate_rollout_nodes() -> None:
    done = bash("rl_32gpu.sh", *ARGUMENTS["rl_32gpu.sh"], "parallel.data=6", "rollout.workers=8", "environment.servers=1",
                "mtgrpo.prompts_per_step=240", "mtgrpo.mini_batch_prompts=120", DRYRUN="1", LAYOUT="disaggregated",
                ROLLOUT_NODES="1")
    places = {role: re.findall(r"--nodelist=(\S+)", line)[0].replace("\\", "") for line in done.stdout.splitlines()
              for role in ("training-rank", "rollout-worker", "environment-server") if f"task {role}" in line}
    assert places == {"training-rank": "node1,node2,node3", "rollout-worker": "node4", "environment-server": "node4"}


def test_chained_jobs_wait_for_each_other() -> None:
    done = bash("rl_32gpu.sh", *ARGUMENTS["rl_32gpu.sh"], DRYRUN="1", NUM_RUNS="3")
    lines = [line for line in done.stdout.splitlines() if " sbatch " in line]
    assert [re.search(r"MTDRIVE_CHAIN=(\S+)", line)[1] for line in lines] == ["1/3", "2/3", "3/3"]  # type: ignore[index]
    assert all("--dependency=singleton" in line for line in lines)


WRONG = {
    "unknown key": ("ACOUNT=team", "ACOUNT"),
    "bash syntax": ("ACCOUNT='team", "unexpected EOF"),
    "not a number": ("MAX_TRIES=many", "MAX_TRIES=many"),
    "unknown container": ("CONTAINER=docker", "CONTAINER=docker"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_site_file_is_refused_at_submission(kind: str, tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text(WRONG[kind][0] + "\n")
    environment = {name: value for name, value in SITE.items() if name != "CONTAINER"}
    done = subprocess.run(["bash", LAUNCHERS / "rl_32gpu.sh"], capture_output=True, text=True, cwd=ROOT, check=False,
                          env={"PATH": os.environ["PATH"], **environment, "SITE_ENV": str(tmp_path / "site.env")})
    assert done.returncode == 2 and done.stdout == ""
    assert WRONG[kind][1] in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_wrong_site_file_ends_the_job_with_the_reason(slurm: PrivateSlurm, tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text("ACOUNT=team\n")
    job = submit(slurm, tmp_path / "run", "--nodes=1", environment={"SITE_ENV": str(tmp_path / "site.env")})
    reason = assert_over(job, "FAILED", "2:0", "failed", marker=False)
    assert "ACOUNT is no setting" in reason["reason"]


@pytest.mark.parametrize("container", ["auto", "pyxis", "apptainer"])
def test_no_container_runtime(container: str, slurm: PrivateSlurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "run", "--nodes=1", environment={"CONTAINER": container, "IMAGE": "team/image:1"})
    reason = assert_over(job, "FAILED", "2:0", "failed", marker=False)
    assert "no container runtime" in reason["reason"]


def test_a_config_that_is_refused(slurm: PrivateSlurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "run", "--nodes=1", "--ntasks-per-node=1", overrides=("mtgrpo.stepz=3",),
                 environment={"CONFIG_NAME": "scratch_cpu"})
    reason = assert_over(job, "FAILED", "2:0", "failed", marker=False)
    assert "stepz" in reason["reason"]


def test_curate_is_a_job(slurm: PrivateSlurm, tmp_path: Path) -> None:
    """One that is done ends at once when it is submitted again."""
    scenes = "procedural://?count=2&seed=7&width=56&height=28"
    arguments = ("single-turn", "--scenes", scenes, "--out", str(tmp_path / "data"))
    job = submit(slurm, tmp_path / "run", script="curate.sh", overrides=arguments, environment=LITTLE_ROOM)
    reason = assert_over(job, "COMPLETED", "0:0", "completed", marker=True)
    assert reason["attempt"] == 1 and any((tmp_path / "data").iterdir())
    again = submit(slurm, tmp_path / "run", script="curate.sh", overrides=arguments, environment=LITTLE_ROOM)
    assert "complete already" in assert_over(again, "COMPLETED", "0:0", "completed", marker=True)["reason"]


def test_apptainer_runs_each_step_in_the_image(slurm: PrivateSlurm, tmp_path: Path) -> None:
    """With a stand-in that writes down its command line and runs the command in no container."""
    image = tmp_path / "image.sif"
    image.touch()
    (tmp_path / "apptainer").write_text(f"""#!/usr/bin/env bash
echo "$@" >> '{tmp_path}/calls'
while [[ $1 != *.sif ]]; do shift; done
exec "${{@:2}}"
""")
    (tmp_path / "apptainer").chmod(0o755)
    job = submit(slurm, tmp_path / "run", script="curate.sh", overrides=("--help",), environment={
        "MIN_FREE_GB": "0.01", "CONTAINER": "auto", "IMAGE": str(image), "MOUNTS": "/data:/data", "PYTHON": sys.executable,
        "PATH": f"{tmp_path}:{os.environ['PATH']}:/usr/sbin"})
    assert_over(job, "COMPLETED", "0:0", "completed", marker=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2
    for call in calls:
        assert call.startswith(f"exec --nv --bind {ROOT},{tmp_path}/run,/data:/data --pwd {ROOT} {image} ")


def test_a_command_that_is_refused(slurm: PrivateSlurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "run", script="curate.sh", overrides=("no-such-kind",), environment=LITTLE_ROOM)
    assert "no-such-kind" in assert_over(job, "FAILED", "2:0", "failed", marker=False)["reason"]
