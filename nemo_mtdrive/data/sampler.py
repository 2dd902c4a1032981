"""Which items a step takes: a function of (seed, step) alone, so a resumed run draws what the first would have drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class EpochSampler:
    """Items in a new random order each epoch, without replacement inside an epoch."""

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise ValueError("nothing to sample from: got 0 items")
        self._count = count
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def take(self, start: int, size: int) -> list[int]:
        """Indices of items start .. start + size of the endless sequence of epochs."""
        return [self._at(position) for position in range(start, start + size)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self._count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._count)
        return int(self._order[offset])


def split_ids(ids: Sequence[str], held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Training ids and held-out ids, which share no log: the part of an id before its last "-" is its log.

    Windows of one log overlap in time and place, so whole logs are held out until `held_out` scenes are; ids without a
    "-" are logs of their own.

    Raises:
        ValueError: nothing would be left to train on.
    """
    logs: dict[str, list[str]] = {}
    for scene_id in ids:
        logs.setdefault(scene_id.rpartition("-")[0] or scene_id, []).append(scene_id)
    names = sorted(logs)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    kept: list[str] = []
    while order and len(kept) < held_out:
        kept += logs[order.pop()]
    train = [scene_id for log in sorted(order) for scene_id in logs[log]]
    if not train:
        raise ValueError(f"scenes.held_out={held_out} takes all {len(ids)} scenes of {len(names)} logs: set it lower")
    return train, kept[:held_out]
