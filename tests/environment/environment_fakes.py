"""A small scene source and a reviewer for these tests; `python environment_fakes.py PORT TOKEN` serves them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Ego, Scene, SceneMap
from nemo_mtdrive.environment.env import DrivingEnvironment
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
    """A trajectory within 1 m of y = 0 is clean; PDMS is 1 / (1 + largest |y|). x above 900 breaks it."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    pause_s: float = 0.0

    def review(self, scene: Scene, trajectories: NDArray[np.float64]) -> list[Review]:
        """One review each."""
        assert trajectories.ndim == 3 and trajectories.shape[1:] == (8, 3)
        self.calls.append((scene.scene_id, len(trajectories)))
        time.sleep(self.pause_s)
        return [self._review(trajectory) for trajectory in trajectories]

    @staticmethod
    def _review(trajectory: NDArray[np.float64]) -> Review:
        if trajectory[0, 0] > 900:
            raise RuntimeError("the map has a hole\nhere")
        sideways = np.abs(trajectory[:, 1])
        scores = dict.fromkeys(SCORE_NAMES, 1.0) | {"PDMS": float(1 / (1 + sideways.max()))}
        violations = [{"metric": "DAC", "point": int(point), "object": None} for point in np.flatnonzero(sideways > 1)]
        return Review(scores, violations, FEEDBACK if violations else "")


def answer(sideways: float) -> str:
    """A readable answer at y = `sideways`."""
    return "[PT, " + ", ".join(f"({x}, {sideways}, 0.0)" for x in range(8)) + "]"


def make_environment() -> DrivingEnvironment:
    """The environment that the server process serves; FAKE_PAUSE_S slows its reviews, FAKE_BROKEN breaks its start."""
    if os.environ.get("FAKE_BROKEN"):
        raise RuntimeError("no scenes here")
    pause_s = float(os.environ.get("FAKE_PAUSE_S", "0"))
    return DrivingEnvironment(FakeScenes(), FakeReviewer(pause_s=pause_s), MAX_TURNS)


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

    sys.exit(serve(make_environment, host="127.0.0.1", port=int(sys.argv[1]), token=sys.argv[2]))
