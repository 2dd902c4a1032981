"""HF -> NeMo -> HF, one parameter at a time: no model is built, no process group is needed, nothing is held twice.

Both directions follow `parameters.rules`. The output is written beside its place and takes its name at the end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models.context import write_context
from nemo_mtdrive.models.directories import WEIGHTS, hf_files, nemo_directory
from nemo_mtdrive.models.hf_files import HFTensors, SafetensorsWriter, carried_files, read_config
from nemo_mtdrive.models.nemo_files import NemoTensors, NemoWriter
from nemo_mtdrive.models.parameters import Rule, rules
from nemo_mtdrive.models.whole_directory import ConversionError, whole_directory

if TYPE_CHECKING:
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel

SHARD_BYTES = 5_000_000_000
"""Most bytes of a safetensors file, as Hugging Face has it."""
DTYPES = (torch.bfloat16, torch.float32)
_ROOM_FOR_FILES = 64 << 20

Advance = Callable[[int], None]
"""Called with the number of parameters that are done."""


def hf_to_nemo(hf: Path, out: Path, *, tensor_size: int = 1, pipeline_size: int = 1, dtype: torch.dtype | None = None,
               overwrite: bool = False, start: Callable[[int], Advance] | None = None) -> Path:
    """Write a NeMo-2 checkpoint directory from a Hugging Face directory.

    Args:
        tensor_size, pipeline_size: ranks whose layout the files take; others read it as well, these the fastest.
        dtype: bfloat16 or float32; None keeps that of the weights.
        start: told how many parameters there are, gives what is told of each that is done.

    Raises:
        ConversionError: the source is not whole, or of another family; it says what to do.
        OutputError: the output could not be written. Either way there is no output directory.
    """
    config = Qwen2_5_VLConfig.from_dict(read_config(hf))
    check_split(config, tensor_size, pipeline_size)
    source = HFTensors(hf)
    mapped = check_source(source, config, pipeline_size)
    kept = one_dtype(((name, source.dtype(name)) for rule in mapped for name in rule.hf), dtype)
    size = kept.itemsize * sum(torch.Size(source.shape(name)).numel() for rule in mapped for name in rule.hf)
    advance = start(len(mapped)) if start else _silent
    with whole_directory(out, overwrite=overwrite, expected_bytes=size + _ROOM_FOR_FILES) as folder:
        with NemoWriter(folder / WEIGHTS, tensor_size, pipeline_size) as writer:
            for rule in mapped:
                writer.write(rule, rule.layout.split([source[name].to(kept) for name in rule.hf], 1)[0])
                advance(1)
        write_context(folder, unbuilt_model(config, tensor_size, pipeline_size, kept), hf)
    return out


def nemo_to_hf(nemo: Path, out: Path, *, files: Path | None = None, dtype: torch.dtype | None = None,
               shard_bytes: int = SHARD_BYTES, overwrite: bool = False,
               start: Callable[[int], Advance] | None = None) -> Path:
    """Write a Hugging Face directory from a NeMo-2 checkpoint directory or a checkpoint of a run.

    Args:
        files: folder with config.json, tokenizer and processor, for a checkpoint that carries none.
        dtype, start, raises: as `hf_to_nemo`.
        shard_bytes: most bytes of a safetensors file.
    """
    nemo = nemo_directory(nemo)
    files = files or hf_files(nemo)
    config = Qwen2_5_VLConfig.from_dict(read_config(files))
    source = NemoTensors(nemo / WEIGHTS)
    mapped = [rule for rule in rules(config, 1) if rule.exported]
    kept = one_dtype(((rule.key, source.dtype(rule)) for rule in mapped), dtype)
    planned = list(hf_shapes(config, mapped))
    size = kept.itemsize * sum(torch.Size(shape).numel() for _, shape in planned)
    advance = start(len(mapped)) if start else _silent
    with whole_directory(out, overwrite=overwrite, expected_bytes=size + _ROOM_FOR_FILES) as folder:
        for path in carried_files(files):
            shutil.copyfile(path, folder / path.name)
        _say_dtype(folder / "config.json", kept)
        with SafetensorsWriter(folder, planned, kept, shard_bytes) as writer:
            for rule in mapped:
                for name, tensor in merged_weights(source, rule, planned):
                    writer.write(name, tensor.to(kept))
                advance(1)
    return out


def _say_dtype(config: Path, dtype: torch.dtype) -> None:
    """Other programs load what `torch_dtype` says; the file stays byte for byte where it says so already."""
    content, name = json.loads(config.read_text()), str(dtype).removeprefix("torch.")
    if content.get("torch_dtype", name) != name:
        config.write_text(json.dumps(content | {"torch_dtype": name}, indent=1) + "\n")


def nemo_weights(nemo: Path) -> Iterator[tuple[str, Tensor]]:
    """(HF name, whole tensor) of every weight in a NeMo-2 directory or a checkpoint of a run, one at a time.

    Raises:
        ConversionError: it is not whole.
    """
    nemo = nemo_directory(nemo)
    config = Qwen2_5_VLConfig.from_dict(read_config(hf_files(nemo)))
    source = NemoTensors(nemo / WEIGHTS)
    mapped = [rule for rule in rules(config, 1) if rule.exported]
    planned = list(hf_shapes(config, mapped))
    for rule in mapped:
        yield from merged_weights(source, rule, planned)


def merged_weights(source: NemoTensors, rule: Rule, planned: list[tuple[str, tuple[int, ...]]]
                   ) -> Iterator[tuple[str, Tensor]]:
    """(HF name, tensor) of what one rule's parameter is made of; `planned` are the shapes of all (`hf_shapes`)."""
    yield from zip(rule.hf, _merged(rule, source.read(rule), planned), strict=True)


def check_source(source: HFTensors, config: Qwen2_5_VLConfig, pipeline_size: int = 1) -> list[Rule]:
    """Every tensor that the configuration asks for is there, with its shape, and no other; returns the rules.

    Raises:
        ConversionError: not so.
    """
    mapped = [rule for rule in rules(config, pipeline_size) if rule.exported]
    _check_names(source, mapped, config)
    _check_shapes(source, config, mapped)
    return mapped


def check_split(config: Qwen2_5_VLConfig, tensor_size: int, pipeline_size: int,
                names: tuple[str, str] = ("--tp ", "--pp ")) -> None:
    """Raises ConversionError where the model does not divide over tensor and pipeline ranks; `names` of the options."""
    vision = config.vision_config
    divided = {
        "attention heads": config.num_attention_heads, "groups of keys": config.num_key_value_heads,
        "columns of the MLP": config.intermediate_size, "tokens of the vocabulary": config.vocab_size,
        "attention heads of the vision tower": vision.num_heads,
        "columns of the vision tower's MLP": vision.intermediate_size,
    }
    for name, count in divided.items():
        if tensor_size < 1 or count % tensor_size:
            raise ConversionError(f"{names[0]}{tensor_size} does not divide the {count} {name}: {_sizes(divided.values())}")
    if pipeline_size < 1 or config.num_hidden_layers % pipeline_size:
        raise ConversionError(f"{names[1]}{pipeline_size} does not divide {config.num_hidden_layers} layers: take a divisor")


def hf_shapes(config: Qwen2_5_VLConfig, mapped: Iterable[Rule]) -> Iterable[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every HF tensor, in the order of the rules."""
    shapes = _skeleton(config.to_json_string(use_diff=False))
    return [(name, shapes[name]) for rule in mapped for name in rule.hf]


@lru_cache(maxsize=4)
def _skeleton(config: str) -> dict[str, tuple[int, ...]]:
    """Shapes of HF's own parameters, from its model on the meta device."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(json.loads(config)))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _merged(rule: Rule, whole: Tensor, planned: list[tuple[str, tuple[int, ...]]]) -> list[Tensor]:
    merged, shapes = rule.layout.merge([whole]), dict(planned)
    for name, tensor in zip(rule.hf, merged, strict=True):
        if tuple(tensor.shape) != shapes[name]:
            raise ConversionError(f"{name}: the checkpoint has {list(tensor.shape)}, config.json says {list(shapes[name])}: "
                                  "give the config.json of this model")
    return merged


def _check_names(source: HFTensors, mapped: list[Rule], config: Qwen2_5_VLConfig) -> None:
    wanted = {name for rule in mapped for name in rule.hf}
    found = {name for name in source if not name.endswith("inv_freq")}
    if missing := sorted(wanted - found):
        raise ConversionError(f"{source.directory}: {_some(missing)} absent; the directory is not whole, fetch it again")
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    extra = found - wanted
    if config.tie_word_embeddings and head in extra and torch.equal(source[head], source[embedding]):
        extra.discard(head)  # a copy that some programs write
    if extra:
        raise ConversionError(f"{source.directory}: {_some(sorted(extra))} not part of Qwen2.5-VL; config.json and"
                              " weights do not belong together")


def _check_shapes(source: HFTensors, config: Qwen2_5_VLConfig, mapped: list[Rule]) -> None:
    for name, shape in hf_shapes(config, mapped):
        if source.shape(name) != shape:
            raise ConversionError(f"{source.directory}: {name} has shape {list(source.shape(name))}, config.json says"
                                  f" {list(shape)}; they do not belong together")


def one_dtype(found: Iterable[tuple[str, torch.dtype]], wanted: torch.dtype | None) -> torch.dtype:
    """The dtype that is wanted, else the one that all (name, dtype) share.

    Raises:
        ConversionError: they differ, or are neither bfloat16 nor float32.
    """
    if wanted is not None:
        return wanted
    first: dict[torch.dtype, str] = {}
    for name, dtype in found:
        first.setdefault(dtype, name)
    if len(first) > 1 or not first.keys() <= set(DTYPES):
        named = ", ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in first.items())
        raise ConversionError(f"weights are {named}: all must be bfloat16 or all float32; convert them with --dtype")
    return next(iter(first))


def unbuilt_model(config: Qwen2_5_VLConfig, tensor_size: int, pipeline_size: int, dtype: torch.dtype) -> Qwen25VLModel:
    """The model class with its configuration and without parameters."""
    from nemo_mtdrive.models.architecture import megatron_config
    from nemo_mtdrive.models.optimizer import OptimizerOptions
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel

    options = OptimizerOptions(1.0, 0.01, 0.9, 0.95, 1e-8, distributed=True)
    translated = megatron_config(config, tensor_size=tensor_size, pipeline_size=pipeline_size, sequence_parallel=False,
                                 dtype=dtype, max_length=config.max_position_embeddings)
    return Qwen25VLModel(translated, options)


def _sizes(counts: Iterable[int]) -> str:
    counts = list(counts)
    possible = [size for size in range(1, min(counts) + 1) if all(count % size == 0 for count in counts)]
    return f"set it to {', '.join(map(str, possible[:-1]))} or {possible[-1]}" if len(possible) > 1 else "set it to 1"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _silent(count: int) -> None:
    pass
