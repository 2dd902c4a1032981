"""`nemo-mtdrive score` and `import-caches`: one JSON line for each case of each scene; NAVSIM's caches made safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import Make, prepare
from nemo_mtdrive.pdm.imported import SUFFIX, ImportedCaches, load_cache, save_cache
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


def find_scenes(paths: Sequence[str]) -> list[Path]:
    """The scene files and imported caches that the paths name: files as they are, folders with all of theirs, sorted.

    Raises:
        SceneError: a folder with none.
        FileNotFoundError: no such file or folder.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            path.stat()
            found.append(path)
            continue
        inside = sorted(file for suffix in (".json", SUFFIX) for file in path.glob(f"*{suffix}")
                        if not file.name.startswith("."))
        if not inside:
            raise SceneError(f"{path}: no scene files (*.json) or imported caches (*{SUFFIX}) in it")
        found += inside
    return found


def score(files: Sequence[Path], perception: str, trajectory: str | None, caches: Path | None, refused: Refused,
          advance: Advance) -> Iterator[dict[str, Any]]:
    """Score scene files and imported caches.

    Args:
        files: from `find_scenes`.
        perception: oracle or kinematic.
        trajectory: a trajectory file that is scored in each scene in place of the scene's own cases.
        caches: a folder of imported caches: scenes that have one are scored on it.
        refused: called for a file that is not a scene or cannot be scored; the others go on.
        advance: called with 1 after each file.

    Yields:
        {"scene_id", "case", then `COLUMNS`}, file by file as they are read.

    Raises:
        SceneError: `trajectory` is not one, or no caches are in that folder.
        OSError: `trajectory` cannot be read.
    """
    given = None if trajectory is None else (Path(trajectory).stem, read_trajectory(trajectory))
    make = prepare if caches is None else ImportedCaches(caches).prepare
    for file in files:
        try:
            yield from _score_file(file, perception, given, make)
        except (SceneError, OSError) as error:
            refused(str(error))
        advance(1)


def _score_file(file: Path, perception: str, given: tuple[str, Array] | None, make: Make) -> list[dict[str, Any]]:
    if file.suffix == SUFFIX:
        cache = load_cache(file)
        scene: Scene = cache.scene()
        agent = PDMAgent(perception, 1, cache.prepared)
    else:
        scene, agent = load_scene(file), PDMAgent(perception, 1, make)
    cases = [given] if given is not None else [(case.name, case.trajectory) for case in scene.cases]
    if not cases:
        raise SceneError(f"{file}: the scene has no cases, set --trajectory FILE")
    try:
        reviews = agent.review(scene, np.stack([plan for _, plan in cases]))
    except SceneError:
        raise
    except ValueError as error:
        raise SceneError(f"{file}: {error}") from error
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

