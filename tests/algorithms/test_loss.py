"""Eq. 4 against numbers worked by hand and against a plain fp64 reference, token by token."""

import math

import pytest
import torch

from nemo_mtdrive.algorithms.loss import LossSettings, kl_divergence, mtgrpo_loss, sft_loss

SETTINGS = LossSettings(clip_low=0.2, clip_high=0.2, kl_coefficient=0.01, kl_estimator="k3")


def reference_loss(logprobs, old, ref, advantages, mask, weights, settings):
    """Eq. 4 written as the paper has it: loops, fp64, no vectorisation."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(logprobs.shape[0]):
        own = [t for t in range(logprobs.shape[1]) if mask[i, t]]
        inner = torch.zeros((), dtype=torch.float64)
        for t in own:
            ratio = torch.exp(logprobs[i, t] - old[i, t])
            clipped = torch.clamp(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
            r = torch.exp(ref[i, t] - logprobs[i, t])
            kl = r - torch.log(r) - 1
            inner = inner + torch.min(ratio * advantages[i, t], clipped * advantages[i, t]) - settings.kl_coefficient * kl
        if own:
            total = total + weights[i] * inner / len(own)
    return -total


def random_batch(seed: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    batch, length = 5, 11
    old = -torch.rand(batch, length, generator=generator, dtype=dtype) * 3
    new = old + 0.4 * torch.randn(batch, length, generator=generator, dtype=dtype)
    ref = old + 0.2 * torch.randn(batch, length, generator=generator, dtype=dtype)
    advantages = torch.randn(batch, length, generator=generator, dtype=dtype)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[3] = False  # an episode without a token of its own must not divide by zero
    weights = torch.tensor([0.25, 0.25, 0.25, 0.0, 0.25], dtype=dtype)
    return new.requires_grad_(), old, ref, advantages, mask, weights


def test_one_token_by_hand() -> None:
    # ratio 1.5 clipped to 1.2, A = 2: min(3, 2.4) = 2.4; ref = new / 2: k3 = 0.5 - ln 0.5 - 1 = 0.193147
    new = torch.tensor([[0.0, math.log(0.6)]], dtype=torch.float64)
    old = torch.tensor([[0.0, math.log(0.4)]], dtype=torch.float64)
    ref = torch.tensor([[0.0, math.log(0.3)]], dtype=torch.float64)
    loss, metrics = mtgrpo_loss(new, old, ref, torch.full((1, 2), 2.0, dtype=torch.float64),
                                torch.tensor([[False, True]]), torch.ones(1, dtype=torch.float64), SETTINGS)
    assert loss.item() == pytest.approx(-(2.4 - 0.01 * (math.log(2) - 0.5)), abs=1e-12)
    assert metrics["clip_share"].item() == 1.0
    assert metrics["kl"].item() == pytest.approx(math.log(2) - 0.5, abs=1e-12)


def test_a_negative_advantage_is_not_clipped_above() -> None:
    """min() keeps the larger penalty: ratio 1.5 with A = -1 stays -1.5."""
    new, old = torch.tensor([[math.log(0.6)]]), torch.tensor([[math.log(0.4)]])
    loss, _ = mtgrpo_loss(new, old, new, torch.tensor([[-1.0]]), torch.tensor([[True]]), torch.ones(1), SETTINGS)
    assert loss.item() == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_loss_and_gradient_equal_the_reference(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    new, old, ref, advantages, mask, weights = random_batch(seed, torch.float64)
    expected = reference_loss(new, old, ref, advantages, mask, weights, SETTINGS)
    (expected_gradient,) = torch.autograd.grad(expected, new)
    cast = new.detach().to(dtype).requires_grad_()
    loss, _ = mtgrpo_loss(cast, old.to(dtype), ref.to(dtype), advantages.to(dtype), mask, weights.to(dtype), SETTINGS)
    (gradient,) = torch.autograd.grad(loss, cast)
    assert loss.item() == pytest.approx(expected.item(), abs=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=tolerance, rtol=0)


def test_masked_tokens_have_no_gradient_and_may_hold_anything() -> None:
    new, old, ref, advantages, mask, weights = random_batch(3, torch.float64)
    expected, _ = mtgrpo_loss(new, old, ref, advantages, mask, weights, SETTINGS)
    dirty = torch.where(mask, new.detach(), -torch.inf).requires_grad_()
    loss, _ = mtgrpo_loss(dirty, torch.where(mask, old, torch.nan), torch.where(mask, ref, torch.inf), advantages, mask,
                          weights, SETTINGS)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    assert (gradient[~mask] == 0).all() and torch.isfinite(gradient).all()


def test_micro_batches_add_up() -> None:
    new, old, ref, advantages, mask, weights = random_batch(4, torch.float64)
    whole, _ = mtgrpo_loss(new, old, ref, advantages, mask, weights, SETTINGS)
    parts = [mtgrpo_loss(new[s], old[s], ref[s], advantages[s], mask[s], weights[s], SETTINGS)[0]
             for s in (slice(0, 2), slice(2, 5))]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), abs=1e-14)


def test_kl_estimators() -> None:
    """k1 and k3 are unbiased for KL(p || q) by exact enumeration; k3 is never negative; k2 is its second order."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for name in ("k1", "k3"):
        assert (p * kl_divergence(p.log(), q.log(), name)).sum().item() == pytest.approx(exact.item(), abs=1e-15)
    assert (kl_divergence(p.log(), q.log(), "k3") >= 0).all()
    assert kl_divergence(p.log(), q.log(), "k2")[0].item() == pytest.approx(0.5 * math.log(0.8) ** 2)
    with pytest.raises(ValueError, match="kl_estimator=k4"):
        kl_divergence(p, q, "k4")


def test_sft_loss_is_the_mean_over_answer_tokens() -> None:
    logprobs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    assert sft_loss(logprobs, mask, 3).item() == pytest.approx(2.0)
