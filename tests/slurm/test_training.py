"""The tiny model trained over two nodes by slurm/rl_32gpu.sh: once undisturbed, once with everything that befalls jobs.

The disturbed run is one run directory with six mishaps one after another; it must end with the same parameters. Processes
are stopped while a mishap is arranged, so that it hits the run where the test wants it, however fast the machine is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.digests import digests

from .jobs import Job, assert_over, freeze, submit
from .private_slurm import LONGEST_S, NODES, PrivateSlurm

pytestmark = pytest.mark.end_to_end

STEPS = 9
TINY = (
    "scenes.count=6", "scenes.held_out=1", "scenes.image_width=56", "scenes.image_height=28", "validation.scenes=1",
    "model.layers=1", "model.vision_layers=1", "parallel.tensor=1", "parallel.data=2", "rollout.workers=2",
    "rollout.max_turns=2", "rollout.max_answer_tokens=16", "rollout.temperature=1.0", "rollout.heartbeat_timeout_s=900",
    "environment.timeout_s=900", "sft.stages=[]", f"mtgrpo.steps={STEPS}", "mtgrpo.prompts_per_step=2",
    "mtgrpo.mini_batch_prompts=2", "mtgrpo.group_size=2", "mtgrpo.lr=1e-4", "mtgrpo.entropy_coefficient=0.001",
    "checkpoint.every_steps=1",
)
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--time=600", "--signal=B:USR1@3600")
SETTINGS = {"CONFIG_NAME": "scratch_cpu", "MIN_FREE_GB": "0.01"}
DISK = Path("/run/slurm/disk")
"""A file system of 2 GB that all nodes share, in memory."""


@dataclass
class Told:
    """The run with mishaps, and what there was to see after each."""

    run_dir: Path
    jobs: list[Job]
    seen: dict[str, dict[str, Any]]
    """Mishap -> RUN/reason.json after it, as soon as it spoke of the end of that start."""
    nodes: dict[str, list[int]]
    """Mishap -> nodes that the job ran on when it came."""
    lost: int = 0
    """The worker node that lost its power."""


class Story:
    """Arranges the mishaps, one after another."""

    def __init__(self, slurm: PrivateSlurm, run_dir: Path) -> None:
        self.slurm = slurm
        self.told = Told(run_dir, [], {}, {})
        self.reached = 0

    @property
    def job(self) -> Job:
        """The one that runs."""
        return self.told.jobs[-1]

    def submit(self) -> None:
        """The same command each time: it goes on where the run stands."""
        self.told.jobs.append(submit(self.slurm, self.told.run_dir, *TWO_NODES, overrides=TINY,
                                     environment=SETTINGS | {"PREFLIGHT": "off"}))

    def await_progress(self, mishap: str) -> list[int]:
        """Wait for a checkpoint that was not there at the last mishap; stops the workers and returns them."""
        deadline = time.monotonic() + LONGEST_S
        while not (newest := max(self.job.checkpoints(), default=0)) > self.reached:
            assert time.monotonic() < deadline and not self.job.is_over(), f"no progress before {mishap}:\n{self.job.tale()}"
            self.slurm.hurry()
            time.sleep(0.1)
        workers = self.job.role("rollout-worker")
        freeze(workers, True)
        assert newest < STEPS - 1, f"the run was over too soon for: {mishap}"
        self.told.nodes[mishap] = self.job.nodes()
        return workers

    def await_word(self, mishap: str, state: str) -> None:
        """Wait until reason.json has one more entry of a start's end, and hold that it has this state."""
        known = len(self.told.seen)
        ended = self.slurm.wait_for(f"{mishap} in reason.json", lambda: self.entries()[known:])
        assert ended[0]["state"] == state, self.job.tale()
        self.note(mishap, ended[0])

    def note(self, mishap: str, entry: dict[str, Any]) -> None:
        """Keep what reason.json says; the next mishap waits for a newer checkpoint."""
        self.told.seen[mishap] = entry
        self.reached = max(self.job.checkpoints())

    def entries(self) -> list[dict[str, Any]]:
        """All that reason.json says of the ends of starts, oldest first."""
        reason = self.job.reason()
        return [*reason["before"], *([reason] if reason["state"] != "running" else [])] if reason else []

    def time_limit(self) -> None:
        """Slurm's own signal before the time limit: the limit moves to within an hour, and back once the signal came."""
        workers = self.await_progress("time limit")
        self.slurm.run("scontrol", "update", f"jobid={self.job.job_id}", "TimeLimit=50")
        self.slurm.wait_for("Slurm's signal", (self.job.run / "stop").exists)
        self.slurm.run("scontrol", "update", f"jobid={self.job.job_id}", "TimeLimit=600")
        freeze(workers, False)
        self.await_word("time limit", "requeued")

    def preemption(self, go: Path) -> None:
        """A job of the partition `high` wants the nodes."""
        workers = self.await_progress("preemption")
        nodes = ",".join(f"node{node}" for node in self.told.nodes["preemption"])
        other = self.slurm.run("sbatch", "--parsable", "--partition=high", "--nodes=2", f"--nodelist={nodes}", "--exclusive",
                               "--output=/dev/null", f"--wrap=until [ -e '{go}' ]; do sleep 0.2; done").stdout.strip()
        self.slurm.wait_for("the signal to the victim", (self.job.run / "stop").exists)
        freeze(workers, False)
        self.await_word("preemption", "requeued")
        self.slurm.wait_for("the other job", lambda: self.slurm.job(other)["JobState"] == "RUNNING")
        go.touch()

    def lost_worker_node(self) -> None:
        """A node without the batch script loses power."""
        workers = self.await_progress("lost worker node")
        (victim,) = set(self.told.nodes["lost worker node"]) - {self.job.batch_node()}
        self.slurm.kill_node(victim)
        freeze(workers, False)
        self.await_word("lost worker node", "requeued")
        self.told.lost = victim

    def await_ranks(self, mishap: str) -> None:
        """Wait until the ranks of a try are there."""
        self.slurm.wait_for(f"ranks before {mishap}", lambda: len(self.job.role("train-rank")) == 2)
        self.told.nodes[mishap] = self.job.nodes()

    def lost_batch_host(self, meanwhile: Callable[[list[int]], Job]) -> Job:
        """The node of the batch script loses power as soon as the ranks are there: no trap of it runs.

        Slurm takes its time to find out; what `meanwhile` starts on the nodes that are free has the machine until then.
        """
        self.await_ranks("lost batch host")
        self.slurm.start_node(self.told.lost)
        self.slurm.wait_for("the node that was lost", lambda: self.slurm.node_state(self.told.lost) == "idle")
        victim = self.job.batch_node()
        self.slurm.kill_node(victim)
        other = meanwhile([node for node in NODES if node not in self.told.nodes["lost batch host"]])
        self.slurm.wait_for("Slurm to notice", lambda: self.slurm.node_state(victim).startswith("down"))
        self.slurm.start_node(victim)
        self.await_word("lost batch host", "interrupted")
        return other

    def scancel(self) -> None:
        """The user cancels it as soon as the ranks are there."""
        self.await_ranks("scancel")
        self.slurm.run("scancel", self.job.job_id)
        self.note("scancel", assert_over(self.job, "CANCELLED", "143:0", "cancelled", marker=False))

    def full_disk(self) -> None:
        """Nothing can be written any more; there is room again afterwards."""
        self.submit()
        workers = self.await_progress("full disk")
        self.slurm.run("dd", "if=/dev/zero", f"of={DISK}/filling", "bs=64k", check=False)
        freeze(workers, False)
        self.note("full disk", assert_over(self.job, "FAILED", "1:0", "failed", marker=False))
        self.slurm.run("rm", DISK / "filling")


@pytest.fixture(scope="module")
def runs(cluster: PrivateSlurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, Told]]:
    """The undisturbed run and the one with mishaps, both to their ends."""
    folder = tmp_path_factory.mktemp("training")
    story = Story(cluster, DISK / "disturbed")
    story.submit()
    story.time_limit()
    story.preemption(folder / "go")
    story.lost_worker_node()
    undisturbed = story.lost_batch_host(meanwhile=lambda free: submit(
        cluster, folder / "undisturbed", *TWO_NODES, f"--nodelist={','.join(f'node{node}' for node in free)}",
        overrides=TINY, environment=SETTINGS))
    story.scancel()
    story.full_disk()
    story.submit()
    for job in (undisturbed, story.job):
        job.wait_over()
    yield undisturbed, story.told
    cluster.clear()
    cluster.run("rm", "-r", story.told.run_dir)


def rows(job: Job) -> list[dict[str, Any]]:
    """Metrics of the RL steps."""
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "rl"]


def test_two_nodes_train_to_the_marker(runs: tuple[Job, Told]) -> None:
    job, _ = runs
    reason = assert_over(job, "COMPLETED", "0:0", "completed", marker=True)
    assert reason["attempt"] == 1 and reason["before"] == [] and reason["node"] == ""
    assert job.says()["Restarts"] == "0"
    lines = rows(job)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(line["grad_norm"] > 0 and line["episodes/invalid"] == 0 and line["worker/lost"] == 0 for line in lines)
    assert all(line["logprob_gap/max"] < 1e-4 for line in lines)
    assert sum(line["worker/stream_episodes"] for line in lines) >= STEPS * 4
    assert job.checkpoints()[-1] == STEPS


def test_ranks_and_workers_are_on_both_nodes(runs: tuple[Job, Told]) -> None:
    job, _ = runs
    layout = dict(line.split("\t", 1) for line in (job.run / "slurm" / "layout.tsv").read_text().splitlines())
    first, second = sorted(job.nodes())
    for role in ("training-rank", "rollout-worker"):
        assert layout[role].split("\t")[-1] == f"node{first},node{second}"
    assert {path.name for path in (job.run / "logs").iterdir()} == {
        f"{name}.1.log" for name in ("environment-server-0", "rollout-worker-0", "rollout-worker-1", "training-rank-0",
                                     "training-rank-1")}
    assert (job.run / "endpoints.json").stat().st_mode & 0o777 == 0o600


def test_episodes_met_the_environment(runs: tuple[Job, Told]) -> None:
    job, _ = runs
    episodes = [json.loads(line) for path in (job.run / "rollouts").glob("train-*.jsonl")
                for line in path.read_text().splitlines()]
    assert len(episodes) >= 8
    assert all(len(episode["turns"]) == 2 and episode["turns"][0]["feedback"] for episode in episodes)


MISHAPS = {
    "time limit": ("requeued", "time limit"),
    "preemption": ("requeued", "preempted"),
    "lost worker node": ("requeued", "node lost"),
    "lost batch host": ("interrupted", "the node of the batch script was lost"),
    "scancel": ("cancelled", "scancel"),
    "full disk": ("failed", "disk is full"),
}
"""Mishap -> state and words of RUN/reason.json."""


@pytest.mark.parametrize("mishap", MISHAPS)
def test_each_mishap_is_told_of(mishap: str, runs: tuple[Job, Told]) -> None:
    state, words = MISHAPS[mishap]
    entry = runs[1].seen[mishap]
    assert entry["state"] == state and words in entry["reason"]
    assert entry["attempt"] == 1 + list(MISHAPS).index(mishap) and entry["when"]


def test_the_lost_node_is_named(runs: tuple[Job, Told]) -> None:
    _, told = runs
    assert told.seen["lost worker node"]["node"] == f"node{told.lost}"
    assert told.lost not in told.nodes["lost batch host"]


def test_after_all_mishaps_the_same_parameters(runs: tuple[Job, Told]) -> None:
    undisturbed, told = runs
    reason = assert_over(told.jobs[-1], "COMPLETED", "0:0", "completed", marker=True)
    assert reason["attempt"] == 1 + len(MISHAPS)
    assert [job.says()["Restarts"] for job in told.jobs] == ["4", "0", "0"]
    mine, theirs = rows(told.jobs[-1]), rows(undisturbed)
    assert [line["step"] for line in mine] == list(range(STEPS))
    for name in ("loss", "grad_norm", "entropy", "kl", "reward/mean", "ratio"):
        assert [line[name] for line in mine] == [line[name] for line in theirs], name
    own, other = digests([job.run / "checkpoints" / f"rl-{STEPS:06d}" for job in (told.jobs[-1], undisturbed)])
    assert own == other
