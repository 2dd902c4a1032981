"""A process on a node of `test_network`: `python -m tests.transfer.node ROLE ...`. Talks in lines of JSON.

    worker ROOT SCENES INDICES ENDPOINT...   sends episodes; a line at the start and one at the end
    rank ROOT SCENES ENDPOINT                collects the step; a line with its endpoint, one an episode, one at the end
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.collect import EpisodeCollector
from nemo_mtdrive.transfer.link import Received, open_receiver, open_sender
from nemo_mtdrive.transfer.stream import EpisodeStream
from nemo_mtdrive.types import RolloutTask

from .make_episodes import make_episode, make_image, make_task

RUN = "two-nodes"
GROUP = 4
HEIGHT, WIDTH = 532, 952
STORE: dict[str, Any] = {"image_budget_bytes": 256 << 20}


def scene_image(scene: int) -> NDArray[np.uint8]:
    """A 540p front image."""
    return make_image(scene, HEIGHT, WIDTH)


def step(scenes: int) -> list[RolloutTask]:
    """A task a scene."""
    return [make_task(f"scene-{scene}", GROUP) for scene in range(scenes)]


def worker(root: Path, scenes: int, indices: list[int], endpoints: list[str]) -> None:
    """Send the episodes of all scenes that have these indices."""
    sender = open_sender("shm", endpoints, RUN, in_flight=4, lost_after_s=120, shm_root=root, **STORE)
    stream = EpisodeStream(sender, threads=2, in_flight=4, flush_timeout_s=300)
    say({"started": True})
    for scene, task in enumerate(step(scenes)):
        image = scene_image(scene)
        for index in indices:
            stream.on_episode_end(make_episode(task, index, image), {image_key(image): image})
    say(asdict(stream.on_rollout_end()))
    sys.stdin.readline()  # a rank that takes over may still want what is not safe
    stream.close()


def rank(root: Path, scenes: int, endpoint: str) -> None:
    """Collect the step and say what came."""
    receiver = open_receiver("shm", endpoint, RUN, shm_root=root, keep_frames=False, **STORE)
    say({"endpoint": receiver.endpoint})
    collector = EpisodeCollector(receiver)

    def arrived(received: Received, there: int, total: int) -> None:
        say({"episode": received.episode.episode_id, "there": there, "of": total})

    collected = collector.collect(step(scenes), deadline_s=300, on_arrival=arrived)
    for scene, group in enumerate(collected.groups):
        key = image_key(scene_image(scene))
        assert all(np.array_equal(collected.image(one.episode_id, key), scene_image(scene)) for one in group.episodes)
    say({"digest": collected.digest} | asdict(collected.metrics))
    sys.stdin.readline()
    collector.close()


def say(line: dict[str, Any]) -> None:
    """To who started this process."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    role, folder, count, *rest = sys.argv[1:]
    if role == "worker":
        worker(Path(folder), int(count), json.loads(rest[0]), rest[1:])
    else:
        rank(Path(folder), int(count), rest[0])
