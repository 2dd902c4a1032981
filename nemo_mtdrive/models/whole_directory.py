"""A directory that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConversionError(ValueError):
    """A conversion or a model directory that cannot be used: one line with what was got and what to set."""


class OutputError(RuntimeError):
    """The output could not be written: one line with what was missing."""


@contextmanager
def whole_directory(out: Path, *, overwrite: bool, expected_bytes: int) -> Iterator[Path]:
    """Give a new directory beside `out` to write in; it takes that name when the block ends without an error.

    Everything is on disk before the name changes. After an error nothing of it is left, and what was at `out` stays.

    Args:
        overwrite: whether something may be at `out`; it is replaced at the end.
        expected_bytes: how much will be written; asked for before work begins.

    Raises:
        ConversionError: something is at `out`. OutputError: there is no room, or it cannot be written there.
    """
    out = out.absolute()
    if not overwrite and out.exists():
        raise ConversionError(f"{out} exists: name another directory, or allow overwriting")
    beside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < expected_bytes:
            sizes = f"{expected_bytes / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free"
            raise OutputError(f"{out.parent}: {sizes}")
        beside.mkdir()
        yield beside
        sync_tree(beside)
        _take_name(beside, out)
        sync(out.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"{out.parent}: no room left ({error.strerror}); nothing was kept") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM):
            raise OutputError(f"{error.filename or out}: {error.strerror}; name a directory that can be written") from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Have everything below a folder on disk before going on."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Have one file, or a folder's list of names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_name(beside: Path, out: Path) -> None:
    if out.is_dir() and not out.is_symlink():
        old = out.with_name(f".{out.name}.old-{os.getpid()}")
        out.rename(old)
        beside.rename(out)
        shutil.rmtree(old)
    else:
        out.unlink(missing_ok=True)
        beside.rename(out)
