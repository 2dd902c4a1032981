"""Which worker plays what: a batch of tasks cut into shares, and who has each.

A share is cut once, for the workers that there should be, and stays whole: whoever plays it, and whenever, its episodes
run in the same company. So a share that is played again after its worker died gives bitwise the same episodes (an
engine's last bits depend on what is computed together), and what had arrived of it already is dropped as a repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_mtdrive.types import RolloutTask

IN_HAND = 2
"""Shares that a worker may hold: the next one waits there while it plays one."""


class SharesError(RuntimeError):
    """A share took down every worker that it was given to."""


@dataclass
class Share:
    """Tasks that are played together."""

    number: int
    batch: int
    """The batch that it is part of."""
    tasks: tuple[RolloutTask, ...]
    first_choice: str
    """The worker that plays it when nothing goes wrong."""
    worker: str | None = None
    """Who has it; None while it waits."""
    losses: int = 0
    """Workers that were lost with it in hand."""

    @property
    def version(self) -> int:
        """Policy version of its tasks."""
        return self.tasks[0].policy_version


class Shares:
    """The open shares of all batches, in the order in which they were cut.

    Args:
        workers: names of the workers that there should be.
        max_losses: workers that one share may take down.
    """

    def __init__(self, workers: Sequence[str], max_losses: int) -> None:
        self._workers = list(workers)
        self._max_losses = max_losses
        self._open: dict[int, Share] = {}
        self._cut = 0
        self._batches = 0

    def cut(self, tasks: Sequence[RolloutTask]) -> int:
        """Make shares of a batch, task i for worker i modulo their number; returns the batch's number.

        Raises:
            ValueError: tasks of different policy versions.
        """
        if len({task.policy_version for task in tasks}) > 1:
            raise ValueError("tasks of one batch have different policy versions: hand them out one after another")
        self._batches += 1
        for place, name in enumerate(self._workers):
            mine = tuple(tasks[place :: len(self._workers)])
            if mine:
                self._cut += 1
                self._open[self._cut] = Share(self._cut, self._batches, mine, name)
        return self._batches

    def unfinished(self, batch: int | None = None) -> bool:
        """Whether a share of a batch (of any, for None) is open."""
        return any(batch in (None, share.batch) for share in self._open.values())

    def held_by(self, worker: str) -> list[Share]:
        """What a worker has in hand."""
        return [share for share in self._open.values() if share.worker == worker]

    def hand_out(self, living: Sequence[str]) -> list[Share]:
        """Give waiting shares to living workers that have room, each to its first choice where that lives.

        Returns:
            What was given, in order; `worker` says to whom.
        """
        waiting = [share for share in self._open.values() if share.worker is None]
        # an older batch first; in a batch those whose worker lives, so that the others find who is least busy
        waiting.sort(key=lambda share: (share.batch, share.first_choice not in living, share.number))
        given = []
        for share in waiting:
            held = {name: len(self.held_by(name)) for name in living}
            fitting = [share.first_choice] if share.first_choice in held else list(held)
            with_room = [name for name in fitting if held[name] < IN_HAND]
            if with_room:
                share.worker = min(with_room, key=lambda name: held[name])
                given.append(share)
        return given

    def done(self, number: int) -> None:
        """A share is played and its episodes are with all training ranks."""
        self._open.pop(number, None)

    def take_back(self, worker: str) -> int:
        """A worker was lost: what it had waits again. Returns how many groups will be played again.

        Raises:
            SharesError: a share was lost too often.
        """
        groups = 0
        for share in self.held_by(worker):
            share.worker = None
            share.losses += 1
            groups += len(share.tasks)
            if share.losses > self._max_losses:
                scenes = ", ".join(task.scene_id for task in share.tasks[:3])
                raise SharesError(f"{share.losses} workers were lost while they played the same {len(share.tasks)} tasks "
                                  f"({scenes}, ...), more than rollout.max_restarts={self._max_losses}")
        return groups
