"""Eq. 4 against numbers worked by hand and against a plain fp64 reference, token by token."""

import math
from dataclasses import replace

import pytest
import torch

from nemo_mtdrive.algorithms.loss import LossSettings, kl_divergence, mtgrpo_loss, sft_loss, token_weights

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


def per_token(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1/|o_i| of Eq. 4 on top of a rollout's weight, for each token [B, T]."""
    return (weights / mask.sum(1).clamp(min=1))[:, None].expand(mask.shape)


def test_one_token_by_hand() -> None:
    # ratio 1.5 clipped to 1.2, A = 2: min(3, 2.4) = 2.4; ref = new / 2: k3 = 0.5 - ln 0.5 - 1 = 0.193147
    new = torch.tensor([[0.0, math.log(0.6)]], dtype=torch.float64)
    old = torch.tensor([[0.0, math.log(0.4)]], dtype=torch.float64)
    ref = torch.tensor([[0.0, math.log(0.3)]], dtype=torch.float64)
    loss, metrics = mtgrpo_loss(new, old, ref, torch.full((1, 2), 2.0, dtype=torch.float64),
                                torch.tensor([[False, True]]), torch.ones(1, 2, dtype=torch.float64), SETTINGS)
    assert loss.item() == pytest.approx(-(2.4 - 0.01 * (math.log(2) - 0.5)), abs=1e-12)
    assert metrics["clip_share"].item() == 1.0
    assert metrics["kl"].item() == pytest.approx(math.log(2) - 0.5, abs=1e-12)


def test_a_negative_advantage_is_not_clipped_above() -> None:
    """min() keeps the larger penalty: ratio 1.5 with A = -1 stays -1.5."""
    new, old = torch.tensor([[math.log(0.6)]]), torch.tensor([[math.log(0.4)]])
    loss, _ = mtgrpo_loss(new, old, new, torch.tensor([[-1.0]]), torch.tensor([[True]]), torch.ones(1, 1), SETTINGS)
    assert loss.item() == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_loss_and_gradient_equal_the_reference(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    new, old, ref, advantages, mask, weights = random_batch(seed, torch.float64)
    expected = reference_loss(new, old, ref, advantages, mask, weights, SETTINGS)
    (expected_gradient,) = torch.autograd.grad(expected, new)
    cast = new.detach().to(dtype).requires_grad_()
    loss, _ = mtgrpo_loss(cast, old.to(dtype), ref.to(dtype), advantages.to(dtype), mask,
                          per_token(weights, mask).to(dtype), SETTINGS)
    (gradient,) = torch.autograd.grad(loss, cast)
    assert loss.item() == pytest.approx(expected.item(), abs=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=tolerance, rtol=0)


def test_masked_tokens_have_no_gradient_and_may_hold_anything() -> None:
    new, old, ref, advantages, mask, weights = random_batch(3, torch.float64)
    expected, _ = mtgrpo_loss(new, old, ref, advantages, mask, weights[:, None], SETTINGS)
    dirty = torch.where(mask, new.detach(), -torch.inf).requires_grad_()
    loss, _ = mtgrpo_loss(dirty, torch.where(mask, old, torch.nan), torch.where(mask, ref, torch.inf), advantages, mask,
                          weights[:, None], SETTINGS)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    assert (gradient[~mask] == 0).all() and torch.isfinite(gradient).all()


def test_micro_batches_add_up() -> None:
    new, old, ref, advantages, mask, weights = random_batch(4, torch.float64)
    whole, _ = mtgrpo_loss(new, old, ref, advantages, mask, weights[:, None], SETTINGS)
    parts = [mtgrpo_loss(new[s], old[s], ref[s], advantages[s], mask[s], weights[s, None], SETTINGS)[0]
             for s in (slice(0, 2), slice(2, 5))]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), abs=1e-14)


def everything_reference(new, old, ref, advantages, mask, weights, settings, engine, entropy):
    """The whole objective token by token in plain Python over fp64 scalars."""
    total = torch.zeros((), dtype=torch.float64)
    for i, t in mask.nonzero().tolist():
        a, ratio = advantages[i, t], torch.exp(new[i, t] - old[i, t])
        clipped = torch.clamp(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
        term = torch.min(ratio * a, clipped * a)
        if settings.dual_clip and a < 0:
            term = torch.max(term, settings.dual_clip * a)
        if settings.importance_cap:
            term = term * min(math.exp(old[i, t].item() - engine[i, t].item()), settings.importance_cap)
        log_r = ref[i, t] - new[i, t]
        kl = {"k1": -log_r, "k2": log_r**2 / 2, "k3": torch.exp(log_r) - 1 - log_r}[settings.kl_estimator]
        total = total - weights[i] * (term - settings.kl_coefficient * kl + settings.entropy_coefficient * entropy[i, t])
    return total


@pytest.mark.parametrize("changes", [
    {"clip_high": 0.28}, {"dual_clip": 1.1}, {"importance_cap": 1.05}, {"entropy_coefficient": 0.01},
    {"kl_estimator": "k1"}, {"kl_estimator": "k2"},
    {"clip_high": 0.3, "dual_clip": 1.5, "importance_cap": 2.0, "entropy_coefficient": 0.02, "kl_estimator": "k2"},
])
def test_what_is_added_to_eq_4_equals_its_reference(changes: dict) -> None:
    settings = replace(SETTINGS, **changes)
    new, old, ref, advantages, mask, weights = random_batch(7, torch.float64)
    generator = torch.Generator().manual_seed(8)
    engine = old + 0.1 * torch.randn(old.shape, generator=generator, dtype=torch.float64)
    entropy = torch.rand(old.shape, generator=generator, dtype=torch.float64).requires_grad_()
    expected = everything_reference(new, old, ref, advantages, mask, weights, settings, engine, entropy)
    found, _ = mtgrpo_loss(new, old, ref, advantages, mask, weights[:, None], settings, engine_logprobs=engine,
                           entropy=entropy)
    plain, _ = mtgrpo_loss(new, old, ref, advantages, mask, weights[:, None], SETTINGS)
    assert found.item() == pytest.approx(expected.item(), abs=1e-13)
    assert abs(found.item() - plain.item()) > 1e-6  # the change is in force on these numbers
    for mine, theirs in zip(torch.autograd.grad(found, (new, entropy), allow_unused=True),
                            torch.autograd.grad(expected, (new, entropy), materialize_grads=True), strict=True):
        torch.testing.assert_close(torch.zeros_like(theirs) if mine is None else mine, theirs, atol=1e-13, rtol=0)


def test_dual_clip_bounds_a_runaway_ratio() -> None:
    """A token that became e^5 times likelier with A = -1 pushes with -e^5 by Eq. 4 and with -3 under dual clip 3."""
    new, old, one = torch.tensor([[5.0]]), torch.tensor([[0.0]]), torch.tensor([[-1.0]])
    settings = replace(SETTINGS, kl_coefficient=0.0, dual_clip=3.0)
    loss, _ = mtgrpo_loss(new, old, old, one, torch.tensor([[True]]), torch.ones(1, 1), settings)
    assert loss.item() == 3.0


def test_token_weights_by_hand() -> None:
    lengths = [[10, 30], [20]]
    assert token_weights("sequence_mean", lengths, 100) == [[1 / 40, 1 / 120], [1 / 40]]
    assert token_weights("token_mean", lengths, 100) == [[1 / 60, 1 / 60], [1 / 60]]
    assert token_weights("constant", lengths, 100) == [[1 / 400, 1 / 400], [1 / 200]]
    assert token_weights("sequence_mean", [[], [5]], 100) == [[], [1 / 10]]  # a question without a valid rollout
    with pytest.raises(ValueError, match="aggregation=mean"):
        token_weights("mean", lengths, 100)


def test_mu_1_starts_with_ratio_exactly_1_and_kl_0_at_the_reference() -> None:
    new, _, _, advantages, mask, weights = random_batch(9, torch.float64)
    _, metrics = mtgrpo_loss(new, new.detach(), new.detach(), advantages, mask, per_token(weights, mask), SETTINGS)
    assert metrics["kl"].item() == 0.0
    assert metrics["ratio"].item() == pytest.approx(weights.sum().item(), abs=1e-15)
    assert metrics["clip_share"].item() == 0.0


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
