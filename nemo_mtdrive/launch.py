"""Start the processes of a job on this machine, watch them, and end them together.

    launcher ──starts──> environment server(s)   HTTP on loopback      <── answers ── rollout worker(s)
             ──starts──> rollout worker(s)       control: ROUTER/DEALER <── tasks, weights ── training rank 0
             ──starts──> training ranks 0..n-1   gloo/nccl among them   <── episodes ── rollout worker(s)

A job ends when its training ranks have ended. When a process fails, all are stopped and the reason names the process, how
it ended and its log. The children have their own session, so Ctrl-C reaches only the launcher, which
stops them in order; a launcher that is killed takes them along (`process.die_with_parent`).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from nemo_mtdrive.algorithms.limits import STARTED, STOP_FILE
from nemo_mtdrive.config import Config, ConfigError
from nemo_mtdrive.process import SHM_ROOT, describe_exit, die_with_parent, free_port, port_is_free
from nemo_mtdrive.transfer.segments import sweep, sweep_abandoned

POLL_S = 0.1
STOP_S = 10.0
"""How long a process may take to end after SIGTERM before SIGKILL."""


class JobFailed(RuntimeError):
    """A process of the job ended when it should not have; the message says which, how, and where its log is."""


class JobInterrupted(RuntimeError):
    """The user or the scheduler asked the job to end."""


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
    weights_dir: str
    master_port: int


def refuse_busy_port(config: Config) -> None:
    """Check a port that the config names, at start-up and again when it is used.

    Raises:
        ConfigError: `environment.port` is busy.
    """
    host, port = config.environment.host, config.environment.port
    if port and not port_is_free(host, port):
        raise ConfigError(f"environment.port={port}: it is busy on {host}; set another, or 0 for a free one")


def make_endpoints(config: Config, socket_dir: Path) -> Endpoints:
    """Choose ports and sockets for a job on this machine.

    Raises:
        ConfigError: `environment.port` is busy.
    """
    environment = config.environment
    refuse_busy_port(config)
    port = environment.port or free_port(environment.host)
    return Endpoints(
        run_id=f"mtd{secrets.token_hex(4)}",
        environment_urls=[f"http://{environment.host}:{port}"],
        environment_token=secrets.token_urlsafe(24),
        control=f"ipc://{socket_dir}/control",
        episodes=[f"ipc://{socket_dir}/episodes-{rank}" for rank in range(config.world_size)],
        weights_dir=str(socket_dir),
        master_port=free_port(),
    )


def write_endpoints(endpoints: Endpoints, path: Path) -> None:
    """Write the file readable by its owner only: it holds the token."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(endpoints), file, indent=1)


def read_endpoints(path: Path) -> Endpoints:
    """Read what `write_endpoints` wrote."""
    return Endpoints(**json.loads(path.read_text()))


@dataclass
class Child:
    """A process of the job."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    main: bool
    """The job ends well when this one exits with 0."""


class Job:
    """The processes of a job; use it as a context manager, so that nothing outlives it."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children: list[Child] = []
        log_dir.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, main: bool = False,
              pass_fds: Sequence[int] = ()) -> None:
        """Start a process; what it prints goes to LOG_DIR/name.log (appended, so that a resumed job keeps both)."""
        log = self._log_dir / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       env={**os.environ, **environment}, start_new_session=True, pass_fds=pass_fds,
                                       preexec_fn=die_with_parent)
        self._children.append(Child(name, process, log, main))

    def watch(self, each_poll: Callable[[], None]) -> None:
        """Wait until every main process ended well; `each_poll` is called about ten times a second.

        Raises:
            JobFailed: a process ended with another code than 0.
        """
        while True:
            each_poll()
            codes = [(child, child.process.poll()) for child in self._children]
            failed = [(child, code) for child, code in codes if code]
            if failed:
                # one that is killed takes its peers down within a poll: what was killed is the cause, the rest follow
                child, code = min(failed, key=lambda pair: pair[1])
                said = _last_line(child.log)
                raise JobFailed(f"{child.name} {describe_exit(code)}{f' ({said})' if said else ''}; its log: {child.log}")
            if all(code == 0 for child, code in codes if child.main):
                return
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End all processes: SIGTERM to their sessions, SIGKILL after a while. Safe to call twice."""
        running = [child for child in self._children if child.process.poll() is None]
        for child in running:
            _signal_session(child.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for child in running:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_session(child.process, signal.SIGKILL)
                child.process.wait()
        for child in self._children:  # what a process left behind in its session
            _signal_session(child.process, signal.SIGKILL)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _signal_session(process: subprocess.Popen[bytes], sig: int) -> None:
    try:
        os.killpg(process.pid, sig)
    except ProcessLookupError:
        return


def _last_line(log: Path) -> str:
    """The last line of a log that says something, cut to a readable length."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `JobInterrupted` inside the block, once; a second one is left to the default."""
    def interrupt(number: int, frame: FrameType | None) -> None:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
        raise JobInterrupted(f"stopped by {signal.Signals(number).name}")

    previous = {sig: signal.signal(sig, interrupt) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


@contextmanager
def saves_on_request(run_dir: Path) -> Iterator[None]:
    """SIGUSR1, which schedulers send before a time limit, asks the run to end after its step with a checkpoint."""
    stop_file = run_dir / STOP_FILE
    stop_file.unlink(missing_ok=True)
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: stop_file.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)
        stop_file.unlink(missing_ok=True)


def run_processes(config: Config, run_dir: Path, on_event: Callable[[dict[str, object]], None]) -> None:
    """Start servers, workers and ranks of a prepared run directory and wait for the end.

    Shared memory of this run goes when it ends, and that of runs that were killed when the next one starts.
    `on_event` gets what training rank 0 says of its progress, a mapping a time.

    Raises:
        JobFailed, JobInterrupted, ConfigError.
    """
    sweep_abandoned(SHM_ROOT)
    with ExitStack() as stack:
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtdrive-"))
        stack.enter_context(interruptible())
        stack.enter_context(saves_on_request(run_dir))
        endpoints = make_endpoints(config, Path(sockets))
        stack.callback(sweep, SHM_ROOT, endpoints.run_id)
        job = stack.enter_context(Job(run_dir / "logs"))
        write_endpoints(endpoints, run_dir / "endpoints.json")
        command = [sys.executable, "-m", "nemo_mtdrive.cli"]
        run = ["--run-dir", str(run_dir)]
        job.start("environment-server", [*command, "serve-env", *run], _threads(1))
        for index in range(config.rollout.workers):
            job.start(f"rollout-worker-{index}", [*command, "rollout-worker", *run, "--index", str(index)],
                      _threads(config.rollout.threads))
        started = str(time.time())
        reader, writer = os.pipe()
        for rank in range(config.world_size):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(config.world_size),
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(endpoints.master_port), STARTED: started}
            events = {"MTDRIVE_EVENTS_FD": str(writer)} if rank == 0 else {}
            job.start(f"training-rank-{rank}", [*command, "train-rank", *run],
                      _threads(config.parallel.threads) | ranks | events, main=True,
                      pass_fds=(writer,) if rank == 0 else ())
        os.close(writer)
        os.set_blocking(reader, False)
        with open(reader, "rb", buffering=0) as pipe:
            lines = _LineReader(pipe.read)
            job.watch(lambda: lines.dispatch(on_event))
            lines.dispatch(on_event)


def _threads(count: int) -> dict[str, str]:
    """Environment that keeps every maths library of a process to `count` threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    # threads that spin while they wait starve the other processes of a machine with few cores
    return {name: str(count) for name in names} | {
        "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}


class _LineReader:
    """Whole JSON lines out of a pipe that is read without waiting."""

    def __init__(self, read: Callable[[], bytes | None]) -> None:
        self._read = read
        self._rest = b""

    def dispatch(self, on_event: Callable[[dict[str, object]], None]) -> None:
        """Hand on every line that has come in."""
        *lines, self._rest = (self._rest + (self._read() or b"")).split(b"\n")
        for line in lines:
            on_event(json.loads(line))
