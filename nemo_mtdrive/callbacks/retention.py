"""Checkpoints on disk: whole-or-nothing directories, what they are called by, and which ones stay.

    checkpoints/rl-000025/...                                weights and optimizer, by the passed-in function, all ranks
    checkpoints/rl-000025/trainer_state.rank00000.json       step, sampler, RNG, version: each rank's own
    checkpoints/rl-000025/complete.json                      written last: without it the directory is no checkpoint
    checkpoints/latest -> rl-000025
    checkpoints/best -> rl-000020
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_mtdrive.models.whole_directory import sync, sync_tree

FORMAT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MARKER = "complete.json"
_LINKS = ("latest", "best")


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, not whole, or of another format."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, as one rank sees it."""

    path: Path
    """What the weights function was given."""
    sequence: int
    """Counts up with each checkpoint of the run."""
    metrics: Mapping[str, float]
    world_size: int
    """Ranks that saved it."""
    rank: int
    ranks: int
    """This rank, and how many there are."""

    @property
    def name(self) -> str:
        """As given to `save`."""
        return self.path.name

    @property
    def state(self) -> dict[str, Any]:
        """What this rank gave to `save`; where another number of ranks did, what rank 0 gave.

        Raises:
            CheckpointError: it is gone.
        """
        path = _state_path(self.path, self.rank if self.same_ranks else 0)
        if not path.is_file():
            raise CheckpointError(f"{path}: gone, though the checkpoint is marked as whole; resume from another one")
        return dict(json.loads(path.read_text()))

    @property
    def same_ranks(self) -> bool:
        """Whether as many ranks saved it as there are now, so that each finds its own state."""
        return self.world_size == self.ranks


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        root: the folder, made when absent.
        keep: how many of the newest stay.
        metric: name of the metric whose best checkpoint stays as well; "" for none.
        higher_is_better: what best means.
        rank: of this process.
        world_size: number of ranks that save together.
        barrier: waits for all ranks; `lambda: None` for one.
    """

    def __init__(
        self, root: Path, *, keep: int, metric: str, higher_is_better: bool, rank: int, world_size: int,
        barrier: Callable[[], None],
    ) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep={keep}: set it to 1 or more")
        self.root = root
        self._keep = keep
        self._metric = metric
        self._sign = 1.0 if higher_is_better else -1.0
        self._rank = rank
        self._world_size = world_size
        self._barrier = barrier

    def save(
        self, name: str, write_weights: Callable[[Path], None], state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a checkpoint and remove those that need not stay. Collective: all ranks call it.

        Args:
            name: of its folder, such as rl-000025; one of that name that is there is replaced.
            write_weights: writes weights and optimizer into the folder that it is given; called on all ranks.
            state: this rank's, plain JSON data.
            metrics: of this moment, on rank 0; the retention's metric is looked up in them.

        Returns:
            The checkpoint's folder.

        Raises:
            ValueError: not a folder name.
            TypeError: the state is not JSON data.
        """
        if not _NAME.fullmatch(name) or name in _LINKS:
            raise ValueError(f"checkpoint name {name!r}: use letters, digits, dots, dashes; not latest or best")
        text = json.dumps(dict(state))  # before anything is written
        final, beside = self.root / name, self.root / f".{name}"
        if self._rank == 0:
            for left in self.root.glob(".*"):  # by a save that did not end
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
            beside.mkdir(parents=True)
        self._barrier()
        write_weights(beside)
        _state_path(beside, self._rank).write_text(text)
        self._barrier()
        if self._rank == 0:
            self._finish(beside, final, metrics or {})
        self._barrier()
        return final

    def all(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first."""
        found = []
        for marker in self.root.glob(f"*/{_MARKER}"):
            folder = marker.parent
            if not folder.is_symlink() and not folder.name.startswith("."):
                found.append(open_checkpoint(folder, self._rank, self._world_size))
        return sorted(found, key=lambda each: each.sequence)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        return max(self.all(), key=lambda each: each.sequence, default=None)

    def best(self) -> Checkpoint | None:
        """The one with the best metric, the newest of equals; None when no checkpoint has it."""
        scored = [(score, each.sequence, each) for each in self.all() if (score := self._score(each)) is not None]
        return max(scored, key=lambda entry: entry[:2])[2] if scored else None

    def clear(self) -> None:
        """Remove all: a run that starts anew in the same folder must not resume from the old one. Collective."""
        if self._rank == 0:
            shutil.rmtree(self.root, ignore_errors=True)
        self._barrier()

    def _score(self, checkpoint: Checkpoint) -> float | None:
        value = checkpoint.metrics.get(self._metric)
        return None if value is None or not math.isfinite(value) else self._sign * value

    def _finish(self, beside: Path, final: Path, metrics: Mapping[str, float]) -> None:
        newest = self.latest()
        marker = {
            "format": FORMAT_VERSION, "sequence": newest.sequence + 1 if newest else 1,
            "metrics": {name: float(value) for name, value in metrics.items()}, "world_size": self._world_size,
        }
        sync_tree(beside)
        (beside / _MARKER).write_text(json.dumps(marker, indent=1))
        sync(beside / _MARKER)
        sync(beside)
        if final.exists():  # the same step, done again
            _remove(final)
        beside.rename(final)
        sync(self.root)
        self._remove_old()

    def _remove_old(self) -> None:
        whole, best = self.all(), self.best()
        _point(self.root / "latest", whole[-1].path)
        if best is not None:
            _point(self.root / "best", best.path)
        for checkpoint in whole[: -self._keep]:
            if best is None or checkpoint.path != best.path:
                _remove(checkpoint.path)


def open_checkpoint(path: Path, rank: int, ranks: int) -> Checkpoint:
    """Read a checkpoint's marker as rank `rank` of `ranks`; `path` may be the `latest` or `best` link.

    Raises:
        CheckpointError: not whole, or of another format.
    """
    marker = path / _MARKER
    if not marker.is_file():
        raise CheckpointError(f"{path}: no {_MARKER} there, so it is no whole checkpoint; set it to another one")
    try:
        content = json.loads(marker.read_text())
        if content["format"] != FORMAT_VERSION:
            raise CheckpointError(f"{path}: checkpoint format {content['format']}, this program reads {FORMAT_VERSION}")
        metrics = {str(name): float(value) for name, value in content["metrics"].items()}
        return Checkpoint(path.resolve(), int(content["sequence"]), metrics, int(content["world_size"]), rank, ranks)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{marker}: not a checkpoint marker ({error})") from error


def _state_path(folder: Path, rank: int) -> Path:
    return folder / f"trainer_state.rank{rank:05d}.json"


def _remove(folder: Path) -> None:
    (folder / _MARKER).unlink()  # first: a half-removed folder is no checkpoint
    shutil.rmtree(folder)


def _point(link: Path, target: Path) -> None:
    """Make `link` point at a sibling, in one step."""
    beside = link.with_name(f".{link.name}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    beside.replace(link)
