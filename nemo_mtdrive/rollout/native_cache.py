"""Keys and values of the running sequences: one slot a sequence, slots and capacity growing by need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CAPACITY_STEP = 64
"""Capacity grows in multiples of this many tokens."""


class SlotCache:
    """Two tensors [layers, slots, kv_heads, capacity, head_dim].

    Memory is zeroed when allocated: attention reads past the end of short sequences with weight 0, and 0 * NaN is NaN.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._store = torch.zeros((2, layers, 0, kv_heads, 0, head_dim), dtype=dtype, device=device)

    @property
    def slots(self) -> int:
        """Number of slots allocated."""
        return self._store.shape[2]

    @property
    def capacity(self) -> int:
        """Tokens that each slot can hold."""
        return self._store.shape[4]

    @property
    def bytes(self) -> int:
        """Size of both tensors."""
        return self._store.numel() * self._store.element_size()

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each [slots, kv_heads, capacity, head_dim], to be read and written in place."""
        return self._store[0, index], self._store[1, index]

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for that many slots and tokens a slot, keeping what is there."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots = self.slots if slots <= self.slots else max(slots, min(2 * self.slots, self.slots + 64))
        capacity = max(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP, self.capacity)
        old = self._store
        shape = (2, old.shape[1], slots, old.shape[3], capacity, old.shape[5])
        self._store = torch.zeros(shape, dtype=old.dtype, device=old.device)
        self._store[:, :, : old.shape[2], :, : old.shape[4]] = old

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of one slot into others (a scene's prompt to its siblings)."""
        prompt = self._store[:, :, source, :, :length]
        for target in targets:
            self._store[:, :, target, :, :length] = prompt

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` tokens of two slots."""
        kept = self._store[:, :, first, :, :length].clone()
        self._store[:, :, first, :, :length] = self._store[:, :, second, :, :length]
        self._store[:, :, second, :, :length] = kept

    def reset(self) -> None:
        """Free all memory."""
        self._store = self._store[:, :, :0, :, :0].clone()
