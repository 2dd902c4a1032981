"""A small scene source and a reviewer for these tests; `python -m tests.environment.environment_fakes PORT TOKEN` serves."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Ego, Scene, SceneMap
from nemo_mtdrive.environment.worker import WorkerSpec
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.types import SCORE_NAMES

FEEDBACK = "This was your previous trajectory prediction. It leaves the lane."
MAX_TURNS = 3


def scene(name: str, history: NDArray[np.float64] | None) -> Scene:
    """An empty road with an ego at 5 m/s."""
    ego = Ego(np.zeros(3), np.array([5.0, 0.0]), np.zeros(2))
    return Scene(name, "test", ego, SceneMap((), (), (), ()), (), (), (), history, "GO STRAIGHT")


class FakeScenes:
    """Scenes s0..s3, and `bare` that has no history."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.images: list[str] = []

    def ids(self) -> list[str]:
        """Five scenes."""
        return ["s0", "s1", "s2", "s3", "bare"]

    def load(self, scene_id: str) -> Scene:
        """Raises KeyError for others."""
        if scene_id not in self.ids():
            raise KeyError(scene_id)
        self.loads.append(scene_id)
        past = np.linspace(-7.5, 0.0, 4)
        history = None if scene_id == "bare" else np.stack([past, 0 * past, 0 * past], axis=1)
        return scene(scene_id, history)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """[28, 56, 3], one colour a scene."""
        self.images.append(scene_id)
        return np.full((28, 56, 3), 10 * self.ids().index(scene_id), dtype=np.uint8)


@dataclass
class FakeReviewer:
    """A trajectory within 1 m of y = 0 is clean; PDMS is 1 / (1 + largest |y|).

    A first x above 900 breaks it, above 800 kills its process, above 700 hangs it.
    """

    calls: list[tuple[str, int]] = field(default_factory=list)
    pause_s: float = 0.0
    log: str = ""
    """A file that gets a line `PID SCENE COUNT` for each batch that was reviewed."""

    def review(self, scene: Scene, trajectories: NDArray[np.float64]) -> list[Review]:
        """One review each."""
        assert trajectories.ndim == 3 and trajectories.shape[1:] == (8, 3)
        self.calls.append((scene.scene_id, len(trajectories)))
        time.sleep(self.pause_s)
        reviews = [self._review(trajectory) for trajectory in trajectories]
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()} {scene.scene_id} {len(trajectories)}\n")
        return reviews

    @staticmethod
    def _review(trajectory: NDArray[np.float64]) -> Review:
        if trajectory[0, 0] > 900:
            raise RuntimeError("the map has a hole\nhere")
        if trajectory[0, 0] > 800:
            os.kill(os.getpid(), signal.SIGKILL)
        if trajectory[0, 0] > 700:
            time.sleep(600)
        sideways = np.abs(trajectory[:, 1])
        scores = dict.fromkeys(SCORE_NAMES, 1.0) | {"PDMS": float(1 / (1 + sideways.max()))}
        violations = [{"metric": "DAC", "point": int(point), "object": None} for point in np.flatnonzero(sideways > 1)]
        return Review(scores, violations, FEEDBACK if violations else "")


def answer(sideways: float, first_x: float = 0) -> str:
    """A readable answer at y = `sideways`."""
    return "[PT, " + ", ".join(f"({x if x else first_x}, {sideways}, 0.0)" for x in range(8)) + "]"


def trajectory(sideways: float, first_x: float = 0.0) -> NDArray[np.float64]:
    """[8, 3] what that answer says."""
    points = np.zeros((8, 3))
    points[:, 0] = range(8)
    points[0, 0] = first_x
    points[:, 1] = sideways
    return points


def make_parts(calls: str = "", pause_s: float = 0.0, broken: bool = False) -> tuple[FakeScenes, FakeReviewer]:
    """What a scoring worker of the tests has; `calls` is a file to which each review is appended, with its process."""
    if broken:
        raise RuntimeError("no scenes here")
    return FakeScenes(), FakeReviewer(pause_s=pause_s, log=calls)


def spec(**arguments: Any) -> WorkerSpec:
    """Workers with `make_parts(**arguments)`."""
    return WorkerSpec("tests.environment.environment_fakes:make_parts", arguments, scenes_kept=16)


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


if __name__ == "__main__":
    from nemo_mtdrive.environment.server import serve

    options = {"workers": 1, "queue_items": 16384, **json.loads(os.environ.get("FAKE_SERVER", "{}"))}
    sys.exit(serve(spec(**json.loads(os.environ.get("FAKE_WORKER", "{}"))), max_turns=MAX_TURNS, host="127.0.0.1",
                   port=int(sys.argv[1]), token=sys.argv[2], **options))
