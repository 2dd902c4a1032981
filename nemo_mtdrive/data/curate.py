"""SFT data of a set of scenes, in chunks that are written whole: what is there already is not made again."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nemo_mtdrive.config import AgentConfig
from nemo_mtdrive.data.datasets import write_image
from nemo_mtdrive.data.multi_turn import multi_turn
from nemo_mtdrive.data.single_turn import single_turn
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from nemo_mtdrive.driving.sources.address import Address
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.process import die_with_parent

CHUNK = 20
"""Scenes a file: small enough that a killed run loses little."""


@dataclass(frozen=True)
class SceneArguments:
    """What `open_scenes` needs, so that a process can open the same scenes.

    `uri` is the whole address; where it is empty, `source`, `path`, `count` (0: all) and `seed` make one up.
    """

    source: str
    path: str
    count: int
    seed: int
    width: int
    height: int
    uri: str = ""

    def open(self) -> SceneSource:
        """Open the scenes."""
        if self.uri:
            return open_scenes(self.uri, self.width, self.height)
        numbers = {"count": str(self.count)} if self.count else {}
        if self.source == "procedural":
            numbers["seed"] = str(self.seed)
        return open_scenes(Address(self.source, self.path, numbers), self.width, self.height)


@dataclass(frozen=True)
class CurationTask:
    """What is curated from which scenes to where."""

    scenes: SceneArguments
    out: Path
    perception: str
    kinds: tuple[str, ...] = ("single_turn", "multi_turn")
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who gives the feedback of multi-turn data."""


def curate(task: CurationTask, scene_ids: Sequence[str], workers: int, advance: Callable[[int], None]) -> Counter[str]:
    """Write `sft-NNNNN.jsonl` files and images under `task.out`; returns lines by kind.

    Args:
        task: scenes, folder, perception of the feedback, kinds of data.
        scene_ids: scenes with a recorded future; the order decides the chunks, so keep it when resuming.
        workers: processes.
        advance: called with the number of scenes that are done.
    """
    (task.out / "images").mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_open, initargs=(task,)) as pool:
        chunks = {}
        for number in range(math.ceil(len(scene_ids) / CHUNK)):
            chunk = scene_ids[number * CHUNK:(number + 1) * CHUNK]
            path = task.out / f"sft-{number:05d}.jsonl"
            if path.exists():
                counts.update(json.loads(line)["kind"] for line in path.read_text().splitlines())
                advance(len(chunk))
            else:
                chunks[pool.submit(_curate_chunk, list(chunk), path)] = len(chunk)
        for future in as_completed(chunks):
            counts.update(future.result())
            advance(chunks[future])
    return counts


_process: tuple[CurationTask, SceneSource, Reviewer]


def _open(task: CurationTask) -> None:
    """Open scenes and agent once a process."""
    global _process
    die_with_parent()
    _process = (task, task.scenes.open(), open_reviewer(task.agent, task.perception, cache_size=CHUNK))


def _curate_chunk(scene_ids: list[str], path: Path) -> Counter[str]:
    task, scenes, agent = _process
    lines: list[dict[str, Any]] = []
    for scene_id in scene_ids:
        scene, image = scenes.load(scene_id), scenes.image(scene_id)
        key = image_key(image)
        write_image(task.out / "images", key, image)
        if "single_turn" in task.kinds:
            lines.append(single_turn(scene, key))
        if "multi_turn" in task.kinds and (line := multi_turn(scene, key, agent, task.perception)) is not None:
            lines.append(line)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)
    return Counter(line["kind"] for line in lines)
