"""What was measured, as archives small enough to publish: one a stage, DIRECTORY/STAGE.tar.xz.

An archive has the stage's mark (how it was made, and its CPU time) and its records: every episode of an evaluation, the
curves of a training. With them anybody reads the tables anew, or goes on with the seeds that are missing; weights and scenes
are made again where they are needed. The same records make the same bytes.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.reproduce.marks import MARK, Mark, folder_of, measured, read_mark
from nemo_mtdrive.reproduce.stages import Graph, Stage, places
from nemo_mtdrive.whole_file import write_whole

SUFFIX = ".tar.xz"


def pack(root: Path, graph: Graph, made_of: Mapping[str, str], directory: Path) -> list[Path]:
    """Write an archive of every finished stage of a graph; returns those that changed."""
    directory.mkdir(parents=True, exist_ok=True)
    changed = []
    for name in sorted(measured(root, graph, made_of)):
        path, content = directory / f"{name}{SUFFIX}", _archive(root, graph[name])
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
            changed.append(path)
    return changed


def unpack(root: Path, graph: Graph, made_of: Mapping[str, str], directory: Path) -> tuple[list[str], list[str]]:
    """Put the records of a graph's stages where the stages' own would be; those that are there are left as they are.

    Returns the names of the stages that were put there, and of those whose archive is of other values (recipe, config,
    seeds).

    Raises:
        ConfigError: no such directory, or an archive that is none of `pack`'s.
    """
    if not directory.is_dir():
        raise ConfigError(f"--measured {directory}: no such folder; set the one that `nemo-mtdrive reproduce pack` wrote")
    put, others = [], []
    for name in graph:
        path = directory / f"{name}{SUFFIX}"
        if not path.is_file() or folder_of(root, name).exists():
            continue
        if _unpack_one(root, name, made_of[name], path):
            put.append(name)
        else:
            others.append(name)
    return put, others


def _unpack_one(root: Path, name: str, made_of: str, path: Path) -> bool:
    """Whole or not at all; False where the archive is of other values."""
    place = folder_of(root, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place.parent, prefix=f".{name}.") as temporary:
        folder = Path(temporary) / name
        try:
            plain = io.BytesIO(lzma.decompress(path.read_bytes()))  # all of it, so that its checksum is looked at
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                archive.extractall(folder, filter="data")  # no absolute path, no link that leads out, no device
            mark = Mark(**json.loads((folder / MARK).read_text()))
        except (OSError, tarfile.TarError, lzma.LZMAError, EOFError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: not what `nemo-mtdrive reproduce pack` wrote ({error}); get it again") from error
        if mark.made_of != made_of:
            return False
        write_whole(folder / MARK, json.dumps(asdict(replace(mark, whole=False)), indent=1) + "\n")
        folder.rename(place)
    return True


def _archive(root: Path, stage: Stage) -> bytes:
    """The mark and the records; nothing in it tells when, where or by whom it was packed: paths are below the root."""
    here = f"{root.resolve()}/".encode()
    folder, out, mark = folder_of(root, stage.name), places(root, [stage.name])[stage.name], read_mark(root, stage.name)
    assert mark is not None
    contents = {MARK: json.dumps(asdict(replace(mark, whole=True)), indent=1).encode()}
    for path in sorted({path for pattern in stage.records for path in out.glob(pattern) if path.is_file()}):
        contents[str(path.relative_to(folder))] = path.read_bytes().replace(here, b"")
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in contents.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return lzma.compress(plain.getvalue(), preset=9)
