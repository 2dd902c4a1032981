"""What is known of a stage on disk: ROOT/stages/NAME/stage.json beside its `out` folder and its `log.txt`.

A stage is done, begun (killed, or failed: it goes on), or not there. A folder that was made of other values is never used
and never deleted unasked.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_mtdrive import __version__
from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.reproduce.stages import Graph, Stage, unseeded
from nemo_mtdrive.whole_file import write_whole

LOCK = "lock"
MARK = "stage.json"


@dataclass(frozen=True)
class Mark:
    """How far a stage is."""

    made_of: str
    """`stages.hashes` of it."""
    done: bool
    commands: list[list[str]]
    """As they were given."""
    seconds: float
    """Wall time [s], all attempts together."""
    cpu_seconds: float
    """CPU time [s] of all its processes that ended in order."""
    version: str
    commit: str
    """Of this project's code; empty outside a repository."""
    whole: bool = True
    """False: its records alone are here (`published.unpack`), so that it is made anew where another stage stands on it."""


def folder_of(root: Path, name: str) -> Path:
    """The folder of a stage."""
    return root / "stages" / name


def read_mark(root: Path, name: str) -> Mark | None:
    """The mark of a stage, None where it was not begun.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder_of(root, name) / MARK
    if not path.is_file():
        return None
    try:
        return Mark(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not the mark of a stage ({error}); remove its folder") from error


def write_mark(root: Path, name: str, mark: Mark) -> None:
    """Keep it, whole or not at all."""
    folder_of(root, name).mkdir(parents=True, exist_ok=True)
    write_whole(folder_of(root, name) / MARK, json.dumps(asdict(mark), indent=1) + "\n")


def begin(root: Path, stage: Stage, made_of: str, commands: Sequence[Sequence[str]]) -> Mark:
    """The mark of a stage that is to be worked on, written: a new one, or that of earlier attempts."""
    before = read_mark(root, stage.name)
    if before is not None and not before.whole:
        drop(root, [stage.name])
        before = None
    mark = Mark(made_of, False, [list(command) for command in commands], before.seconds if before else 0.0,
                before.cpu_seconds if before else 0.0, __version__, code_commit())
    write_mark(root, stage.name, mark)
    return mark


def code_commit() -> str:
    """The commit of the code that runs, with `+` where files differ from it; empty outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"],
                               capture_output=True, text=True, check=True, timeout=30.0)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def stale(root: Path, graph: Graph, made_of: Mapping[str, str]) -> list[str]:
    """Stages that are there and were made of other values."""
    return [name for name in graph if (mark := read_mark(root, name)) is not None and mark.made_of != made_of[name]]


def drop(root: Path, names: Sequence[str]) -> None:
    """Remove the folders of stages."""
    for name in names:
        shutil.rmtree(folder_of(root, name))


def done(root: Path, graph: Graph, made_of: Mapping[str, str]) -> set[str]:
    """Stages that are there with all they made, of these values."""
    return {name for name, mark in _finished(root, graph, made_of) if mark.whole}


def measured(root: Path, graph: Graph, made_of: Mapping[str, str]) -> set[str]:
    """Stages that are there with all they made or, where they have records, with those; of these values."""
    return {name for name, mark in _finished(root, graph, made_of) if mark.whole or graph[name].records}


def _finished(root: Path, graph: Graph, made_of: Mapping[str, str]) -> Iterator[tuple[str, Mark]]:
    for name in graph:
        mark = read_mark(root, name)
        if mark is not None and mark.done and mark.made_of == made_of[name]:
            yield name, mark


def expected_s(root: Path, graph: Graph) -> dict[str, float]:
    """CPU seconds that each stage takes: measured here, else as its siblings of other seeds took, else reckoned."""
    measured = {name: mark.cpu_seconds for name in graph if (mark := read_mark(root, name)) is not None and mark.done}
    found: dict[str, float] = {}
    for names in unseeded(list(graph)).values():
        known = [measured[name] for name in names if name in measured]
        for name in names:
            found[name] = measured.get(name, sum(known) / len(known) if known else graph[name].cpu_s)
    return found


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Nobody else works in this folder meanwhile.

    Raises:
        ConfigError: somebody does.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ConfigError(f"--out {root}: process {file.read().strip() or '?'} works in it; wait for it, or set another "
                              "folder") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
