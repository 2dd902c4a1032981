"""A scoring process: its own scenes and reviewer, asked over a socket by the server that started it.

    server ── {"jobs": [{"op": "open",   "scene_id", "want_image"},
                        {"op": "review", "scene_id", "trajectories" [B, 8, 3]}]} ──> worker
    server <── {"replies": [...]}, one for each job in order ── worker

It keeps no episodes, so it may be killed at any time: the server gives what it had in hand to another. It ends when the
socket closes or its parent dies; SIGTERM and SIGINT go to a whole process group, so it leaves them to the server, which
still wants its answers while it drains. Messages are a length of four bytes and msgpack.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.episodes import EpisodeError
from nemo_mtdrive.environment.scenes import SceneSource, load_scene, open_scene, warm_up
from nemo_mtdrive.pdm.review import Review, Reviewer
from nemo_mtdrive.process import die_with_parent

LENGTH = struct.Struct("<I")
"""What goes before each message: its length in bytes."""


@dataclass(frozen=True)
class WorkerSpec:
    """How a process makes its scenes and its reviewer: a function by name and its arguments, plain JSON values."""

    factory: str
    """`package.module:function`; it returns (scenes, reviewer)."""
    arguments: Mapping[str, Any]
    scenes_kept: int
    """Loaded scenes that a worker keeps in memory."""

    def to_json(self) -> str:
        """For the command line of a worker."""
        return json.dumps(vars(self))

    def make(self) -> tuple[SceneSource, Reviewer]:
        """Call the factory."""
        module, _, name = self.factory.partition(":")
        factory: Callable[..., tuple[SceneSource, Reviewer]] = getattr(import_module(module), name)
        return factory(**self.arguments)


class Desk:
    """Answers jobs one by one; what fails is an answer too."""

    def __init__(self, scenes: SceneSource, agent: Reviewer, scenes_kept: int) -> None:
        self._source = scenes
        self._agent = agent
        self._scene: Callable[[str], Scene] = lru_cache(scenes_kept)(partial(load_scene, scenes))

    def answer(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one job: its result, or {"error": kind, "text": one line}."""
        try:
            scene = self._scene(job["scene_id"])
            if job["op"] == "open":
                return self._open(scene, job["want_image"])
            return {"reviews": self._review(scene, messages.unpack_array(job["trajectories"]))}
        except EpisodeError as error:
            return {"error": type(error).__name__, "text": str(error)}
        except Exception as error:  # the boundary of the process: a scene that breaks must not end the scoring of others
            return {"error": "ScoringFailed", "text": f"{type(error).__name__}: {error}"}

    def _open(self, scene: Scene, want_image: bool) -> dict[str, Any]:
        opened, image = open_scene(self._source, scene)
        return {"prompt": opened.prompt, "image_key": opened.image_key, "image": image if want_image else None}

    def _review(self, scene: Scene, trajectories: NDArray[np.float64]) -> list[dict[str, Any]]:
        """A review each, or {"error": ...}: where a batch fails, each is tried alone, so that one breaks no other."""
        try:
            return _plain(self._agent.review(scene, trajectories), len(trajectories))
        except Exception as error:  # any reviewer may be plugged in; what it raises belongs to these trajectories alone
            if len(trajectories) > 1:
                return [row for trajectory in trajectories for row in self._review(scene, trajectory[None])]
            return [{"error": f"{type(error).__name__}: {error}"}]


def _plain(reviews: Sequence[Review], wanted: int) -> list[dict[str, Any]]:
    if len(reviews) != wanted:
        raise ValueError(f"the reviewer gave {len(reviews)} reviews for {wanted} trajectories")
    return [{"scores": dict(review.scores), "violations": [dict(v) for v in review.violations],
             "feedback": review.feedback} for review in reviews]


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one message."""
    body = messages.pack(message)
    connection.sendall(LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other side is gone."""
    head = _exactly(connection, LENGTH.size)
    body = _exactly(connection, LENGTH.unpack(head)[0]) if head is not None else None
    return None if body is None else messages.unpack_reply(body)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    body = bytearray()
    while len(body) < size:
        part = connection.recv(min(size - len(body), 1 << 20))
        if not part:
            return None
        body += part
    return bytes(body)


def main(arguments: Sequence[str]) -> int:
    """`python -m nemo_mtdrive.environment.worker FD PARENT SPEC`: serve the socket FD until it closes."""
    descriptor, parent, spec = int(arguments[0]), int(arguments[1]), WorkerSpec(**json.loads(arguments[2]))
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, signal.SIG_IGN)
    die_with_parent()
    if os.getppid() != parent:  # it ended before we asked to be told
        return 1
    with socket.socket(fileno=descriptor) as connection:
        try:
            scenes, agent = spec.make()
            warm_up(scenes, agent)
        except Exception as error:  # told to the server, which knows whether this is the first start or a restart
            send(connection, {"failed": f"{type(error).__name__}: {error}"})
            return 1
        desk = Desk(scenes, agent, spec.scenes_kept)
        try:
            send(connection, {"ready": True})
            while (message := receive(connection)) is not None:
                send(connection, {"replies": [desk.answer(job) for job in message["jobs"]]})
        except (BrokenPipeError, ConnectionResetError):  # the server is gone
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
