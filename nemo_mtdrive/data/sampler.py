"""Which items a step takes: a function of (seed, step) alone, so a resumed run draws what the first would have drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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


class MixedSampler:
    """Items of several pools, mixed anew each epoch; an epoch takes `weight` times the items of a pool.

    A weight above 1 repeats items, one below 1 takes a part, another one each epoch until all had their turn.

    Args:
        pools: the items of each pool.
        weights: of each pool, 0 or more.
        seed: of the order.

    Raises:
        ValueError: an epoch would have no item.
    """

    def __init__(self, pools: Sequence[Sequence[int]], weights: Sequence[float], seed: int) -> None:
        self._pools = [np.asarray(pool, dtype=np.int64) for pool in pools]
        self._counts = [round(weight * len(pool)) for pool, weight in zip(pools, weights, strict=True)]
        self._samplers = [EpochSampler(len(pool), seed + place) if len(pool) else None for place, pool in enumerate(pools)]
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)
        self.epoch_size = sum(self._counts)
        """Items of an epoch."""
        if not self.epoch_size:
            sizes = [len(pool) for pool in pools]
            raise ValueError(f"nothing to sample from: pools of {sizes} items, weights {list(weights)}")

    def take(self, start: int, size: int) -> list[int]:
        """Items start .. start + size of the endless sequence of epochs."""
        return [self._at(position) for position in range(start, start + size)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.epoch_size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._mixed(epoch)
        return int(self._order[offset])

    def _mixed(self, epoch: int) -> NDArray[np.int64]:
        whole = zip(self._pools, self._samplers, self._counts, strict=True)
        taken = [pool[sampler.take(epoch * count, count)] for pool, sampler, count in whole if sampler and count]
        return np.random.default_rng((self._seed, epoch)).permutation(np.concatenate(taken))


def log_of(scene_id: str) -> str:
    """The log of a scene: the part of its id before the last "-"; an id without one is a log of its own."""
    return scene_id.rpartition("-")[0] or scene_id


def split_ids(ids: Sequence[str], held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Training ids and held-out ids, which share no log (`log_of`).

    Windows of one log overlap in time and place, so whole logs are held out until `held_out` scenes are.

    Raises:
        ValueError: nothing would be left to train on.
    """
    logs: dict[str, list[str]] = {}
    for scene_id in ids:
        logs.setdefault(log_of(scene_id), []).append(scene_id)
    names = sorted(logs)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    kept: list[str] = []
    while order and len(kept) < held_out:
        kept += logs[order.pop()]
    train = [scene_id for log in sorted(order) for scene_id in logs[log]]
    if not train:
        raise ValueError(f"scenes.held_out={held_out} takes all {len(ids)} scenes of {len(names)} logs: set it lower")
    return train, kept[:held_out]
