"""The bodies of the environment's HTTP requests and replies: msgpack maps, numpy arrays as {dtype, shape, bytes}.

Nothing here can run code: msgpack knows plain values only, and every field is checked before use. What a body becomes in
memory is bounded too: a few bytes of msgpack can claim, or even be, millions of objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.environment.episodes import ResetItem, StepFailed, StepItem
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.types import TRAJECTORY_POINTS, Observation, StepResult

MAX_ID_CHARACTERS = 512
MAX_ITEMS = 65536
"""Most items of a request, and most entries of any list."""
MAX_VALUES = 2**19
"""Most values of a request, nested ones too: about 50,000 trajectories as bytes, 14,000 as lists of numbers."""
_DTYPES = ("uint8", "float64")  # images and trajectories
_MAX_SIDES = 4

ScoreItem = tuple[str, NDArray[np.float64]]
"""(scene_id, trajectories [B, 8, 3])"""


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


class _Budget:
    """Counts the values of a body while it is unpacked, and stops it early."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def take(self, container: Any) -> Any:
        self._left -= 1 + len(container)
        if self._left < 0:
            raise MessageError(f"body: more than {MAX_VALUES} values; send fewer items a request, and arrays as bytes")
        return container


def unpack(body: bytes) -> dict[str, Any]:
    """The map in the body of a request, within the limits of this module.

    Raises:
        MessageError: not msgpack, not a map, or above a limit.
    """
    budget = _Budget()
    try:
        message = msgpack.unpackb(body, raw=False, max_array_len=MAX_ITEMS, max_map_len=64, max_ext_len=0,
                                  list_hook=budget.take, object_hook=budget.take)
    except MessageError:
        raise
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        limit = f": {error}" if "exceeds max_" in str(error) else ""
        raise MessageError(f"body: not msgpack{' within the limits' if limit else ''}{limit}") from error
    if not isinstance(message, dict):
        raise MessageError(f"body: got {type(message).__name__}, want a map")
    return message


def unpack_reply(body: bytes) -> dict[str, Any]:
    """The map in a reply of our own server or worker; large, and trusted to be no bomb.

    Raises:
        MessageError: not msgpack, or not a map.
    """
    try:
        message = msgpack.unpackb(body, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MessageError("reply: not msgpack") from error
    if not isinstance(message, dict):
        raise MessageError(f"reply: got {type(message).__name__}, want a map")
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


def pack_scores(items: Sequence[ScoreItem], feedback: bool) -> bytes:
    """The body of /v1/score."""
    return pack({"feedback": feedback, "items": [{"scene_id": s, "trajectories": t} for s, t in items]})


def unpack_scores(body: bytes) -> tuple[list[ScoreItem], bool]:
    """The items of /v1/score, and whether violations and feedback are wanted beside the scores."""
    message = unpack(body)
    feedback = _field(message, "feedback", bool) if "feedback" in message else False
    items = _field(message, "items", list)
    return [(_id(item, "scene_id"), _trajectories(item, f"items[{row}]")) for row, item in enumerate(items)], feedback


def _trajectories(item: Any, place: str) -> NDArray[np.float64]:
    """`trajectories` [B, 8, 3] or `trajectory` [8, 3] of an item: an array map, or nested lists of numbers."""
    single = "trajectory" in item
    name = "trajectory" if single else "trajectories"
    value = item.get(name)
    if isinstance(value, dict):
        array: NDArray[Any] = unpack_array(value)
    elif isinstance(value, list):
        try:
            array = np.array(value, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise MessageError(f"{place}.{name}: got lists that are no array of numbers") from error
    else:
        raise MessageError(f"{place}.{name}: got {type(value).__name__}, want an array map or nested lists")
    wanted = (TRAJECTORY_POINTS, 3)
    if array.dtype != np.float64 or array.ndim != (2 if single else 3) or array.shape[-2:] != wanted:
        raise MessageError(f"{place}.{name}: got {array.dtype} {list(array.shape)}, want float64 "
                           f"{list(wanted) if single else ['B', *wanted]}")
    if not np.isfinite(array).all():
        raise MessageError(f"{place}.{name}: got a number that is not finite, want x [m], y [m], heading [rad]")
    return array[None] if single else array


def pack_observations(observations: Sequence[Observation]) -> bytes:
    """The reply of /v1/reset."""
    return pack({"items": [vars(observation) for observation in observations]})


def unpack_observations(body: bytes) -> list[Observation]:
    """The observations of a reply."""
    return [Observation(_id(i, "episode_id"), _id(i, "scene_id"), _field(i, "prompt", str),
                        _field(i, "image_key", str), unpack_array(i["image"]) if i.get("image") is not None else None)
            for i in _field(unpack_reply(body), "items", list)]


def pack_results(results: Sequence[StepResult | StepFailed]) -> bytes:
    """The reply of /v1/step; an item whose scoring failed has `error` in place of scores."""
    return pack({"items": [{"episode_id": result.episode_id, "turn": result.turn, "error": result.reason}
                           if isinstance(result, StepFailed) else vars(result) for result in results]})


def unpack_results(body: bytes) -> list[StepResult | StepFailed]:
    """The results of a reply."""
    return [_result(item) for item in _field(unpack_reply(body), "items", list)]


def _result(i: Any) -> StepResult | StepFailed:
    episode_id, turn = _id(i, "episode_id"), _field(i, "turn", int)
    if "error" in i:
        return StepFailed(episode_id, turn, _field(i, "error", str))
    return StepResult(episode_id, turn, unpack_array(i["trajectory"]) if i.get("trajectory") is not None else None,
                      i.get("scores"), _field(i, "format_score", float), _field(i, "feedback", str),
                      _field(i, "violations", list), _field(i, "done", bool), _field(i, "reason", str))


def pack_reviews(items: Sequence[Sequence[Review] | str], feedback: bool) -> bytes:
    """The reply of /v1/score: per item its reviews, or why it has none."""
    return pack({"items": [{"error": reviews} if isinstance(reviews, str) else
                           {"reviews": [vars(review) if feedback else {"scores": review.scores} for review in reviews]}
                           for reviews in items]})


def unpack_reviews(body: bytes) -> list[list[Review] | str]:
    """The items of a reply of /v1/score; without feedback, violations are [] and feedback is ""."""
    return [_field(item, "error", str) if "error" in item else
            [Review(_field(row, "scores", dict), row.get("violations", []), row.get("feedback", ""))
             for row in _field(item, "reviews", list)]
            for item in _field(unpack_reply(body), "items", list)]


def unpack_array(value: Any) -> NDArray[Any]:
    """An array out of its map; MessageError for another dtype or a shape that is not the bytes'."""
    dtype, shape, data = _field(value, "dtype", str), _field(value, "shape", list), _field(value, "bytes", bytes)
    if dtype not in _DTYPES or len(shape) > _MAX_SIDES or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise MessageError(f"array: got dtype {dtype[:20]!r} and a shape of {len(shape)} sides, want one of "
                           f"{', '.join(_DTYPES)} and at most {_MAX_SIDES} sides of 0 or more")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise MessageError(f"array: got {len(data)} bytes for {dtype} {shape}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()
