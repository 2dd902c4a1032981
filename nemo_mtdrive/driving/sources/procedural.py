"""Generated scenes: the id is the seed, nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import front_camera, render
from nemo_mtdrive.driving.generator import generate
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.driving.sources.lru import LRU, images_kept

SCENES_KEPT = 512


class ProceduralScenes:
    """`count` generated scenes, of the seeds from `seed` on; ids `p{seed:07d}`."""

    def __init__(self, count: int, seed: int, kinds: Mapping[str, float], width: int, height: int, *,
                 difficulty: float = 0.5, commands: Mapping[str, float] | None = None) -> None:
        if count < 1 or seed < 0 or width < 1 or height < 1:
            raise SceneError(f"procedural scenes: got count={count} seed={seed} size={width}x{height}; set count and "
                             "the size to 1 or more, seed to 0 or more")
        self._seeds = {scene_id(number): number for number in range(seed, seed + count)}
        self._kinds, self._difficulty, self._commands = dict(kinds), difficulty, commands
        self._size = (width, height)
        self._scenes = LRU(SCENES_KEPT, self._generate)
        self._images = LRU(images_kept(width, height), lambda name: render(self.load(name), width, height))

    @property
    def skipped(self) -> Mapping[str, str]:
        """Nothing: what the generator makes is whole."""
        return {}

    def ids(self) -> Sequence[str]:
        """The ids, by rising seed."""
        return list(self._seeds)

    def load(self, scene_id: str) -> Scene:
        """The scene, generated now or a moment ago; KeyError for another id."""
        return self._scenes.get(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """The front picture, RGB [H, W, 3]."""
        return self._images.get(scene_id)

    def _generate(self, scene_id: str) -> Scene:
        return with_camera(generate(self._seeds[scene_id], self._kinds, self._difficulty, self._commands), *self._size)


def scene_id(seed: int) -> str:
    """The id of the generated scene of a seed."""
    return f"p{seed:07d}"


def with_camera(scene: Scene, width: int, height: int) -> Scene:
    """The scene with the record of its front camera; the picture's file is named after the scene."""
    return replace(scene, camera=front_camera(width, height, f"{scene.scene_id}.png"))
