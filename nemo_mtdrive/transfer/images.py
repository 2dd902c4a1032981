"""Images by content: one copy a node, and the pixel tensors that Qwen2.5-VL's vision tower reads.

A front image travels and rests as uint8 (1932 x 1092 x 3: 6.3 MB) under its `image_key`; the float32 patches of the
model (50.6 MB, since every frame stands twice for the temporal patch of 2) are made where they are used.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import struct
import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.transfer.segments import RunFolder, TransferError

if TYPE_CHECKING:  # the store is used by processes that need no torch, whose import takes seconds
    import torch

PATCH, MERGE, TEMPORAL = 14, 2, 2
"""Side of a patch [pixels], patches merged to one token along each side, frames a patch holds."""
PATCH_VALUES = 3 * TEMPORAL * PATCH * PATCH
"""Length of a row of pixel_values: 1176."""

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

_HEADER = struct.Struct("<8sII48x")
_MAGIC = b"MTDIMG02"
_KEY = re.compile("[0-9a-f]{32}")


def grid_of(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    """(1, h, w) in patches of an image [H, W, 3].

    Raises:
        ValueError: not uint8 [H, W, 3] with sides that are multiples of 28.
    """
    side = PATCH * MERGE
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or image.shape[0] % side or image.shape[1] % side:
        got = f"image {image.dtype} {list(image.shape)}"
        raise ValueError(f"{got}: must be uint8 [H, W, 3], H and W multiples of {side}")
    return 1, image.shape[0] // PATCH, image.shape[1] // PATCH


def patchify(
    images: Sequence[NDArray[np.uint8]], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn images into the vision tower's input, bitwise as HF's Qwen2VLImageProcessor after its resizing.

    A value depends on its byte and channel alone, so the arithmetic is a table of 3 x 256 entries. Only uint8 goes to
    another device; on the CPU a compiled loop writes the rows, in little more time than copying them takes.

    Args:
        images: uint8 [H, W, 3] each, sides multiples of 28; sizes may differ.
        device: where the tensors are made.

    Returns:
        pixel_values float32 [N, 1176], N = sum of h*w, and grid_thw int64 [n, 3] of (1, h, w).
    """
    import torch

    grids = [grid_of(image) for image in images]
    grid_thw = torch.tensor(grids, dtype=torch.int64, device=device).reshape(-1, 3)
    rows = [height * width for _, height, width in grids]
    pixel_values = torch.empty(sum(rows), PATCH_VALUES, device=device)
    for image, into in zip(images, pixel_values.split(rows) if rows else (), strict=True):
        _write_patches(image, into)
    return pixel_values, grid_thw


def pixel_values(payloads: Sequence[NDArray[Any]], device: torch.device | str = "cpu") -> torch.Tensor:
    """Pixel rows [N, 1176] of images as a link delivered them: uint8 [H, W, 3], or patches already (baseline)."""
    import torch

    rows = [grid_of(payload)[1] * grid_of(payload)[2] if payload.dtype == np.uint8 else len(payload) for payload in payloads]
    values = torch.empty(sum(rows), PATCH_VALUES, device=device)
    for payload, into in zip(payloads, values.split(rows) if rows else (), strict=True):
        if payload.dtype == np.uint8:
            _write_patches(payload, into)
        else:
            into.copy_(_as_tensor(payload))
    return values


def _write_patches(image: NDArray[np.uint8], into: torch.Tensor) -> None:
    """The rows of one image, into [h*w, 1176] on any device."""
    if into.device.type != "cpu":
        write_patches_with_torch(image, into)
        return
    from nemo_mtdrive.transfer.patches import write_patches

    write_patches(np.ascontiguousarray(image), _normalised_bytes("cpu").numpy(), into.numpy())


def write_patches_with_torch(image: NDArray[np.uint8], into: torch.Tensor) -> None:
    """`patches.write_patches` in torch's operators: the image goes to the device as uint8 and is spread there."""
    import torch

    tokens_high, tokens_wide = image.shape[0] // (PATCH * MERGE), image.shape[1] // (PATCH * MERGE)
    pixels = _as_tensor(np.ascontiguousarray(image)).to(into.device)
    pixels = pixels.reshape(tokens_high, MERGE, PATCH, tokens_wide, MERGE, PATCH, 3)
    pixels = pixels.permute(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, PATCH * PATCH)
    channel = 256 * torch.arange(3, dtype=torch.int32, device=into.device)[:, None]
    indices = (pixels.to(torch.int32) + channel).reshape(-1)
    values = _normalised_bytes(str(into.device)).index_select(0, indices).view(-1, 3, 1, PATCH * PATCH)
    into.view(-1, 3, TEMPORAL, PATCH * PATCH).copy_(values.expand(-1, -1, TEMPORAL, -1))


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """View an array that may be read-only, as shared images are; torch warns of those, and nothing here writes to it."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


@lru_cache(maxsize=16)
def _normalised_bytes(device: str) -> torch.Tensor:
    """[768] the float32 value of byte v in channel c at 256 * c + v, rounded at the same places as HF does."""
    import torch

    scaled = (np.arange(256)[:, None].astype(np.float64) * (1 / 255)).astype(np.float32)
    table = (scaled - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(table.T).reshape(-1)).to(device)


class ImageStore:
    """Images of a run in shared memory by content, one copy a node, for all its processes.

    A key is in use while any process holds it: from `put` or `get` until `release`, and as long as a view of it lives.
    Keys not in use stay (the next step may want them) until the byte budget needs their room; least recently used
    ones go first. Safe for threads and processes.

    Args:
        folder: this process's membership of the run.
        budget_bytes: what all images of the run may take on this node.
    """

    def __init__(self, folder: RunFolder, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._path = folder.folder("images")
        self._held: dict[str, NDArray[np.uint8]] = {}
        self._views: WeakValueDictionary[str, NDArray[np.uint8]] = WeakValueDictionary()
        self._claims: dict[str, int] = {}
        self._mutex = threading.Lock()

    def put(self, key: str, image: NDArray[np.uint8]) -> bool:
        """Keep an image and hold it; True when it was new, False when the node had it. Ends a claim on it.

        Args:
            key: `image_key` of the picture that it was made of, and of the settings.
            image: uint8 [H, W, 3], as resized for the model.

        Raises:
            ValueError: not such an image, or a key that is none.
            TransferError: the budget is full of images in use, or shared memory is.
        """
        with self._mutex:
            new = key not in self._held and not self._hold(key)
            if new:
                self._write(key, image)
            self._unclaim(key)
            return new

    def get(self, key: str) -> NDArray[np.uint8]:
        """A read-only view of an image [H, W, 3], held from now on.

        Raises:
            KeyError: no such image on this node.
        """
        with self._mutex:
            if key not in self._held and not self._hold(key):
                raise KeyError(key)
            return self._held[key]

    def share(self, key: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The node's copy of an image, stored when it is not there; in use as long as the view lives. See `put`."""
        with self._mutex:
            if key in self._held:
                return self._held[key]
            if not self._hold(key):
                self._write(key, image)
            return self._held.pop(key)

    def claim(self, key: str) -> bool:
        """Whether this process is the one of its node that fetches an image; until `put`, `unclaim`, or its death.

        Raises:
            ValueError: a key that is none.
        """
        with self._mutex:
            while key not in self._claims:
                path = self._path / f".want-{check_key(key)}"
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(file)
                    return False
                if os.fstat(file).st_nlink:
                    self._claims[key] = file
                else:  # the one before us was just done with it
                    os.close(file)
            return True

    def unclaim(self, key: str) -> None:
        """Let another process fetch it. Keys that are not claimed here are ignored."""
        with self._mutex:
            self._unclaim(key)

    def release(self, key: str) -> None:
        """Hold an image no more; views that were handed out stay valid. Unknown keys are ignored."""
        with self._mutex:
            self._held.pop(key, None)

    def release_all(self) -> None:
        """Hold nothing any more; for the end of a step."""
        with self._mutex:
            self._held.clear()

    def close(self) -> None:
        """Hold and claim nothing any more. Safe to call again."""
        with self._mutex:
            self._held.clear()
            for key in list(self._claims):
                self._unclaim(key)

    def _unclaim(self, key: str) -> None:
        file = self._claims.pop(key, -1)
        if file >= 0:
            (self._path / f".want-{key}").unlink(missing_ok=True)
            os.close(file)

    def __contains__(self, key: str) -> bool:
        return key in self._held or (self._path / check_key(key)).exists()

    @property
    def used_bytes(self) -> int:
        """What the run's images take on this node, in use or not."""
        return sum(size for _, size, _ in self._entries())

    def _hold(self, key: str) -> bool:
        """Map an image that is there and lock it, shared, for as long as the mapping lives; once a process."""
        view = self._views.get(key)
        if view is not None:
            self._held[key] = view
            return True
        try:
            file = os.open(self._path / check_key(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            limit = f"{len(self._held)} images in use and no file descriptor left"
            raise TransferError(f"{limit}: raise the limit (ulimit -n) or make the batch smaller") from error
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            status = os.fstat(file)
            if not status.st_nlink:  # evicted between open and lock
                return False
            os.utime(file)
            mapping = mmap.mmap(file, status.st_size, prot=mmap.PROT_READ)  # keeps a duplicate of `file`, and its lock
        finally:
            os.close(file)
        magic, height, width = _HEADER.unpack_from(mapping)
        if magic != _MAGIC or status.st_size != _HEADER.size + 3 * height * width:
            raise TransferError(f"image {key} in {self._path}: not an image segment; sweep the run and start again")
        pixels: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8, offset=_HEADER.size)
        self._held[key] = self._views[key] = pixels.reshape(height, width, 3)
        return True

    def _write(self, key: str, image: NDArray[np.uint8]) -> None:
        """Make room, write beside, rename into place, hold. One process of the node at a time."""
        grid_of(image)
        image = np.ascontiguousarray(image)
        size = _HEADER.size + image.nbytes
        with _exclusive(self._path / ".lock"):
            if self._hold(key):
                return
            self._make_room(size)
            beside = self._path / f".{key}"
            try:
                with open(beside, "wb") as file:  # written, not mapped: a full tmpfs is an error here, a SIGBUS there
                    file.write(_HEADER.pack(_MAGIC, image.shape[0], image.shape[1]))
                    file.write(image.data)
                beside.rename(self._path / key)
            except OSError as error:
                beside.unlink(missing_ok=True)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                room = f"no room for an image of {size} bytes in {self._path}"
                raise TransferError(f"{room}: enlarge /dev/shm or lower transfer.image_store_mb") from error
            self._hold(key)

    def _make_room(self, size: int) -> None:
        """Remove images that nobody uses, least recently used first, until `size` fits the budget."""
        entries = sorted(self._entries())
        used = sum(entry_size for _, entry_size, _ in entries)
        for _, entry_size, path in entries:
            if used + size <= self.budget_bytes:
                return
            if _remove_if_unused(path):
                used -= entry_size
        if used + size > self.budget_bytes:
            full = f"image store: {used} bytes in use and {size} more do not fit {self.budget_bytes}"
            raise TransferError(f"{full}: set transfer.image_store_mb higher or make the batch smaller")

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(last use, bytes, path) of every image."""
        found = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    status = entry.stat()
                    found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        return found


class _exclusive:
    """Hold a file lock alone among the node's processes; the kernel frees it when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def check_key(key: str) -> str:
    """The key; ValueError when it is none. A key names a file, so nothing else may come through."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"image key {key!r:.80}: must be 32 hex digits")
    return key


def _remove_if_unused(path: Path) -> bool:
    """Unlink an image unless some process maps it."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink()
        return True
    finally:
        os.close(file)
