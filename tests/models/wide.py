"""Run code that says float32 in float64, to tell a wrong formula from rounding.

HF's own float32 gradients are up to 4e-6 (relative norm) from the exact ones on the tests' weights, ours as much: two
float32 programs that add in another order cannot agree to 1e-6. In float64 they can, and a mistake cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Wide(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*(_widened(value) for value in args), **wide)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def float64() -> Iterator[None]:
    """Inside, float32 means float64: as the default, in casts and in factories."""
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def widened(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch whose float32 tensors are float64."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
