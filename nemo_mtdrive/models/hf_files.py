"""A Hugging Face directory of Qwen2.5-VL: its configuration, its tensors one at a time, and the files that go along.

The safetensors files are read and written tensor by tensor: the library's own functions hold a whole file in memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nemo_mtdrive.models.whole_directory import ConversionError

FAMILY = "qwen2_5_vl"
INDEX = "model.safetensors.index.json"
_CARRIED = frozenset((".json", ".jinja", ".txt", ".model", ".tiktoken", ".md", ""))
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a Qwen2.5-VL directory, flat as the published ones are (newer transformers nest `text_config`).

    Raises:
        ConversionError: it is absent, not JSON, or of another family.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ConversionError(f"{directory}: no config.json there; give a Hugging Face directory of Qwen2.5-VL")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConversionError(f"{path}: not JSON ({error})") from error
    family = found.get("model_type") if isinstance(found, dict) else None
    if family != FAMILY:
        raise ConversionError(f"{path}: model_type={family!r}; only {FAMILY!r} (Qwen2.5-VL) can be converted")
    config = flat_config(found)
    missing = [name for name in ("hidden_size", "num_hidden_layers", "vocab_size", "vision_config", "rope_scaling")
               if not config.get(name)]
    if missing or "mrope_section" not in config["rope_scaling"]:
        raise ConversionError(f"{path}: {', '.join(missing) or 'rope_scaling.mrope_section'} is absent; give a config.json"
                              " as transformers 4 writes it")
    return config


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of `text_config`, where newer transformers put them, on the top level."""
    top = {name: value for name, value in config.items() if name != "text_config"}
    return dict(config.get("text_config", {})) | top


def carried_files(directory: Path) -> Iterator[Path]:
    """Everything in a Hugging Face directory but weights: configuration, tokenizer, processor, chat template, licence."""
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in _CARRIED and not path.name.startswith(".") and path.name != INDEX:
            yield path


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Of its bytes, from the start of the file."""
    size: int


class HFTensors(Mapping[str, Tensor]):
    """The tensors of a directory's safetensors files by name, each read when it is asked for.

    Raises:
        ConversionError: a file is absent, cut short or of unknown layout, or two files hold a tensor of one name.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._places: dict[str, _Place] = {}
        self.files = _weight_files(directory)
        for file in self.files:
            for name, place in _read_header(file).items():
                if name in self._places:
                    raise ConversionError(f"{file}: {name} is also in {self._places[name].file.name}; remove one of them")
                self._places[name] = place

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in memory of its own. KeyError names the directory."""
        if name not in self._places:
            raise KeyError(f"{self.directory}: no tensor {name}; the directory is not whole, fetch it again")
        place = self._places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        with place.file.open("rb") as stream:
            stream.seek(place.start)
            got = stream.readinto(_bytes_of(tensor)) if place.size else 0
        if got != place.size:
            raise ConversionError(f"{place.file}: cut short at {name}; fetch it again")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading it."""
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Without reading it."""
        return self._places[name].dtype

    @property
    def largest_file(self) -> int:
        """Bytes of the largest file."""
        return max(file.stat().st_size for file in self.files)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise ConversionError(f"{directory}: no *.safetensors there; save the model with safe_serialization=True")
        return files
    try:
        named = json.loads(index.read_text())["weight_map"]
        files = [directory / name for name in sorted(set(named.values()))]
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConversionError(f"{index}: not an index of safetensors files ({error})") from error
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ConversionError(f"{directory}: {', '.join(absent)} is named by {INDEX} and absent; fetch it again")
    return files


def _read_header(file: Path) -> dict[str, _Place]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER
        if 8 + length > min(size, _MAX_HEADER):
            raise ConversionError(f"{file}: cut short or no safetensors file; fetch it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            places = {name: _place(file, name, entry, 8 + length) for name, entry in header.items()}
        except (KeyError, AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConversionError(f"{file}: no safetensors header ({error}); fetch it again") from error
    end = max((place.start + place.size for place in places.values()), default=0)
    if end > size:
        raise ConversionError(f"{file}: cut short: {size} bytes of {end}; fetch it again")
    return places


def _place(file: Path, name: str, entry: dict[str, Any], data: int) -> _Place:
    if entry["dtype"] not in _DTYPES:
        raise ConversionError(f"{file}: {name} has dtype {entry['dtype']}; weights must be {', '.join(_DTYPES)}")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(int(side) for side in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    if start < 0 or end - start != torch.Size(shape).numel() * dtype.itemsize:
        raise ConversionError(f"{file}: {name}: {end - start} bytes do not hold {list(shape)} of {entry['dtype']}")
    return _Place(file, dtype, shape, data + start, end - start)


class SafetensorsWriter:
    """Write safetensors files and their index; tensors come one at a time, in the order that was planned.

    Args:
        directory: exists.
        planned: (name, shape) of every tensor, in order.
        dtype: of all of them.
        shard_bytes: most bytes of tensors in a file; a larger tensor has a file of its own.
    """

    def __init__(self, directory: Path, planned: Sequence[tuple[str, tuple[int, ...]]], dtype: torch.dtype,
                 shard_bytes: int) -> None:
        self._directory = directory
        self._dtype = dtype
        self._shards = _shards(planned, dtype, shard_bytes)
        self._pending: list[tuple[str, tuple[int, ...]]] = []
        self._opened = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is None:
            assert not self._pending and self._opened == len(self._shards), "a planned tensor was not written"
            self._write_index()

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor."""
        if not self._pending:
            self._next_file()
        planned, shape = self._pending.pop(0)
        assert (name, tuple(tensor.shape), tensor.dtype) == (planned, shape, self._dtype), f"{planned} comes now, not {name}"
        assert self._stream is not None
        self._stream.write(_bytes_of(tensor.contiguous()))

    def _next_file(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._pending = list(self._shards[self._opened])
        self._opened += 1
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in self._pending:
            end = offset + torch.Size(shape).numel() * self._dtype.itemsize
            header[name] = {"dtype": _NAMES[self._dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._stream = (self._directory / self._file_name(self._opened)).open("wb")
        self._stream.write(struct.pack("<Q", len(text)) + text)

    def _file_name(self, number: int) -> str:
        if len(self._shards) == 1:
            return "model.safetensors"
        return f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"

    def _write_index(self) -> None:
        if len(self._shards) == 1:
            return
        place = {name: self._file_name(at + 1) for at, shard in enumerate(self._shards) for name, _ in shard}
        total = sum(torch.Size(shape).numel() for shard in self._shards for _, shape in shard) * self._dtype.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
        (self._directory / INDEX).write_text(json.dumps(content, indent=2) + os.linesep)


def _shards(planned: Sequence[tuple[str, tuple[int, ...]]], dtype: torch.dtype,
            shard_bytes: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = []
    filled = shard_bytes
    for name, shape in planned:
        size = torch.Size(shape).numel() * dtype.itemsize
        if filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    return shards


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
