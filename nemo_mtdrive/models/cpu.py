"""Run megatron-core on CPU with gloo: the one place that knows how. Where CUDA is available nothing here does anything.

megatron-core 0.15.3 names CUDA at a few call sites. Three things make it run without it:

* `prepare_torch` stands in for the `torch.cuda` calls that megatron makes (device, streams, RNG, NVTX), so that they
  mean the CPU, mends `torch.distributed.scatter`, and declares torchvision's operators;
* `install` gives the few megatron modules that build tensors with `device="cuda"` a `torch` whose factories build them
  on the CPU. Only those names are rebound: the hot path (layers, autograd) runs plain torch without any interception;
* `install` replaces gradient clipping, which asserts CUDA tensor types, and lets tied embeddings stay where they are.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from nemo_mtdrive.torchvision_ops import declare_torchvision_operators

_CPU = torch.device("cpu")

_MODULES_WITH_CUDA_TENSORS = (
    "megatron.core.utils",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
)
"""Modules that say `device="cuda"` in a tensor factory on a path that we use."""

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like", "ones_like")

_prepared = False
_installed = False


class _Idle:
    """A CUDA stream or event where there is no device: everything is done already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, *_: Any) -> None:
        """Nothing runs beside the caller."""

    wait_event = wait = record = synchronize = wait_stream

    def record_event(self, *_: Any) -> _Idle:
        """Return an event that has happened."""
        return self

    def query(self) -> bool:
        """Everything enqueued is complete."""
        return True

    def elapsed_time(self, _: Any) -> float:
        """Milliseconds between two events; nothing is measured here."""
        return 0.0


class _TorchOnCpu(ModuleType):
    """The torch module, with tensor factories that read a CUDA device as the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _is_cuda(device: Any) -> bool:
    return str(device).startswith("cuda") or (isinstance(device, int) and not isinstance(device, bool))


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def build(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return build


def needed() -> bool:
    """Whether this machine needs the stand-ins: there is no CUDA device."""
    return not torch.cuda.is_available()


def prepare_torch() -> None:
    """Stand in for `torch.cuda`; call before megatron or NeMo is imported. Safe to call again; no-op with CUDA."""
    global _prepared
    if _prepared or not needed():
        return
    _prepared = True
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # mcore decorates small functions with torch.compile: no gain here
    declare_torchvision_operators()
    _stand_in_for_cuda()
    dist.scatter = _scatter_contiguous


def install() -> bool:
    """Make megatron-core run on this machine; call before a model is built.

    Returns True where the stand-ins are in place, False where CUDA is available and nothing was changed.
    """
    global _installed
    prepare_torch()
    if _installed or not needed():
        return _installed
    _installed = True
    torch_on_cpu = _TorchOnCpu()
    for name in _MODULES_WITH_CUDA_TENSORS:
        module = importlib.import_module(name)
        module.torch = torch_on_cpu  # type: ignore[attr-defined]
    optimizer = importlib.import_module("megatron.core.optimizer.optimizer")
    optimizer.clip_grad_by_total_norm_fp32 = clip_gradients  # type: ignore[attr-defined]
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._set_cuda_rng_state = _set_rng_state  # type: ignore[attr-defined]
    random._get_cuda_rng_state = _get_rng_state  # type: ignore[attr-defined]
    language = importlib.import_module("megatron.core.models.common.language_module.language_module").LanguageModule
    language.setup_embeddings_and_output_layer = _staying_here(language.setup_embeddings_and_output_layer)
    return True


def clip_gradients(
    parameters: Iterable[torch.Tensor] | torch.Tensor,
    max_norm: float,
    total_norm: float,
    use_decoupled_grad: bool = False,
) -> None:
    """Scale gradients in place to `max_norm`, as `clip_grad_by_total_norm_fp32`, which asserts CUDA tensors."""
    if use_decoupled_grad:
        raise NotImplementedError("use_decoupled_grad=True needs a GPU: leave the precision-aware optimizer off on CPU")
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    coefficient = max_norm / (total_norm + 1.0e-6)
    gradients = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
    if coefficient < 1.0 and gradients:
        torch._foreach_mul_(gradients, coefficient)


def _staying_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with `Tensor.cuda()` meaning "as it is"; megatron moves tied embeddings so when stages share them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        original = torch.Tensor.cuda
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
        try:
            return function(*args, **kwargs)
        finally:
            torch.Tensor.cuda = original  # type: ignore[method-assign]

    return call


_original_scatter = dist.scatter


def _scatter_contiguous(
    tensor: torch.Tensor, scatter_list: list[torch.Tensor] | None = None, *args: Any, **kwargs: Any
) -> Any:
    """`torch.distributed.scatter` for gloo, which sends the raw storage of strided inputs: wrong values, no error."""
    if scatter_list is not None:
        scatter_list = [part.contiguous() for part in scatter_list]
    return _original_scatter(tensor, scatter_list, *args, **kwargs)


def _set_rng_state(state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


def _get_rng_state(device: Any = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _stand_in_for_cuda() -> None:
    cuda = torch.cuda
    # A new function for each name: torch._dynamo keeps its rules by function and refuses one object under two names.
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed_all"):
        setattr(cuda, name, lambda *_, **__: None)
    for name in ("current_stream", "default_stream"):
        setattr(cuda, name, lambda *_, **__: _Idle())
    for name in ("range_push", "range_pop"):
        setattr(cuda.nvtx, name, lambda *_, **__: None)
    for name in ("FloatTensor", "HalfTensor", "BFloat16Tensor"):
        setattr(cuda, name, getattr(torch, name))
    stand_ins: dict[str, Any] = {
        "Stream": _Idle,
        "Event": _Idle,
        "current_device": lambda: _CPU,
        "stream": lambda *_, **__: contextlib.nullcontext(),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": lambda value: torch.default_generator.manual_seed(int(value)),
        "initial_seed": lambda: torch.initial_seed(),
    }
    for name, value in stand_ins.items():
        setattr(cuda, name, value)
