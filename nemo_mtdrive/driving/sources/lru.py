"""A small cache that forgets what was used longest ago; safe for threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LRU(Generic[Value]):
    """Values by id, made by `make` when they are missing; at most `size` are kept."""

    def __init__(self, size: int, make: Callable[[str], Value]) -> None:
        self._size = size
        self._make = make
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Value:
        """The value; made outside the lock, so two threads may make the same one at once."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._make(key)
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


def images_kept(width: int, height: int) -> int:
    """How many pictures fit into 64 MiB, at least 8."""
    return max(8, (64 << 20) // max(3 * width * height, 1))
