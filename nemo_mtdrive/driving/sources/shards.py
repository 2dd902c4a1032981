"""A scene set: shards of packed scenes (Arrow IPC files) and one small index, for sets of any size.

`shard-NNNNN.arrow` holds some scenes, each whole: id, kind, command and speed as columns that any Arrow reader knows,
the scene (`driving.packed`), a checksum of it, and its picture's bytes (PNG or JPEG) or null. A shard appears under its
name when it is whole, so a killed writer leaves only whole shards. `index.arrow` says which shard and row each id is in;
opening a set maps it and reads no scene. A set without an index, or with one of other shards, is still a set: the ids
are then taken from the shards' id columns.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nemo_mtdrive.driving.packed import as_lists, pack, unpack
from nemo_mtdrive.driving.scene import Scene, SceneError, scene_from_json, scene_from_valid, scene_to_json
from nemo_mtdrive.driving.schema import validate
from nemo_mtdrive.driving.sources.lru import LRU, images_kept
from nemo_mtdrive.driving.sources.pictures import decode_picture
from nemo_mtdrive.driving.sources.skipped import read_skipped

INDEX, SHARDS = "index.arrow", "shard-*.arrow"
FORMAT = b"nemo-mtdrive-scenes/1"
SCENES_KEPT, SHARDS_KEPT = 512, 32
_SUMMARY = [("scene_id", pa.string()), ("kind", pa.string()), ("command", pa.string()), ("speed_mps", pa.float32())]
SHARD_SCHEMA = pa.schema([*_SUMMARY, ("checksum", pa.uint32()), ("scene", pa.large_binary()), ("image", pa.large_binary())],
                         metadata={b"format": FORMAT})
INDEX_SCHEMA = pa.schema([*_SUMMARY, ("shard", pa.int32()), ("row", pa.int32())])

log = logging.getLogger(__name__)


class Packed(NamedTuple):
    """One row of a shard."""

    scene_id: str
    kind: str
    command: str | None
    speed_mps: float
    checksum: int
    scene: bytes
    image: bytes | None


def shard_file(number: int) -> str:
    """The name of a shard."""
    return f"shard-{number:05d}.arrow"


def pack_scene(scene: Scene, image: bytes | None) -> Packed:
    """A scene as a row, checked first.

    Raises:
        SceneError: the scene breaks a rule of the scene file.
    """
    data = scene_to_json(scene)
    validate(data)
    packed = pack(data)
    return Packed(scene.scene_id, scene.kind, scene.command, data["ego"]["velocity"][0], zlib.crc32(packed), packed, image)


def write_shard(path: Path, rows: Sequence[Packed]) -> None:
    """Write a shard whole or not at all; the same rows give the same bytes."""
    columns = [pa.array([row[k] for row in rows], type=field.type) for k, field in enumerate(SHARD_SCHEMA)]
    _write(path, pa.record_batch(columns, schema=SHARD_SCHEMA))


def _write(path: Path, batch: pa.RecordBatch) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    temporary.replace(path)


def read_shard(path: Path) -> pa.RecordBatch:
    """The one batch of a shard, mapped: what is not touched is not read.

    Raises:
        SceneError: it is no shard, or not a whole one.
    """
    return _map(path, SHARD_SCHEMA, "a shard of scenes")


def _map(path: Path, schema: pa.Schema, what: str) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(schema) or reader.num_record_batches != 1:
            raise SceneError(f"{path}: not {what}: its columns are {', '.join(reader.schema.names)}")
        return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise SceneError(f"{path}: not {what}, or not a whole one: {str(error).splitlines()[0]}") from error


def write_index(folder: Path) -> int:
    """Write the index of the shards in a folder, whole or not at all; returns the number of scenes.

    Raises:
        SceneError: a shard is not whole, or two hold a scene of the same id.
    """
    files = sorted(folder.glob(SHARDS))
    batch = _index_of([(number, read_shard(file)) for number, file in enumerate(files)])
    ids = batch.column(0)
    if len(ids.unique()) != len(ids):
        twice = next(entry["values"] for entry in ids.value_counts().to_pylist() if entry["counts"] > 1)
        raise SceneError(f"{folder}: scene {twice} is there more than once; remove one of its shards")
    _write(folder / INDEX, batch.replace_schema_metadata({b"shards": json.dumps(_sizes(files)).encode()}))
    return int(batch.num_rows)


def _sizes(files: Iterable[Path]) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in files}


def _index_of(shards: Iterable[tuple[int, pa.RecordBatch]]) -> pa.RecordBatch:
    parts = []
    for number, batch in shards:
        places = [pa.array(np.full(batch.num_rows, number, np.int32)), pa.array(np.arange(batch.num_rows, dtype=np.int32))]
        parts.append(pa.RecordBatch.from_arrays([*batch.columns[: len(_SUMMARY)], *places], schema=INDEX_SCHEMA))
    return pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], INDEX_SCHEMA)


class SceneShards:
    """The scenes of a set; the ids are in the order of the shards."""

    def __init__(self, folder: Path, count: int, width: int, height: int) -> None:
        self._folder = folder
        self._files = sorted(folder.glob(SHARDS))
        self._skipped = read_skipped(folder)
        index = self._open_index()
        self._index = index.slice(0, count) if count else index
        if not self._index.num_rows:
            reason = next(iter(self._skipped.values()), "its shards are empty")
            raise SceneError(f"{folder}: no scene in it can be used: {reason}")
        self._size = (width, height)
        self._shards: LRU[pa.RecordBatch] = LRU(SHARDS_KEPT, lambda name: read_shard(folder / name))
        self._scenes = LRU(SCENES_KEPT, self._read_scene)
        self._images = LRU(images_kept(width or 1920, height or 1080), self._read_image)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Shards that cannot be used, and scenes that were not written -> why."""
        return self._skipped

    def ids(self) -> Sequence[str]:
        """The ids, shard by shard."""
        return list(self._row_of)

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError for an unknown id, SceneError when its bytes are damaged."""
        return self._scenes.get(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """The front picture, RGB [H, W, 3]; SceneError when it is missing, damaged or of another size."""
        return self._images.get(scene_id)

    def recheck(self, scene_id: str) -> None:
        """Read a scene and its picture anew by every rule; SceneError says what is wrong."""
        scene = scene_from_json(json.loads(json.dumps(as_lists(self._data(scene_id)))))
        if scene.camera is not None:
            picture = self._read_image(scene_id)
            if picture.shape[:2] != (scene.camera.height, scene.camera.width):
                raise SceneError(f"{self._folder}: scene {scene_id}: camera: got {scene.camera.width} x "
                                 f"{scene.camera.height}, its picture is {picture.shape[1]} x {picture.shape[0]}")

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._index.column(0).to_pylist())}

    def _open_index(self) -> pa.RecordBatch:
        file = self._folder / INDEX
        if file.is_file():
            try:
                batch = _map(file, INDEX_SCHEMA, "an index of scenes")
                if json.loads((batch.schema.metadata or {}).get(b"shards", b"null")) == _sizes(self._files):
                    return batch
            except SceneError as error:
                log.warning("%s; the ids are taken from the shards", error)
        whole = []
        for number, shard in enumerate(self._files):
            try:
                whole.append((number, read_shard(shard)))
            except SceneError as error:
                self._skipped[shard.name] = str(error)
                log.warning("shard skipped: %s", error)
        return _index_of(whole)

    def _at(self, scene_id: str) -> tuple[pa.RecordBatch, int, Path]:
        place = self._row_of[scene_id]
        file = self._files[self._index.column(4)[place].as_py()]
        return self._shards.get(file.name), self._index.column(5)[place].as_py(), file

    def _data(self, scene_id: str) -> dict[str, Any]:
        batch, row, file = self._at(scene_id)
        packed = batch.column(5)[row].as_py()
        if zlib.crc32(packed) != batch.column(4)[row].as_py():
            raise SceneError(f"{file}: row {row}, scene {scene_id}: the checksum does not fit, the file is damaged")
        try:
            return unpack(packed)
        except SceneError as error:
            raise SceneError(f"{file}: row {row}, scene {scene_id}: {error}") from error

    def _read_scene(self, scene_id: str) -> Scene:
        return scene_from_valid(self._data(scene_id), self._folder)

    def _read_image(self, scene_id: str) -> NDArray[np.uint8]:
        batch, row, file = self._at(scene_id)
        data = batch.column(6)[row].as_py()
        where = f"{file}: row {row}, scene {scene_id}"
        if data is None:
            raise SceneError(f"{where}: it was written without a picture; it can only be scored")
        return decode_picture(data, where, self._size)
