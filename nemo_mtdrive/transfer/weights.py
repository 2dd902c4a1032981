"""Full HF-named weights from the trainer to the engines, through files in shared memory. No pickle.

    <run>/weights/<version>/manifest.msgpack    format, version, bytes, [name, dtype, shape, offset, bytes, crc32] each
    <run>/weights/<version>/data                the tensors' bytes, each at a multiple of 64

A version appears by a rename when it is whole, so a reader sees all of it or nothing. Old versions are removed by the
publisher; a reader that still maps one keeps it until it lets go. On several nodes the root is a folder that all see.
"""

from __future__ import annotations

import mmap
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import torch

from nemo_mtdrive.transfer.segments import RunFolder, TransferError

FORMAT_VERSION = 1
_ALIGNMENT = 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8)
}


class WeightError(TransferError):
    """Weights that are not there, of another format, or corrupt."""


class WeightPublisher:
    """Trainer side. All ranks walk through the export, which gathers tensors from them; one of them writes.

    Args:
        folder: this process's membership of the run.
        writes: True on training rank 0 alone.
        keep: how many versions stay; 2 lets a reader finish with the one before.
    """

    def __init__(self, folder: RunFolder, *, writes: bool, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: set it to 1 or more")
        self._root = folder.folder("weights")
        self._writes = writes
        self._keep = keep

    def publish(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> int:
        """Write one version; returns its bytes (0 on ranks that do not write).

        Args:
            version: higher than all before.
            weights: HF name and full tensor, on any device; consumed to its end on every rank.

        Raises:
            WeightError: a version that is there already, a name that comes twice, a dtype that has no name here, or no
                room in shared memory.
        """
        if not self._writes:
            for _ in weights:
                pass
            return 0
        if (self._root / str(version)).exists():
            raise WeightError(f"weights version {version} is published already: count versions up")
        beside = self._root / f".{version}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            size = _write(beside, version, weights)
            beside.rename(self._root / str(version))
        except OSError as error:
            raise WeightError(f"weights version {version}: {self._root}: {error.strerror}; make room there") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        for old in versions(self._root)[: -self._keep]:
            shutil.rmtree(self._root / str(old), ignore_errors=True)
        return size


class WeightReader:
    """Engine side.

    Args:
        folder: this process's membership of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._root = folder.folder("weights")

    def latest(self) -> int | None:
        """The newest whole version, or None before the first."""
        return max(versions(self._root), default=None)

    def read(self, version: int | None = None, *, verify: bool = True) -> tuple[int, dict[str, torch.Tensor]]:
        """A version's tensors by HF name, as views of shared memory: copy them into the engine and let them go.

        Writing to a view changes this process's copy alone.

        Args:
            version: which; None takes the newest.
            verify: compare the checksums (about 3 GB/s).

        Raises:
            WeightError: no such version, another format, or a checksum that differs.
        """
        wanted = self.latest() if version is None else version
        path = self._root / str(wanted)
        try:
            manifest = _open_manifest((path / "manifest.msgpack").read_bytes(), path)
            with open(path / "data", "rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A private copy-on-write mapping: torch has no read-only tensors.
                data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else b""
        except FileNotFoundError as error:
            there = versions(self._root) or "none"
            raise WeightError(f"weights version {wanted} is not in {self._root}; there: {there}") from error
        if manifest["version"] != wanted or manifest["bytes"] != size:
            described = f"version {manifest['version']} of {manifest['bytes']} bytes"
            raise WeightError(f"{path}: the manifest says {described}, the data has {size}")
        return manifest["version"], dict(_view(entry, data, path, verify) for entry in manifest["tensors"])


def versions(root: Path) -> list[int]:
    """Whole versions below a weights folder, oldest first."""
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def _write(folder: Path, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> int:
    entries: dict[str, list[Any]] = {}
    offset = 0
    with open(folder / "data", "wb") as file:
        for name, tensor in weights:
            dtype = str(tensor.dtype).removeprefix("torch.")
            if name in entries or dtype not in _DTYPES:
                problem = "came twice" if name in entries else f"has dtype {dtype}, not one of {', '.join(_DTYPES)}"
                raise WeightError(f"weight {name} {problem}")
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.seek(offset)
            file.write(content)
            entries[name] = [name, dtype, list(tensor.shape), offset, content.nbytes, zlib.crc32(content)]
            offset += -(-content.nbytes // _ALIGNMENT) * _ALIGNMENT
        file.truncate(offset)
    manifest = {"format": FORMAT_VERSION, "version": version, "bytes": offset, "tensors": list(entries.values())}
    (folder / "manifest.msgpack").write_bytes(msgpack.packb(manifest))
    return offset


def _open_manifest(packed: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = msgpack.unpackb(packed)
        if manifest["format"] != FORMAT_VERSION:
            raise WeightError(f"{path}: weight format {manifest['format']}, this program reads {FORMAT_VERSION}")
        if set(manifest) != {"format", "version", "bytes", "tensors"}:
            raise KeyError(sorted(manifest))
    except (KeyError, TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
        raise WeightError(f"{path}: not a weight manifest ({error})") from error
    return dict(manifest)


def _view(entry: list[Any], data: Any, path: Path, verify: bool) -> tuple[str, torch.Tensor]:
    try:
        name, dtype_name, shape, offset, size, checksum = entry
        dtype = _DTYPES[dtype_name]
        if not size:
            return name, torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(data, dtype=dtype, count=size // dtype.itemsize, offset=offset)
        tensor = flat.reshape(shape)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightError(f"{path}: entry {entry!r:.120} does not fit the data ({error})") from error
    if verify and zlib.crc32(flat.view(torch.uint8).numpy().data) != checksum:
        raise WeightError(f"{path}: weight {name} is corrupt, its checksum differs; publish again")
    return name, tensor
