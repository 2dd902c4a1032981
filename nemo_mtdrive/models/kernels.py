"""Element-wise parts of a layer with hand-written gradients, for machines without transformer-engine.

Plain autograd walks memory two to three times as often (a slice's gradient is a zero-filled copy of the whole tensor, a
norm's is ten small operations); at the demo's size that is half of a training step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(input_: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon) over the last dimension, computed in float32."""
    return _RMSNorm.apply(input_, weight, epsilon)


def swiglu(input_: Tensor) -> Tensor:
    """[..., 2 f] -> [..., f]: silu(gate) * up, gate in the first half."""
    return _SwiGLU.apply(input_)


def split_and_rotate(mixed: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take q, k, v apart and turn q and k by their positions.

    Args:
        mixed: [s, b, groups, queries + 2, d]: for each query group its queries, its key, its value.
        cosine, sine: [s, b, 1, d / 2] of the angles; dimension i turns with dimension i + d / 2.

    Returns:
        q [s, b, groups * queries, d], k and v [s, b, groups, d].
    """
    query, key, value = _SplitAndRotate.apply(mixed, cosine[:, :, None], sine[:, :, None])
    return query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in the precision that sums want: float32, or float64 if it has that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = at_least_float32(input_)
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = square.div_(wide.shape[-1]).add_(epsilon).rsqrt_()
        normal = wide * inverse
        ctx.save_for_backward(normal, weight, inverse)
        ctx.dtype = input_.dtype
        return (normal * weight).to(input_.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, weight, inverse = ctx.saved_tensors
        size = normal.shape[-1]
        rows = normal.view(-1, size)
        wide = at_least_float32(gradient.reshape(-1, size))
        product = wide * rows
        weight_gradient = product.sum(dim=0)
        mean = torch.mv(product, at_least_float32(weight)).div_(size)
        result = (wide * weight).addcmul_(rows, mean[:, None], value=-1).mul_(inverse.view(-1, 1))
        return result.view(normal.shape).to(ctx.dtype), weight_gradient.to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_: Tensor) -> Tensor:
        ctx.save_for_backward(input_)
        gate, up = input_.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (input_,) = ctx.saved_tensors
        gate, up = input_.chunk(2, dim=-1)
        result = torch.empty_like(input_)
        gate_gradient, up_gradient = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), gradient, out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=gate_gradient)
        return result


class _SplitAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine, sine)
        ctx.shape = mixed.shape
        query, key, value = mixed.split([mixed.shape[3] - 2, 1, 1], dim=3)
        turned = [torch.empty(part.shape, dtype=mixed.dtype, device=mixed.device) for part in (query, key)]
        for source, target in zip((query, key), turned, strict=True):
            _turn(source, cosine, sine, target, direction=1)
        return turned[0], turned[1], value.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        result = torch.empty(ctx.shape, dtype=query.dtype, device=query.device)
        targets = result.split([ctx.shape[3] - 2, 1, 1], dim=3)
        for source, target in zip((query, key), targets, strict=False):
            _turn(source, cosine, sine, target, direction=-1)
        targets[2].copy_(value)
        return result, None, None


def _turn(source: Tensor, cosine: Tensor, sine: Tensor, target: Tensor, direction: int) -> None:
    """target <- source turned by the angles, or back (`direction` -1)."""
    first, second = source.chunk(2, dim=-1)
    out_first, out_second = target.chunk(2, dim=-1)
    torch.mul(first, cosine, out=out_first).addcmul_(second, sine, value=-direction)
    torch.mul(second, cosine, out=out_second).addcmul_(first, sine, value=direction)
