"""The weights of a NeMo-2 checkpoint directory, read and written one tensor at a time and without a process group.

    DIR/context/            the model's configuration (`context`)
    DIR/weights/            megatron's dist_checkpointing in torch's distributed format:
        metadata.json       names the format
        common.pt           what is no tensor: nothing here
        .metadata           which chunk of which tensor lies where
        __RANK_0.distcp     chunks, each as torch.save writes it

A tensor is stored whole whatever the ranks that wrote it: chunks carry their offset in it. So any tensor-parallel and
pipeline-parallel sizes read what any others wrote. The layers of a stack are one tensor with the layer as first axis.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import torch
from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from nemo_mtdrive.models.parameters import Rule
from nemo_mtdrive.models.whole_directory import ConversionError

_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
           "common_backend_version": 1}
_STATELESS = ("self_attention.core_attention._extra_state",)
"""Modules of transformer-engine that keep an (empty) extra state and no parameters."""

_CHECKPOINT = "torch.distributed.checkpoint"
_ALLOWED = {
    "torch": {"Size", "float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"PosixPath", "Path"},
    f"{_CHECKPOINT}.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo", "StorageMeta"},
    f"{_CHECKPOINT}.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
}
"""All that a `.metadata` file, which is a pickle by its format, may name."""


class _MetadataUnpickler(pickle.Unpickler):
    """Reads records of the checkpoint format and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise ConversionError(f".metadata names {module}.{name}, which no checkpoint needs: do not use this one")
        return super().find_class(module, name)


def read_metadata(weights: Path) -> MCoreMetadata:
    """What a `weights` folder holds; megatron itself unpickles this file freely, so look with this function first.

    Raises:
        ConversionError: absent, damaged, of another format, or one that names something dangerous.
    """
    config, path = weights / "metadata.json", weights / ".metadata"
    if not config.is_file() or not path.is_file():
        raise ConversionError(f"{weights}: no metadata.json or .metadata there; give a NeMo 2 checkpoint directory")
    try:
        backend = json.loads(config.read_text())["sharded_backend"]
        if backend != "torch_dist":
            raise ConversionError(f"{config}: sharded_backend={backend!r}; only torch_dist can be read")
        with path.open("rb") as stream:
            return _MetadataUnpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ConversionError(f"{path}: damaged ({error}); fetch the checkpoint again") from error


class NemoTensors:
    """The parameters in a `weights` folder, each assembled from its chunks when it is asked for.

    Raises:
        ConversionError: see `read_metadata`.
    """

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._metadata = read_metadata(weights)
        places = self._metadata.storage_data.items()
        self._places = {(index.fqn, tuple(index.offset or ())): place for index, place in places}

    def read(self, rule: Rule) -> Tensor:
        """The whole parameter of a rule, as one tensor-parallel rank would hold it.

        Raises:
            ConversionError: it is absent, or not all of it is there.
        """
        key, entry = self._entry(rule)
        stacked = rule.layer is not None and key == rule.key
        if stacked and rule.layer is not None and entry.size[0] != rule.layer[1]:
            raise ConversionError(f"{self._weights}: {entry.size[0]} layers in {key}, config.json says {rule.layer[1]}: they"
                                  " do not belong together")
        shape = tuple(entry.size)[1:] if stacked else tuple(entry.size)
        whole = torch.empty(shape, dtype=entry.properties.dtype)
        filled = 0
        for offset, chunk in self._chunks(key, entry, rule.layer[0] if stacked and rule.layer else None):
            target = whole[tuple(slice(at, at + size) for at, size in zip(offset, chunk.shape, strict=True))]
            if target.shape != chunk.shape or chunk.dtype != whole.dtype:
                raise ConversionError(f"{self._weights}: a chunk of {key} does not fit it; the checkpoint is damaged")
            target.copy_(chunk)
            filled += chunk.numel()
        if filled != whole.numel():
            raise ConversionError(f"{self._weights}: {filled} of {whole.numel()} values of {rule.megatron} are there; the"
                                  " checkpoint is not whole")
        return whole

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of all parameters."""
        return {entry.properties.dtype for entry in self._metadata.state_dict_metadata.values()
                if isinstance(entry, TensorStorageMetadata)}

    def dtype(self, rule: Rule) -> torch.dtype:
        """Of a rule's parameter."""
        return self._entry(rule)[1].properties.dtype

    def _entry(self, rule: Rule) -> tuple[str, TensorStorageMetadata]:
        entries = self._metadata.state_dict_metadata
        by_layer = rule.key if rule.layer is None else rule.key.replace(".layers.", f".layers.{rule.layer[0]}.")
        for key in (rule.key, by_layer):  # some programs store each layer by itself
            if isinstance(entries.get(key), TensorStorageMetadata):
                return key, entries[key]
        raise ConversionError(f"{self._weights}: no tensor {rule.key}; the checkpoint belongs to another config.json")

    def _chunks(self, key: str, entry: TensorStorageMetadata, layer: int | None) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """(offset, chunk) of a tensor or of one layer of it."""
        for chunk in entry.chunks:
            offset, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            if layer is None:
                yield offset, self._chunk(key, offset, sizes)
            elif offset[0] <= layer < offset[0] + sizes[0]:
                yield offset[1:], self._chunk(key, offset, sizes)[layer - offset[0]]

    def _chunk(self, key: str, offset: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        place = self._places.get((key, offset))
        if place is None:
            raise ConversionError(f"{self._weights}: .metadata does not say where {key} lies; the checkpoint is damaged")
        path = self._weights / place.relative_path
        if path.parent != self._weights or not path.is_file() or path.stat().st_size < place.offset + place.length:
            raise ConversionError(f"{path}: absent or cut short; fetch the checkpoint again")
        with path.open("rb") as stream:
            view = _create_file_view(stream, place.offset, place.length)
            try:
                tensor = torch.load(cast(BinaryIO, view), weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise ConversionError(f"{path}: {key} cannot be read; fetch the checkpoint again") from error
        if tuple(tensor.shape) != sizes:
            raise ConversionError(f"{path}: {key} has shape {list(tensor.shape)}, .metadata says {list(sizes)}")
        return tensor


@dataclass
class NemoWriter:
    """Write a `weights` folder as `tensor_size` x `pipeline_size` ranks would, one parameter at a time."""

    weights: Path
    tensor_size: int
    pipeline_size: int
    _streams: list[BinaryIO] = field(default_factory=list)
    _entries: dict[str, Any] = field(default_factory=dict)
    _storage: dict[MetadataIndex, _StorageInfo] = field(default_factory=dict)

    def __enter__(self) -> NemoWriter:
        self.weights.mkdir(parents=True)
        self._streams = [(self.weights / f"__{rank}_0.distcp").open("wb")
                         for rank in range(self.tensor_size * self.pipeline_size)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in self._streams:
            stream.close()
        if kind is None:
            extra: dict[str, dict[str, Any]] = {key: {} for key in self._entries}
            metadata = MCoreMetadata(self._entries, storage_data=self._storage, mcore_data=extra)
            with (self.weights / ".metadata").open("wb") as stream:
                pickle.dump(metadata, stream)
            torch.save({}, self.weights / "common.pt")
            (self.weights / "metadata.json").write_text(json.dumps(_FORMAT))

    def write(self, rule: Rule, whole: Tensor) -> None:
        """Append a parameter, as one tensor-parallel rank would hold it, in the chunks of the ranks."""
        index, layers = rule.layer or (0, 0)
        size = torch.Size((layers, *whole.shape) if layers else whole.shape)
        entry = self._entries.setdefault(
            rule.key, TensorStorageMetadata(TensorProperties(dtype=whole.dtype), size, []))
        assert entry.size == size and entry.properties.dtype == whole.dtype, f"{rule.key}: layers differ"
        for rank, offset, chunk in _cut(whole, rule, self.tensor_size):
            if layers:
                offset, chunk = (index, *offset), chunk.unsqueeze(0)
            entry.chunks.append(ChunkStorageMetadata(torch.Size(offset), chunk.shape))
            place = self._append(rule.stage * self.tensor_size + rank, chunk)
            self._storage[MetadataIndex(rule.key, torch.Size(offset), len(entry.chunks) - 1)] = place
        self._write_extra_states(rule, index, max(layers, 1))

    def _write_extra_states(self, rule: Rule, index: int, layers: int) -> None:
        """transformer-engine's modules, and megatron's in their likeness, want an extra state; without fp8 it is empty."""
        module, _, kind = rule.key.rpartition(".")
        if kind != "weight" or not module.rpartition(".")[2].startswith("linear_"):
            return
        keys = [f"{module}._extra_state"]
        if module.endswith("self_attention.linear_qkv"):
            keys += [f"{module.removesuffix('self_attention.linear_qkv')}{name}" for name in _STATELESS]
        for key in keys:
            name = f"{key}/shard_{index}_{layers}"
            self._entries[name] = BytesStorageMetadata()
            self._storage[MetadataIndex(name)] = self._append(rule.stage * self.tensor_size, [None])

    def _append(self, rank: int, value: Any) -> _StorageInfo:
        stream = self._streams[rank]
        start = stream.tell()
        try:
            torch.save(value, stream)
        except RuntimeError as error:  # torch hides what the operating system said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        return _StorageInfo(Path(stream.name).name, start, stream.tell() - start)


def _cut(whole: Tensor, rule: Rule, size: int) -> Iterator[tuple[int, tuple[int, ...], Tensor]]:
    """(rank, offset, chunk) of every chunk that tensor-parallel ranks hold; each chunk has memory of its own."""
    axis, parts = rule.layout.axis, rule.layout.parts
    zeros = [0] * whole.ndim
    if axis is None or size * parts == 1:
        yield 0, tuple(zeros), whole.contiguous()
        return
    if whole.shape[axis] % (parts * size):
        raise ConversionError(f"{rule.megatron}: {whole.shape[axis]} rows do not divide over {size} ranks: lower --tp")
    length = whole.shape[axis] // (parts * size)
    for number in range(parts * size):
        offset = [*zeros[:axis], number * length, *zeros[axis + 1:]]
        yield number % size, tuple(offset), whole.narrow(axis, number * length, length).clone()
