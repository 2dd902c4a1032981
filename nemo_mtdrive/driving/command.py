"""What `nemo-mtdrive scenes` does: generate, import, validate and show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.generator import COMMAND_SHARES, MIXTURE
from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene
from nemo_mtdrive.driving.sources import Address, open_scenes
from nemo_mtdrive.driving.sources.files import problem_of, scene_files
from nemo_mtdrive.driving.sources.pictures import read_picture, write_picture
from nemo_mtdrive.driving.sources.shards import SceneShards
from nemo_mtdrive.driving.sources.skipped import read_skipped
from nemo_mtdrive.driving.writing import Layout, is_set_of_shards, write_scenes


def generate_scenes(count: int, seed: int, out: Path, width: int, height: int, kinds: Mapping[str, float], workers: int,
                    advance: Callable[[int], None], *, difficulty: float = 0.5,
                    commands: Mapping[str, float] | None = None) -> dict[str, str]:
    """Write the scenes of the seeds `seed` .. `seed + count - 1` into `out`; see `write_scenes`.

    Args:
        count, seed: how many and which.
        out: the folder, made if need be.
        width, height: of the pictures [px].
        kinds: the generator's mixture; empty for its own.
        workers: processes; 1 works in this one.
        advance: called with the number of scenes just done or found.
        difficulty: 0 to 1.
        commands: shares of the commands; None or empty for the generator's own.

    Returns:
        Scenes that were left out -> why.

    Raises:
        SceneError: a bad number, or the folder holds scenes of other kinds or another size.
    """
    if count < 1 or seed < 0:
        raise SceneError(f"generate: got count={count} seed={seed}; set count to 1 or more and seed to 0 or more")
    parameters = {"count": str(count), "seed": str(seed), "difficulty": f"{difficulty:g}", "kinds": _line(kinds or MIXTURE),
                  "commands": _line(commands or COMMAND_SHARES)}
    layout = Layout("json", width=width, height=height)
    return write_scenes(Address("procedural", "", parameters), out, layout, workers, advance)


def _line(weights: Mapping[str, float]) -> str:
    return ",".join(f"{name}:{weight:g}" for name, weight in weights.items())


class Checked(NamedTuple):
    """What `validate_scenes` found."""

    scenes: int
    problems: dict[str, str]


def validate_scenes(paths: Sequence[Path]) -> Checked:
    """Hold scene files, folders of them and sets of shards against every rule, reading each scene and picture.

    Args:
        paths: files or folders.

    Returns:
        How many scenes there are, and file or scene -> what is wrong with it.

    Raises:
        SceneError: a path is neither a file nor a folder with scenes.
    """
    count, problems = 0, {}
    for path in paths:
        for name, problem in _checks(path):
            count += 1
            if problem:
                problems[name] = problem
    return Checked(count, problems)


def _checks(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir() and is_set_of_shards(path):
        source = SceneShards(path, 0, 0, 0)
        yield from source.skipped.items()
        yield from ((name, _complaint(source.recheck, name)) for name in source.ids())
    elif path.is_dir():
        for name in scene_files(path):
            yield str(path / name), problem_of(path / name, pictures=True)
        yield from read_skipped(path).items()
    elif path.is_file():
        yield str(path), problem_of(path, pictures=True)
    else:
        raise SceneError(f"{path}: no such scene file or folder")


def _complaint(check: Callable[[str], None], name: str) -> str:
    try:
        check(name)
    except SceneError as error:
        return str(error)
    return ""


def show_scene(place: str, scene_id: str | None, out_png: Path) -> None:
    """Draw a scene as PNG: the three cameras, the view from above, its front picture (drawn anew if there is none), facts.

    Args:
        place: a scene file, or with `scene_id` a folder or the address of a source.
        scene_id: which of its scenes.
        out_png: the picture.

    Raises:
        SceneError: the file is not a scene, or the source has no scene of this id.
    """
    scene, stored = load_one(place, scene_id)
    # fonts and matplotlib are wanted here alone
    from nemo_mtdrive.driving.sheet import scene_sheet

    write_picture(out_png, scene_sheet(scene, stored))


def load_one(place: str, scene_id: str | None) -> tuple[Scene, NDArray[np.uint8] | None]:
    """A scene with its front picture [H, W, 3], None where it has none; see `show_scene` for arguments and errors."""
    if scene_id is None:
        file = Path(place)
        if file.is_dir() or "://" in place:
            raise SceneError(f"{place}: holds many scenes; set --id to one of them")
        scene = load_scene(file)
        if scene.camera is not None and (file.parent / scene.camera.file).is_file():
            return scene, read_picture(file.parent / scene.camera.file)
        return scene, None
    source = open_scenes(place if "://" in place else Address("files", place))
    try:
        scene = source.load(scene_id)
    except KeyError as error:
        raise SceneError(f"{place}: no scene {scene_id!r}; its first is {source.ids()[0]!r}") from error
    return scene, None if scene.camera is None else source.image(scene_id)
