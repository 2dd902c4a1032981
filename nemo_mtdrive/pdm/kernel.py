"""Compiled functions: numba's njit, with the machine code kept on disk for the processes that follow.

numba keeps a function's code until the function's own file changes; what the function calls, and the constants it uses,
may live in other files. So the code is kept in a folder named after the text of all files that hold compiled functions:
a change of any of them is a new folder, and stale code cannot be met. The folder lies beside the sources or, where
these may not be written (a read-only install), in the user's cache; NUMBA_CACHE_DIR moves it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_HERE = Path(__file__).resolve().parent
_MARK = "@kernel"


def _sources() -> Iterator[Path]:
    """Files that compiled code is made of: those with kernels, and the constants that all layers share."""
    yield _HERE.parent / "types.py"
    yield from (path for path in sorted(_HERE.glob("*.py")) if _MARK in path.read_text())


def _parents() -> Iterator[Path]:
    """Where the folder may lie, best first."""
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
        return
    yield _HERE / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):
        yield Path(home) / "nemo_mtdrive"


@cache
def cache_folder() -> Path | None:
    """The folder of the kept code; None where no place can be written, and each process then compiles for itself."""
    digest = hashlib.blake2b(digest_size=8)
    for path in _sources():
        digest.update(path.read_bytes())
    for parent in _parents():
        folder = parent / f"kernels-{digest.hexdigest()}"
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        if is_new and parent.parent == _HERE:
            for old in parent.glob("kernels-*"):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        return folder
    logging.getLogger(__name__).warning(
        "compiled scoring kernels cannot be kept: %s is not writable; set NUMBA_CACHE_DIR to a folder that is",
        " and ".join(str(parent) for parent in _parents()))
    return None


def kernel(function: Function) -> Function:
    """Compile a function when it is first called, in numpy's way of dividing by zero; its code is kept."""
    folder = cache_folder()
    if folder is None:
        return numba.njit(error_model="numpy")(function)  # type: ignore[no-any-return]
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        return numba.njit(cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = before
