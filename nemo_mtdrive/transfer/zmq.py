"""Episodes and images over sockets (tcp between nodes, ipc on one); an image crosses the network once a node."""

from __future__ import annotations

import logging
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.curve import CurveKeys, secure_server
from nemo_mtdrive.transfer.fetch import LOOK_S, ImageFetcher
from nemo_mtdrive.transfer.images import ImageStore
from nemo_mtdrive.transfer.link import Received, ReceiveTimeout
from nemo_mtdrive.transfer.messages import Message, pack, unpack
from nemo_mtdrive.transfer.peers import Outbox
from nemo_mtdrive.transfer.segments import RunFolder, TransferError
from nemo_mtdrive.types import Episode

_LOG = logging.getLogger(__name__)
_REASONS_LOGGED = 20
"""Refusals beyond so many different reasons are counted only."""


class ZmqSender:
    """`link.EpisodeSender` over sockets. Arguments as `link.open_sender`."""

    def __init__(self, endpoints: Sequence[str], run_id: str, in_flight: int, lost_after_s: float,
                 keys: CurveKeys | None = None) -> None:
        self._outbox = Outbox(endpoints, run_id, in_flight, lost_after_s, keys)

    @property
    def wire_bytes(self) -> int:
        """Bytes put on sockets so far, all receivers together."""
        return self._outbox.wire_bytes

    def send(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """See `link.EpisodeSender.send`."""
        if missing := set(episode.image_keys) - set(images):
            raise TransferError(f"episode {episode.episode_id}: no image given for {', '.join(sorted(missing))}")
        self._outbox.post("episode", [], wire.encode(episode), self._hold(images))

    def flush(self, timeout_s: float) -> None:
        """See `link.EpisodeSender.flush`."""
        self._outbox.flush(timeout_s)

    def close(self) -> None:
        """See `link.EpisodeSender.close`."""
        self._outbox.close()

    def _hold(self, images: Mapping[str, NDArray[np.uint8]]) -> Mapping[str, NDArray[np.uint8]]:
        """The images as the link keeps them until all receivers have them."""
        return dict(images)


@dataclass
class _Partial:
    """An episode that came and waits for images."""

    sender: bytes
    number: int
    episode: Episode
    frames: tuple[wire.Frame, ...]
    images: dict[str, NDArray[Any]]
    missing: set[str]
    wire_bytes: int
    decode_s: float


class ZmqReceiver:
    """`link.EpisodeReceiver` over a socket. Works in `receive` alone, in the caller's thread.

    What is no message of this run and version is refused: its sender is told, `refused` counts it, one line is logged.

    Args:
        endpoint: where to listen.
        run_id: messages of other runs are refused.
        root: where shared memory is.
        budget_bytes: what the run's images may take on this node.
        keep_frames: keep what came, for `Received.decode_again`.
        keys: let only senders in that have these.
    """

    def __init__(self, endpoint: str, run_id: str, root: Path, budget_bytes: int, keep_frames: bool,
                 keys: CurveKeys | None = None) -> None:
        self.refused = 0
        self._run_id = run_id
        self._keep_frames = keep_frames
        self._folder = RunFolder(root, run_id)
        self._fetcher = ImageFetcher(ImageStore(self._folder, budget_bytes), self._ask)
        self._waiting: list[_Partial] = []
        self._ready: deque[tuple[Received, bytes, int]] = deque()
        self._unsafe: dict[bytes, list[int]] = {}
        self._reasons: set[str] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)  # the last acknowledgements still go out
        self._socket.setsockopt(zmq.SNDHWM, 0)  # answers are bounded by what the senders have in flight
        secure_server(self._socket, keys)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            self._folder.close()
            raise TransferError(f"cannot listen at {endpoint}: {error}; set a free address, or port 0") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def receive(self, timeout_s: float) -> Received:
        """See `link.EpisodeReceiver.receive`."""
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            left_s = deadline - time.monotonic()
            wait_s = min(left_s, LOOK_S if self._fetcher.waits_for_others else 1.0)
            if self._socket.poll(int(1000 * max(0.0, wait_s))):
                with span("transfer"):
                    self._handle([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
            elif left_s <= 0:
                waiting = f"; {len(self._waiting)} wait for images" if self._waiting else ""
                raise ReceiveTimeout(f"no episode at {self.endpoint} within {timeout_s:g} s{waiting}")
            if self._waiting:
                for key, image in self._fetcher.look().items():
                    self._fill(key, image)
                self._deliver_complete()
        received, sender, number = self._ready.popleft()
        self._unsafe.setdefault(sender, []).append(number)
        return received

    def mark_safe(self) -> None:
        """See `link.EpisodeReceiver.mark_safe`."""
        for sender, numbers in self._unsafe.items():
            self._answer(sender, "safe", numbers)
        self._unsafe.clear()

    def close(self) -> None:
        """See `link.EpisodeReceiver.close`."""
        self._waiting.clear()
        self._fetcher.close()
        self._folder.close()
        if not self._socket.closed:
            self._socket.close()
            self._context.term()

    def _handle(self, frames: list[memoryview]) -> None:
        sender = bytes(frames[0])
        try:
            if len(frames) < 2:
                raise wire.WireError("an empty message: another protocol at this endpoint")
            message = unpack(frames[1])
            if message.run_id != self._run_id:
                raise wire.WireError(f"this is run {self._run_id}, not {message.run_id}")
            self._take(sender, message, frames[2:])
        except wire.WireError as error:
            self._refuse(sender, str(error))

    def _take(self, sender: bytes, message: Message, frames: list[memoryview]) -> None:
        if message.kind == "episode":
            self._take_episode(sender, message.values[0], frames)
        elif message.kind == "batch":
            number, counts = message.values
            self._take_batch(sender, number, counts, frames)
        elif message.kind == "image" and len(frames) == 1:
            key, shape, checksum = message.values
            self._take_image(key, shape, checksum, frames[0])
        else:
            raise wire.WireError(f"message of kind {message.kind!r} is none for a receiver")

    def _take_episode(self, sender: bytes, number: int, frames: list[memoryview]) -> None:
        start = time.perf_counter()
        episode, _ = wire.decode(frames)
        try:
            images = self._fetcher.find(sender, episode.image_keys)
        except ValueError as error:
            raise wire.WireError(f"episode {episode.episode_id}: {error}") from error
        missing = set(episode.image_keys) - set(images)
        size, seconds = sum(frame.nbytes for frame in frames), time.perf_counter() - start
        self._waiting.append(_Partial(sender, number, episode, tuple(frames), dict(images), missing, size, seconds))
        self._deliver_complete()

    def _take_batch(self, sender: bytes, number: int, counts: list[int], frames: list[memoryview]) -> None:
        """Baseline: all episodes of a batch at once, each with its own pixels."""
        if min(counts, default=1) < 1 or sum(counts) != len(frames):
            raise wire.WireError(f"batch of {sum(counts)} frames came in {len(frames)}: cut short")
        start = 0
        arrived = []
        for count in counts:
            began = time.perf_counter()
            part = tuple(frames[start : start + count])
            episode, pixels = wire.decode(part)
            # Own copies, as an unpickled batch has: the message's memory is not kept by one slow reader.
            pixels = {key: np.array(values) for key, values in pixels.items()}
            size = sum(memoryview(frame).nbytes for frame in part)
            arrived.append(self._received(episode, pixels, size, time.perf_counter() - began, part))
            start += count
        self._ready += [(received, sender, number) for received in arrived]
        self._answer(sender, "taken", number)

    def _take_image(self, key: str, shape: list[int], checksum: int, pixels: memoryview) -> None:
        start = time.perf_counter()
        if not self._fetcher.wants(key):
            return  # it came twice, or its episode was dropped
        if zlib.crc32(pixels) != checksum:
            raise wire.WireError(f"image {key:.40}: checksum differs, the frame is corrupt")
        try:
            kept = self._fetcher.put(key, np.frombuffer(pixels, np.uint8).reshape(shape))
        except ValueError as error:
            raise wire.WireError(f"image {key:.40}: {error}") from error
        first = next(partial for partial in self._waiting if key in partial.missing)  # which made it travel
        first.wire_bytes += pixels.nbytes
        first.decode_s += time.perf_counter() - start
        self._fill(key, kept)
        self._deliver_complete()

    def _fill(self, key: str, image: NDArray[np.uint8]) -> None:
        for partial in self._waiting:
            if key in partial.missing:
                partial.missing.remove(key)
                partial.images[key] = image

    def _deliver_complete(self) -> None:
        complete = [partial for partial in self._waiting if not partial.missing]
        if not complete:
            return
        self._waiting = [partial for partial in self._waiting if partial.missing]
        for partial in complete:
            received = self._received(partial.episode, partial.images, partial.wire_bytes, partial.decode_s, partial.frames)
            self._ready.append((received, partial.sender, partial.number))
            self._answer(partial.sender, "taken", partial.number)

    def _received(self, episode: Episode, images: Mapping[str, NDArray[Any]], size: int, seconds: float,
                  frames: tuple[wire.Frame, ...]) -> Received:
        return Received(episode, images, size, seconds, frames if self._keep_frames else ())

    def _ask(self, sender: bytes, keys: list[str]) -> None:
        self._answer(sender, "need", keys)

    def _refuse(self, sender: bytes, reason: str) -> None:
        self.refused += 1
        if reason not in self._reasons and len(self._reasons) < _REASONS_LOGGED:
            self._reasons.add(reason)
            _LOG.warning("refused at %s: %s", self.endpoint, reason)
        self._answer(sender, "refused", reason)

    def _answer(self, sender: bytes, kind: str, *values: Any) -> None:
        self._socket.send_multipart([sender, pack(kind, self._run_id, *values)])  # dropped when the sender is gone
