"""Scene files in a folder: `NAME.json`, and the picture that its `camera.file` names beside it.

Every file is held against the rules once; `index.jsonl` remembers the outcome by size and time of change, so a folder of
thousands opens without reading them. A broken scene is reported, listed there with its reason, and skipped.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene
from nemo_mtdrive.driving.sources.lru import LRU, images_kept
from nemo_mtdrive.driving.sources.pictures import read_picture
from nemo_mtdrive.driving.sources.skipped import read_skipped

SCENES_KEPT = 512
INDEX = "index.jsonl"
MANIFEST = "generate.manifest"
"""What `generate_scenes` was asked for; not a scene."""

log = logging.getLogger(__name__)

Stamp = tuple[int, int]


class SceneFiles:
    """The scenes of a folder by file name; the id is the name without `.json`."""

    def __init__(self, folder: Path, count: int, width: int, height: int) -> None:
        found = scene_files(folder)
        if not found:
            raise SceneError(f"{folder}: no scene files (*.json) and no shards in it; generate scenes there or set another "
                             "folder")
        problems = check_folder(folder, found)
        broken = {name: problem for name, problem in problems.items() if problem}
        for problem in broken.values():
            log.warning("scene skipped: %s", problem)
        self._skipped = {**read_skipped(folder), **broken}
        names = [name for name in found if not problems[name]]
        if not names:
            raise SceneError(f"no scene can be used: {next(iter(broken.values()))}")
        self._files = {name.removesuffix(".json"): folder / name for name in names[: count or None]}
        self._size = (width, height)
        self._scenes = LRU(SCENES_KEPT, lambda name: load_scene(self._files[name]))
        self._images = LRU(images_kept(width or 1920, height or 1080), self._read_image)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Files that cannot be used, and scenes that were not written -> why."""
        return self._skipped

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
        return read_picture(file.parent / scene.camera.file, self._size)


def scene_files(folder: Path) -> list[str]:
    """The names of a folder's scene files, sorted."""
    return sorted(file.name for file in folder.glob("*.json") if not file.name.startswith("."))


def check_folder(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """What is wrong with each file, "" for nothing; reads only those that the index does not know."""
    known, problems, fresh = _read_index(folder), {}, False
    stamps: dict[str, Stamp] = {}
    for name in names:
        status = (folder / name).stat()
        stamps[name] = (status.st_size, status.st_mtime_ns)
        stamp, problem = known.get(name, ((0, 0), ""))
        if stamp != stamps[name]:
            fresh, problem = True, problem_of(folder / name)
        problems[name] = problem
    if fresh:
        _write_index(folder, stamps, problems)
    return problems


def problem_of(file: Path, pictures: bool = False) -> str:
    """Why a scene file cannot be used, with its name, or ""; `pictures`: its picture is read too."""
    try:
        scene = load_scene(file)
        if pictures and scene.camera is not None:
            read_picture(file.parent / scene.camera.file, (scene.camera.width, scene.camera.height))
    except SceneError as error:
        return str(error)
    if scene.scene_id != file.stem:
        return f"{file}: scene_id: got {scene.scene_id!r}, want the file's name {file.stem!r}"
    if scene.camera is not None and not (file.parent / scene.camera.file).is_file():
        return f"{file}: camera.file: got {scene.camera.file!r}, want a picture beside the scene file"
    return ""


def remember(folder: Path, names: Iterable[str]) -> None:
    """Note in the index that these files were just written by `save_scene`, which checks them."""
    lines = []
    for name in names:
        status = (folder / name).stat()
        lines.append(_line(name, (status.st_size, status.st_mtime_ns), ""))
    with (folder / INDEX).open("a") as file:
        file.write("".join(lines))


def _line(name: str, stamp: Stamp, problem: str) -> str:
    return json.dumps({"file": name, "size": stamp[0], "mtime_ns": stamp[1], "problem": problem}) + "\n"


def _read_index(folder: Path) -> dict[str, tuple[Stamp, str]]:
    """File -> its stamp when it was checked, and what was wrong; a line that is not whole is left out."""
    known: dict[str, tuple[Stamp, str]] = {}
    file = folder / INDEX
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
            known[entry["file"]] = ((entry["size"], entry["mtime_ns"]), entry["problem"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the last line of a writer that was killed: its file is checked again
    return known


def _write_index(folder: Path, stamps: Mapping[str, Stamp], problems: Mapping[str, str]) -> None:
    temporary = folder / f".{INDEX}.{os.getpid()}"
    try:
        temporary.write_text("".join(_line(name, stamps[name], problems[name]) for name in stamps))
        temporary.replace(folder / INDEX)
    except PermissionError:
        log.warning("%s: cannot be written, so its scenes are checked again the next time", folder / INDEX)
