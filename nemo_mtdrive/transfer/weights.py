"""HF-named weights from the trainer to the engines, in buckets, through files in shared memory. No pickle.

    <run>/weights/<version>/manifest.msgpack    format, version, bytes, buckets: [offset, bytes] each,
                                                tensors: [name, dtype, shape, offset, bytes, crc32] each
    <run>/weights/<version>/data                the tensors' bytes, each at a multiple of 64, buckets at one of 64 KiB

The trainer gathers and writes piece after piece, an engine maps and copies bucket after bucket: beside the weights that
it computes with, no process needs memory for more than about a bucket. A tensor larger than a bucket has one of its own.
A version appears by a rename when it is whole, so a reader sees all of it or nothing. Old versions are removed by the
publisher; a reader that still maps one keeps it until it lets go. On several nodes the root is a folder that all see.
"""

from __future__ import annotations

import math
import mmap
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import torch

from nemo_mtdrive.transfer.segments import RunFolder, TransferError

FORMAT_VERSION = 2
BUCKET_BYTES = 512 << 20
_ALIGNMENT = 64
_BUCKET_ALIGNMENT = 1 << 16
"""A multiple of every page size in use, so that a bucket can be mapped alone."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8)
}


class WeightError(TransferError):
    """Weights that are not there, of another format, or corrupt."""


@dataclass(frozen=True)
class WeightPiece:
    """Some consecutive elements of a weight; the pieces of a weight come one after the other, from its first element."""

    name: str
    """HF's."""
    shape: tuple[int, ...]
    """Of the whole weight."""
    start: int
    """Place of the piece's first element in the flattened weight."""
    tensor: torch.Tensor


class WeightPublisher:
    """Trainer side. All ranks walk through the export, which gathers tensors from them; one of them writes.

    Args:
        folder: this process's membership of the run.
        writes: True on training rank 0 alone.
        keep: how many versions stay; 2 lets a reader finish with the one before.
        bucket_bytes: what engines read at a time (`transfer.weight_bucket_mb`).
    """

    def __init__(self, folder: RunFolder, *, writes: bool, keep: int, bucket_bytes: int = BUCKET_BYTES) -> None:
        if keep < 1 or bucket_bytes < 1:
            raise ValueError(f"keep={keep}, bucket_bytes={bucket_bytes}: set both to 1 or more")
        self._bucket_bytes = bucket_bytes
        self._root = folder.folder("weights")
        self._writes = writes
        self._keep = keep

    def publish(self, version: int, weights: Iterable[tuple[str, torch.Tensor] | WeightPiece]) -> int:
        """Write one version; returns its bytes (0 on ranks that do not write).

        Args:
            version: higher than all before.
            weights: HF name and whole tensor, or pieces of it, on any device; consumed to its end on every rank, each
                written before the next is asked for.

        Raises:
            WeightError: a version that is there already, a name that comes twice, pieces that leave something out, a
                dtype that has no name here, or no room in shared memory.
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
            size = _write(beside, version, weights, self._bucket_bytes)
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
        version, manifest, path = self._open(version)
        with open(path / "data", "rb") as file:
            data = _map(file.fileno(), 0, manifest["bytes"])
        return version, dict(_view(entry, data, 0, path, verify) for entry in manifest["tensors"])

    def buckets(self, version: int | None = None, *, verify: bool = True) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """A version's (HF name, tensor) pairs, a bucket at a time, as views of shared memory; arguments as `read`.

        A bucket is let go when neither the caller nor a view of it holds it any more.
        """
        version, manifest, path = self._open(version)
        with open(path / "data", "rb") as file:
            ends = [offset for offset, _ in manifest["buckets"][1:]] + [manifest["bytes"] + 1]
            for (offset, size), end in zip(manifest["buckets"], ends, strict=True):
                data = _map(file.fileno(), offset, size)
                yield [_view(entry, data, offset, path, verify) for entry in manifest["tensors"]
                       if offset <= entry[3] < end]
                del data

    def iterate(self, version: int | None = None, *, verify: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """The pairs one by one, mapped a bucket at a time: what an engine's `load_weights` and vLLM's `reload_weights`
        take. Arguments and errors as `read`; a version that is not there is named with the first pair."""
        for bucket in self.buckets(version, verify=verify):
            yield from bucket

    def _open(self, version: int | None) -> tuple[int, dict[str, Any], Path]:
        wanted = self.latest() if version is None else version
        path = self._root / str(wanted)
        try:
            manifest = _open_manifest((path / "manifest.msgpack").read_bytes(), path)
            size = (path / "data").stat().st_size
        except FileNotFoundError as error:
            there = versions(self._root) or "none"
            raise WeightError(f"weights version {wanted} is not in {self._root}; there: {there}") from error
        if manifest["version"] != wanted or manifest["bytes"] != size:
            described = f"version {manifest['version']} of {manifest['bytes']} bytes"
            raise WeightError(f"{path}: the manifest says {described}, the data has {size}")
        return manifest["version"], manifest, path


def versions(root: Path) -> list[int]:
    """Whole versions below a weights folder, oldest first."""
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


class _Writer:
    """Tensors into the data file, bucket after bucket, each as whole or in pieces."""

    def __init__(self, file: BinaryIO, bucket_bytes: int) -> None:
        self.entries: dict[str, list[Any]] = {}
        self.buckets: list[list[int]] = []
        self.end = 0
        """Where the next tensor may begin."""
        self._file = file
        self._bucket_bytes = bucket_bytes
        self._open: tuple[str, int] | None = None
        """The weight whose pieces are coming, and how many of its bytes are missing."""

    def add(self, piece: WeightPiece) -> None:
        dtype = str(piece.tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise WeightError(f"weight {piece.name} has dtype {dtype}, not one of {', '.join(_DTYPES)}")
        size = math.prod(piece.shape) * piece.tensor.element_size()
        if piece.start == 0:
            self.finish()
            self._begin(piece.name, dtype, piece.shape, size)
        name, missing = self._open or ("none", 0)
        content = piece.tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        if name != piece.name or piece.start * piece.tensor.element_size() != size - missing or content.nbytes > missing:
            raise WeightError(f"weight {piece.name}: a piece of {content.nbytes} bytes from element {piece.start} on does "
                              f"not follow what came before ({name}, {missing} bytes missing)")
        entry = self.entries[name]
        self._file.seek(entry[3] + size - missing)
        self._file.write(content)
        entry[5] = zlib.crc32(content, entry[5])
        self._open = (name, missing - content.nbytes)

    def finish(self) -> None:
        """The last weight must be whole."""
        if self._open is not None and self._open[1]:
            raise WeightError(f"weight {self._open[0]}: {self._open[1]} bytes of it did not come")

    def _begin(self, name: str, dtype: str, shape: Iterable[int], size: int) -> None:
        if name in self.entries:
            raise WeightError(f"weight {name} came twice")
        if not self.buckets or self.end + size > self.buckets[-1][0] + self._bucket_bytes:
            self.end = _round_up(self.end, _BUCKET_ALIGNMENT)
            self.buckets.append([self.end, 0])
        self.entries[name] = [name, dtype, list(shape), self.end, size, 0]
        self.buckets[-1][1] = self.end + size - self.buckets[-1][0]
        self.end = _round_up(self.end + size, _ALIGNMENT)
        self._open = (name, size)


def _write(folder: Path, version: int, weights: Iterable[tuple[str, torch.Tensor] | WeightPiece], bucket_bytes: int) -> int:
    with open(folder / "data", "wb") as file:
        writer = _Writer(file, bucket_bytes)
        for each in weights:
            writer.add(each if isinstance(each, WeightPiece) else WeightPiece(each[0], tuple(each[1].shape), 0, each[1]))
        writer.finish()
        file.truncate(writer.end)
    manifest = {"format": FORMAT_VERSION, "version": version, "bytes": writer.end, "buckets": writer.buckets,
                "tensors": list(writer.entries.values())}
    (folder / "manifest.msgpack").write_bytes(msgpack.packb(manifest))
    return writer.end


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _map(file: int, offset: int, size: int) -> Any:
    # A private copy-on-write mapping: torch has no read-only tensors.
    return mmap.mmap(file, size, access=mmap.ACCESS_COPY, offset=offset) if size else b""


def _open_manifest(packed: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = msgpack.unpackb(packed)
        if manifest["format"] != FORMAT_VERSION:
            raise WeightError(f"{path}: weight format {manifest['format']}, this program reads {FORMAT_VERSION}")
        if set(manifest) != {"format", "version", "bytes", "buckets", "tensors"}:
            raise KeyError(sorted(manifest))
        ranges = [[int(offset), int(size)] for offset, size in manifest["buckets"]]
        placed = [(int(entry[3]), int(entry[4])) for entry in manifest["tensors"]]
        if any(min(pair) < 0 or pair[0] + pair[1] > manifest["bytes"] for pair in [*ranges, *placed]):
            raise ValueError("a bucket or tensor lies outside the data")
    except (IndexError, KeyError, TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
        raise WeightError(f"{path}: not a weight manifest ({error})") from error
    return dict(manifest)


def _view(entry: list[Any], data: Any, base: int, path: Path, verify: bool) -> tuple[str, torch.Tensor]:
    """A tensor of mapped data that begins at `base`."""
    try:
        name, dtype_name, shape, offset, size, checksum = entry
        dtype = _DTYPES[dtype_name]
        if not size:
            return name, torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(data, dtype=dtype, count=size // dtype.itemsize, offset=offset - base)
        tensor = flat.reshape(shape)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightError(f"{path}: entry {entry!r:.120} does not fit the data ({error})") from error
    if verify and zlib.crc32(flat.view(torch.uint8).numpy().data) != checksum:
        raise WeightError(f"{path}: weight {name} is corrupt, its checksum differs; publish again")
    return name, tensor
