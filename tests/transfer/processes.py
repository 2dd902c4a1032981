"""Functions in a process of their own (spawned: no state of this one); without torch, so that they start fast."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.images import ImageStore
from nemo_mtdrive.transfer.link import LinkKind, ReceiveTimeout, open_receiver, open_sender
from nemo_mtdrive.transfer.segments import RunFolder
from nemo_mtdrive.transfer.stream import EpisodeStream

from .conftest import RUN
from .make_episodes import make_episode, make_image, make_task

_SPAWN = multiprocessing.get_context("spawn")


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fails after 200 s."""
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 200 s"
        time.sleep(0.01)


def start(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start `work(*arguments)`; dies with this process."""
    process = _SPAWN.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def start_with_answer(work: Callable[..., Any], *arguments: Any) -> tuple[BaseProcess, Any]:
    """Start `work(pipe, *arguments)`; returns the process and this side of the pipe."""
    here, there = _SPAWN.Pipe()
    process = start(work, there, *arguments)
    there.close()
    return process, here


def finish(process: BaseProcess) -> None:
    """Wait for a good end."""
    process.join(300)
    assert process.exitcode == 0, f"exit code {process.exitcode}"


def hold_image(pipe: Connection, root: Path, key: str) -> None:
    """Hold an image, say so, hold on until told to let go."""
    with RunFolder(root, RUN) as folder:
        store = ImageStore(folder, 1 << 20)
        pipe.send(store.get(key).tobytes())
        pipe.recv()
        store.close()
        pipe.send("released")


def claim_image(pipe: Connection, root: Path, key: str) -> None:
    """Claim an image, say whether that went well, and keep it until killed."""
    with RunFolder(root, RUN) as folder:
        pipe.send(ImageStore(folder, 1 << 20).claim(key))
        pipe.recv()


def send_group(kind: LinkKind, endpoints: list[str], root: Path, number: int) -> None:
    """A worker: stream the group of one scene through the thread pool."""
    task, image = make_task(f"scene-{number}"), make_image(number)
    sender = open_sender(kind, endpoints, RUN, in_flight=2, lost_after_s=100, shm_root=root, image_budget_bytes=1 << 20)
    stream = EpisodeStream(sender, threads=2, in_flight=4, flush_timeout_s=300)
    for index in range(task.group_size):
        stream.on_episode_end(make_episode(task, index, image), {image_key(image): image})
    assert stream.on_rollout_end().episodes == task.group_size
    stream.close()


def receive_forever(pipe: Connection, root: Path) -> None:
    """A training rank that takes episodes until it is killed."""
    receiver = open_receiver(
        "zmq", "tcp://127.0.0.1:0", RUN, shm_root=root, image_budget_bytes=1 << 20, keep_frames=False
    )
    pipe.send(receiver.endpoint)
    while True:
        with suppress(ReceiveTimeout):
            receiver.receive(1)
