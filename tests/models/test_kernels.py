"""Hand-written gradients against autograd of the plain formulas, in float64."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

from nemo_mtdrive.models import kernels


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_swiglu() -> None:
    torch.manual_seed(0)
    input_ = _random(3, 2, 8)
    gate, up = input_.chunk(2, -1)
    assert torch.allclose(kernels.swiglu(input_), torch.nn.functional.silu(gate) * up)
    assert gradcheck(kernels.swiglu, (input_,))


def test_rotation() -> None:
    """q turns with its angle, v stays; turning is by pairs (i, i + d/2), as HF's rotate_half."""
    torch.manual_seed(0)
    angles = torch.randn(3, 2, 1, 4, dtype=torch.float64)
    cosine, sine = angles.cos(), angles.sin()
    mixed = _random(3, 2, 2, 4, 8)
    query, key, value = kernels.split_and_rotate(mixed, cosine, sine)
    assert query.shape == (3, 2, 4, 8) and key.shape == value.shape == (3, 2, 2, 8)
    full_cosine, full_sine = cosine.repeat(1, 1, 1, 2), sine.repeat(1, 1, 1, 2)
    first, second = mixed[:, :, :, 2].chunk(2, -1)
    expected = mixed[:, :, :, 2] * full_cosine + torch.cat((-second, first), -1) * full_sine
    assert torch.allclose(key, expected)
    assert torch.equal(value, mixed[:, :, :, 3])
    assert gradcheck(lambda mixed: kernels.split_and_rotate(mixed, cosine, sine), (mixed,))


def test_rms_norm() -> None:
    """The kernel computes in float32, so its gradient is held against autograd's of the same formula."""
    torch.manual_seed(0)
    input_, weight = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3, 16), (16,)))
    upstream = torch.randn(5, 3, 16)
    output = kernels.rms_norm(input_, weight, 1e-6)
    gradients = torch.autograd.grad(output, (input_, weight), upstream)
    plain = torch.nn.functional.rms_norm(input_, (16,), weight, 1e-6)
    assert torch.allclose(output, plain, atol=1e-6)
    for one, other in zip(gradients, torch.autograd.grad(plain, (input_, weight), upstream), strict=True):
        assert torch.allclose(one, other, atol=2e-6)
