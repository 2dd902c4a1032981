"""The messages between the trainer and its rollout workers: their schema, and how they become bytes.

    worker -> trainer   ready | heartbeat | progress | done | weights_loaded | failed
    trainer -> worker   tasks | weights | ping | stop

One msgpack map a message, in one ZeroMQ frame. A message of another schema, type or fields is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgpack

from nemo_mtdrive.types import RolloutTask

SCHEMA = 1
"""Number of this schema; a message carries it as `schema`."""
LARGEST_MESSAGE = 16 << 20
"""Bytes; a step's tasks or a manifest of weights take far less."""

FIELDS: dict[str, dict[str, type]] = {
    "ready": {"pid": int, "host": str},
    "heartbeat": {"doing": str},
    "progress": {"batch": int, "wave": int, "running": int, "done": int},
    "done": {"batch": int, "episodes": int, "metrics": dict},
    "weights_loaded": {"version": int, "seconds": float},
    "failed": {"reason": str, "pid": int},
    "tasks": {"batch": int, "tasks": list},
    "weights": {"version": int, "manifest": dict},
    "ping": {},
    "stop": {},
}
"""Type of message -> its fields; `batch` numbers the task messages of a trainer."""

_TASK_FIELDS = {
    "scene_id": str,
    "group_size": int,
    "seed": int,
    "policy_version": int,
    "step": int,
    "temperature": float,
    "purpose": str,
    "slot": int,
}


def new_identity(name: str) -> bytes:
    """A new identity for the connection of a worker: of this process alone, so that nothing that is sent to the worker
    before it can reach it."""
    return f"{name}/{secrets.token_hex(8)}".encode()


def name_of(identity: bytes) -> str:
    """The name of the worker that has this identity."""
    return identity.decode(errors="replace").partition("/")[0]


class ControlError(ValueError):
    """A message that does not follow the schema."""


@dataclass(frozen=True)
class Message:
    """One message of the control channel."""

    type: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


def encode(kind: str, **fields: Any) -> bytes:
    """The bytes of a message. Raises ControlError for fields that the schema does not have."""
    _check(kind, fields)
    return bytes(msgpack.packb({"schema": SCHEMA, "type": kind, **fields}))


def decode(frame: bytes) -> Message:
    """The message in a frame. Raises ControlError for anything that is not one."""
    if len(frame) > LARGEST_MESSAGE:
        raise ControlError(f"a control message of {len(frame)} bytes: at most {LARGEST_MESSAGE} are taken")
    try:
        found = msgpack.unpackb(frame)
    except (ValueError, msgpack.UnpackException) as error:
        raise ControlError(f"a control message that is not msgpack: {error}") from error
    if not isinstance(found, dict):
        raise ControlError(f"a control message is a map, got {type(found).__name__}")
    schema, kind = found.pop("schema", None), found.pop("type", None)
    if schema != SCHEMA:
        raise ControlError(f"control message schema {schema!r}: this side speaks {SCHEMA}; run one release")
    _check(kind, found)
    return Message(kind, found)


def _check(kind: Any, fields: Mapping[str, Any]) -> None:
    wanted = FIELDS.get(kind) if isinstance(kind, str) else None
    if wanted is None:
        raise ControlError(f"control message type {kind!r}: known are {', '.join(FIELDS)}")
    _check_fields(f"control message {kind}", wanted, fields)


def _check_fields(what: str, wanted: Mapping[str, type], got: Mapping[str, Any]) -> None:
    if wanted.keys() != got.keys():
        raise ControlError(f"{what}: want fields {sorted(wanted)}, got {sorted(map(str, got))}")
    for name, kind in wanted.items():
        value = got[name]
        if kind is float and type(value) is int:
            continue
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ControlError(f"{what}: {name} must be {kind.__name__}, got {type(value).__name__}")


def pack_tasks(tasks: Sequence[RolloutTask]) -> list[dict[str, Any]]:
    """Tasks as plain maps."""
    return [asdict(task) for task in tasks]


def unpack_tasks(packed: Sequence[Any]) -> list[RolloutTask]:
    """Tasks from plain maps. Raises ControlError for a map that is not a task."""
    tasks = []
    for fields in packed:
        if not isinstance(fields, dict):
            raise ControlError(f"a task is a map, got {type(fields).__name__}")
        _check_fields("task", _TASK_FIELDS, fields)
        tasks.append(RolloutTask(**{**fields, "temperature": float(fields["temperature"])}))
    return tasks
