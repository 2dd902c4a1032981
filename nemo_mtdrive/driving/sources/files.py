"""Scene files in a folder: `NAME.json`, and the picture that its `camera.file` names beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene
from nemo_mtdrive.driving.sources.lru import LRU, images_kept

SCENES_KEPT = 512
MANIFEST = "generate.manifest"
"""What `generate_scenes` was asked for; not a scene."""


class SceneFiles:
    """The scenes of a folder by file name; the id is the name without `.json`."""

    def __init__(self, path: str, count: int, width: int, height: int) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise SceneError(f"{path or '(empty path)'}: no such folder of scene files; set it or generate some")
        names = sorted(file.name for file in folder.glob("*.json") if not file.name.startswith("."))
        if not names:
            raise SceneError(f"{path}: no scene files (*.json) in it; generate scenes there or set another folder")
        self._files = {name.removesuffix(".json"): folder / name for name in names[: count or None]}
        self._size = (width, height)
        self._scenes = LRU(SCENES_KEPT, lambda name: load_scene(self._files[name]))
        self._images = LRU(images_kept(width or 1920, height or 1080), self._read_image)

    def ids(self) -> Sequence[str]:
        """The ids, sorted."""
        return list(self._files)

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError for an unknown id, SceneError for a broken file."""
        return self._scenes.get(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """The front picture, RGB [H, W, 3]; SceneError when it is missing, broken or of another size."""
        return self._images.get(scene_id)

    def _read_image(self, scene_id: str) -> NDArray[np.uint8]:
        scene, file = self.load(scene_id), self._files[scene_id]
        if scene.camera is None:
            raise SceneError(f"{file}: the scene has no camera, so it has no picture; it can only be scored")
        picture = read_picture(file.parent / scene.camera.file)
        width, height = self._size
        if (width or height) and picture.shape[:2] != (height, width):
            raise SceneError(f"{file}: its picture is {picture.shape[1]} x {picture.shape[0]}, wanted {width} x "
                             f"{height}; set the image size to it or write the scenes anew")
        return picture


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture file as RGB [H, W, 3]; SceneError when it is missing or not a picture."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if picture is None:
        raise SceneError(f"{path}: {'not a picture' if path.is_file() else 'no such picture'}; write the scene anew")
    return np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture as PNG, whole or not at all; equal pictures give equal bytes."""
    done, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise SceneError(f"{path}: a picture of shape {picture.shape} cannot be written as PNG")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data.tobytes())
    temporary.replace(path)
