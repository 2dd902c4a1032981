"""megatron-core on CPU: scatter is right, factories land on the CPU, gradients are clipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_mtdrive.models import cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-ins are for machines without CUDA")


@pytest.mark.parametrize("grid", ["tensor", "data", "pipeline"])
def test_strided_inputs_are_scattered_right(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["scatter"] == {"strided": True, "installed": True}


def test_only_megatrons_factories_are_redirected() -> None:
    assert cpu.install()
    from megatron.core.pipeline_parallel import schedules

    assert schedules.torch.zeros([], dtype=torch.int, device="cuda").device.type == "cpu"
    assert schedules.torch.tensor([1.0], device="cuda", pin_memory=True).tolist() == [1.0]
    assert schedules.torch.nn is torch.nn
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")


def test_random_states_fork_and_come_back() -> None:
    assert cpu.install()
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    tracker.add("here", 5)
    torch.manual_seed(1)
    with tracker.fork("here"):
        inside = torch.rand(2)
    outside = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(outside, torch.rand(2))
    torch.manual_seed(5)
    assert torch.equal(inside, torch.rand(2))


def test_gradients_are_clipped_to_the_norm() -> None:
    parameter = torch.zeros(2)
    parameter.grad = torch.tensor([3.0, 4.0])
    cpu.clip_gradients([parameter, torch.zeros(1)], max_norm=10.0, total_norm=5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]
    cpu.clip_gradients(parameter, max_norm=1.0, total_norm=5.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_precision_aware_gradients_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        cpu.clip_gradients([], max_norm=1.0, total_norm=1.0, use_decoupled_grad=True)
