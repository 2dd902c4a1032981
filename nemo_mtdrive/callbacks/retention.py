"""Step checkpoints on disk: names, whole-or-nothing directories, and which ones stay.

    checkpoints/step_000025/weights/...                      by the passed-in function, all ranks
    checkpoints/step_000025/trainer_state.rank00000.json     step, sampler, RNG, version of each rank
    checkpoints/step_000025/complete.json                    written last: without it the directory is no checkpoint
    checkpoints/latest -> step_000025
    checkpoints/best -> step_000020
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
_NAME = re.compile(r"step_(\d{6,})")
_MARKER = "complete.json"


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, not whole, or of another format."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    step: int
    metrics: Mapping[str, float]
    world_size: int

    @property
    def weights(self) -> Path:
        """The folder that the weights function wrote."""
        return self.path / "weights"

    def trainer_state(self, rank: int) -> dict[str, Any]:
        """What rank `rank` gave to `save`.

        Raises:
            CheckpointError: it was saved by fewer ranks.
        """
        path = _state_path(self.path, rank)
        if not path.is_file():
            raise CheckpointError(f"{self.path}: saved by {self.world_size} ranks, there is no state for rank {rank}")
        return dict(json.loads(path.read_text()))


class CheckpointFolder:
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
        self, step: int, write_weights: Callable[[Path], None], trainer_state: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> Path:
        """Write a checkpoint and remove those that need not stay. Collective: all ranks call it.

        Args:
            step: of the trainer, 0 or more.
            write_weights: writes weights and optimizer into the folder that it is given; called on all ranks.
            trainer_state: this rank's, plain JSON data.
            metrics: of this step, on rank 0.

        Returns:
            The checkpoint's folder.

        Raises:
            TypeError: the trainer state is not JSON data.
        """
        text = json.dumps(dict(trainer_state))  # before anything is written
        final, beside = self.root / f"step_{step:06d}", self.root / f".step_{step:06d}"
        if self._rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
            (beside / "weights").mkdir(parents=True)
        self._barrier()
        write_weights(beside / "weights")
        _state_path(beside, self._rank).write_text(text)
        self._barrier()
        if self._rank == 0:
            self._finish(step, beside, final, metrics)
        self._barrier()
        return final

    def all(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first."""
        paths = [path for path in self.root.glob("step_*") if _NAME.fullmatch(path.name)] if self.root.is_dir() else []
        return sorted((open_checkpoint(path) for path in paths if (path / _MARKER).is_file()), key=lambda each: each.step)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        return max(self.all(), key=lambda each: each.step, default=None)

    def best(self) -> Checkpoint | None:
        """The one with the best metric, the newest of equals; None when no checkpoint has it."""
        return max((each for each in self.all() if self._score(each) is not None),
                   key=lambda each: (self._score(each), each.step), default=None)

    def _score(self, checkpoint: Checkpoint) -> float | None:
        value = checkpoint.metrics.get(self._metric)
        return None if value is None or not math.isfinite(value) else self._sign * value

    def _finish(self, step: int, beside: Path, final: Path, metrics: Mapping[str, float]) -> None:
        marker = {"format": FORMAT_VERSION, "step": step, "metrics": dict(metrics), "world_size": self._world_size}
        (beside / _MARKER).write_text(json.dumps(marker, indent=1))
        _sync(beside)
        if final.exists():  # the step was done again after a resume from an earlier one
            shutil.rmtree(final)
        beside.rename(final)
        _sync(self.root)
        self._remove_old()

    def _remove_old(self) -> None:
        whole, best = self.all(), self.best()
        _point(self.root / "latest", whole[-1].path)
        if best is not None:
            _point(self.root / "best", best.path)
        for checkpoint in whole[: -self._keep]:
            if best is None or checkpoint.step != best.step:
                (checkpoint.path / _MARKER).unlink()  # first: a half-removed folder is no checkpoint
                shutil.rmtree(checkpoint.path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder's marker; `path` may be the `latest` or `best` link.

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
        return Checkpoint(path.resolve(), int(content["step"]), content["metrics"], int(content["world_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{marker}: not a checkpoint marker ({error})") from error


def _state_path(folder: Path, rank: int) -> Path:
    return folder / f"trainer_state.rank{rank:05d}.json"


def _point(link: Path, target: Path) -> None:
    """Make `link` point at a sibling, in one step."""
    beside = link.with_name(f".{link.name}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    beside.replace(link)


def _sync(folder: Path) -> None:
    """Have a folder's files (not of folders below) and its entries on disk before going on."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
