"""A scene as few bytes: msgpack of its JSON, rows of numbers as differences of whole micrometres, zstd around it.

Data only, never code. What comes back equals the scene file, whose numbers are rounded to 1e-6.

Layout: 4 bytes with the length of what follows once decompressed, then one zstd frame of msgpack. Rows of numbers are
extension type 1: item size and columns (a byte each), the number of rows (4 bytes), the first row as int64, then the
differences to the row before, column by column, in the smallest integers that hold them, byte plane by byte plane.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa

from nemo_mtdrive.driving.schema import AREAS, Array, SceneError

_ROWS = 1
_SCALE = 1e6
_LARGEST = 1e12
"""Of a number [m]: well inside int64 after scaling."""
_LARGEST_SCENE = 1 << 28
_LEVEL = 9
_LENGTH, _HEAD = struct.Struct("<I"), struct.Struct("<BBI")


def pack(data: Mapping[str, Any]) -> bytes:
    """The bytes of a scene's JSON form (`scene_to_json`).

    Raises:
        SceneError: a number is too large to be kept to 1e-6.
    """
    compact = dict(data)
    compact["map"] = {key: [_area(area) for area in areas] for key, areas in data["map"].items()}
    compact["tracks"] = [{**track, "states": _encode(track["states"])} for track in data["tracks"]]
    for key in ("history", "future"):
        if data.get(key) is not None:
            compact[key] = _encode(data[key])
    if "cases" in data:
        compact["cases"] = [{**case, "trajectory": _encode(case["trajectory"])} for case in data["cases"]]
    raw = msgpack.packb(compact)
    return _LENGTH.pack(len(raw)) + pa.Codec("zstd", compression_level=_LEVEL).compress(raw, asbytes=True)


def unpack(packed: bytes) -> dict[str, Any]:
    """The JSON form again, with arrays for lists of rows.

    Raises:
        SceneError: these are not bytes that `pack` made.
    """
    try:
        (length,) = _LENGTH.unpack_from(packed)
        if length > _LARGEST_SCENE:
            raise SceneError(f"a packed scene of {length} bytes: want at most {_LARGEST_SCENE}; the file is damaged")
        raw = pa.Codec("zstd").decompress(packed[_LENGTH.size:], length, asbytes=True)
        data = msgpack.unpackb(raw, ext_hook=_decode)
    except (struct.error, msgpack.UnpackException, pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"not a packed scene: {error}") from error
    if not isinstance(data, dict):
        raise SceneError(f"not a packed scene: got {type(data).__name__}, want a map")
    return data


def _area(area: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _encode(value) if key in ("polygon", "centerline") else value for key, value in area.items()}


def _encode(rows: Any) -> msgpack.ExtType:
    values = np.asarray(rows, dtype=np.float64)
    if np.abs(values).max(initial=0.0) > _LARGEST:
        raise SceneError(f"got the number {np.abs(values).max()}, want at most {_LARGEST} m")
    whole = np.rint(values * _SCALE).astype(np.int64)
    steps = np.diff(whole, axis=0)
    size = next(size for size in (1, 2, 4, 8) if not steps.size or np.abs(steps).max() < 1 << (8 * size - 1))
    planes = np.ascontiguousarray(steps.T, f"<i{size}").reshape(-1, 1).view(np.uint8).T
    head = _HEAD.pack(size, whole.shape[1], whole.shape[0])
    return msgpack.ExtType(_ROWS, head + whole[0].astype("<i8").tobytes() + planes.tobytes())


def _decode(code: int, body: bytes) -> Array:
    if code != _ROWS:
        raise SceneError(f"not a packed scene: extension type {code}")
    size, columns, count = _HEAD.unpack_from(body)
    if size not in (1, 2, 4, 8) or not columns or not count or \
            len(body) != _HEAD.size + 8 * columns + size * columns * (count - 1):
        raise SceneError("not a packed scene: rows of a wrong length")
    first = np.frombuffer(body, "<i8", columns, _HEAD.size)
    planes = np.frombuffer(body, np.uint8, offset=_HEAD.size + 8 * columns).reshape(size, -1)
    steps = np.ascontiguousarray(planes.T).view(f"<i{size}").reshape(columns, count - 1).T.astype(np.int64)
    whole: Array = np.cumsum(np.vstack([first, steps]), axis=0) / _SCALE
    return whole


def as_lists(data: Mapping[str, Any]) -> dict[str, Any]:
    """What `unpack` gave with lists for arrays: exactly the scene file's JSON."""
    plain = dict(data)
    plain["map"] = {key: [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in area.items()} for area in areas]
                    for key, areas in data["map"].items() if key in AREAS}
    plain["tracks"] = [{**track, "states": track["states"].tolist()} for track in data["tracks"]]
    for key in ("history", "future"):
        if data.get(key) is not None:
            plain[key] = data[key].tolist()
    if "cases" in data:
        plain["cases"] = [{**case, "trajectory": case["trajectory"].tolist()} for case in data["cases"]]
    return plain
