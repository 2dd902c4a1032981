"""megatron-core on CPU: scatter is right, factories land on the CPU, gradients are clipped."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from nemo_mtdrive.models import cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-ins are for machines without CUDA")


@pytest.mark.parametrize("grid", ["tensor", "data", "pipeline", "sequence"])
def test_strided_inputs_are_scattered_right(found: dict[str, Any], grid: str) -> None:
    """gloo sends the raw storage of strided inputs: without the shim weights arrive wrong and nothing is raised."""
    assert found[grid]["scatter"] == {"strided": True, "wrong_without": True, "installed": True}


def test_nothing_is_touched_where_there_is_cuda() -> None:
    """In a process that says that it has CUDA, torch and megatron are as they came."""
    program = """
import torch, torch.distributed as dist
torch.cuda.is_available = lambda: True
before = {name: getattr(torch.cuda, name) for name in dir(torch.cuda)} | {"scatter": dist.scatter, "cuda": torch.Tensor.cuda}
from nemo_mtdrive.models import cpu
assert not cpu.needed() and cpu.install() is False
after = {name: getattr(torch.cuda, name) for name in dir(torch.cuda)} | {"scatter": dist.scatter, "cuda": torch.Tensor.cuda}
assert all(after[name] is value for name, value in before.items()), "changed"
print("as they came")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout == "as they came\n", ran.stderr


def test_tensors_are_moved_nowhere_but_inside_megatrons_call() -> None:
    """Megatron calls `.cuda()` on embeddings that stages share (test_parity's pipeline runs it); elsewhere that fails."""
    assert cpu.install()
    tensor = torch.ones(1)
    assert cpu._staying_here(lambda: tensor.cuda())() is tensor
    with pytest.raises(ZeroDivisionError):
        cpu._staying_here(lambda: 1 / 0)()
    with pytest.raises((AssertionError, RuntimeError)):
        tensor.cuda()


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
