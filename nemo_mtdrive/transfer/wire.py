"""Episodes as frames on a wire: one checked msgpack header, then raw arrays. No pickle, so a peer can send only data.

    frame 0        magic "MTDE", format version u16, CRC-32 of the header u32, header (msgpack)
    frame 1..n     one C-contiguous little-endian array each: tokens, turn_of_token, logprobs, trajectories, attachments

The header lists each array's name, dtype, shape and CRC-32. CRC-32 (2.9 GB/s a core) finds what wires and bugs do to
bytes; it is no signature: peers are the run's own processes. The CRCs run over the whole frame, so one flipped bit is
refused. Attachments are arrays that ride along, such as the baseline's pixel_values.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.types import TRAJECTORY_POINTS, Episode, Turn

FORMAT_VERSION = 1
_PREFIX = struct.Struct("<4sHI")
_MAGIC = b"MTDE"
_MAX_HEADER_BYTES = 64 << 20
_ARRAYS = {"tokens": "<i4", "turn_of_token": "<i2", "logprobs": "<f4", "trajectories": "<f8"}
_ATTACHMENT = "attachment/"
_ATTACHMENT_DTYPES = ("<f4", "|u1")
_EPISODE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "episode_id": str, "scene_id": str, "index": int, "seed": int, "policy_version": int, "image_keys": list,
    "image_grids": list, "valid": bool, "reason": str,
}
_TURN_FIELDS: dict[str, type | tuple[type, ...]] = {
    "index": int, "start": int, "stop": int, "answer": str, "scores": (dict, type(None)), "format_score": float,
    "reward": float, "feedback": str, "violations": list,
}
Frame = bytes | memoryview


class WireError(TransferError):
    """Frames that are no episode of this format: other version, corrupt, or incomplete."""


def encode(episode: Episode, attachments: Mapping[str, NDArray[Any]] | None = None) -> list[Frame]:
    """Frames of an episode; arrays are not copied when they are contiguous.

    Args:
        episode: what to send.
        attachments: name -> float32 or uint8 array, sent with it.

    Raises:
        WireError: a value that the format cannot carry, with its field.
    """
    planned = [turn.trajectory for turn in episode.turns if turn.trajectory is not None]
    if wrong := [trajectory.shape for trajectory in planned if trajectory.shape != (TRAJECTORY_POINTS, 3)]:
        raise WireError(f"episode {episode.episode_id} cannot be sent: a trajectory of shape {wrong[0]}, not [8, 3]")
    arrays: dict[str, NDArray[Any]] = {
        "tokens": episode.tokens,
        "turn_of_token": episode.turn_of_token,
        "logprobs": episode.logprobs,
        "trajectories": np.array(planned, dtype="<f8").reshape(-1, TRAJECTORY_POINTS, 3),
    }
    arrays = {name: np.ascontiguousarray(array, dtype=_ARRAYS[name]) for name, array in arrays.items()}
    for name, array in (attachments or {}).items():
        arrays[_ATTACHMENT + name] = np.ascontiguousarray(array)
    frames: list[Frame] = [_bytes_of(array) for array in arrays.values()]
    header = {name: getattr(episode, name) for name in _EPISODE_FIELDS}
    header["turns"] = [
        {name: getattr(turn, name) for name in _TURN_FIELDS} | {"planned": turn.trajectory is not None}
        for turn in episode.turns
    ]
    header["arrays"] = [
        [name, array.dtype.str, list(array.shape), zlib.crc32(frame)]
        for (name, array), frame in zip(arrays.items(), frames, strict=True)
    ]
    try:
        packed = msgpack.packb(header, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"episode {episode.episode_id} cannot be sent: {error}") from error
    return [_PREFIX.pack(_MAGIC, FORMAT_VERSION, zlib.crc32(packed)) + packed, *frames]


def decode(frames: Sequence[Frame]) -> tuple[Episode, dict[str, NDArray[Any]]]:
    """The episode and its attachments; the episode's arrays are own copies, attachments are read-only views of frames.

    Raises:
        WireError: another format version, a checksum that differs, or anything that is not a whole episode.
    """
    if not frames:
        raise WireError("no frames: expected an episode header")
    header = _open_header(memoryview(frames[0]))
    arrays = _open_arrays(header, frames[1:])
    try:
        return _build(header, arrays)
    except (KeyError, TypeError, ValueError, OverflowError, StopIteration) as error:
        raise WireError(f"episode header: {type(error).__name__} {error}; was it sent by another program?") from error


def _plain(value: Any) -> Any:
    """NumPy scalars become the Python numbers that msgpack knows."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is not plain data: {value!r}")


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _open_header(frame: memoryview) -> dict[str, Any]:
    if frame.nbytes < _PREFIX.size:
        raise WireError(f"episode header of {frame.nbytes} bytes: cut short")
    magic, version, checksum = _PREFIX.unpack_from(frame)
    if magic != _MAGIC:
        raise WireError(f"episode header starts with {magic!r}, not {_MAGIC!r}: another protocol at this endpoint")
    if version != FORMAT_VERSION:
        both = f"episode format version {version}, this program reads {FORMAT_VERSION}"
        raise WireError(f"{both}: run the same release in all processes")
    packed = frame[_PREFIX.size :]
    if packed.nbytes > _MAX_HEADER_BYTES or zlib.crc32(packed) != checksum:
        raise WireError(f"episode header of {packed.nbytes} bytes: checksum differs, the frame is corrupt")
    try:
        header = msgpack.unpackb(packed, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"episode header: not msgpack ({error})") from error
    expected = {*_EPISODE_FIELDS, "turns", "arrays"}
    if not isinstance(header, dict) or set(header) != expected:
        raise WireError(f"episode header: fields {sorted(header) if isinstance(header, dict) else header!r}")
    return header


def _open_arrays(header: dict[str, Any], frames: Sequence[Frame]) -> dict[str, NDArray[Any]]:
    """Check each frame against its entry and view it as an array."""
    entries = header["arrays"]
    if not isinstance(entries, list) or len(entries) != len(frames):
        listed = len(entries) if isinstance(entries, list) else repr(entries)
        raise WireError(f"episode of {listed} arrays came in {len(frames)} frames: cut short")
    arrays = {}
    for entry, frame in zip(entries, frames, strict=True):
        try:
            name, dtype_name, shape, checksum = entry
            allowed = _ATTACHMENT_DTYPES if name.startswith(_ATTACHMENT) else (_ARRAYS[name],)
            if dtype_name not in allowed or min(shape, default=0) < 0:
                raise ValueError(dtype_name)
            if zlib.crc32(frame) != checksum:
                raise WireError(f"episode array {name}: checksum differs, the frame is corrupt")
            arrays[name] = np.frombuffer(frame, np.dtype(dtype_name)).reshape(shape)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise WireError(f"episode array {entry!r}: {type(error).__name__} {error}") from error
    if missing := set(_ARRAYS) - set(arrays):
        raise WireError(f"episode without {', '.join(sorted(missing))}")
    return arrays


def _checked(fields: dict[str, type | tuple[type, ...]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The named values, each of its type; whole numbers pass as floats."""
    checked = {}
    for name, kind in fields.items():
        value = values[name]
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r:.80}")
        checked[name] = value
    return checked


def _check_images(keys: tuple[Any, ...], grids: tuple[tuple[Any, ...], ...]) -> None:
    """A text for each image, and (frames, rows, columns) of its patches."""
    if not all(isinstance(key, str) for key in keys):
        raise TypeError(f"image_keys are {keys!r:.80}")
    if len(grids) != len(keys) or not all(len(grid) == 3 and all(type(side) is int and side > 0 for side in grid)
                                          for grid in grids):
        raise ValueError(f"image_grids of {len(keys)} images are {grids!r:.80}")


def _build(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> tuple[Episode, dict[str, NDArray[Any]]]:
    trajectories = iter(arrays["trajectories"].astype(np.float64))
    turns = []
    for entry in header["turns"]:
        trajectory = next(trajectories) if entry["planned"] else None
        if trajectory is not None and trajectory.shape != (TRAJECTORY_POINTS, 3):
            raise ValueError(f"trajectory of shape {trajectory.shape}")
        turns.append(Turn(trajectory=trajectory, **_checked(_TURN_FIELDS, entry)))
    values = _checked(_EPISODE_FIELDS, header)
    values["image_keys"] = tuple(values["image_keys"])
    values["image_grids"] = tuple(map(tuple, values["image_grids"]))
    _check_images(values["image_keys"], values["image_grids"])
    tokens, owners, logprobs = (arrays[name].copy() for name in ("tokens", "turn_of_token", "logprobs"))
    if tokens.ndim != 1 or not tokens.shape == owners.shape == logprobs.shape:
        raise ValueError(f"tokens {tokens.shape}, turn_of_token {owners.shape}, logprobs {logprobs.shape}")
    episode = Episode(tokens=tokens, turn_of_token=owners, logprobs=logprobs, turns=tuple(turns), **values)
    attached = {name.removeprefix(_ATTACHMENT): array for name, array in arrays.items() if name.startswith(_ATTACHMENT)}
    return episode, attached
