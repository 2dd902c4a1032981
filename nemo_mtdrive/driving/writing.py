"""Write the scenes of any source to a folder: as files one can read, or as shards for large sets.

Work goes in chunks, each in a process of its own; what is whole is kept, so an interrupted call is simply repeated. A
scene that breaks the rules is noted in `skipped.jsonl`, reported, and left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2

from nemo_mtdrive.driving.scene import Scene, SceneError, save_scene
from nemo_mtdrive.driving.sources import Address, SceneSource, open_scenes
from nemo_mtdrive.driving.sources.files import MANIFEST, remember
from nemo_mtdrive.driving.sources.pictures import encode_picture, write_bytes
from nemo_mtdrive.driving.sources.shards import SHARDS, Packed, pack_scene, read_shard, shard_file, write_index, write_shard
from nemo_mtdrive.driving.sources.skipped import read_skipped, write_skipped
from nemo_mtdrive.stations import work_at_stations

LAYOUTS = ("json", "shards")
CHUNK = 16
"""Scenes a task when every scene is a file of its own."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How scenes are written: `kind` json or shards, pictures or none, how many scenes a shard, size of pictures [px]."""

    kind: str = "json"
    images: bool = True
    shard_size: int = 100
    width: int = 1932
    height: int = 1092


class _Chunk(NamedTuple):
    number: int
    ids: tuple[str, ...]


def write_scenes(address: Address, out: Path, layout: Layout, workers: int, advance: Callable[[int], None],
                 source: SceneSource | None = None) -> dict[str, str]:
    """Write all scenes of a source into `out`, made if need be.

    Args:
        address: the source; each process opens it.
        out: the folder; it remembers what it is for, as a repeat with another source or layout would mix two sets.
        layout: how.
        workers: processes; 1 works in this one.
        advance: called with the number of scenes just done, found, or skipped.
        source: the same source where the caller has opened it already.

    Returns:
        Scenes that were left out -> why.

    Raises:
        SceneError: a bad number, a source that cannot be opened, or a folder that holds another set.
    """
    if layout.kind not in LAYOUTS or min(workers, layout.shard_size, layout.width, layout.height) < 1:
        raise SceneError(f"writing scenes: got {layout} and {workers} workers; set the kind to one of "
                         f"{', '.join(LAYOUTS)} and numbers to 1 or more")
    source = source or open_scenes(address, layout.width, layout.height)
    ids = list(source.ids())
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, address, layout, ids)
    skipped = {**read_skipped(out), **source.skipped}
    size = layout.shard_size if layout.kind == "shards" else CHUNK
    chunks = [_Chunk(k, tuple(ids[k * size : (k + 1) * size])) for k in range(-(-len(ids) // size))]
    missing = [left for chunk in chunks if (left := _left(out, layout, chunk, skipped)).ids]
    advance(len(ids) - sum(len(chunk.ids) for chunk in missing))
    opened = (lambda _: nullcontext(source)) if workers == 1 else partial(_open, address, layout)
    for place, problems in work_at_stations(opened, partial(_write_chunk, out, layout), missing, workers):
        for problem in problems.values():
            log.warning("scene skipped: %s", problem)
        skipped |= problems
        written = missing[place].ids
        if layout.kind == "json":
            remember(out, [f"{name}.json" for name in written if name not in problems])
        if problems:
            write_skipped(out, skipped)
        advance(len(written))
    write_skipped(out, skipped)
    if layout.kind == "shards":
        write_index(out)
    return skipped


def _claim(out: Path, address: Address, layout: Layout, ids: Sequence[str]) -> None:
    """Write what the folder is for, or check that it is for the same."""
    asked = {**asdict(layout), "source": address.scheme,
             **{name: value for name, value in address.parameters.items() if name not in ("count", "seed")}}
    if layout.kind == "shards":
        asked["first"] = ids[0]  # a shard's number says which scenes it holds
    else:
        del asked["shard_size"]
    manifest, text = out / MANIFEST, json.dumps(asked, sort_keys=True)
    if not manifest.is_file():
        write_bytes(manifest, text.encode())
    elif manifest.read_text() != text:
        raise SceneError(f"{out}: holds scenes made with {manifest.read_text()}, asked for {text}; set another folder")


def _left(out: Path, layout: Layout, chunk: _Chunk, skipped: dict[str, str]) -> _Chunk:
    """What of a chunk is still to be written."""
    if layout.kind == "json":
        return chunk._replace(ids=tuple(name for name in chunk.ids
                                        if name not in skipped and not (out / f"{name}.json").is_file()))
    file = out / shard_file(chunk.number)
    if not file.is_file():
        return chunk
    there = set(read_shard(file).column(0).to_pylist())
    return chunk._replace(ids=()) if there | skipped.keys() >= set(chunk.ids) else chunk


@contextmanager
def _open(address: Address, layout: Layout, _: int) -> Iterator[SceneSource]:
    """The source in a process of its own, which draws on one thread."""
    cv2.setNumThreads(1)
    yield open_scenes(address, layout.width, layout.height)


def _write_chunk(out: Path, layout: Layout, source: SceneSource, chunk: _Chunk) -> dict[str, str]:
    """Write a chunk; returns what was left out of it."""
    problems: dict[str, str] = {}
    rows: list[Packed] = []
    for name in chunk.ids:
        try:
            scene, image = _scene_and_image(source, name, layout)
            if layout.kind == "shards":
                rows.append(pack_scene(scene, image))
                continue
            if image is not None:
                write_bytes(out / f"{name}.png", image)
            save_scene(scene, out / f"{name}.json")  # after its picture: where the file is, the picture is too
        except SceneError as error:
            problems[name] = f"{name}: {error}"
    if layout.kind == "shards":
        write_shard(out / shard_file(chunk.number), rows)
    return problems


def _scene_and_image(source: SceneSource, name: str, layout: Layout) -> tuple[Scene, bytes | None]:
    scene = source.load(name)
    if not layout.images or scene.camera is None:
        return replace(scene, camera=None), None
    return replace(scene, camera=replace(scene.camera, file=f"{name}.png")), encode_picture(source.image(name))


def is_set_of_shards(folder: Path) -> bool:
    """Whether a folder holds shards rather than scene files."""
    return next(folder.glob(SHARDS), None) is not None
