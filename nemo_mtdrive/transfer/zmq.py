"""Episodes and images over sockets (tcp between nodes, ipc on one); an image travels once per receiver.

Images are pulled: an episode goes without them, and the receiver asks for the keys that it lacks. So it does not matter
which worker sent a key before, or what the receiver has dropped since.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.link import Received, ReceiveTimeout
from nemo_mtdrive.transfer.peers import BATCH, EPISODE, IMAGE, NEED, REFUSED, SHAPE, TAKEN, Outbox
from nemo_mtdrive.transfer.segments import TransferError
from nemo_mtdrive.types import Episode

_ASK_AGAIN_S = 5.0
"""An image that was asked for and did not come is asked for again after this; its first sender may have died."""


class ImageDepot(Protocol):
    """Where a receiver keeps images by key: `images.ImageStore`, or `MemoryImages`."""

    def put(self, key: str, image: NDArray[np.uint8]) -> bool:
        """Keep an image; ValueError when the pixels have another key."""

    def get(self, key: str) -> NDArray[np.uint8]:
        """The image; KeyError when it is not there."""

    def release(self, key: str) -> None:
        """Views keep what they need; the rest may go."""

    def close(self) -> None:
        """Hold nothing any more."""


class MemoryImages:
    """Images of this process by key, least recently used ones dropped first beyond the byte budget."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._images: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    def put(self, key: str, image: NDArray[np.uint8]) -> bool:
        """Keep an image, without copying; True when it was new. ValueError when the pixels have another key."""
        if key in self._images:
            return False
        if image_key(image) != key:
            raise ValueError(f"image key {key}: the pixels given have key {image_key(image)}")
        self._images[key] = image
        self._bytes += image.nbytes
        while self._bytes > self.budget_bytes and len(self._images) > 1:
            _, dropped = self._images.popitem(last=False)
            self._bytes -= dropped.nbytes
        return True

    def get(self, key: str) -> NDArray[np.uint8]:
        """The image [H, W, 3]; KeyError when it is not there."""
        self._images.move_to_end(key)
        return self._images[key]

    def release(self, key: str) -> None:
        """Nothing to do: views hold their memory, the budget bounds the rest."""

    def close(self) -> None:
        """Forget all."""
        self._images.clear()
        self._bytes = 0


class ZmqSender:
    """`link.EpisodeSender` over sockets. Arguments as `link.open_sender`."""

    def __init__(self, endpoints: Sequence[str], run_id: str, in_flight: int, lost_after_s: float) -> None:
        self._outbox = Outbox(endpoints, run_id, in_flight, lost_after_s)

    @property
    def wire_bytes(self) -> int:
        """Bytes put on sockets so far, all receivers together."""
        return self._outbox.wire_bytes

    def send(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """See `link.EpisodeSender.send`."""
        if missing := set(episode.image_keys) - set(images):
            raise TransferError(f"episode {episode.episode_id}: no image given for {', '.join(sorted(missing))}")
        self._outbox.post(EPISODE, wire.encode(episode), self._hold(images))

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
    number: bytes
    episode: Episode
    frames: tuple[wire.Frame, ...]
    images: dict[str, NDArray[Any]]
    missing: set[str]
    wire_bytes: int
    decode_s: float


class ZmqReceiver:
    """`link.EpisodeReceiver` over a socket. Works in `receive` alone, in the caller's thread.

    Args:
        endpoint: where to listen.
        run_id: messages of other runs are refused.
        depot: where images are kept; belongs to the receiver from now on.
        keep_frames: keep what came, for `Received.decode_again`.
    """

    def __init__(self, endpoint: str, run_id: str, depot: ImageDepot, keep_frames: bool) -> None:
        self._run_id = run_id
        self._depot = depot
        self._keep_frames = keep_frames
        self._waiting: list[_Partial] = []
        self._asked: dict[str, float] = {}
        self._ready: deque[Received] = deque()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)  # the last acknowledgements still go out
        self._socket.setsockopt(zmq.SNDHWM, 0)  # answers are bounded by what the senders have in flight
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise TransferError(f"cannot listen at {endpoint}: {error}; set a free address, or port 0") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def receive(self, timeout_s: float) -> Received:
        """See `link.EpisodeReceiver.receive`."""
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            left_s = deadline - time.monotonic()
            if self._socket.poll(int(1000 * max(0.0, min(left_s, 1.0)))):
                with span("transfer"):
                    self._handle([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
            elif left_s <= 0:
                waiting = f"; {len(self._waiting)} wait for images" if self._waiting else ""
                raise ReceiveTimeout(f"no episode at {self.endpoint} within {timeout_s:g} s{waiting}")
            self._ask_again()
        return self._ready.popleft()

    def close(self) -> None:
        """See `link.EpisodeReceiver.close`."""
        self._waiting.clear()
        self._depot.close()
        if not self._socket.closed:
            self._socket.close()
            self._context.term()

    def _handle(self, message: list[memoryview]) -> None:
        sender, kind, *rest = message
        answer_to = bytes(sender)
        if bytes(kind) == IMAGE and len(rest) == 3:
            self._take_image(answer_to, *rest)
        elif bytes(kind) in (EPISODE, BATCH) and len(rest) >= 3:
            self._take_delivery(answer_to, bytes(kind), rest)
        else:
            self._answer(answer_to, REFUSED, b"message of another protocol")

    def _take_delivery(self, sender: bytes, kind: bytes, rest: list[memoryview]) -> None:
        run_id, number, frames = bytes(rest[0]).decode(errors="replace"), bytes(rest[1]), rest[2:]
        if run_id != self._run_id:
            self._answer(sender, REFUSED, f"this is run {self._run_id}, not {run_id}".encode())
            return
        try:
            if kind == EPISODE:
                self._take_episode(sender, number, frames)
            else:
                self._take_batch(frames)
                self._answer(sender, TAKEN, number)
        except wire.WireError as error:
            self._answer(sender, REFUSED, str(error).encode())
            raise

    def _take_episode(self, sender: bytes, number: bytes, frames: list[memoryview]) -> None:
        start = time.perf_counter()
        episode, _ = wire.decode(frames)
        images, missing = {}, set()
        for key in episode.image_keys:
            try:
                images[key] = self._depot.get(key)
                self._depot.release(key)
            except KeyError:
                missing.add(key)
        size, seconds = sum(frame.nbytes for frame in frames), time.perf_counter() - start
        partial = _Partial(sender, number, episode, tuple(frames), images, missing, size, seconds)
        self._waiting.append(partial)
        self._ask(partial, missing - set(self._asked))
        self._deliver_complete()

    def _take_batch(self, frames: list[memoryview]) -> None:
        """Baseline: all episodes of a batch at once, each with its own pixels."""
        try:
            counts = [int(count) for count in msgpack.unpackb(frames[0])]
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise wire.WireError(f"batch header: {error}") from error
        if min(counts, default=1) < 1 or sum(counts) != len(frames) - 1:
            raise wire.WireError(f"batch of {sum(counts)} frames came in {len(frames) - 1}: cut short")
        start = 1
        for count in counts:
            began = time.perf_counter()
            part = tuple(frames[start : start + count])
            episode, pixels = wire.decode(part)
            # Own copies, as an unpickled batch has: the message's memory is not kept by one slow reader.
            pixels = {key: np.array(values) for key, values in pixels.items()}
            size = sum(frame.nbytes for frame in part)
            self._push(episode, pixels, size, time.perf_counter() - began, part)
            start += count

    def _take_image(self, sender: bytes, key_frame: memoryview, shape: memoryview, pixels: memoryview) -> None:
        start = time.perf_counter()
        key = bytes(key_frame).decode(errors="replace")
        if not any(key in partial.missing for partial in self._waiting):
            return  # it came twice, or its episode was dropped
        try:
            image: NDArray[np.uint8] = np.frombuffer(pixels, np.uint8).reshape(SHAPE.unpack(shape))
            self._depot.put(key, image)
        except ValueError as error:
            self._answer(sender, REFUSED, str(error).encode())
            raise wire.WireError(f"image {key}: {error}") from error
        self._asked.pop(key, None)
        kept = self._depot.get(key)
        self._depot.release(key)
        first = next(partial for partial in self._waiting if key in partial.missing)
        first.wire_bytes += pixels.nbytes
        first.decode_s += time.perf_counter() - start
        for partial in self._waiting:
            if key in partial.missing:
                partial.missing.remove(key)
                partial.images[key] = kept
        self._deliver_complete()

    def _deliver_complete(self) -> None:
        complete = [partial for partial in self._waiting if not partial.missing]
        self._waiting = [partial for partial in self._waiting if partial.missing]
        for partial in complete:
            self._push(partial.episode, partial.images, partial.wire_bytes, partial.decode_s, partial.frames)
            self._answer(partial.sender, TAKEN, partial.number)

    def _push(self, episode: Episode, images: Mapping[str, NDArray[Any]], size: int, seconds: float,
              frames: tuple[wire.Frame, ...]) -> None:
        self._ready.append(Received(episode, images, size, seconds, frames if self._keep_frames else ()))

    def _ask(self, partial: _Partial, keys: set[str]) -> None:
        if keys:
            self._asked.update(dict.fromkeys(keys, time.monotonic()))
            self._answer(partial.sender, NEED, msgpack.packb(sorted(keys)))

    def _ask_again(self) -> None:
        late = {key for key, asked in self._asked.items() if time.monotonic() - asked > _ASK_AGAIN_S}
        if late:
            for partial in self._waiting:
                self._ask(partial, partial.missing & late)
            wanted = {key for partial in self._waiting for key in partial.missing}
            self._asked = {key: asked for key, asked in self._asked.items() if key in wanted}

    def _answer(self, sender: bytes, kind: bytes, content: bytes) -> None:
        self._socket.send_multipart([sender, kind, content])  # a ROUTER drops answers to senders that are gone


