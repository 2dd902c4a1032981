"""New weights for vLLM: which there must be, and the ways into its worker processes.

    CPU    shared memory that has no name and ends with this process, `reload_weights` in the worker
    GPU    vLLM's weight transfer: "ipc" hands buckets on this process's GPU to workers on the same one, "nccl" broadcasts
           them to workers on other GPUs
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from nemo_mtdrive.process import free_port
from nemo_mtdrive.transfer.images import PATCH, PATCH_VALUES

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

ALIGNMENT = 64
BUCKET_BYTES = 1 << 30
"""Of a GPU transfer: no more than this lies on the sender's GPU at a time."""

Call = Callable[[Awaitable[Any]], Any]
"""Runs a coroutine of AsyncLLM in its event loop and waits for it."""


class WeightRoute(Protocol):
    """A way for weights into vLLM's workers."""

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load a whole set; the iterable is consumed once."""

    def close(self) -> None:
        """Release what the route holds."""


def hf_weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of a Qwen2.5-VL with this config.json, as the published checkpoints name them."""
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = hidden // heads
    shapes: dict[str, tuple[int, ...]] = dict(_vision_shapes(config["vision_config"]))
    shapes["model.embed_tokens.weight"] = (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for part, rows in (("q", heads), ("k", groups), ("v", groups)):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (rows * width, hidden)
            shapes[f"{layer}.self_attn.{part}_proj.bias"] = (rows * width,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads * width)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (mlp, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, mlp)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _vision_shapes(vision: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp = vision["hidden_size"], vision["intermediate_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    frames = PATCH_VALUES // (3 * PATCH * PATCH)
    yield "visual.patch_embed.proj.weight", (hidden, 3, frames, PATCH, PATCH)
    products = {"attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden), "mlp.gate_proj": (mlp, hidden),
                "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}  # fmt: skip
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        yield from ((f"{block}.norm{number}.weight", (hidden,)) for number in (1, 2))
        for name, shape in products.items():
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
    yield "visual.merger.ln_q.weight", (hidden,)
    for number, rows in ((0, merged), (2, vision["out_hidden_size"])):
        yield f"visual.merger.mlp.{number}.weight", (rows, merged)
        yield f"visual.merger.mlp.{number}.bias", (rows,)


class SharedMemoryRoute:
    """Weights by way of a memory file without a name: nothing is left behind, however a process ends."""

    def __init__(self, llm: AsyncLLM, call: Call) -> None:
        self._llm, self._call = llm, call

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `WeightRoute.send`; the workers start when the last weight is there, so a set that is refused changes
        nothing."""
        entries: list[list[Any]] = []
        offset = 0
        file = os.memfd_create("mtdrive-weights", os.MFD_CLOEXEC)
        try:
            for name, tensor in weights:
                content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                entries.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset])
                view = memoryview(content)
                while view:  # one call writes 2 GiB at most
                    written = os.pwrite(file, view, offset)
                    view, offset = view[written:], offset + written
                offset = -(-offset // ALIGNMENT) * ALIGNMENT
            os.ftruncate(file, offset)
            path = f"/proc/{os.getpid()}/fd/{file}"
            self._call(self._llm.collective_rpc("mtdrive_load_weights", args=(path, offset, entries)))
        finally:
            os.close(file)

    def close(self) -> None:
        """Nothing stays open."""


class GPURoute:
    """vLLM's own weight transfer from this process's GPU, with this process as its trainer of one rank."""

    def __init__(
        self, backend: str, llm: AsyncLLM, call: Call, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype,
        workers: int,
    ) -> None:
        """`backend`: "ipc" or "nccl"; `workers` receive; weights go as `dtype`."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._source = _weight_source(shapes, dtype)
        start: Any
        if backend == "ipc":
            start = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=BUCKET_BYTES)
        else:
            start = NCCLTrainerInitInfo(rank=0, master_address="127.0.0.1", master_port=free_port(),
                                        world_size=workers + 1, packed=True, packed_buffer_size_bytes=BUCKET_BYTES)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            start, client=_InProcessClient(llm, call), source=self._source)

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `WeightRoute.send`; the order is that of the source's metadata, so the set is gathered by name first."""
        self._source.weights = dict(weights)
        try:
            self._engine.send_weights()
        finally:
            self._source.weights = {}

    def close(self) -> None:
        """Leave the workers' group."""
        self._engine.shutdown()


def _weight_source(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Any:
    """vLLM's `WeightSource` over a set of weights on any device; each goes to the GPU as its turn comes."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class Source(WeightSource):
        def __init__(self) -> None:
            self.weights: dict[str, Tensor] = {}

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, dtype, shape) for name, shape in shapes.items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            for name in shapes:
                yield name, self.weights[name].to(device="cuda", dtype=dtype)

    return Source()


class _InProcessClient:
    """vLLM's `VLLMWeightSyncClient` for an AsyncLLM of this process."""

    def __init__(self, llm: AsyncLLM, call: Call) -> None:
        self._llm, self._call = llm, call

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._call(self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))

    def start_weight_update(self) -> None:
        self._call(self._llm.start_weight_update())

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._call(self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call(self._llm.finish_weight_update(weight_version))
