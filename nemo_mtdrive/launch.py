"""Start the processes of a job on this machine, keep them going, and end them together.

    launcher ──starts──> environment server(s)   HTTP on loopback      <── answers ── rollout worker(s)
             ──starts──> rollout worker(s)       control: ROUTER/DEALER <── tasks, weights ── training rank 0
             ──starts──> training ranks 0..n-1   gloo/nccl among them   <── episodes ── rollout worker(s)

A job ends when its training ranks have ended. A server or a worker that dies is started again; when a training rank dies,
ranks and workers start again from the last checkpoint (docs/fault_tolerance.md). The children have their own session, so
Ctrl-C reaches only the launcher, which stops them in order; a launcher that is killed takes them along
(`process.die_with_parent`).
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_mtdrive.config import Config, ConfigError
from nemo_mtdrive.config_checks import rollout_python
from nemo_mtdrive.process import SHM_ROOT, STARTED, STOP_FILE, free_port, port_is_free, reserve_port
from nemo_mtdrive.supervision import (
    RESTARTS_FILE,
    Job,
    JobFailed,
    JobInterrupted,
    MainFailed,
    Restarts,
    interruptible,
    saves_on_request,
)
from nemo_mtdrive.transfer.curve import CurveKeys
from nemo_mtdrive.transfer.segments import sweep, sweep_abandoned

__all__ = ["Endpoints", "JobFailed", "JobInterrupted", "make_endpoints", "read_endpoints", "refuse_busy_port",
           "run_processes", "write_endpoints"]

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Endpoints:
    """Where the processes of a job find each other; written to RUN/endpoints.json for its processes only."""

    run_id: str
    environment_urls: list[str]
    environment_token: str
    control: str
    """ZeroMQ endpoint that training rank 0 binds and rollout workers connect to."""
    episodes: list[str]
    """ZeroMQ endpoint of each training rank, where workers send finished episodes."""
    weights_root: str
    """Folder that all of them see, below which new weights go from training rank 0 to the workers."""
    master_port: int
    master_address: str = "127.0.0.1"
    """Where training rank 0 listens for the others."""
    keys: CurveKeys | None = None
    """Encrypt control and episodes with these; None on one machine, where they go over sockets in a private folder."""


def refuse_busy_port(config: Config) -> None:
    """Check the ports that the config names, at start-up and again when they are used.

    Raises:
        ConfigError: `environment.port` is busy, or one of those after it that further servers take.
    """
    host, first = config.environment.host, config.environment.port
    for port in range(first, first + config.environment.servers) if first else ():
        if not port_is_free(host, port):
            raise ConfigError(f"environment.port={first}: {port} is busy on {host}; set another, or 0 for free ones")


def make_endpoints(config: Config, socket_dir: Path) -> Endpoints:
    """Choose ports and sockets for a job on this machine.

    Raises:
        ConfigError: `environment.port` is busy.
    """
    environment = config.environment
    refuse_busy_port(config)
    with ExitStack() as stack:  # held together, so that they differ
        ports = [stack.enter_context(reserve_port(environment.host, environment.port and environment.port + index))
                 .getsockname()[1] for index in range(environment.servers)]
    endpoints = Endpoints(
        run_id="", environment_urls=[f"http://{environment.host}:{port}" for port in ports],
        environment_token=secrets.token_urlsafe(24), control="", episodes=[], weights_root="", master_port=0)
    return new_meeting_place(endpoints, config, socket_dir)


def new_meeting_place(endpoints: Endpoints, config: Config, socket_dir: Path) -> Endpoints:
    """The same environment servers, everything else new: ranks that start again must not meet what the last ones left."""
    return replace(endpoints, run_id=f"mtd{secrets.token_hex(4)}", control=f"ipc://{socket_dir}/control",
                   episodes=[f"ipc://{socket_dir}/episodes-{rank}" for rank in range(config.world_size)],
                   weights_root=str(SHM_ROOT), master_port=free_port())


def write_endpoints(endpoints: Endpoints, path: Path) -> None:
    """Write the file, whole or not at all, readable by its owner only: it holds the token."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(endpoints), file, indent=1)
    beside.replace(path)


def read_endpoints(path: Path) -> Endpoints:
    """Read what `write_endpoints` wrote."""
    found = json.loads(path.read_text())
    return Endpoints(**found | {"keys": CurveKeys(**found["keys"]) if found["keys"] else None})


def run_processes(config: Config, run_dir: Path, on_event: OnEvent) -> None:
    """Start servers, workers and ranks of a prepared run directory, keep them going, and wait for the end.

    Shared memory of this run goes when it ends, and that of runs that were killed when the next one starts.
    `on_event` gets what training rank 0 says of its progress, a mapping a time.

    Raises:
        JobFailed, JobInterrupted, ConfigError.
    """
    sweep_abandoned(SHM_ROOT)
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtdrive-")))
        stack.enter_context(interruptible())
        stack.enter_context(saves_on_request(run_dir / STOP_FILE))
        endpoints = make_endpoints(config, sockets)
        journal = run_dir / RESTARTS_FILE
        if not config.resume:
            journal.unlink(missing_ok=True)
        restarts = Restarts(lambda: newest_checkpoint(run_dir / "checkpoints"), journal,
                            lambda text: on_event({"event": "note", "text": text}))
        run_ids: list[str] = []
        stack.callback(lambda: [sweep(SHM_ROOT, run_id) for run_id in run_ids])  # when the job's processes are gone
        job = stack.enter_context(Job(run_dir / "logs", restarts))
        attempts = _Attempts(config, run_dir, job, on_event, run_ids)
        attempts.start_servers(endpoints, stack)
        while True:
            try:
                attempts.run(endpoints)
                return
            except MainFailed as failure:
                restarts.count("the training ranks", str(failure), config.max_restarts, "max_restarts")
            on_event({"event": "restart"})
            endpoints = new_meeting_place(endpoints, config, Path(tempfile.mkdtemp(dir=sockets)))


class _Attempts:
    """What is started once, and what is started for each attempt of the training ranks."""

    def __init__(self, config: Config, run_dir: Path, job: Job, on_event: OnEvent, run_ids: list[str]) -> None:
        """`run_ids` gets those whose shared memory is to be swept in the end."""
        self._config = config
        self._run_dir = run_dir
        self._job = job
        self._on_event = on_event
        self._run_ids = run_ids
        self._command = [sys.executable, "-m", "nemo_mtdrive.cli"]
        self._run = ["--run-dir", str(run_dir)]
        self._resume = config.resume
        self._started = time.time()

    def start_servers(self, endpoints: Endpoints, stack: ExitStack) -> None:
        """The environment servers; their ports stay reserved until the stack closes, also while one starts again."""
        environment = self._config.environment
        write_endpoints(endpoints, self._run_dir / "endpoints.json")
        for index, url in enumerate(endpoints.environment_urls):
            stack.enter_context(reserve_port(environment.host, int(url.rpartition(":")[2])))
            self._job.start(f"environment-server-{index}", [*self._command, "serve-env", *self._run, "--index", str(index)],
                            thread_limits(1), max_restarts=environment.max_restarts, limit_key="environment.max_restarts")

    def run(self, endpoints: Endpoints) -> None:
        """Workers and ranks, until the ranks have ended. When one of them fails, all of them are gone afterwards.

        Raises:
            MainFailed, JobFailed, JobInterrupted: see `supervision`.
        """
        config, job = self._config, self._job
        write_endpoints(endpoints, self._run_dir / "endpoints.json")
        self._run_ids.append(endpoints.run_id)
        names = [f"rollout-{_worker(index)}" for index in range(config.rollout.workers)]
        python = str(rollout_python(config.rollout)) if config.rollout.engine == "vllm" else sys.executable
        for index, name in enumerate(names):
            job.start(name, [python, *self._command[1:], "rollout-worker", *self._run, "--index", str(index)],
                      thread_limits(config.rollout.threads), ends_itself=True, max_restarts=config.rollout.max_restarts,
                      limit_key="rollout.max_restarts")
        reader, writer = os.pipe()
        for rank in range(config.world_size):
            names.append(f"training-rank-{rank}")
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(config.world_size),
                     "MASTER_ADDR": endpoints.master_address, "MASTER_PORT": str(endpoints.master_port),
                     STARTED: str(self._started)}
            events = {"MTDRIVE_EVENTS_FD": str(writer)} if rank == 0 else {}
            job.start(names[-1], [*self._command, "train-rank", *self._run, *(["--resume"] if self._resume else [])],
                      thread_limits(config.parallel.threads) | ranks | events, main=True,
                      pass_fds=(writer,) if rank == 0 else ())
        os.close(writer)
        os.set_blocking(reader, False)
        self._resume = True  # whatever was saved until it fails is gone on from
        with open(reader, "rb", buffering=0) as pipe:
            lines = LineReader(pipe.read)
            try:
                job.watch(lambda: lines.dispatch(self._dispatch))
                lines.dispatch(self._dispatch)
            except MainFailed:
                job.drop(names)
                sweep(SHM_ROOT, endpoints.run_id)
                raise

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "lost":  # rank 0 has given a worker up; it may hang, and then only a kill ends it
            self._job.kill(f"rollout-{event['worker']}", event["pid"], event["reason"])
        else:
            self._on_event(event)


def _worker(index: int) -> str:
    return f"worker-{index}"


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in RUN/checkpoints that are whole, the oldest first; `latest` and `best` are links to two of them."""
    markers = [marker for marker in folder.glob("[!.]*/complete.json") if not marker.parent.is_symlink()]
    return [marker.parent for marker in sorted(markers, key=lambda marker: marker.stat().st_mtime_ns)]


def newest_checkpoint(folder: Path) -> float:
    """When the newest whole checkpoint was written [s since the epoch]; 0 for none."""
    return max(((found / "complete.json").stat().st_mtime for found in whole_checkpoints(folder)), default=0.0)


def thread_limits(count: int) -> dict[str, str]:
    """Environment that keeps every maths library of a process to `count` threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    # threads that spin while they wait starve the other processes of a machine with few cores
    return {name: str(count) for name in names} | {
        "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}


class LineReader:
    """Whole JSON lines out of a pipe that is read without waiting."""

    def __init__(self, read: Callable[[], bytes | None]) -> None:
        self._read = read
        self._rest = b""

    def dispatch(self, on_event: OnEvent) -> None:
        """Hand on every line that has come in."""
        *lines, self._rest = (self._rest + (self._read() or b"")).split(b"\n")
        for line in lines:
            on_event(json.loads(line))
