"""Scenes as the environment shows them: question, image and its key; and a first review that warms the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import first_question
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.environment.episodes import EpisodeError, OpenedScene, UnknownScene
from nemo_mtdrive.image_key import image_key, resized
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S


class SceneSource(Protocol):
    """Where scenes come from (`nemo_mtdrive.driving.sources`)."""

    def ids(self) -> Sequence[str]:
        """The ids of all scenes."""
        ...

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError when there is none of this id, SceneError when it cannot be used."""
        ...

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """[H, W, 3] the front image at the model's size."""
        ...


def load_scene(scenes: SceneSource, scene_id: str) -> Scene:
    """A scene of the source.

    Raises:
        UnknownScene: the source has no such scene.
        EpisodeError: its file cannot be used.
    """
    try:
        return scenes.load(scene_id)
    except KeyError as error:
        raise UnknownScene(f"scene {scene_id!r}: the source has no such scene") from error
    except SceneError as error:
        raise EpisodeError(f"scene {scene_id!r}: {error}") from error


def open_scene(scenes: SceneSource, scene: Scene) -> tuple[OpenedScene, NDArray[np.uint8]]:
    """The question that starts a scene's episodes, and its front image as the model's processor resizes it.

    Raises:
        EpisodeError: the scene can be scored but not driven (no history or command), or has no usable image.
    """
    if scene.history is None or scene.command is None:
        raise EpisodeError(f"scene {scene.scene_id!r}: no history or command, so it can be scored but not driven")
    try:
        picture = scenes.image(scene.scene_id)
        image = resized(picture)
    except (SceneError, ValueError) as error:
        raise EpisodeError(f"scene {scene.scene_id!r}: {error}") from error
    return OpenedScene(scene.scene_id, first_question(scene.history, scene.command), image_key(picture), scene), image


def warm_up(scenes: SceneSource, agent: Reviewer) -> None:
    """Review one trajectory of the first scene, so that kernels are compiled before the first request."""
    scene = scenes.load(scenes.ids()[0])
    times = TRAJECTORY_STEP_S * np.arange(1, TRAJECTORY_POINTS + 1)
    straight = np.zeros((1, TRAJECTORY_POINTS, 3))
    straight[0, :, 0] = times * float(scene.ego.velocity[0])
    agent.review(scene, straight)
