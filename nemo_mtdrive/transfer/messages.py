"""The envelope of every message on a link: version, checksum and a few plain values. No pickle.

    frame 0      magic "MTDL", link version u16, CRC-32 of the body u32, body: msgpack list of kind, run id, values
    frame 1..n   what the kind says

Sender to receiver:

    episode   number                       frames of an episode (`wire`)
    batch     number, counts of frames     frames of all episodes of a batch (baseline)
    image     key, [H, W, 3], CRC-32       pixels of an image that was asked for

Receiver to sender:

    taken     number     the episode and its images are in the receiver's hands
    need      keys       images that the receiver's node lacks: please send
    safe      numbers    the step of these episodes is complete: the sender may forget them
    refused   reason     the sender's work fails with this reason

All releases keep the first ten bytes of frame 0 and the form of `refused`, so that two that differ can say so.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import msgpack

from nemo_mtdrive.transfer.wire import Frame, WireError

LINK_VERSION = 1
_PREFIX = struct.Struct("<4sHI")
_MAGIC = b"MTDL"
_MAX_BODY_BYTES = 16 << 20
_VALUES: dict[str, tuple[type, ...]] = {
    "episode": (int,), "batch": (int, list), "image": (str, list, int), "taken": (int,), "need": (list,), "safe": (list,),
    "refused": (str,),
}
_ITEMS: dict[str, type] = {"batch": int, "image": int, "need": str, "safe": int}


@dataclass(frozen=True)
class Message:
    """An opened envelope."""

    kind: str
    run_id: str
    values: tuple[Any, ...]


def pack(kind: str, run_id: str, *values: Any) -> bytes:
    """Frame 0 of a message."""
    body = msgpack.packb([kind, run_id, *values])
    return _PREFIX.pack(_MAGIC, LINK_VERSION, zlib.crc32(body)) + body


def unpack(frame: Frame) -> Message:
    """Open and check frame 0. A refusal is understood whatever version sent it.

    Raises:
        WireError: another protocol or version, or corrupt.
    """
    view = memoryview(frame)
    if view.nbytes < _PREFIX.size or view.nbytes > _MAX_BODY_BYTES:
        raise WireError(f"message starts with a frame of {view.nbytes} bytes: another protocol at this endpoint")
    magic, version, checksum = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise WireError(f"message starts with {magic!r}, not {_MAGIC!r}: another protocol at this endpoint")
    body = view[_PREFIX.size :]
    intact = zlib.crc32(body) == checksum
    if version != LINK_VERSION:
        both = f"link version {version} at the other end, this program speaks {LINK_VERSION}"
        reason = _reason_of_refusal(body) if intact else None
        if reason is None:
            raise WireError(f"{both}: run the same release in all processes")
        return Message("refused", "", (f"{reason} ({both})",))
    if not intact:
        raise WireError("message: checksum differs, the frame is corrupt")
    return _checked(_open(body))


def _open(body: memoryview) -> Any:
    try:
        return msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"message: not msgpack ({error})") from error


def _checked(body: Any) -> Message:
    """Each value of its type, as the table above says."""
    if not isinstance(body, list) or len(body) < 2 or not all(isinstance(part, str) for part in body[:2]):
        raise WireError(f"message: {body!r:.80} is no kind and run id")
    kind, run_id, *values = body
    types = _VALUES.get(kind)
    if types is None or [type(value) for value in values] != list(types):
        raise WireError(f"message of kind {kind!r:.40} with values {values!r:.80}")
    items: list[Any] = [each for value in values if isinstance(value, list) for each in value]
    if any(type(each) is not _ITEMS[kind] for each in items) or (items and _ITEMS[kind] is int and min(items) < 0):
        raise WireError(f"message of kind {kind!r} with values {values!r:.80}")
    return Message(kind, run_id, tuple(values))


def _reason_of_refusal(body: memoryview) -> str | None:
    """The text of a refusal, None for anything else; all releases write it alike."""
    try:
        found = _open(body)
    except WireError:
        return None
    told = isinstance(found, list) and len(found) == 3 and found[0] == "refused" and isinstance(found[2], str)
    return found[2] if told else None
