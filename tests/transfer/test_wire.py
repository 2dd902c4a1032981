"""Episodes survive the wire bit for bit, and nothing else gets through it."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.wire import WireError

from .make_episodes import assert_same_episode, make_episode, make_image, make_task

EPISODE = make_episode(make_task("scene"), 1, make_image(0), turns=3)


def frames() -> list[bytes]:
    return [bytes(frame) for frame in wire.encode(EPISODE)]


def with_header(change: dict[str, Any]) -> list[bytes]:
    """Frames whose header says something else, with a right checksum."""
    first, *rest = frames()
    header = msgpack.unpackb(first[10:]) | change
    packed = msgpack.packb({name: value for name, value in header.items() if value != "absent"})
    return [struct.pack("<4sHI", b"MTDE", 1, zlib.crc32(packed)) + packed, *rest]


@given(index=st.integers(0, 5), turns=st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_round_trip_is_bitwise(index: int, turns: int) -> None:
    episode = make_episode(make_task("Σ-scene ü"), index, make_image(index), turns)
    decoded, attached = wire.decode([bytes(frame) for frame in wire.encode(episode)])
    assert_same_episode(decoded, episode)
    assert attached == {} and decoded.tokens.flags.writeable


def test_odd_floats_keep_their_bits() -> None:
    odd = np.array([np.nan, -np.inf, -0.0, 5e-324, 1 / 3, np.finfo(float).max])
    trajectory = np.resize(odd, (8, 3))
    logprobs = np.resize(odd[:5], EPISODE.logprobs.shape).astype(np.float32)
    turn = dataclasses.replace(EPISODE.turns[0], trajectory=trajectory, reward=5e-324)
    decoded, _ = wire.decode(wire.encode(dataclasses.replace(EPISODE, turns=(turn,), logprobs=logprobs)))
    assert decoded.turns[0].trajectory.tobytes() == trajectory.tobytes()  # type: ignore[union-attr]
    assert decoded.logprobs.tobytes() == logprobs.tobytes() and decoded.turns[0].reward == 5e-324


def test_numbers_of_numpy_and_whole_floats_are_plain_numbers_afterwards() -> None:
    turn = dataclasses.replace(
        EPISODE.turns[0], reward=np.float32(0.5), format_score=1, scores={"PDMS": np.float64(0.25)},
        violations=[{"point": np.int64(3)}],
    )
    decoded, _ = wire.decode(wire.encode(dataclasses.replace(EPISODE, turns=(turn,), seed=np.int64(5))))
    got = decoded.turns[0]
    assert (got.reward, got.format_score, got.scores, got.violations) == (0.5, 1.0, {"PDMS": 0.25}, [{"point": 3}])
    assert type(got.format_score) is float and type(decoded.seed) is int


def test_attachments_ride_along() -> None:
    pixels = np.random.default_rng(0).normal(size=(24, 1176)).astype(np.float32)
    _, attached = wire.decode(wire.encode(EPISODE, {"key": pixels, "raw": make_image(0)}))
    assert attached["key"].tobytes() == pixels.tobytes() and attached["key"].shape == pixels.shape
    assert np.array_equal(attached["raw"], make_image(0))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_one_flipped_bit_anywhere_is_refused(data: st.DataObject) -> None:
    sent = frames()
    which = data.draw(st.integers(0, len(sent) - 1))
    bit = data.draw(st.integers(0, 8 * len(sent[which]) - 1))
    broken = bytearray(sent[which])
    broken[bit // 8] ^= 1 << bit % 8
    sent[which] = bytes(broken)
    with pytest.raises(WireError):
        wire.decode(sent)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cut_frames_are_refused(data: st.DataObject) -> None:
    sent = frames()
    which = data.draw(st.integers(0, len(sent) - 1))
    sent[which] = sent[which][: data.draw(st.integers(0, len(sent[which]) - 1))]
    with pytest.raises(WireError):
        wire.decode(sent)


@given(st.lists(st.binary(max_size=64), max_size=6))
@settings(max_examples=100, deadline=None)
def test_noise_is_refused(noise: list[bytes]) -> None:
    with pytest.raises(WireError):
        wire.decode(noise)


def test_another_version_is_named() -> None:
    first, *rest = frames()
    newer = first[:4] + struct.pack("<H", 2) + first[6:]
    with pytest.raises(WireError, match="version 2, this program reads 1: run the same release"):
        wire.decode([newer, *rest])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "absent"}, {"extra": 1}, {"seed": "7"}, {"valid": 1}, {"index": True}, {"image_grids": [[1, 2]]},
        {"turns": [{}]}, {"turns": 3}, {"arrays": []}, {"arrays": 5}, {"reason": None},
        {"arrays": [["tokens", "<f8", [60], 0]] * 4}, {"arrays": [["tokens", "<i4", [-1], 0]] * 4},
        {"arrays": [["__class__", "|O", [1], 0]] * 4}, {"arrays": [[["tokens"], "<i4", [60], 0]] * 4},
    ],
)
def test_a_header_that_says_something_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        wire.decode(with_header(change))


def test_what_is_no_plain_data_cannot_be_sent() -> None:
    turn = dataclasses.replace(EPISODE.turns[0], violations=[{"object": {1, 2}}])
    with pytest.raises(WireError, match=r"episode train/.* cannot be sent: a set is not plain data"):
        wire.encode(dataclasses.replace(EPISODE, turns=(turn,)))
    with pytest.raises(WireError, match="cannot be sent"):
        wire.encode(dataclasses.replace(EPISODE, seed=2**64))
    short = tuple(dataclasses.replace(turn, trajectory=np.zeros((4, 3))) for turn in EPISODE.turns[:2])
    with pytest.raises(WireError, match=r"a trajectory of shape \(4, 3\), not \[8, 3\]"):
        wire.encode(dataclasses.replace(EPISODE, turns=short))
