"""`nemo-mtdrive score` and `import-caches`: one JSON line for each case of each scene; NAVSIM's caches made safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene
from nemo_mtdrive.driving.sources import open_scenes
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import Make, prepare
from nemo_mtdrive.pdm.imported import SUFFIX, ImportedCache, ImportedCaches, load_cache, save_cache
from nemo_mtdrive.pdm.navsim_cache import read_metric_cache
from nemo_mtdrive.pdm.simulate import check_trajectories

COLUMNS = ("NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS")
"""Scores of a line, in its order, after scene_id and case."""

Array = NDArray[np.float64]
Refused = Callable[[str], None]
"""Takes the line that says why a file was left out."""
Advance = Callable[[int], None]


def read_trajectory(path: str) -> Array:
    """A trajectory file: JSON, 8 x [x, y, heading] in the ego frame, 0.5 s apart.

    Raises:
        SceneError: not JSON, or not 8 finite points; the message starts with the file's name.
        OSError: the file cannot be read.
    """
    try:
        return check_trajectories(np.asarray([json.loads(Path(path).read_text())], dtype=np.float64))[0]
    except (ValueError, TypeError) as error:
        raise SceneError(f"{path}: want JSON of 8 x [x, y, heading]; {error}") from error


@dataclass(frozen=True)
class Scored:
    """Something to score, read when its turn comes."""

    name: str
    """The file, or the id in its source."""
    load: Callable[[], Scene | ImportedCache]


def find_scenes(paths: Sequence[str]) -> list[Scored]:
    """What the paths name: scene files and imported caches as they are, all of a folder in order, all of an address.

    Raises:
        SceneError: a folder with none, or no such source.
        FileNotFoundError: no such file or folder.
    """
    found: list[Scored] = []
    for path in paths:
        if "://" in path or any(Path(path).glob("*.arrow")):
            source = open_scenes(path if "://" in path else f"files://{path}", 0, 0)
            found += [Scored(scene_id, partial(source.load, scene_id)) for scene_id in source.ids()]
            found += [Scored(name, partial(_broken, problem)) for name, problem in source.skipped.items()]
        elif Path(path).is_dir():
            inside = sorted(file for suffix in (".json", SUFFIX) for file in Path(path).glob(f"*{suffix}")
                            if not file.name.startswith("."))
            if not inside:
                raise SceneError(f"{path}: no scenes (*.json, *.arrow) or imported caches (*{SUFFIX}) in it")
            found += map(_file, inside)
        else:
            Path(path).stat()
            found.append(_file(Path(path)))
    return found


def _broken(problem: str) -> Scene:
    raise SceneError(problem)


def _file(path: Path) -> Scored:
    return Scored(str(path), partial(load_cache if path.suffix == SUFFIX else load_scene, path))


def score(wanted: Sequence[Scored], perception: str, trajectory: str | None, caches: Path | None, refused: Refused,
          advance: Advance) -> Iterator[dict[str, Any]]:
    """Score scenes and imported caches.

    Args:
        wanted: from `find_scenes`.
        perception: oracle or kinematic.
        trajectory: a trajectory file that is scored in each scene in place of the scene's own cases.
        caches: a folder of imported caches: scenes that have one are scored on it.
        refused: called for what is not a scene or cannot be scored; the others go on.
        advance: called with 1 after each.

    Yields:
        {"scene_id", "case", then `COLUMNS`}, scene by scene as they are read.

    Raises:
        SceneError: `trajectory` is not one, or no caches are in that folder.
        OSError: `trajectory` cannot be read.
    """
    given = None if trajectory is None else (Path(trajectory).stem, read_trajectory(trajectory))
    make = prepare if caches is None else ImportedCaches(caches).prepare
    for item in wanted:
        try:
            yield from _score(item, perception, given, make)
        except (SceneError, OSError) as error:
            refused(str(error))
        advance(1)


def _score(item: Scored, perception: str, given: tuple[str, Array] | None, make: Make) -> list[dict[str, Any]]:
    loaded = item.load()
    scene = loaded.scene() if isinstance(loaded, ImportedCache) else loaded
    make = loaded.prepared if isinstance(loaded, ImportedCache) else make
    cases = [given] if given is not None else [(case.name, case.trajectory) for case in scene.cases]
    if not cases:
        raise SceneError(f"{item.name}: the scene has no cases, set --trajectory FILE")
    try:
        reviews = PDMAgent(perception, 1, make).review(scene, np.stack([plan for _, plan in cases]))
    except SceneError:
        raise
    except ValueError as error:
        raise SceneError(f"{item.name}: {error}") from error
    return [{"scene_id": scene.scene_id, "case": name} | {column: review.scores[column] for column in COLUMNS}
            for (name, _), review in zip(cases, reviews, strict=True)]


def import_caches(files: Sequence[Path], out: Path, refused: Refused, advance: Advance) -> int:
    """Convert NAVSIM's metric caches into `out`, one .npz a scene; what is there already is kept. Returns how many are.

    Args:
        files: from `navsim_cache.find_metric_caches`.
        out: the folder, made if need be.
        refused: called for a file that is no whole cache of NAVSIM v1.1; the others go on.
        advance: called with 1 after each file.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    for file in files:
        target = out / f"{file.resolve().parent.name}{SUFFIX}"
        try:
            if not target.is_file():
                cache = read_metric_cache(file)
                save_cache(cache, out / f"{cache.scene_id}{SUFFIX}")
            done += 1
        except (SceneError, OSError) as error:
            refused(str(error))
        advance(1)
    return done

