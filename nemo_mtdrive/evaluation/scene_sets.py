"""Which scenes are evaluated: an address, a folder of scenes, or what a run held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_mtdrive.config import ConfigError, read_config
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.prepare import read_splits, scene_arguments


@dataclass(frozen=True)
class SceneSet:
    """Scenes in a fixed order, and how a process opens them."""

    address: str
    """As it was given."""
    arguments: SceneArguments
    ids: Sequence[str]

    @property
    def digest(self) -> str:
        """Of the ids in their order."""
        return hashlib.blake2b("\n".join(self.ids).encode(), digest_size=8).hexdigest()

    def batches(self, size: int) -> dict[int, list[tuple[int, str]]]:
        """Number -> (place, id) of `size` scenes at a time."""
        places = list(enumerate(self.ids))
        return {number: places[first:first + size] for number, first in enumerate(range(0, len(places), size))}


def open_set(address: str, count: int, width: int, height: int) -> SceneSet:
    """Find the scenes.

    Args:
        address: SCHEME://PATH?name=value, a folder of scene files or shards, or the folder of a run (its held-out split).
        count: only so many, the first ones; 0 takes all.
        width, height: of the pictures [px]; 0, 0 takes the source's own, or the run's.

    Raises:
        SceneError: no such source. ConfigError: fewer scenes than asked for.
    """
    run = find_run(Path(address)) if "://" not in address else None
    if run is not None:
        arguments = scene_arguments(read_config(run / "config.yaml"), run)
        ids: Sequence[str] = read_splits(run).held_out
    else:
        arguments = SceneArguments("", "", 0, 0, width, height, address if "://" in address else f"files://{address}")
        ids = list(arguments.open().ids())
    if count > len(ids):
        raise ConfigError(f"--count {count}: {address} has {len(ids)} scenes; set it to {len(ids)} or less")
    if not ids:
        raise ConfigError(f"--scenes {address}: it has no scenes")
    return SceneSet(address, arguments, list(ids[:count] if count else ids))


def find_run(directory: Path) -> Path | None:
    """The run that a folder is, or that a model directory lies in as one of its checkpoints; None where there is none."""
    for folder in _and_above(directory.resolve()):
        if (folder / "splits.json").is_file() and (folder / "config.yaml").is_file():
            return folder
    return None


def _and_above(directory: Path) -> Iterator[Path]:
    yield directory
    if directory.parent.name == "checkpoints":
        yield directory.parent.parent
