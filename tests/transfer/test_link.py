"""Episodes over real sockets: all wires deliver the same, an image travels once, lost and foreign peers are named."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer import messages, wire
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
from nemo_mtdrive.transfer.messages import pack, unpack
from nemo_mtdrive.transfer.segments import TransferError

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
        options: dict[str, Any] = {"shm_root": self._root, "image_budget_bytes": 1 << 20, "keep_frames": True} | change
        receiver = open_receiver(kind, endpoint, RUN, **options)
        self._stack.callback(receiver.close)
        return receiver

    def sender(self, kind: LinkKind, *receivers: EpisodeReceiver, run_id: str = RUN, **change: Any) -> EpisodeSender:
        return self.sender_to(kind, [receiver.endpoint for receiver in receivers], run_id, **change)

    def sender_to(self, kind: LinkKind, endpoints: list[str], run_id: str = RUN, **change: Any) -> EpisodeSender:
        options: dict[str, Any] = {"in_flight": 8, "lost_after_s": 100.0, "shm_root": self._root,
                                   "image_budget_bytes": 1 << 20} | change
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
    sender.flush(200)


def transfer(links: Links, kind: LinkKind, receivers: list[EpisodeReceiver]) -> list[Collected]:
    """Send everything to all receivers while they collect."""
    sender = links.sender(kind, *receivers)
    with ThreadPoolExecutor(len(receivers) + 1) as pool:
        sent = pool.submit(send_all, sender)
        found = [pool.submit(EpisodeCollector(receiver).collect, TASKS, deadline_s=200) for receiver in receivers]
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
    kinds: list[LinkKind] = ["zmq", "shm", "baseline"]  # with zmq last the images would be on the node already
    sizes = {kind: transfer(links, kind, [links.receiver(kind)])[0].metrics.wire_bytes for kind in kinds}
    image = IMAGES[0].nbytes
    assert sizes["zmq"] == sizes["shm"] + 3 * image
    assert sizes["baseline"] > sizes["shm"] + 3 * 4 * 8 * image
    assert sizes["shm"] < sizes["baseline"] / 30


def send_and_receive(sender: EpisodeSender, receiver: EpisodeReceiver, number: int, index: int = 0) -> int:
    """Send an episode of a scene and check its image at the other end; the bytes that it took."""
    key = image_key(IMAGES[number])
    sender.send(make_episode(TASKS[number], index, IMAGES[number]), {key: IMAGES[number]})
    received = receiver.receive(60)
    assert (received.images[key] == IMAGES[number]).all()
    return received.wire_bytes


def test_an_image_that_was_dropped_is_asked_for_again(links: Links) -> None:
    receiver = links.receiver("zmq", image_budget_bytes=IMAGES[0].nbytes + 64)  # room for one
    sender = links.sender("zmq", receiver)
    sizes = [send_and_receive(sender, receiver, number, index) for index, number in enumerate((0, 0, 1, 0))]
    assert [size > IMAGES[0].nbytes for size in sizes] == [True, False, True, True]


@pytest.mark.parametrize("kind", STREAMING)
def test_an_image_crosses_the_network_once_a_node(links: Links, shm_root: Path, tmp_path: Path, kind: LinkKind) -> None:
    """Four ranks on two other nodes (another root of shared memory is another node), two workers with the same images."""
    roots = [tmp_path / "node-1", tmp_path / "node-2"]
    for root in roots:
        root.mkdir()
    receivers = [links.receiver(kind, shm_root=root) for root in roots for _ in range(2)]
    senders = [links.sender(kind, *receivers) for _ in range(2)]

    def send(worker: int) -> None:
        for task, image in zip(TASKS, IMAGES, strict=True):
            for index in range(worker, task.group_size, 2):
                senders[worker].send(make_episode(task, index, image), {image_key(image): image})
        senders[worker].flush(300)

    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(send, worker) for worker in range(2)]
        found = [pool.submit(EpisodeCollector(receiver).collect, TASKS, deadline_s=300) for receiver in receivers]
        collected = [each.result() for each in found]
        for done in sent:
            done.result()
    assert len({each.digest for each in collected}) == 1
    on_wire = sum(each.metrics.wire_bytes for each in collected)
    episodes = 4 * sum(
        len(frame) for task, image in zip(TASKS, IMAGES, strict=True) for index in range(task.group_size)
        for frame in wire.encode(make_episode(task, index, image)))
    assert on_wire - episodes == len(roots) * sum(image.nbytes for image in IMAGES)
    for each in collected:
        for group, image in zip(each.groups, IMAGES, strict=True):
            assert all((each.image(one.episode_id, one.image_keys[0]) == image).all() for one in group.episodes)


def test_a_node_without_the_image_gets_it_over_the_socket(links: Links, tmp_path: Path) -> None:
    receiver = links.receiver("shm", shm_root=tmp_path)  # another root is another node
    sender = links.sender("shm", receiver)
    assert send_and_receive(sender, receiver, 0, 0) > IMAGES[0].nbytes
    assert send_and_receive(sender, receiver, 0, 1) < IMAGES[0].nbytes, "the second episode found the image on its node"


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
        found = [pool.submit(EpisodeCollector(receiver).collect, TASKS, deadline_s=300) for receiver in receivers]
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
    assert [receiver.receive(60).episode.index for _ in range(4)] == [0, 1, 2, 3]
    thread.join(60)
    assert sent == [0, 1, 2, 3]


def test_nothing_in_time_is_a_timeout_and_the_link_goes_on(links: Links) -> None:
    receiver = links.receiver("zmq")
    with pytest.raises(ReceiveTimeout, match=r"no episode at tcp://127.0.0.1:\d+ within 0.05 s"):
        receiver.receive(0.05)
    sender = links.sender("zmq", receiver)
    sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    assert receiver.receive(60).episode.index == 0


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
    sender.flush(200)
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
    assert first.receive(60).episode.index == 0
    first.mark_safe()
    sender.flush(60)
    sender.send(make_episode(TASKS[0], 1, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    time.sleep(0.2)  # it is in the first receiver's socket, and lost with it
    first.close()
    second = links.receiver("zmq", first.endpoint)
    assert second.receive(60).episode.index == 1
    sender.flush(60)


def test_what_is_not_safe_goes_to_the_rank_that_takes_over(links: Links) -> None:
    first = links.receiver("zmq")
    sender = links.sender("zmq", first)
    for index in range(3):
        send_and_receive(sender, first, 0, index)
        if index == 0:
            first.mark_safe()
    sender.flush(60)
    first.close()
    second = links.receiver("zmq", first.endpoint)
    assert [second.receive(60).episode.index for _ in range(2)] == [1, 2]
    second.mark_safe()
    with pytest.raises(ReceiveTimeout):
        second.receive(0.2)
    second.close()
    third = links.receiver("zmq", first.endpoint)
    send_and_receive(sender, third, 0, 3)
    with suppress(ReceiveTimeout):
        assert third.receive(0.2).episode.index == 3, "sent before and after the connection; never what was safe"


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
        flushed = pool.submit(stranger.flush, 200)
        listen_until(receiver, flushed.done)
    with pytest.raises(TransferError, match=f"refuses: this is run {RUN}, not other-run"):
        flushed.result()


def raw_peer(receiver: EpisodeReceiver, use: Callable[[zmq.Socket[bytes]], object]) -> None:
    """Speak to a receiver by hand."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(receiver.endpoint)
        use(socket)


def hand_written(number: int = 0, index: int = 0, run_id: str = RUN) -> list[bytes]:
    """An episode's message as a peer of one's own making sends it."""
    frames = wire.encode(make_episode(TASKS[number], index, IMAGES[number]))
    return [pack("episode", run_id, 0), *map(bytes, frames)]


def answer(receiver: EpisodeReceiver, socket: zmq.Socket[bytes], *frames: bytes) -> messages.Message:
    """Send frames and let the receiver work until it answers."""
    socket.send_multipart(frames)
    listen_until(receiver, lambda: bool(socket.poll(0)))
    return unpack(socket.recv_multipart()[0])


def test_an_image_of_a_dead_worker_is_asked_of_another(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mtdrive.transfer.fetch.ASK_AGAIN_S", 0.3)
    receiver = links.receiver("zmq")
    raw_peer(receiver, lambda socket: answer(receiver, socket, *hand_written()))
    with pytest.raises(ReceiveTimeout, match="1 wait for images"):
        receiver.receive(0.1)
    other = links.sender("zmq", receiver)
    other.send(make_episode(TASKS[0], 1, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    assert {receiver.receive(60).episode.index for _ in range(2)} == {0, 1}


def test_an_image_that_a_dead_rank_of_the_node_wanted_is_asked_for_by_another(links: Links) -> None:
    first, second = (links.receiver("zmq") for _ in range(2))
    raw_peer(first, lambda socket: answer(first, socket, *hand_written()))  # the first asks, and holds the claim
    sender = links.sender("zmq", second)
    sender.send(make_episode(TASKS[0], 1, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
    with pytest.raises(ReceiveTimeout, match="1 wait for images"):
        second.receive(0.2)
    first.close()
    assert second.receive(60).episode.index == 1


@pytest.mark.parametrize("kind", STREAMING)
def test_corrupt_and_foreign_messages_are_refused_counted_and_do_no_harm(
    links: Links, kind: LinkKind, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = links.receiver(kind)
    good = hand_written()
    broken: dict[str, list[Any] | None] = {
        "checksum differs": [*good[:-1], good[-1][:-1] + b"!"],
        "episode format version 9, this program reads 1": [good[0], good[1][:4] + b"\x09\x00" + good[1][6:], *good[2:]],
        "another protocol at this endpoint": [b"HELO", b"x"],
        "message of kind 'taken' is none for a receiver": [pack("taken", RUN, 1)],
        f"this is run {RUN}, not other": hand_written(run_id="other"),
        "'images' with values": [pack("images", RUN, 1)],
        "came in 2 frames": [*good[:4]],
        "image key '../../etc/passwd': must be 32 hex digits": None,
    }

    def speak(socket: zmq.Socket[bytes]) -> None:
        for reason, frames in broken.items():
            if frames is None:
                episode = make_episode(TASKS[0], 0, IMAGES[0])
                frames = [good[0], *wire.encode(replace(episode, image_keys=("../../etc/passwd",)))]
            found = answer(receiver, socket, *map(bytes, frames))
            assert found.kind == "refused" and reason in found.values[0]

    raw_peer(receiver, speak)
    assert receiver.refused == len(broken)
    assert all(any(reason in text for text in caplog.messages) for reason in broken)
    assert send_and_receive(links.sender(kind, receiver), receiver, 0) > 0


def of_version(version: int, message: bytes) -> bytes:
    return message[:4] + struct.pack("<H", version) + message[6:]


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_a_worker_of_another_version_is_refused_and_both_sides_say_so(
    links: Links, version: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = links.receiver("zmq")
    differ = f"link version {version} at the other end, this program speaks 1: run the same release in all processes"

    def speak(socket: zmq.Socket[bytes]) -> None:
        first, *rest = hand_written()
        found = answer(receiver, socket, of_version(version, first), *rest)
        assert found == messages.Message("refused", RUN, (differ,))

    raw_peer(receiver, speak)
    assert receiver.refused == 1 and differ in caplog.text
    # What that worker makes of the answer, its own version being another:
    monkeypatch.setattr(messages, "LINK_VERSION", version)
    assert differ in unpack(of_version(1, pack("refused", RUN, differ))).values[0]


@pytest.mark.parametrize("version", [0, 2])
def test_a_rank_of_another_version_is_named_by_the_worker(links: Links, version: int) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as rank:
        rank.setsockopt(zmq.LINGER, 0)
        port = rank.bind_to_random_port("tcp://127.0.0.1")
        for reply in (pack("taken", RUN, 0), pack("refused", RUN, "that is new to me")):
            sender = links.sender_to("zmq", [f"tcp://127.0.0.1:{port}"])
            sender.send(make_episode(TASKS[0], 0, IMAGES[0]), {image_key(IMAGES[0]): IMAGES[0]})
            identity = rank.recv_multipart()[0]
            rank.send_multipart([identity, of_version(version, reply)])
            with pytest.raises(TransferError, match=f"link version {version} at the other end, this program speaks 1"):
                sender.flush(200)


def test_pixels_that_are_corrupt_or_no_image_are_refused(links: Links) -> None:
    receiver = links.receiver("zmq")
    key, pixels = image_key(IMAGES[0]), IMAGES[0].tobytes()

    def speak(socket: zmq.Socket[bytes]) -> None:
        assert answer(receiver, socket, *hand_written()) == messages.Message("need", RUN, ([key],))
        for values, sent, reason in [
            ([key, [56, 84, 3], zlib.crc32(pixels) ^ 1], pixels, "checksum differs"),
            ([key, [56, 84, 3], zlib.crc32(pixels[3:])], pixels[3:], "cannot reshape"),
            ([key, [54, 84, 3], zlib.crc32(pixels[: 54 * 84 * 3])], pixels[: 54 * 84 * 3], "multiples of 28"),
            ([key, [2**40, 2**40, 3], zlib.crc32(pixels)], pixels, ""),
        ]:
            found = answer(receiver, socket, pack("image", RUN, *values), sent)
            assert found.kind == "refused" and reason in found.values[0]
        socket.send_multipart([pack("image", RUN, key, [56, 84, 3], zlib.crc32(pixels)), pixels])
        assert (receiver.receive(60).images[key] == IMAGES[0]).all()

    raw_peer(receiver, speak)
    assert receiver.refused == 4


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
