"""What moves episodes from rollout workers to training ranks: two protocols, and the factory that picks a wire.

    worker 0 --+--> rank 0        every worker sends every episode to all training ranks that it was given
    worker 1 --+--> rank 1        (tensor-parallel ranks need the same data)

* `shm`: episodes over a socket, images through the node's `ImageStore`, once a node;
* `zmq`: episodes and images over the socket, an image once a node that receives;
* `baseline`: what IPSS replaces (`transfer.ipss=false`), as verl's first path: wait for the whole batch, then serialise
  it at once with float32 pixel_values per rollout, nothing shared.

All deliver equal episodes and, through `images.pixel_values`, bitwise equal pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.transfer import wire
from nemo_mtdrive.transfer.curve import CurveKeys
from nemo_mtdrive.types import Episode

LinkKind = Literal["shm", "zmq", "baseline"]
LINK_KINDS: tuple[LinkKind, ...] = ("shm", "zmq", "baseline")


class ReceiveTimeout(TimeoutError):
    """Nothing came in time; the link is as it was, the caller may wait on."""


@dataclass(frozen=True)
class Received:
    """An episode as it came, with what its image keys stand for."""

    episode: Episode
    images: Mapping[str, NDArray[Any]]
    """By key: uint8 [H, W, 3], read-only; with the baseline float32 [n, 1176], this rollout's own patches. Both go
    into `images.pixel_values`."""
    wire_bytes: int
    """Bytes of this delivery on the socket, images counted with the episode that made them travel."""
    decode_s: float
    """Seconds of work in this process for it: checks, copies, image lookups."""
    frames: tuple[wire.Frame, ...] = field(repr=False, default=())
    """The frames it was decoded from; kept when the receiver was opened with `keep_frames`."""

    def decode_again(self) -> tuple[Episode, Mapping[str, NDArray[Any]]]:
        """Dispatch anew, as the batch goes to every phase without IPTC: put (copied) and deserialised. Needs `keep_frames`.

        Attached pixels are own copies, as those of an unpickled batch are.

        Raises:
            ValueError: the frames were not kept.
        """
        if not self.frames:
            raise ValueError("frames were not kept: open the receiver with keep_frames=True")
        episode, attached = wire.decode([bytes(frame) for frame in self.frames])
        return episode, {key: np.array(values) for key, values in attached.items()} or self.images


class EpisodeSender(Protocol):
    """Worker side. `send` is safe to call from several threads."""

    @property
    def wire_bytes(self) -> int:
        """Bytes put on sockets so far, all receivers together."""

    def send(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Serialise an episode and send it to all receivers.

        Waits while `in_flight` episodes are not yet taken by all receivers; unblocked by their acknowledgements.

        Args:
            episode: what to send.
            images: uint8 [H, W, 3] for each of its `image_keys`.

        Raises:
            TransferError: a receiver is lost or refuses, here or in an earlier send.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until all receivers have taken everything; unblocked by their acknowledgements.

        Raises:
            TransferError: a receiver is lost or refuses, or the time is over.
        """

    def close(self) -> None:
        """Free sockets and images; what is not flushed is dropped. Safe to call again."""


class EpisodeReceiver(Protocol):
    """Training rank side; for one thread."""

    endpoint: str
    """The address that senders connect to; a port of 0 has become the real one."""
    refused: int
    """Messages that were refused so far: corrupt, of another version, run or protocol."""

    def receive(self, timeout_s: float) -> Received:
        """The next episode with its images, in order of arrival. The same episode may come twice after a reconnect.

        Waits for a sender; its images are asked for and waited for as well. What is no message of this run and version
        is refused at its sender, counted and logged.

        Raises:
            ReceiveTimeout: no whole episode within `timeout_s`.
            TransferError: no room for images.
        """

    def mark_safe(self) -> None:
        """Say that all episodes received so far are safe. Until then their senders keep them, and send them again
        when this receiver dies and another takes its address."""

    def close(self) -> None:
        """Free the socket and the images. Safe to call again."""


def open_sender(
    kind: LinkKind,
    endpoints: Sequence[str],
    run_id: str,
    *,
    in_flight: int,
    lost_after_s: float,
    shm_root: Path,
    image_budget_bytes: int,
    keys: CurveKeys | None = None,
) -> EpisodeSender:
    """Connect to all training ranks.

    Args:
        kind: `LINK_KINDS`; must be the receivers' kind.
        endpoints: one address a rank, tcp://HOST:PORT or ipc://PATH.
        run_id: names the run; receivers of another run refuse.
        in_flight: episodes that may be unacknowledged before `send` waits (baseline: no bound, it keeps the batch).
        lost_after_s: a receiver that is disconnected this long, with episodes waiting for it, is lost.
        shm_root: where shared memory is (shm only).
        image_budget_bytes: what the run's images may take on this node (shm only).
        keys: encrypt with these; the receivers' own. None: in clear.

    Raises:
        ValueError: unknown kind, no endpoint, or an address that is none.
        TransferError: shared memory is not there.
    """
    from nemo_mtdrive.transfer import baseline, shm, zmq

    if not endpoints or in_flight < 1:
        raise ValueError(f"endpoints={list(endpoints)}, in_flight={in_flight}: set one address a rank, and 1 or more")
    if kind == "zmq":
        return zmq.ZmqSender(endpoints, run_id, in_flight, lost_after_s, keys)
    if kind == "shm":
        return shm.ShmSender(endpoints, run_id, in_flight, lost_after_s, shm_root, image_budget_bytes, keys)
    if kind == "baseline":
        return baseline.BaselineSender(endpoints, run_id, lost_after_s, keys)
    raise ValueError(f"transfer.link={kind}: set it to one of {', '.join(LINK_KINDS)}")


def open_receiver(
    kind: LinkKind, endpoint: str, run_id: str, *, shm_root: Path, image_budget_bytes: int, keep_frames: bool,
    keys: CurveKeys | None = None,
) -> EpisodeReceiver:
    """Listen as one training rank.

    Args:
        kind: `LINK_KINDS`; must be the senders' kind.
        endpoint: where to listen; tcp://127.0.0.1:0 takes a free port.
        run_id: names the run; senders of another run are refused.
        shm_root: where shared memory is.
        image_budget_bytes: what the run's images may take on this node.
        keep_frames: keep what came, for `Received.decode_again`.
        keys: let only senders in that have these, encrypted. None: in clear.

    Raises:
        ValueError: unknown kind.
        TransferError: the address is taken, or shared memory is not there.
    """
    from nemo_mtdrive.transfer import zmq

    if kind in LINK_KINDS:
        return zmq.ZmqReceiver(endpoint, run_id, shm_root, image_budget_bytes, keep_frames, keys)
    raise ValueError(f"transfer.link={kind}: set it to one of {', '.join(LINK_KINDS)}")
