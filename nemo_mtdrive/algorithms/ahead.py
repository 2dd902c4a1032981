"""Rollouts one step ahead of the trainer (`mtgrpo.max_staleness=1`): the next step's scenes are played while this one
trains, so a step takes the longer of the two and not their sum.

    step k:   take the groups of step k  (played during step k - 1, under the weights before its update)
              publish the weights        (the workers are idle now)
              submit the tasks of k + 1
              train on the groups        (which lag one version behind)

What is in flight belongs to the state of a job: `settle` waits for it, and it goes along with a checkpoint
(`write_pending`, `read_pending`), so a resumed run trains on the very same episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgpack
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.image_key import image_key, resized
from nemo_mtdrive.transfer import wire
from nemo_mtdrive.types import Group, RolloutTask


class PendingError(RuntimeError):
    """Rollouts that were saved with a checkpoint cannot be used."""


@dataclass(frozen=True)
class Pending:
    """Groups that are played and wait for their step."""

    step: int
    groups: list[Group]


class AsyncRollouts(Protocol):
    """What is needed of `algorithms.rollouts.RolloutClient`; tickets are its own."""

    def submit(self, tasks: Sequence[RolloutTask], *, gather_ahead: bool = False) -> Any:
        """Hand tasks to the workers and come back; with `gather_ahead` episodes are taken in as they come."""

    def gather(self, ticket: Any) -> list[Group]:
        """Wait for all episodes of a ticket."""

    def publish_next(self) -> None:
        """Put the weights into the engines as the next version."""

    def adopt(self, groups: Sequence[Group], images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Know the images of groups that did not come from the workers."""


class RolloutsAhead:
    """Groups of one step after the other, those of the next one under way.

    Args:
        rollouts: the workers.
        draw: the tasks of a step, for the version of the weights that is published when it is called.
        steps: how many there are; nothing is played beyond.
    """

    def __init__(self, rollouts: AsyncRollouts, draw: Callable[[int], list[RolloutTask]], steps: int) -> None:
        self._rollouts = rollouts
        self._draw = draw
        self._steps = steps
        self._open: tuple[int, Any] | None = None
        self._unpublished = False
        self.pending: Pending | None = None
        """What `settle` waited for and no step took yet."""

    def take(self, step: int) -> list[Group]:
        """The groups of a step; those of the next one are on their way when this returns. Collective."""
        if self._open is None and self.pending is None:  # the first step of a run: nobody played ahead of it
            self.pending = Pending(step, self._rollouts.gather(self._rollouts.submit(self._draw(step))))
        self.settle()
        assert self.pending is not None
        groups, found = self.pending.groups, self.pending.step
        if found != step:
            raise PendingError(f"step {step} is due, but the rollouts that wait are of step {found}")
        self.pending = None
        if step + 1 < self._steps:
            self._open = step + 1, self._rollouts.submit(self._draw(step + 1), gather_ahead=True)
        return groups

    def weights_changed(self) -> None:
        """The policy was updated; the workers get it as soon as they are idle."""
        self._unpublished = True

    def settle(self) -> None:
        """Wait for what is under way; then the workers are idle and have the newest weights. Collective."""
        if self._open is not None:
            step, ticket = self._open
            self.pending = Pending(step, self._rollouts.gather(ticket))
            self._open = None
        if self._unpublished:
            self._rollouts.publish_next()
            self._unpublished = False

    def restore(self, pending: Pending, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Go on from a checkpoint, whose weights are published already: its step comes next."""
        self._rollouts.adopt(pending.groups, images)
        self.pending = pending


def write_pending(path: Path, pending: Pending) -> None:
    """Write groups to a file, without their pictures, which the scenes have."""
    groups = [[group.scene_id, [[bytes(frame) for frame in wire.encode(episode)] for episode in group.episodes]]
              for group in pending.groups]
    path.write_bytes(msgpack.packb({"step": pending.step, "groups": groups}))


def read_pending(path: Path) -> Pending:
    """Read what `write_pending` wrote.

    Raises:
        PendingError: the file is damaged or another version wrote it.
    """
    try:
        found = msgpack.unpackb(path.read_bytes())
        groups = [Group(scene_id, tuple(wire.decode(frames)[0] for frames in episodes))
                  for scene_id, episodes in found["groups"]]
        return Pending(int(found["step"]), groups)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException, wire.WireError) as error:
        raise PendingError(f"{path}: {error}; resume from another checkpoint") from error


def pending_images(pending: Pending, image_of: Callable[[str], NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    """The images of groups by key, from their scenes' pictures.

    Raises:
        PendingError: a scene looks different than when it was rolled out.
    """
    images = {}
    for group in pending.groups:
        picture = image_of(group.scene_id)
        key = image_key(picture)
        if any(key not in episode.image_keys for episode in group.episodes if episode.valid):
            raise PendingError(f"scene {group.scene_id}: its picture is not the one that was rolled out; the scenes "
                               "changed since the checkpoint")
        images[key] = resized(picture)
    return images
