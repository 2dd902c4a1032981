"""Where scenes come from: generated on demand, a folder of scene files, or Argoverse 2 logs; one protocol for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.generator import MIXTURE
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.driving.sources.av2 import AV2Scenes
from nemo_mtdrive.driving.sources.files import SceneFiles
from nemo_mtdrive.driving.sources.procedural import ProceduralScenes

SOURCES = ("procedural", "files", "av2")


class SceneSource(Protocol):
    """A fixed list of scenes, each loaded when it is asked for."""

    def ids(self) -> Sequence[str]:
        """The ids of all scenes, in a fixed order."""
        ...

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError when there is none of this id, SceneError when its file is broken."""
        ...

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """The front picture, RGB [H, W, 3]; KeyError when there is no such scene."""
        ...


def open_scenes(source: str, path: str, count: int, seed: int, width: int, height: int,
                kinds: Mapping[str, float] | None = None) -> SceneSource:
    """Open a source of scenes.

    Args:
        source: procedural, files or av2.
        path: the folder of scene files or of AV2 logs; procedural has none.
        count: that many scenes at most; 0 takes all there are (procedural needs a number).
        seed: procedural: the seed of the first scene, the others follow; files and av2 keep their own order.
        width, height: of the pictures [px]; files accept 0, 0 for the size they were written with.
        kinds: procedural: the mixture of kinds; None or empty for the generator's `MIXTURE`.

    Raises:
        SceneError: an unknown source, a missing or empty folder, a bad number; one line.
    """
    if count < 0:
        raise SceneError(f"count={count}: set it to 0 (all) or more")
    if source == "procedural":
        return ProceduralScenes(count, seed, kinds or MIXTURE, width, height)
    if source == "files":
        return SceneFiles(path, count, width, height)
    if source == "av2":
        return AV2Scenes(path, count, width, height)
    raise SceneError(f"source={source!r}: set it to one of {', '.join(SOURCES)}")
