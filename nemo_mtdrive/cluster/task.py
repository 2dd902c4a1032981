"""One task of a job's step: the process of a role under a supervisor, which srun starts on the role's node.

An environment server or a rollout worker that dies is started again here, as on one machine; a training rank that dies
ends its try. What went wrong is written down (`files.write_ended`): srun's exit code cannot be relied on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nemo_mtdrive.cluster.files import current_try, read_layout, this_node, try_folder, write_ended
from nemo_mtdrive.cluster.layout import Layout, Role
from nemo_mtdrive.config import Config, ConfigError, read_config
from nemo_mtdrive.config_checks import rollout_python
from nemo_mtdrive.launch import Endpoints, LineReader, newest_checkpoint, read_endpoints, thread_limits
from nemo_mtdrive.process import SHM_ROOT, STARTED, WRONG_REQUEST
from nemo_mtdrive.supervision import RESTARTS_FILE, Job, JobFailed, JobInterrupted, Restarts, interruptible
from nemo_mtdrive.telemetry.events import EventDisplay
from nemo_mtdrive.telemetry.progress import open_progress
from nemo_mtdrive.transfer.segments import sweep_abandoned
from nemo_mtdrive.whole_file import write_whole

PLAIN_EVERY_S = 10.0
LOOK_S = 1.0
"""How often a worker's supervisor looks whether rank 0 has given the worker up [s]."""
TERMINATED = 143


def run_task(role: Role, run_dir: Path) -> int:
    """Run this task's process until it ends or the step is ended; returns the exit code.

    Raises:
        ConfigError: this is no task of a step, or not on the node that the layout says.
    """
    layout = read_layout(run_dir)
    index = place(layout, role, os.environ)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the batch script's business; children inherit it
    task = _Task(role, index, run_dir, layout, read_config(run_dir / "config.yaml"))
    with ExitStack() as stack:
        stack.callback(sweep_abandoned, SHM_ROOT)  # the last one of a node removes what its processes shared
        stack.enter_context(interruptible())
        try:
            task.run(stack)
        except JobInterrupted:  # so servers are ended when the ranks have; what else is ended is missed
            return 0 if role == "environment-server" else TERMINATED
        except JobFailed as failure:
            print(f"{this_node()}: {failure}", file=sys.stderr, flush=True)
            code = task.exit_code
            write_ended(run_dir, task.attempt, role, index, code, str(failure))
            return code if code > 0 else 1
    return 0


def place(layout: Layout, role: Role, environment: Mapping[str, str]) -> int:
    """Which task of its role this is.

    Raises:
        ConfigError: it is not where the layout has it, so that addresses would be wrong.
    """
    index = int(environment.get("SLURM_PROCID", "-1"))
    if not 0 <= index < layout.step(role).tasks:
        raise ConfigError(f"SLURM_PROCID={environment.get('SLURM_PROCID')}: the layout has {layout.step(role).tasks} tasks "
                          f"of {role}; start it with slurm/job.sh")
    wanted, here = layout.node_of(role, index), environment.get("SLURMD_NODENAME") or this_node()
    if wanted != here:
        raise ConfigError(f"{role} {index} is on {here}, the layout has it on {wanted}: Slurm numbered the step's tasks "
                          "otherwise; is a task distribution set in the site's options?")
    return index


class _Task:
    """What there is to know of one task, and its process."""

    def __init__(self, role: Role, index: int, run_dir: Path, layout: Layout, config: Config) -> None:
        self.attempt = current_try()
        self._role, self._index = role, index
        self._run_dir, self._layout, self._config = run_dir, layout, config
        self._endpoints = read_endpoints(run_dir / "endpoints.json")
        self._lost = try_folder(run_dir, self.attempt) / f"lost-{index}.json"
        self._looked = 0.0
        self._restarts = Restarts(lambda: newest_checkpoint(run_dir / "checkpoints"), run_dir / RESTARTS_FILE,
                                  lambda text: print(text, file=sys.stderr, flush=True))
        self._job = Job(run_dir / "logs", self._restarts, suffix=f".{self.attempt}.log")

    @property
    def exit_code(self) -> int:
        """Of the process."""
        return self._job.worst_code()

    def run(self, stack: ExitStack) -> None:
        """Start the process and stay with it.

        Raises:
            JobFailed, JobInterrupted: see `supervision`.
        """
        job = stack.enter_context(self._job)
        {"environment-server": self._serve, "rollout-worker": self._roll_out, "training-rank": self._train}[self._role](
            job, stack)

    def _start(self, job: Job, command: str, environment: Mapping[str, str], **how: Any) -> None:
        arguments = [command, "--run-dir", str(self._run_dir)]
        if self._role != "training-rank":
            arguments += ["--index", str(self._index)]
        elif newest_checkpoint(self._run_dir / "checkpoints"):
            arguments.append("--resume")
        cpus = cpus_for(self._role, sorted(os.sched_getaffinity(0)), self._config.environment.workers)
        os.sched_setaffinity(0, cpus)
        python = python_of(self._role, self._config, os.environ)
        job.start(f"{self._role}-{self._index}", [python, "-m", "nemo_mtdrive.cli", *arguments], environment, **how)

    def _serve(self, job: Job, stack: ExitStack) -> None:
        limits = self._config.environment
        self._start(job, "serve-env", thread_limits(1), max_restarts=limits.max_restarts,
                    limit_key="environment.max_restarts")
        job.watch(lambda: None)

    def _roll_out(self, job: Job, stack: ExitStack) -> None:
        rollout = self._config.rollout
        gpus = visible_gpus(self._layout.gpus_of(self._role, self._index), os.environ)
        self._start(job, "rollout-worker", thread_limits(rollout.threads) | gpus, ends_itself=True,
                    max_restarts=rollout.max_restarts, limit_key="rollout.max_restarts")
        job.watch(lambda: self._kill_lost(job))

    def _train(self, job: Job, stack: ExitStack) -> None:
        environment = thread_limits(self._config.parallel.threads)
        environment |= rank_environment(self._layout, self._endpoints, self._index)
        if self._index:
            self._start(job, "train-rank", environment, main=True)
            job.watch(lambda: None)
            return
        reader, writer = os.pipe()
        self._start(job, "train-rank", environment | {"MTDRIVE_EVENTS_FD": str(writer)}, main=True, pass_fds=(writer,))
        os.close(writer)
        os.set_blocking(reader, False)
        pipe = stack.enter_context(os.fdopen(reader, "rb", buffering=0))
        progress = stack.enter_context(open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S))
        display = stack.enter_context(EventDisplay(progress))
        lines = LineReader(pipe.read)
        dispatch = self._dispatcher(display.show)
        job.watch(lambda: lines.dispatch(dispatch))
        lines.dispatch(dispatch)

    def _dispatcher(self, show: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
        def dispatch(event: Mapping[str, Any]) -> None:
            if event["event"] == "lost":  # its supervisor may be on another node
                number = event["worker"].rpartition("-")[2]
                write_whole(try_folder(self._run_dir, self.attempt) / f"lost-{number}.json",
                            json.dumps({"pid": event["pid"], "reason": event["reason"]}))
            else:
                show(event)

        return dispatch

    def _kill_lost(self, job: Job) -> None:
        """Kill the worker if rank 0 has given it up: it may hang, and then only a kill ends it."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        if self._lost.exists():
            found = json.loads(self._lost.read_text())
            self._lost.unlink()
            job.kill(f"{self._role}-{self._index}", found["pid"], found["reason"])


def python_of(role: Role, config: Config, environment: Mapping[str, str]) -> str:
    """The Python of a task's process: the one that runs this, which in a container is the image's; without containers a
    vLLM worker's is the config's, as on one machine, unless the site has set one."""
    from_config = environment.get("MTDRIVE_ROLLOUT_PYTHON") == "config"
    if role == "rollout-worker" and config.rollout.engine == "vllm" and from_config:
        return str(rollout_python(config.rollout))
    return sys.executable


def rank_environment(layout: Layout, endpoints: Endpoints, rank: int) -> dict[str, str]:
    """RANK, WORLD_SIZE and so on of a training rank: static, no rendezvous chooses them.

    A rank sees all GPUs of its node and takes its own by LOCAL_RANK, so that NCCL finds its neighbours' memory; where
    the site binds one GPU to each task, that one has number 0.
    """
    return {"RANK": str(rank), "LOCAL_RANK": str(local_rank_of(layout, rank, os.environ)),
            "WORLD_SIZE": str(layout.step("training-rank").tasks), "MASTER_ADDR": endpoints.master_address,
            "MASTER_PORT": str(endpoints.master_port),
            STARTED: os.environ.get(STARTED, str(time.time()))}


def local_rank_of(layout: Layout, rank: int, environment: Mapping[str, str]) -> int:
    """Number of a rank's GPU among those that it sees."""
    return 0 if _is_bound(layout, environment) else layout.step("training-rank").local_index(rank)


def gpus_to_join(layout: Layout, rank: int, environment: Mapping[str, str]) -> dict[int, int]:
    """The ranks for which this rank's task joins the preflight's all-reduce, and their GPUs.

    The first task of a node does it for all of them; where Slurm shows each task its own GPU, each for itself.
    """
    step = layout.step("training-rank")
    if _is_bound(layout, environment):
        return {rank: 0}
    if step.local_index(rank):
        return {}
    node = layout.node_of("training-rank", rank)
    return {each: step.local_index(each) for each in range(step.tasks) if layout.node_of("training-rank", each) == node}


def _is_bound(layout: Layout, environment: Mapping[str, str]) -> bool:
    shown = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return layout.allocation.gpus > 1 and len(shown) == 1


def visible_gpus(gpus: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES for GPUs by their numbers on the node, out of those that Slurm shows to the task.

    Raises:
        ConfigError: it shows fewer.
    """
    if not gpus:
        return {}
    shown = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if max(gpus) >= len(shown):
        raise ConfigError(f"the layout has GPUs {', '.join(map(str, gpus))} for this task, Slurm shows it "
                          f"{len(shown) or 'none'}; do not bind GPUs to tasks (SBATCH_EXTRA), the layout does")
    return {"CUDA_VISIBLE_DEVICES": ",".join(shown[gpu] for gpu in gpus)}


def cpus_for(role: Role, available: Sequence[int], scoring_workers: int) -> list[int]:
    """The CPUs that a task may use: environment servers have the last of the node, one a scoring worker and one for the
    server; the others have the rest. Where that would leave less than half, all use all."""
    reserved = scoring_workers + 1
    if 2 * reserved > len(available):
        return list(available)
    return list(available[-reserved:] if role == "environment-server" else available[:-reserved])


def report_refusal(role: Role, run_dir: Path, error: Exception) -> None:
    """Write down that this task could not begin."""
    write_ended(run_dir, current_try(), role, int(os.environ.get("SLURM_PROCID", "0")), WRONG_REQUEST,
                f"{role} {os.environ.get('SLURM_PROCID', '?')}: {error}")
