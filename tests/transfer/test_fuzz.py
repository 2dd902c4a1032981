"""Ten thousand messages that are none: refused and counted at the receiver, and the link goes on."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.link import ReceiveTimeout, open_receiver, open_sender
from nemo_mtdrive.transfer.messages import pack, unpack
from nemo_mtdrive.transfer.wire import WireError

from .conftest import RUN
from .make_episodes import make_episode, make_image, make_task

MESSAGES = 10_000
AT_ONCE = 250
IMAGE = make_image(0)
EPISODE = make_episode(make_task("scene"), 1, IMAGE, turns=3)
Frames = list[bytes]

VALUES: list[Any] = [
    None, True, -1, 0, 2**63, -(2**63), float("nan"), float("inf"), 1e308, "", "x" * 1000, b"\x00", [], [[]], {}, {"a": 1},
    [1, "x", None], [2**62] * 4, [0, -1], "/etc/passwd", [["tokens", "<i4", [2**40], 0]] * 4,
]
"""What a lying header says somewhere."""


def episode_frames() -> Frames:
    return [bytes(frame) for frame in wire.encode(EPISODE)]


def message() -> Frames:
    return [pack("episode", RUN, 7), *episode_frames()]


def flip_a_bit(rng: random.Random) -> Frames:
    """Anywhere in a good message."""
    frames = message()
    which = rng.randrange(len(frames))
    bit = rng.randrange(8 * len(frames[which]))
    changed = bytearray(frames[which])
    changed[bit // 8] ^= 1 << bit % 8
    frames[which] = bytes(changed)
    return frames


def cut_short(rng: random.Random) -> Frames:
    """A frame that ends early, or frames that are missing."""
    frames = message()
    if rng.random() < 0.5:
        return frames[: rng.randrange(1, len(frames))]
    which = rng.randrange(len(frames))
    frames[which] = frames[which][: rng.randrange(len(frames[which]))]
    return frames


def noise(rng: random.Random) -> Frames:
    """Bytes of no protocol."""
    return [rng.randbytes(rng.randrange(64)) for _ in range(rng.randrange(1, 8))]


def shuffled(rng: random.Random) -> Frames:
    """Good frames in another order, one twice, or one too many."""
    frames = message()
    while frames == message():
        rng.choice([lambda: rng.shuffle(frames), lambda: frames.append(rng.choice(frames)),
                    lambda: frames.insert(rng.randrange(len(frames)), rng.randbytes(8))])()
    return frames


def lying_header(rng: random.Random) -> Frames:
    """An episode's header with a right checksum and another value somewhere, deep or not."""
    first, *rest = episode_frames()
    header = msgpack.unpackb(first[10:])
    where: Any = header
    while True:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        key = rng.choice(keys)
        if isinstance(where[key], (dict, list)) and where[key] and rng.random() < 0.6:
            where = where[key]
            continue
        where[key] = rng.choice(VALUES)
        break
    packed = msgpack.packb(header)
    return [pack("episode", RUN, 7), struct.pack("<4sHI", b"MTDE", 1, zlib.crc32(packed)) + packed, *rest]


def lying_envelope(rng: random.Random) -> Frames:
    """An envelope with a right checksum and anything in it."""
    kind = rng.choice(["episode", "batch", "image", "taken", "need", "safe", "refused", "", "pickle", None, 3])
    body = msgpack.packb([kind, rng.choice([RUN, "other", 1]), *(rng.choice(VALUES) for _ in range(rng.randrange(4)))])
    head = struct.pack("<4sHI", b"MTDL", rng.choice([0, 1, 1, 1, 2, 65535]), zlib.crc32(body))
    return [head + body, *rng.sample(episode_frames(), rng.randrange(4))]


KINDS: list[Callable[[random.Random], Frames]] = [flip_a_bit, cut_short, noise, shuffled, lying_header, lying_envelope]


def is_harmless(frames: Frames) -> bool:
    """Whether a fuzzed message happens to be one that a receiver may take: what it says is then an episode's plain data."""
    try:
        envelope = unpack(frames[0])
        if envelope.run_id != RUN:
            return False
        if envelope.kind == "episode":
            return all(len(key) == 32 for key in wire.decode(frames[1:])[0].image_keys)
        return (envelope.kind == "image" and len(frames) == 2) or (envelope.kind == "batch" and not any(envelope.values[1]))
    except (WireError, IndexError):
        return False


def fuzzed() -> Iterator[Frames]:
    """Different every time, the same in every run."""
    rng = random.Random(0)
    made = 0
    while made < MESSAGES:
        frames = KINDS[made % len(KINDS)](rng)
        if not is_harmless(frames):
            made += 1
            yield frames


def test_ten_thousand_fuzzed_messages_are_refused_counted_and_do_no_harm(shm_root: Path) -> None:
    store: dict[str, Any] = {"shm_root": shm_root, "image_budget_bytes": 1 << 20}
    receiver = open_receiver("zmq", "tcp://127.0.0.1:0", RUN, keep_frames=False, **store)
    all_frames = list(fuzzed())
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(receiver.endpoint)
        for first in range(0, MESSAGES, AT_ONCE):
            part = all_frames[first : first + AT_ONCE]
            for frames in part:
                socket.send_multipart(frames)
            answers = 0
            while answers < len(part):
                with pytest.raises(ReceiveTimeout):
                    receiver.receive(0.01)
                while socket.poll(0):
                    assert unpack(socket.recv_multipart()[0]).kind == "refused"
                    answers += 1
    assert receiver.refused == MESSAGES
    sender = open_sender("zmq", [receiver.endpoint], RUN, in_flight=1, lost_after_s=100, **store)
    sender.send(EPISODE, {image_key(IMAGE): IMAGE})
    assert receiver.receive(100).episode.episode_id == EPISODE.episode_id
    sender.close()
    receiver.close()


def test_a_sender_refuses_answers_that_are_none_and_goes_on(shm_root: Path) -> None:
    store: dict[str, Any] = {"shm_root": shm_root, "image_budget_bytes": 1 << 20}
    rng = random.Random(1)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as rank:
        rank.setsockopt(zmq.LINGER, 0)
        rank.setsockopt(zmq.RCVTIMEO, 100_000)
        # A router drops what is above its mark: on a busy machine that was the thousand and first, the good answer.
        rank.setsockopt(zmq.SNDHWM, 0)
        port = rank.bind_to_random_port("tcp://127.0.0.1")
        sender = open_sender("zmq", [f"tcp://127.0.0.1:{port}"], RUN, in_flight=1, lost_after_s=100, **store)
        sender.send(EPISODE, {image_key(IMAGE): IMAGE})
        identity, *_ = rank.recv_multipart()
        for _ in range(1000):
            answer = bytearray(pack(rng.choice(["taken", "need", "safe"]), RUN, *rng.sample(VALUES, 2)))
            rank.send_multipart([identity, rng.choice([bytes(answer), rng.randbytes(20), b"", bytes(answer[:12])])])
        rank.send_multipart([identity, pack("taken", RUN, 0)])
        sender.flush(100)
        sender.close()

