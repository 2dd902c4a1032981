"""A run's folder in shared memory, and how nothing of it is left behind.

POSIX shared memory on Linux is the tmpfs at /dev/shm, so a segment here is a file there that is mapped, by plain
`open` and `mmap`. Python's `multiprocessing.shared_memory` is avoided on purpose: its resource tracker unlinks segments
that another process still reads when the first one ends, and warns of leaks that are none. Files give what it lacks:

* publication is a rename, so nobody sees half a segment;
* `flock` says who uses a segment. The kernel drops a lock when its last holder dies, however it dies;
* what a crashed run left is one folder, removed by `sweep`.

Any folder that all processes see will do as root; one on a shared file system reaches several nodes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_PREFIX = "mtdrive-"
_ALIVE = ".alive"
_YOUNG_S = 60.0
"""A folder without a lock file that is younger than this may be one that is just being made."""


class TransferError(RuntimeError):
    """Moving episodes, images or weights failed; the message says what was got and what to set."""


def run_path(root: Path, run_id: str) -> Path:
    """The folder of a run below `root`.

    Raises:
        ValueError: `run_id` is not 1 to 64 letters, digits, dots, dashes or underscores.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", run_id):
        raise ValueError(f"run_id={run_id!r}: set it to 1 to 64 letters, digits, dots, dashes or underscores")
    return root / f"{_PREFIX}{run_id}"


class RunFolder:
    """One process's membership of a run's shared-memory folder; while it is open, the folder is not abandoned.

    Args:
        root: where shared memory is, /dev/shm on Linux.
        run_id: names the run; the same in all its processes.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        if not root.is_dir():
            raise TransferError(f"shared memory root {root}: no such folder; set it to a tmpfs, such as /dev/shm")
        self.path = run_path(root, run_id)
        self._alive = _join(self.path)

    def folder(self, name: str) -> Path:
        """A folder inside, made when absent."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def close(self) -> None:
        """Leave; the files stay for the others. Safe to call again."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep(root: Path, run_id: str) -> int:
    """Remove everything that a run holds in shared memory; returns the bytes freed. For the launcher, at the end.

    Processes that still map a segment keep reading it; the memory is freed when they let go.
    """
    path = run_path(root, run_id)
    freed = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else 0
    shutil.rmtree(path, ignore_errors=True)
    return freed


def sweep_abandoned(root: Path) -> list[str]:
    """Remove the folders of runs of which no process lives; returns their run ids. Only this user's are looked at."""
    removed = []
    for path in sorted(root.glob(f"{_PREFIX}*")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid == os.getuid() and _is_abandoned(path):
                removed.append(path.name.removeprefix(_PREFIX))
    return removed


def _is_abandoned(path: Path) -> bool:
    """Take the folder's lock alone and remove it; False when someone holds it."""
    try:
        alive = os.open(path / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if time.time() - path.stat().st_mtime < _YOUNG_S:
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(path, ignore_errors=True)
        return True
    finally:
        os.close(alive)


def _join(path: Path) -> int:
    """Make the folder when absent and hold its lock, shared; tries again when a sweep removed it in between."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        try:
            alive = os.open(path / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        fcntl.flock(alive, fcntl.LOCK_SH)
        if os.fstat(alive).st_nlink:
            return alive
        os.close(alive)
