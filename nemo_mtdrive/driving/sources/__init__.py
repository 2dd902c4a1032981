"""Where scenes come from, behind one door: `open_scenes(ADDRESS)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.generator import MIXTURE, split_seed
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.driving.sources.address import Address, parse_address
from nemo_mtdrive.driving.sources.av2 import AV2Scenes
from nemo_mtdrive.driving.sources.files import SceneFiles
from nemo_mtdrive.driving.sources.navsim import NavsimScenes
from nemo_mtdrive.driving.sources.procedural import ProceduralScenes
from nemo_mtdrive.driving.sources.py123d import Py123dScenes
from nemo_mtdrive.driving.sources.shards import SHARDS, SceneShards

__all__ = ["SOURCES", "Address", "SceneSource", "open_scenes", "parse_address"]

DRAWN_SIZE = (1932, 1092)
"""Of pictures that are drawn on demand, where no size is asked for [px]."""


class SceneSource(Protocol):
    """A fixed list of scenes, each loaded when it is asked for; safe for threads."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """What of the source is not among its scenes because it is broken -> why."""
        ...

    def ids(self) -> Sequence[str]:
        """The ids of all scenes, in a fixed order."""
        ...

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError when there is none of this id, SceneError when it turns out to be broken."""
        ...

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """The front picture, RGB [H, W, 3]; KeyError when there is no such scene, SceneError when it has none."""
        ...


def open_scenes(address: str | Address, width: int = 0, height: int = 0) -> SceneSource:
    """Open a source of scenes.

    Addresses (docs/scenes.md has every parameter)::

        procedural://?count=2000&seed=7      generated on demand; split=train|held_out|test, kinds=NAME:WEIGHT,...
        files://DIR                          scene files, or a set of shards
        av2://DIR                            Argoverse 2 sensor logs
        navsim://[OPENSCENE_DATA_ROOT]?split=mini    through the navsim package
        py123d://[PY123D_DATA_ROOT]?split=NAME       through the py123d package

    Args:
        address: the line, or one that is parsed.
        width, height: of the pictures [px]; 0, 0 takes the address' `width` and `height`, then the size that pictures
            were stored with, 1932 x 1092 for those that are drawn.

    Raises:
        SceneError: an unknown scheme or parameter, a missing or empty folder, a bad number, a package that is not
            installed; one line.
    """
    at = parse_address(address) if isinstance(address, str) else address
    if at.scheme not in SOURCES:
        raise SceneError(f"{at}: unknown kind of source {at.scheme!r}; set one of "
                         f"{', '.join(f'{name}://' for name in SOURCES)}")
    if not width and not height:
        width, height = at.number("width", 0), at.number("height", 0)
    if bool(width) != bool(height):
        raise SceneError(f"{at}: got pictures of {width} x {height}; set both sides or none")
    return SOURCES[at.scheme](at, width, height)


def _procedural(at: Address, width: int, height: int) -> SceneSource:
    at.only("count", "seed", "split", "kinds", "commands", "difficulty", "width", "height")
    if at.path:
        raise SceneError(f"{at}: generated scenes have no folder; set procedural://?count=N&seed=S")
    drawn = (width, height) if width else DRAWN_SIZE
    count, seed = at.number("count", 0), at.number("seed", 7)
    if split := at.parameters.get("split"):
        first = at.number("seed", 0)
        seed = split_seed(split, first)
        split_seed(split, first + max(count - 1, 0))  # the last one, too, belongs to this split
    return ProceduralScenes(count, seed, at.weights("kinds") or MIXTURE, *drawn,
                            difficulty=at.share("difficulty", 0.5), commands=at.weights("commands") or None)


def _files(at: Address, width: int, height: int) -> SceneSource:
    at.only("count", "width", "height")
    folder = Path(at.path)
    if not at.path or not folder.is_dir():
        raise SceneError(f"{at.path or '(empty path)'}: no such folder of scene files; set it or generate some")
    kind = SceneShards if next(folder.glob(SHARDS), None) is not None else SceneFiles
    return kind(folder, at.number("count", 0), width, height)


def _av2(at: Address, width: int, height: int) -> SceneSource:
    at.only("count", "width", "height")
    return AV2Scenes(at.path, at.number("count", 0), *((width, height) if width else DRAWN_SIZE))


def _navsim(at: Address, width: int, height: int) -> SceneSource:
    at.only("split", "count", "tokens", "logs", "width", "height")
    return NavsimScenes(at.path, at.parameters.get("split", "mini"), at.number("count", 0), width, height,
                        tokens=_names(at, "tokens"), logs=_names(at, "logs"))


def _names(at: Address, parameter: str) -> list[str] | None:
    """The names in the file that a parameter names, one a line."""
    if parameter not in at.parameters:
        return None
    file = Path(at.parameters[parameter])
    if not file.is_file():
        raise SceneError(f"{at}: {parameter}={file}: no such file; set it to a file with a name a line")
    return file.read_text().split()


def _py123d(at: Address, width: int, height: int) -> SceneSource:
    at.only("split", "count", "width", "height")
    return Py123dScenes(at.path, at.parameters.get("split"), at.number("count", 0),
                        *((width, height) if width else DRAWN_SIZE))


SOURCES: dict[str, Callable[[Address, int, int], SceneSource]] = {
    "procedural": _procedural, "files": _files, "av2": _av2, "navsim": _navsim,
    "py123d": _py123d}
