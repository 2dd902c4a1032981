"""Which images a receiver lacks, and who of its node asks for them: each crosses the network once a node.

Images are pulled: an episode goes without them, and the receiver asks for the keys that its node does not have. So it does
not matter which worker sent a key before, or what the node has dropped since. Of several receivers on a node the one that
holds the store's claim on a key asks; the others look into the store until it is there, or the claim is free again because
its holder died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.transfer.images import ImageStore, check_key

ASK_AGAIN_S = 5.0
"""What was asked for and did not come is asked for again after this, of all who may have it; its sender may have died."""
LOOK_S = 0.005
"""How often the store is looked into for what another receiver fetches."""


class ImageFetcher:
    """Gets keys from the node's store, or asks senders for them.

    Args:
        store: the node's; belongs to the fetcher from now on.
        ask: called with a sender and the keys to ask it for.
    """

    def __init__(self, store: ImageStore, ask: Callable[[bytes, list[str]], None]) -> None:
        self._store = store
        self._ask = ask
        self._senders: dict[str, list[bytes]] = {}
        """By missing key: who may send it, latest last."""
        self._asked: dict[str, float] = {}
        """Keys that this process asked for, and when."""
        self._since: dict[str, float] = {}
        """Keys that another process of the node fetches, and since when."""

    @property
    def waits_for_others(self) -> bool:
        """Whether the store must be looked into, since nobody will send a message."""
        return bool(self._since)

    def find(self, sender: bytes, keys: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
        """The images that are here; the others are asked for, of `sender` or of those who asked before.

        Raises:
            ValueError: a key that is none.
        """
        keys = [check_key(key) for key in keys]
        found, to_ask = {}, []
        for key in keys:
            image = self._get(key)
            if image is not None:
                found[key] = image
                continue
            self._senders.setdefault(key, []).append(sender)
            if key in self._asked or key in self._since:
                continue
            image = self._claim(key)
            if image is not None:
                found[key] = image
                self._forget(key)
            elif key in self._asked:
                to_ask.append(key)
        if to_ask:
            self._ask(sender, to_ask)
        return found

    def wants(self, key: str) -> bool:
        """Whether an image is still missing."""
        return key in self._senders

    def put(self, key: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image that came; the node's copy of it. Errors as `ImageStore.put`."""
        self._store.put(key, image)
        self._forget(key)
        kept = self._store.get(key)
        self._store.release(key)
        return kept

    def look(self) -> dict[str, NDArray[np.uint8]]:
        """What others of the node fetched meanwhile; asks, or asks again, for what is late."""
        found = {}
        for key in list(self._since):
            image = self._get(key)
            if image is None:
                image = self._claim(key)
            if image is not None:
                found[key] = image
                self._forget(key)
            elif key in self._asked:
                self._ask(self._senders[key][-1], [key])
        now = time.monotonic()
        late = [key for key, at in (*self._asked.items(), *self._since.items()) if now - at > ASK_AGAIN_S]
        for key in late:
            self._since.pop(key, None)
            self._asked[key] = now
            for sender in dict.fromkeys(self._senders[key]):
                self._ask(sender, [key])
        return found

    def close(self) -> None:
        """Free the store. Safe to call again."""
        self._senders.clear()
        self._asked.clear()
        self._since.clear()
        self._store.close()

    def _get(self, key: str) -> NDArray[np.uint8] | None:
        with suppress(KeyError):
            image = self._store.get(key)
            self._store.release(key)
            return image
        return None

    def _claim(self, key: str) -> NDArray[np.uint8] | None:
        """Become the one who asks for a key, or wait for who is; the image when it came in between."""
        if not self._store.claim(key):
            self._since.setdefault(key, time.monotonic())
            return None
        image = self._get(key)
        if image is not None:
            self._store.unclaim(key)
            return image
        self._since.pop(key, None)
        self._asked[key] = time.monotonic()
        return None

    def _forget(self, key: str) -> None:
        self._store.unclaim(key)
        for waiting in (self._senders, self._asked, self._since):
            waiting.pop(key, None)
