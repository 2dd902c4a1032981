"""A folder of SFT data while it is made and when it is done.

    curation.json      what was asked for, set by set: the same command goes on, another one is refused
    .parts/            chunks of scenes, written whole; gone when their set is done
    single_turn.jsonl  a set that is done, in the order of the scenes; multi_turn.jsonl, understanding.jsonl, ...
    images/            front images by content
    splits.json        training and held-out scenes, where some are held out
    dataset_info.json, stats.json

Nothing is lost when a command is killed, and nothing is made twice: a chunk is there whole or not at all, and holds the
same bytes whenever it is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.data.lines import Line
from nemo_mtdrive.data.sampler import split_ids
from nemo_mtdrive.whole_file import write_whole

REQUESTS = "curation.json"
SPLITS = "splits.json"
JUDGED = "judged"
"""The set of an RL set, which is alone in its folder: readers of SFT data take every *.jsonl."""
_PARTS = ".parts"
_MAY_MOVE = ("scenes",)
"""Parts of a request that may differ when it is made again: folders are moved, their scenes are told by their ids."""



@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, so that no other command makes data there meanwhile; the lock dies with the process.

    Raises:
        ConfigError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another `nemo-mtdrive curate` works there; wait for it or set another --out"
                              ) from error
        yield


def digest_of(scene_ids: Sequence[str]) -> str:
    """Tells lists of scenes apart."""
    return hashlib.blake2b("\n".join(scene_ids).encode(), digest_size=16).hexdigest()


def read_requests(folder: Path) -> dict[str, dict[str, Any]]:
    """What was asked for in a folder, by set; empty where nothing was."""
    path = folder / REQUESTS
    if not path.is_file():
        return {}
    try:
        requests = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error}); remove it and its folder's data") from error
    if not isinstance(requests, dict) or not all(isinstance(request, dict) for request in requests.values()):
        raise ConfigError(f"{path}: not what `nemo-mtdrive curate` wrote; remove it and its folder's data")
    return requests


class SetOfLines:
    """One set of a folder: lines of one kind, made in chunks."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path = folder / f"{name}.jsonl"

    def claim(self, request: Mapping[str, Any]) -> None:
        """Say what the set is made of, before the first chunk; nothing is written where it is done.

        Raises:
            ConfigError: the folder holds this set of another request.
        """
        requests = read_requests(self.folder)
        if any((name == JUDGED) != (self.name == JUDGED) for name in requests):
            raise ConfigError(f"{self.folder}: it holds {', '.join(requests)}; SFT data and RL sets do not share a folder, "
                              "set another --out")
        before = requests.get(self.name)
        wanted = json.loads(json.dumps(request))
        if before is not None and (self.done or any((self.folder / _PARTS).glob(f"{self.name}-*.jsonl"))):
            for key in sorted((before.keys() | wanted.keys()) - set(_MAY_MOVE)):
                if before.get(key) != wanted.get(key):
                    raise ConfigError(f"{self.folder}: its {self.name} was made with {key}={before.get(key)}, got "
                                      f"{wanted.get(key)}; set another --out, or remove the folder")
        if self.done:
            return
        (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / REQUESTS, json.dumps(requests | {self.name: wanted}, indent=1) + "\n")

    @property
    def done(self) -> bool:
        """Whether all chunks are made and joined."""
        return self.path.is_file()

    def part(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / _PARTS / f"{self.name}-{number:05d}.jsonl"

    def write_part(self, number: int, lines: Sequence[Line]) -> None:
        """Write a chunk whole or not at all."""
        write_whole(self.part(number), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def join(self, count: int) -> None:
        """Make the set's file of its chunks, in order, and drop them."""
        if not self.done:
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            with temporary.open("wb") as out:
                for number in range(count):
                    out.write(self.part(number).read_bytes())
            temporary.replace(self.path)
        for path in (self.folder / _PARTS).glob(f"{self.name}-*.jsonl"):
            path.unlink()


def tidy(folder: Path) -> None:
    """Drop what killed commands left: the folder of parts where it is empty, and half-written files."""
    for path in [*folder.glob(".*.jsonl.*"), *folder.glob("images/.*.png"), *folder.glob(f"{_PARTS}/.*")]:
        path.unlink(missing_ok=True)
    parts = folder / _PARTS
    if parts.is_dir() and not any(parts.iterdir()):
        parts.rmdir()


def read_lines(folder: Path) -> Iterator[tuple[Path, int, str]]:
    """(file, number, text) of every line of every set that is done, sets by name."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as file:
            for number, text in enumerate(file, start=1):
                yield path, number, text


def read_split(folder: Path) -> tuple[list[str], list[str]] | None:
    """Training and held-out scenes of a folder's data, from its splits.json or the run's around it; None without one.

    Raises:
        ConfigError: the file is no split.
    """
    path = next((place / SPLITS for place in (folder, folder.parent) if (place / SPLITS).is_file()), None)
    if path is None:
        return None
    try:
        split = json.loads(path.read_text())
        return list(split["train"]), list(split["held_out"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a split of scenes ({type(error).__name__}: {error}); remove it") from error


def keep_split(folder: Path, train: Sequence[str], held_out: Sequence[str]) -> None:
    """Write which scenes are learned from and which are not; a folder has one split.

    Raises:
        ConfigError: it has another one.
    """
    kept = read_split(folder)
    if kept is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / SPLITS, json.dumps({"train": list(train), "held_out": list(held_out)}))
    elif kept != (list(train), list(held_out)):
        raise ConfigError(f"{folder}: its splits.json is of other scenes; set the same --scenes, --held-out and --seed, or "
                          "another --out")


def training_ids(folder: Path, scene_ids: Sequence[str], held_out: int | None, seed: int) -> list[str]:
    """The scenes to learn from; the folder keeps the split.

    Args:
        folder: of the data.
        scene_ids: all there are.
        held_out: how many to keep out, in whole logs; None takes the folder's split, or all where it has none.
        seed: of the split.

    Raises:
        ConfigError: nothing is left, or the folder's split is another one.
    """
    if held_out is None:
        kept = read_split(folder)
        if kept is None:
            return list(scene_ids)
        there = set(scene_ids)
        keep_split(folder, [name for name in kept[0] if name in there], kept[1])
        return kept[0]
    try:
        train, kept_out = split_ids(scene_ids, held_out, seed)
    except ValueError as error:
        raise ConfigError(str(error).replace("scenes.held_out=", "--held-out ")) from error
    keep_split(folder, train, kept_out)
    return train
