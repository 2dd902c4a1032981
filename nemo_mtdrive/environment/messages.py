"""The bodies of the environment's HTTP requests and replies: msgpack maps, numpy arrays as {dtype, shape, bytes}.

Nothing here can run code: msgpack knows plain values only, and every field is checked before use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.environment.env import ResetItem, StepItem
from nemo_mtdrive.types import Observation, StepResult

MAX_ID_CHARACTERS = 512
_DTYPES = ("uint8", "float64")  # images and trajectories


class MessageError(ValueError):
    """A body that is not what the endpoint takes; the message says which field, what was got and what is wanted."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes; numpy arrays inside become maps."""
    return bytes(msgpack.packb(message, default=_pack_other, use_bin_type=True))


def _pack_other(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "shape": list(value.shape), "bytes": value.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def unpack(body: bytes) -> dict[str, Any]:
    """The map in a body.

    Raises:
        MessageError: not msgpack, or not a map.
    """
    try:
        message = msgpack.unpackb(body, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MessageError("body: not msgpack") from error
    if not isinstance(message, dict):
        raise MessageError(f"body: got {type(message).__name__}, want a map")
    return message


def _field(item: Any, name: str, kind: type) -> Any:
    value = item.get(name) if isinstance(item, dict) else None
    if type(value) is not kind:  # a bool is no int here
        raise MessageError(f"{name}: got {type(value).__name__}, want {kind.__name__}")
    return value


def _id(item: Any, name: str) -> str:
    value: str = _field(item, name, str)
    if not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise MessageError(f"{name}: got {len(value)} characters, want 1 to {MAX_ID_CHARACTERS}")
    return value


def pack_resets(items: Sequence[ResetItem]) -> bytes:
    """The body of /v1/reset."""
    return pack({"items": [{"episode_id": e, "scene_id": s, "want_image": w} for e, s, w in items]})


def unpack_resets(body: bytes) -> list[ResetItem]:
    """The items of /v1/reset."""
    return [(_id(item, "episode_id"), _id(item, "scene_id"), _field(item, "want_image", bool))
            for item in _field(unpack(body), "items", list)]


def pack_steps(items: Sequence[StepItem]) -> bytes:
    """The body of /v1/step. Lone surrogates, which a byte-level decoder may leave, become question marks."""
    return pack({"items": [{"episode_id": e, "turn": int(t), "answer": a.encode(errors="replace").decode()}
                           for e, t, a in items]})


def unpack_steps(body: bytes) -> list[StepItem]:
    """The items of /v1/step."""
    return [(_id(item, "episode_id"), _field(item, "turn", int), _field(item, "answer", str))
            for item in _field(unpack(body), "items", list)]


def pack_closes(episode_ids: Sequence[str]) -> bytes:
    """The body of /v1/close."""
    return pack({"items": [{"episode_id": e} for e in episode_ids]})


def unpack_closes(body: bytes) -> list[str]:
    """The items of /v1/close."""
    return [_id(item, "episode_id") for item in _field(unpack(body), "items", list)]


def pack_observations(observations: Sequence[Observation]) -> bytes:
    """The reply of /v1/reset."""
    return pack({"items": [vars(observation) for observation in observations]})


def unpack_observations(body: bytes) -> list[Observation]:
    """The observations of a reply."""
    return [Observation(_id(i, "episode_id"), _id(i, "scene_id"), _field(i, "prompt", str),
                        _field(i, "image_key", str), _array(i["image"]) if i.get("image") is not None else None)
            for i in _field(unpack(body), "items", list)]


def pack_results(results: Sequence[StepResult]) -> bytes:
    """The reply of /v1/step."""
    return pack({"items": [vars(result) for result in results]})


def unpack_results(body: bytes) -> list[StepResult]:
    """The results of a reply."""
    return [StepResult(_id(i, "episode_id"), _field(i, "turn", int),
                       _array(i["trajectory"]) if i.get("trajectory") is not None else None,
                       i.get("scores"), _field(i, "format_score", float), _field(i, "feedback", str),
                       _field(i, "violations", list), _field(i, "done", bool), _field(i, "reason", str))
            for i in _field(unpack(body), "items", list)]


def _array(value: Any) -> NDArray[Any]:
    dtype, shape, data = _field(value, "dtype", str), _field(value, "shape", list), _field(value, "bytes", bytes)
    if dtype not in _DTYPES or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise MessageError(f"array: got dtype {dtype!r} and shape {shape}, want one of {', '.join(_DTYPES)}")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise MessageError(f"array: got {len(data)} bytes for {dtype} {shape}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()
