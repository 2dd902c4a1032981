"""Holds curated data against what it says of itself (`nemo-mtdrive curate check`).

Every line is judged anew from its scene: the question is the scene's, each rejected answer is rejected with exactly this
feedback, the last answer is the human's, a yes or no is the scorer's, the image has the content it is named after. Objects
of counterfactual questions are really taken out of the scene. Beyond lines: ids are there once, answers are balanced, no
scene of a held-out log is learned from.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nemo_mtdrive.config import AgentConfig, ConfigError
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.datasets import DataError
from nemo_mtdrive.data.folder import read_lines, read_requests, read_split
from nemo_mtdrive.data.line_judge import LineJudge, check_form
from nemo_mtdrive.data.lines import Line, answers_of
from nemo_mtdrive.data.sampler import log_of
from nemo_mtdrive.data.single_turn import can_teach
from nemo_mtdrive.dialogue.questions import METRICS, NO, YES
from nemo_mtdrive.driving.scene import SceneError
from nemo_mtdrive.stations import work_at_stations

MOST_IMBALANCE = 0.01
"""Of a metric's answers, by which yes and no may differ."""


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong with a line; number 0 is the whole file."""

    file: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.reason}" if self.number else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class CheckTask:
    """What is checked, and with whom."""

    folder: Path
    scenes: SceneArguments
    agent: AgentConfig
    held_out: tuple[str, ...]


def task_of(folder: Path, scenes: SceneArguments | None) -> CheckTask:
    """The check of a folder by what it says of itself.

    Args:
        folder: that `nemo-mtdrive curate` or a run made.
        scenes: where its scenes are; None takes where they were.

    Raises:
        ConfigError: there is nothing of ours in it.
    """
    requests = [request for request in read_requests(folder).values() if "scenes" in request]
    if not requests or not any(folder.glob("*.jsonl")):
        raise ConfigError(f"{folder}: no curation.json and *.jsonl there; set it to a folder of `nemo-mtdrive curate`")
    split = read_split(folder)
    agent = next((AgentConfig(**request["agent"]) for request in requests if "agent" in request), AgentConfig())
    return CheckTask(folder, scenes or SceneArguments(**requests[0]["scenes"]), agent, tuple(split[1]) if split else ())


Placed = tuple[str, int, Line]
"""File, number and line."""


def check_folder(task: CheckTask, workers: int, advance: Callable[[int], None]) -> tuple[int, list[Problem]]:
    """Check every line of a folder.

    Args:
        task: the folder, its scenes and agent, and the ids of held-out scenes.
        workers: processes.
        advance: called with the number of lines that are checked.

    Returns:
        Lines, and what is wrong, in the order of files and lines.

    Raises:
        SceneError: the scenes cannot be opened.
    """
    problems: list[Problem] = []
    by_scene: dict[str, list[Placed]] = defaultdict(list)
    count = 0
    for path, number, text in read_lines(task.folder):
        count += 1
        try:
            line = json.loads(text)
            check_form(line)
        except (json.JSONDecodeError, DataError) as error:
            problems.append(Problem(path.name, number, str(error)))
            advance(1)
            continue
        by_scene[line["scene_id"]].append((path.name, number, line))
    placed = [entry for entries in by_scene.values() for entry in entries]
    problems += [*_doubled(placed), *_held_out(placed, task.held_out), *_unbalanced(placed)]
    scenes = list(by_scene.values())
    for place, found in work_at_stations(partial(_open, task), _Checker.problems, scenes, workers):
        problems += found
        advance(len(scenes[place]))
    return count, sorted(problems)


@contextmanager
def _open(task: CheckTask, _: int) -> Iterator[_Checker]:
    yield _Checker(task)


def _doubled(placed: Sequence[Placed]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for file, number, line in placed:
        first = seen.setdefault(line["id"], f"{file}:{number}")
        if first != f"{file}:{number}":
            yield Problem(file, number, f"id {line['id']} is there already, at {first}")


def _held_out(placed: Sequence[Placed], held_out: Sequence[str]) -> Iterator[Problem]:
    logs = {log_of(scene_id): scene_id for scene_id in held_out}
    for file, number, line in placed:
        if log_of(line["scene_id"]) in logs:
            yield Problem(file, number, f"scene {line['scene_id']} is of a held-out log (that of "
                                        f"{logs[log_of(line['scene_id'])]})")


def _unbalanced(placed: Sequence[Placed]) -> Iterator[Problem]:
    answers = {metric: Counter[str]() for metric in METRICS}
    for _, _, line in placed:
        if line["kind"] == "understanding" and line["provenance"]["metric"] in answers:
            answers[line["provenance"]["metric"]][answers_of(line)[-1]] += 1
    for metric, counts in answers.items():
        if abs(counts[YES] - counts[NO]) > MOST_IMBALANCE * counts.total():
            yield Problem("understanding.jsonl", 0, f"{metric}: {counts[YES]} yes and {counts[NO]} no, want them within 1%")


class _Checker:
    """Judges the lines of scenes anew."""

    def __init__(self, task: CheckTask) -> None:
        self._scenes = task.scenes.open()
        self._judge = LineJudge(task.folder, task.agent)

    def problems(self, entries: Sequence[Placed]) -> list[Problem]:
        """What is wrong with the lines of one scene."""
        scene_id = entries[0][2]["scene_id"]
        try:
            scene = self._scenes.load(scene_id)
            if not can_teach(scene):
                raise DataError(f"scene {scene_id} cannot be driven, or has no recorded future")
        except KeyError:
            return [Problem(file, number, f"the source has no scene {scene_id}") for file, number, _ in entries]
        except (SceneError, DataError) as error:
            return [Problem(file, number, str(error)) for file, number, _ in entries]
        found = []
        for file, number, line in entries:
            try:
                self._judge.check(line, scene)
            except DataError as error:
                found.append(Problem(file, number, str(error)))
        return found
