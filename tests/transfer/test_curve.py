"""Across machines episodes are encrypted, and only those who have the job's keys are let in."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.curve import CurveKeys
from nemo_mtdrive.transfer.link import EpisodeReceiver, EpisodeSender, ReceiveTimeout, open_receiver, open_sender

from .conftest import RUN
from .make_episodes import make_episode, make_image, make_task

OPTIONS: dict[str, Any] = {"image_budget_bytes": 1 << 20}


def receiver_at(root: Path, keys: CurveKeys | None, endpoint: str = "tcp://127.0.0.1:0") -> EpisodeReceiver:
    return open_receiver("zmq", endpoint, RUN, shm_root=root, keep_frames=False, keys=keys, **OPTIONS)


def sender_to(root: Path, endpoint: str, keys: CurveKeys | None) -> EpisodeSender:
    return open_sender("zmq", [endpoint], RUN, in_flight=4, lost_after_s=100, shm_root=root, keys=keys, **OPTIONS)


def send(sender: EpisodeSender) -> None:
    image = make_image(1)
    sender.send(make_episode(make_task("secret-scene"), 0, image), {image_key(image): image})


def test_those_with_the_keys_meet(shm_root: Path) -> None:
    keys = CurveKeys.make()
    receiver = receiver_at(shm_root, keys)
    sender = sender_to(shm_root, receiver.endpoint, keys)
    send(sender)
    assert receiver.receive(100).episode.scene_id == "secret-scene"
    sender.close()
    receiver.close()


@pytest.mark.parametrize("theirs", [None, CurveKeys.make()], ids=["in clear", "other keys"])
def test_nobody_else_is_heard(shm_root: Path, theirs: CurveKeys | None) -> None:
    """Not even one who knows the address and the run's id."""
    keys = CurveKeys.make()
    receiver = receiver_at(shm_root, keys)
    stranger = sender_to(shm_root, receiver.endpoint, theirs)
    send(stranger)
    with pytest.raises(ReceiveTimeout):
        receiver.receive(1.0)
    friend = sender_to(shm_root, receiver.endpoint, keys)  # and the receiver has taken no harm
    send(friend)
    assert receiver.receive(100).episode.scene_id == "secret-scene"
    for each in (stranger, friend, receiver):
        each.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_what_goes_over_the_wire_cannot_be_read(shm_root: Path, encrypted: bool) -> None:
    """Without keys it can: the tap sees the scene's name."""
    keys = CurveKeys.make() if encrypted else None
    receiver = receiver_at(shm_root, keys)
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as tap:
        port = int(re.findall(r"\d+$", receiver.endpoint)[0])
        threading.Thread(target=_relay, args=(tap, port, seen), daemon=True).start()
        sender = sender_to(shm_root, f"tcp://127.0.0.1:{tap.getsockname()[1]}", keys)
        send(sender)
        assert receiver.receive(100).episode.scene_id == "secret-scene"
        sender.close()
        receiver.close()
    assert (b"secret-scene" in b"".join(seen)) is not encrypted


def _relay(tap: socket.socket, port: int, seen: list[bytes]) -> None:
    near, _ = tap.accept()
    far = socket.create_connection(("127.0.0.1", port))
    threading.Thread(target=_copy, args=(far, near, []), daemon=True).start()
    _copy(near, far, seen)


def _copy(source: socket.socket, target: socket.socket, seen: list[bytes]) -> None:
    try:
        while part := source.recv(1 << 16):
            seen.append(part)
            target.sendall(part)
    except OSError:  # one side has closed
        return
