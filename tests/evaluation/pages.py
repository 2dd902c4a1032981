"""What the tests of the report share: a page parsed, its packs opened, and a run of many episodes."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.feedback import feedback_text
from nemo_mtdrive.telemetry.recorder import EpisodeRecorder
from nemo_mtdrive.types import Episode, Turn
from tests.evaluation.hand_episodes import HOSTILE, make_episode, make_turn

RECORDED = 30
"""Episodes of a large run that are all different: a multiple of what repeats in `many_episodes`."""
KINDS = ("crossing/lead", "straight/free", "bend/cut_in")
VOID = {"meta", "img", "input", "br", "hr"}
OBSTACLE = [20.0, -1.0, 0.8, 4.0, 2.0, 1.6, 0.0, "vehicle"]


class Page(HTMLParser):
    """Elements with attributes, text by element, and a check that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.packs: dict[str, Any] = {}
        """Name -> opened data."""
        self._open: list[str] = []
        self._pack = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._pack = str(dict(attrs).get("data-name", "")) if tag == "script" else ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        if self._pack and self._open[-1:] == ["script"]:
            self.packs[self._pack] = json.loads(gzip.decompress(base64.b64decode(data)))
        self.texts.append((self._open[-1] if self._open else "", data))

    def count(self, tag: str, name: str = "") -> int:
        """Elements of this tag whose class list has `name`."""
        return sum(t == tag and (not name or name in (a.get("class") or "").split()) for t, a in self.elements)

    def text(self) -> str:
        """All text that is not script or style."""
        return "\n".join(text for tag, text in self.texts if tag not in ("script", "style"))


def violating_turn(index: int, pdms: float, future: np.ndarray, metric: str) -> Turn:
    """A turn whose points 7 and 8 violate a metric, with the agent's own feedback."""
    path = np.round(future + (np.array([0.0, 6.0, 0.0]) if metric == "DAC" else 0.0), 2)
    thing = None if metric == "DAC" else OBSTACLE
    violations: list[dict[str, Any]] = [{"metric": metric, "point": point, "object": thing} for point in (6, 7)]
    points = ", ".join(f"({x:+.2f}, {y:+.2f}, {h:+.2f})" for x, y, h in path)
    answer = f"Here is the planning trajectory [PT, {points}]."
    turn = make_turn(index, pdms, dac=0.0 if metric == "DAC" else 1.0, nc=0.0 if metric == "NC" else 1.0, answer=answer,
                     trajectory=path, violations=violations)
    return replace(turn, feedback=feedback_text(violations, path))


def many_episodes(scene: Scene, count: int) -> list[Episode]:
    """Episodes of as many scenes: every second is repaired in its second turn, every tenth never answers."""
    assert scene.future is not None
    episodes = []
    for number in range(count):
        metric = ("DAC", "NC", "TTC")[number % 3]
        first = violating_turn(0, 0.1 * (number % 5), scene.future, metric)
        if number % 10 == 9:
            turns = [make_turn(0, None, answer=HOSTILE), make_turn(1, None, answer=HOSTILE)]
        elif number % 2 == 0:
            turns = [first, make_turn(1, 0.9, trajectory=scene.future, answer="better")]
        else:
            turns = [first]
        episodes.append(make_episode(f"s{number:05d}", *turns, image="key"))
    return episodes


def large_run(run: Path, scene: Scene, image: np.ndarray, count: int) -> Path:
    """A run directory with one dump of `count` episodes of three kinds and nothing else.

    The recorder cuts an excerpt of every scene, which takes a while: it records `RECORDED`, and their lines are repeated.
    """
    episodes = many_episodes(scene, RECORDED)
    scenes = {episode.scene_id: replace(scene, scene_id=episode.scene_id, kind=KINDS[number % len(KINDS)])
              for number, episode in enumerate(episodes)}
    recorder = EpisodeRecorder(run, max_episodes=RECORDED, with_tokens=False)
    dump = recorder.record(0, "evaluation", episodes, prompts=dict.fromkeys(scenes, "Where to?"), images={"key": image},
                           scenes=scenes)
    assert dump is not None
    records = [json.loads(line) for line in dump.read_text().splitlines()]
    with dump.open("w") as lines:
        for number in range(count):
            name = f"s{number:05d}"
            record = records[number % RECORDED] | {"scene_id": name, "episode_id": f"evaluation/0/{name}/0"}
            lines.write(json.dumps(record) + "\n")
    return run
