"""Episodes over real sockets: all wires deliver the same, an image travels once, lost and foreign peers are named."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
import zmq

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.collect import Collected, EpisodeCollector
from nemo_mtdrive.transfer.images import patchify, pixel_values
from nemo_mtdrive.transfer.link import (
    LINK_KINDS,
    EpisodeReceiver,
    EpisodeSender,
    LinkKind,
    ReceiveTimeout,
    open_receiver,
    open_sender,
)
from nemo_mtdrive.transfer.peers import EPISODE, NEED, NUMBER, REFUSED
from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.transfer.wire import WireError

from .conftest import RUN
from .make_episodes import assert_same_episode, make_episode, make_image, make_task
from .processes import finish, receive_forever, send_group, start, start_with_answer, wait_until

TASKS = [make_task(f"scene-{number}") for number in range(3)]
IMAGES = [make_image(number) for number in range(3)]
STREAMING: list[LinkKind] = ["shm", "zmq"]


class Links:
    """Opens both ends on free ports and closes them after the test."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack

    def receiver(self, kind: LinkKind, endpoint: str = "tcp://127.0.0.1:0", **change: Any) -> EpisodeReceiver:
        options = {"shm_root": self._root, "image_budget_bytes": 1 << 20, "keep_frames": True} | change
        receiver = open_receiver(kind, endpoint, RUN, **options)
        self._stack.callback(receiver.close)
        return receiver

    def sender(self, kind: LinkKind, *receivers: EpisodeReceiver, run_id: str = RUN, **change: Any) -> EpisodeSender:
        return self.sender_to(kind, [receiver.endpoint for receiver in receivers], run_id, **change)

    def sender_to(self, kind: LinkKind, endpoints: list[str], run_id: str = RUN, **change: Any) -> EpisodeSender:
        options = {"in_flight": 8, "lost_after_s": 10.0, "shm_root": self._root, "image_budget_bytes": 1 << 20} | change
        sender = open_sender(kind, endpoints, run_id, **options)
        self._stack.callback(sender.close)
        return sender


@pytest.fixture
def links(shm_root: Path) -> Iterator[Links]:
    with ExitStack() as stack:
        yield Links(shm_root, stack)


def send_all(sender: EpisodeSender) -> None:
    for task, image in zip(TASKS, IMAGES, strict=True):
        for index in range(task.group_size):
            sender.send(make_episode(task, index, image), {image_key(image): image})
    sender.flush(20)


def transfer(links: Links, kind: LinkKind, receivers: list[EpisodeReceiver]) -> list[Collected]:
    """Send everything to all receivers while they collect."""
    sender = links.sender(kind, *receivers)
    with ThreadPoolExecutor(len(receivers) + 1) as pool:
        sent = pool.submit(send_all, sender)
        found = [pool.submit(EpisodeCollector(receiver).collect, TASKS, deadline_s=20) for receiver in receivers]
        collected = [each.result() for each in found]
        sent.result()
    return collected


@pytest.mark.parametrize("kind", LINK_KINDS)
def test_every_rank_gets_every_episode_bit_for_bit(links: Links, kind: LinkKind) -> None:
    for collected in transfer(links, kind, [links.receiver(kind) for _ in range(2)]):
        for group, task, image in zip(collected.groups, TASKS, IMAGES, strict=True):
            for index, episode in enumerate(group.episodes):
                assert_same_episode(episode, make_episode(task, index, image))
                received = collected.received[episode.episode_id]
                pixels = pixel_values([received.images[key] for key in episode.image_keys])
                assert torch.equal(pixels, patchify([image])[0])


def test_streaming_and_baseline_give_the_same_step(links: Links) -> None:
    digests = {transfer(links, kind, [links.receiver(kind)])[0].digest for kind in LINK_KINDS}
    assert len(digests) == 1


def test_an_image_travels_once_at_most(links: Links) -> None:
    """Bytes on the wire: shm none of the pixels, zmq each image once, baseline eight bytes a pixel and rollout."""
    sizes = {kind: transfer(links, kind, [links.receiver(kind)])[0].metrics.wire_bytes for kind in LINK_KINDS}
    image = IMAGES[0].nbytes
    assert sizes["zmq"] == sizes["shm"] + 3 * image
    assert sizes["baseline"] > sizes["shm"] + 3 * 4 * 8 * image
    assert sizes["shm"] < sizes["baseline"] / 30


def test_an_image_that_was_dropped_is_asked_for_again(links: Links) -> None:
    receiver = links.receiver("zmq", image_budget_bytes=1)
    sender = links.sender("zmq", receiver)
    for number in (0, 1, 0):
        sender.send(make_episode(TASKS[number], 0, IMAGES[number]), {image_key(IMAGES[number]): IMAGES[number]})
        received = receiver.receive(10)
        assert (received.images[image_key(IMAGES[number])] == IMAGES[number]).all()


def test_a_node_without_the_image_gets_it_over_the_socket(links: Links, tmp_path: Path) -> None:
    receiver = links.receiver("shm", shm_root=tmp_path)  # another root is another node
    sender = links.sender("shm", receiver)
    for index in range(2):
        sender.send(make_episode(TASKS[0], index, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
        received = receiver.receive(10)
        assert (received.images[image_key(IMAGES[0])] == IMAGES[0]).all()
    assert received.wire_bytes < IMAGES[0].nbytes, "the second episode found the image on its node"


@pytest.mark.parametrize("kind", LINK_KINDS)
def test_decoding_again_gives_the_same(links: Links, kind: LinkKind) -> None:
    collected = transfer(links, kind, [links.receiver(kind)])[0]
    for received in collected.received.values():
        episode, images = received.decode_again()
        assert_same_episode(episode, received.episode)
        assert all((images[key] == received.images[key]).all() for key in episode.image_keys)


def test_frames_that_were_not_kept_cannot_be_decoded_again(links: Links) -> None:
    collected = transfer(links, "shm", [links.receiver("shm", keep_frames=False)])[0]
    with pytest.raises(ValueError, match="keep_frames=True"):
        next(iter(collected.received.values())).decode_again()


@pytest.mark.parametrize("kind", STREAMING)
def test_workers_in_processes_of_their_own(links: Links, shm_root: Path, kind: LinkKind) -> None:
    receivers = [links.receiver(kind) for _ in range(2)]
    endpoints = [receiver.endpoint for receiver in receivers]
    workers = [start(send_group, kind, endpoints, shm_root, number) for number in range(3)]
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(EpisodeCollector(receiver).collect, TASKS, deadline_s=60) for receiver in receivers]
        collected = [each.result() for each in found]
    for worker in workers:
        finish(worker)
    assert collected[0].digest == collected[1].digest
    for group, task, image in zip(collected[0].groups, TASKS, IMAGES, strict=True):
        for index, episode in enumerate(group.episodes):
            assert_same_episode(episode, make_episode(task, index, image))


def test_send_waits_while_too_much_is_in_flight(links: Links) -> None:
    receiver = links.receiver("zmq")
    sender = links.sender("zmq", receiver, in_flight=2)
    sent = []

    def work() -> None:
        for index in range(4):
            sender.send(make_episode(TASKS[0], index, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
            sent.append(index)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: sent == [0, 1])
    time.sleep(0.2)
    assert sent == [0, 1]
    assert [receiver.receive(5).episode.index for _ in range(4)] == [0, 1, 2, 3]
    thread.join(5)
    assert sent == [0, 1, 2, 3]


def test_nothing_in_time_is_a_timeout_and_the_link_goes_on(links: Links) -> None:
    receiver = links.receiver("zmq")
    with pytest.raises(ReceiveTimeout, match=r"no episode at tcp://127.0.0.1:\d+ within 0.05 s"):
        receiver.receive(0.05)
    sender = links.sender("zmq", receiver)
    sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    assert receiver.receive(5).episode.index == 0


def test_a_rank_that_does_not_take_anything_is_named_by_flush(links: Links) -> None:
    receiver = links.receiver("zmq")
    sender = links.sender("zmq", receiver)
    sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    with pytest.raises(TransferError, match=r"1 deliveries not taken within 0.3 s; open at tcp://.* \(1\)"):
        sender.flush(0.3)


def test_a_rank_that_was_never_there_is_named(links: Links) -> None:
    sender = links.sender_to("zmq", ["tcp://127.0.0.1:9"], lost_after_s=0.3)
    sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    with pytest.raises(TransferError, match=r"training rank at tcp://127.0.0.1:9 never reached"):
        sender.flush(10)


def test_a_killed_rank_is_named(links: Links, shm_root: Path) -> None:
    rank, pipe = start_with_answer(receive_forever, shm_root)
    sender = links.sender_to("zmq", [pipe.recv()], lost_after_s=0.5)
    sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    sender.flush(20)
    os.kill(rank.pid or 0, signal.SIGKILL)
    rank.join()
    with pytest.raises(TransferError, match=r"lost for \d+ s with \d deliveries waiting: did it end\?"):
        for index in range(1, 100):
            sender.send(make_episode(TASKS[0], index, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
            time.sleep(0.05)
    with pytest.raises(TransferError, match="lost"):
        sender.flush(1)


def test_a_rank_that_comes_back_gets_what_it_had_not_taken(links: Links) -> None:
    first = links.receiver("zmq")
    sender = links.sender("zmq", first)
    sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    assert first.receive(5).episode.index == 0
    sender.flush(5)
    sender.send(make_episode(TASKS[0], 1, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    time.sleep(0.2)  # it is in the first receiver's socket, and lost with it
    first.close()
    second = links.receiver("zmq", first.endpoint)
    assert second.receive(10).episode.index == 1
    sender.flush(5)


def listen_until(receiver: EpisodeReceiver, condition: Callable[[], bool]) -> None:
    """Let a receiver work that has no whole episode to give."""

    def step() -> bool:
        with suppress(ReceiveTimeout):
            pytest.fail(f"received {receiver.receive(0.05).episode.episode_id}")
        return condition()

    wait_until(step)


def test_another_run_is_refused_and_does_no_harm(links: Links) -> None:
    receiver = links.receiver("zmq")
    stranger = links.sender("zmq", receiver, run_id="other-run")
    stranger.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(stranger.flush, 20)
        listen_until(receiver, flushed.done)
    with pytest.raises(TransferError, match=f"refuses: this is run {RUN}, not other-run"):
        flushed.result()


def raw_peer(receiver: EpisodeReceiver, use: Callable[[zmq.Socket[bytes]], None]) -> None:
    """Speak to a receiver by hand."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 5000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(receiver.endpoint)
        use(socket)


def test_an_image_of_a_dead_worker_is_asked_of_another(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mtdrive.transfer.zmq._ASK_AGAIN_S", 0.3)
    receiver = links.receiver("zmq")

    def send_and_die(socket: zmq.Socket[bytes]) -> None:
        frames = wire.encode(make_episode(TASKS[0], 0, IMAGES[0]))
        socket.send_multipart([EPISODE, RUN.encode(), NUMBER.pack(0), *frames])
        listen_until(receiver, lambda: bool(socket.poll(0)))
        assert socket.recv_multipart()[0] == NEED

    raw_peer(receiver, send_and_die)
    with pytest.raises(ReceiveTimeout, match="1 wait for images"):
        receiver.receive(0.1)
    other = links.sender("zmq", receiver)
    other.send(make_episode(TASKS[0], 1, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    assert {receiver.receive(20).episode.index for _ in range(2)} == {0, 1}


@pytest.mark.parametrize("kind", STREAMING)
def test_corrupt_and_foreign_frames_are_refused_at_both_ends(links: Links, kind: LinkKind) -> None:
    receiver = links.receiver(kind)
    good = [bytes(frame) for frame in wire.encode(make_episode(TASKS[0], 0, IMAGES[0]))]
    corrupt = [*good[:-1], good[-1][:-1] + b"!"]
    newer = [good[0][:4] + b"\x09\x00" + good[0][6:], *good[1:]]

    def speak(socket: zmq.Socket[bytes]) -> None:
        for frames, reason in ((corrupt, "checksum differs"), (newer, "version 9, this program reads 1")):
            socket.send_multipart([EPISODE, RUN.encode(), NUMBER.pack(0), *frames])
            with pytest.raises(WireError, match=reason):
                receiver.receive(5)
            answer, text = socket.recv_multipart()
            assert answer == REFUSED and reason in text.decode()
        socket.send_multipart([b"HELO", b"x"])
        listen_until(receiver, lambda: bool(socket.poll(0)))
        assert socket.recv_multipart() == [REFUSED, b"message of another protocol"]

    raw_peer(receiver, speak)


def test_pixels_that_are_not_the_image_are_refused(links: Links) -> None:
    receiver = links.receiver("zmq")

    def speak(socket: zmq.Socket[bytes]) -> None:
        frames = wire.encode(make_episode(TASKS[0], 0, IMAGES[0]))
        socket.send_multipart([EPISODE, RUN.encode(), NUMBER.pack(0), *frames])
        listen_until(receiver, lambda: bool(socket.poll(0)))
        kind, keys = socket.recv_multipart()
        assert kind == NEED and msgpack.unpackb(keys) == [image_key(IMAGES[0])]
        shape = b"".join(side.to_bytes(4, "little") for side in IMAGES[1].shape)
        socket.send_multipart([b"I", image_key(IMAGES[0]).encode(), shape, IMAGES[1].tobytes()])
        with pytest.raises(WireError, match="the pixels given have key"):
            receiver.receive(5)

    raw_peer(receiver, speak)


def test_an_image_that_was_not_given_is_named(links: Links) -> None:
    sender = links.sender("zmq", links.receiver("zmq"))
    with pytest.raises(TransferError, match=f"no image given for {image_key(IMAGES[0])}"):
        sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {})


def test_a_busy_port_and_no_address_are_named(links: Links) -> None:
    receiver = links.receiver("zmq")
    with pytest.raises(TransferError, match=r"cannot listen at tcp://.*; set a free address, or port 0"):
        links.receiver("zmq", receiver.endpoint)
    with pytest.raises(ValueError, match=r"endpoint 'nowhere'.*tcp://HOST:PORT"):
        links.sender_to("zmq", ["nowhere"])
    with pytest.raises(ValueError, match="set one address a rank"):
        links.sender_to("zmq", [])
    with pytest.raises(ValueError, match=r"transfer.link=rdma: set it to one of shm, zmq, baseline"):
        links.receiver("rdma")  # type: ignore[arg-type]


def test_a_closed_sender_says_so(links: Links) -> None:
    sender = links.sender("shm", links.receiver("shm"))
    sender.close()
    sender.close()
    with pytest.raises(TransferError, match="the link is closed"):
        sender.flush(1)
