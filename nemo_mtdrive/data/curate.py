"""SFT data of a set of scenes (Section 3.2): chunks of scenes in several processes, joined when all are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.config import AgentConfig, SFTDataConfig
from nemo_mtdrive.data.datasets import write_image
from nemo_mtdrive.data.folder import SetOfLines, digest_of, tidy, working_in
from nemo_mtdrive.data.formats import write_dataset_info
from nemo_mtdrive.data.length import ConversationLength
from nemo_mtdrive.data.lines import Line
from nemo_mtdrive.data.multi_turn import MultiTurnSettings, multi_turn
from nemo_mtdrive.data.single_turn import can_teach, single_turn
from nemo_mtdrive.data.statistics import count_lines, read_statistics, write_statistics
from nemo_mtdrive.data.understanding import understanding
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from nemo_mtdrive.driving.sources.address import Address
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.stations import work_at_stations

CHUNK = 20
"""Scenes of a chunk: few enough that a killed command loses little."""


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
    settings: SFTDataConfig = field(default_factory=SFTDataConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who gives the feedback of multi-turn data; understanding data is the PDM agent's."""
    tokenizer: str = ""
    """Folder of the tokenizer that lengths are counted with."""
    max_tokens: int = 0
    """Most tokens of a conversation, its image included; 0: any."""

    def request(self, kind: str, scene_ids: Sequence[str]) -> dict[str, Any]:
        """All that decides a set's bytes."""
        settings = self.settings
        request: dict[str, Any] = {"scenes": asdict(self.scenes), "count": len(scene_ids),
                                   "scene_ids": digest_of(scene_ids), "seed": settings.seed}
        if kind == "multi_turn":
            request |= {"perception": self.perception, "agent": asdict(self.agent), "mock_share": settings.mock_share,
                        "max_turns": settings.max_turns, "max_tokens": self.max_tokens}
        elif kind == "understanding":
            request |= {"perception": self.perception, "pairs": settings.pairs}
        return request

    @property
    def multi_turn(self) -> MultiTurnSettings:
        """How multi-turn data is made."""
        return MultiTurnSettings(self.settings.seed, self.perception, self.settings.mock_share, self.settings.max_turns)


def curate(task: CurationTask, scene_ids: Sequence[str], workers: int, advance: Callable[[int], None]) -> dict[str, Any]:
    """Make the sets of `task.settings.kinds` in `task.out`; returns its statistics (`statistics.count_lines`).

    Args:
        task: scenes, folder, kinds of data.
        scene_ids: in an order that is kept; those that cannot be learned from (no camera, command or future) are left out.
        workers: processes; 1 works in this one. The same arguments give the same bytes whatever their number.
        advance: called with the number of scenes that are done.

    Raises:
        ConfigError: the folder holds data of another request.
        SceneError: a scene cannot be read.
    """
    sets = {kind: SetOfLines(task.out, kind) for kind in task.settings.kinds}
    if all(lines.done for lines in sets.values()):
        for kind, lines in sets.items():
            lines.claim(task.request(kind, scene_ids))
        statistics = count_lines(task.out)
        if statistics == read_statistics(task.out):  # several runs may share a folder that is done: nothing is written
            advance(len(scene_ids))
            return statistics
    with working_in(task.out):
        for kind, lines in sets.items():
            lines.claim(task.request(kind, scene_ids))
        (task.out / "images").mkdir(exist_ok=True)
        _make_sets(task, sets, scene_ids, workers, advance)
        return finish(task.out)


def _make_sets(task: CurationTask, sets: dict[str, SetOfLines], scene_ids: Sequence[str], workers: int,
               advance: Callable[[int], None]) -> None:
    chunks = math.ceil(len(scene_ids) / CHUNK)
    jobs: list[Job] = []
    for number in range(chunks):
        chunk = list(scene_ids[number * CHUNK:(number + 1) * CHUNK])
        missing = tuple(kind for kind, lines in sets.items() if not lines.done and not lines.part(number).exists())
        if missing:
            jobs.append((number, chunk, missing))
        else:
            advance(len(chunk))
    for _, count in work_at_stations(partial(_open, task), _Station.make, jobs, workers):
        advance(count)
    for lines in sets.values():
        lines.join(chunks)


def finish(folder: Path) -> dict[str, Any]:
    """Write what describes the sets that are done, and return their statistics."""
    tidy(folder)
    write_dataset_info(folder)
    statistics = count_lines(folder)
    write_statistics(folder, statistics)
    return statistics


Job = tuple[int, list[str], tuple[str, ...]]
"""Number of a chunk, its scenes, and the kinds that are wanted of them."""


@contextmanager
def _open(task: CurationTask, _: int) -> Iterator[_Station]:
    yield _Station(task)


class _Station:
    """What one process needs to make chunks."""

    def __init__(self, task: CurationTask) -> None:
        self._task = task
        self._scenes = task.scenes.open()
        self._agent = open_reviewer(task.agent, task.perception, cache_size=1)
        self._scorer = self._agent if isinstance(self._agent, PDMAgent) else PDMAgent(task.perception, cache_size=1)
        self._length = ConversationLength(task.tokenizer, task.max_tokens)

    def make(self, job: Job) -> int:
        """Write the chunk's part of each kind; returns how many scenes it has."""
        number, scene_ids, kinds = job
        made: dict[str, list[Line]] = {kind: [] for kind in kinds}
        for scene_id in scene_ids:
            scene = self._scenes.load(scene_id)
            if can_teach(scene):
                image = self._scenes.image(scene_id)
                for kind, lines in self._lines(scene, image, kinds).items():
                    made[kind] += lines
        for kind, lines in made.items():
            SetOfLines(self._task.out, kind).write_part(number, lines)
        return len(scene_ids)

    def _lines(self, scene: Scene, image: NDArray[np.uint8], kinds: tuple[str, ...]) -> dict[str, list[Line]]:
        settings, key = self._task.settings, image_key(image)
        fits = self._length.limit_for(image)
        made: dict[str, list[Line]] = {}
        if "single_turn" in kinds:
            made["single_turn"] = [single_turn(scene, key, settings.seed)]
        if "multi_turn" in kinds:
            made["multi_turn"] = list(multi_turn(scene, key, self._agent, self._task.multi_turn, fits))
        if "understanding" in kinds:
            made["understanding"] = list(understanding(scene, key, self._scorer, settings.pairs, settings.seed))
        if any(made.values()):
            write_image(self._task.out / "images", key, image)
        return made
