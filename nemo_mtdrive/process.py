"""What every process of a job does about its own life: die with its parent, find a free port, say why it ended."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from pathlib import Path

WRONG_REQUEST = 2
"""Exit code of a process that was asked for what cannot be done: asking again would not help."""
GAVE_UP = 3
"""Exit code of a process that stopped by a rule of its own: going on from a checkpoint would come to the same end."""
SHM_ROOT = Path("/dev/shm")
"""Where POSIX shared memory is on Linux."""
STARTED = "MTDRIVE_STARTED"
"""Environment variable of the ranks: when the job began, a time.time(); going on from a checkpoint is no new beginning."""
STOP_FILE = "stop"
"""In a run's folder; whoever makes it asks the run to end after its step, with a checkpoint."""
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent ends."""


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent thread ends, however that ends (Linux; else no effect).

    A launcher that is killed with SIGKILL cannot stop its children; this can.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)
    except (OSError, AttributeError):  # no libc.prctl: not Linux
        return


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that is bound, not listening: `port` (0: a free one) is kept for a process that shares it.

    While a server is started again nobody else gets its port, neither a listener nor an outgoing connection of this
    machine (which could even connect to itself). The server listens with SO_REUSEPORT.

    Raises:
        OSError: the port is busy, or the host is not an address of this machine.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind((host, port))
    except OSError:
        holder.close()
        raise
    return holder


def port_is_free(host: str, port: int) -> bool:
    """Whether `host:port` can be bound now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def describe_exit(code: int) -> str:
    """`exited with code 3` or `was killed by SIGKILL`, from a Popen return code."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with code {code}"


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
