r"""The mtGRPO objective (Eq. 4) as a loss to be minimised, the estimators of its KL term, and what others add to it.

    J = E_q 1/G sum_i 1/|o_i| sum_t { min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL }

with rho = pi_theta / pi_old of token t and |o_i| the number of tokens that the model wrote in rollout i (all turns; the
prompt, the image and the feedback are not the model's own). The paper computes KL by the K3 method (Section 4.1). All the
rest is off by default: a higher clip above than below, dual clip, an entropy bonus, truncated importance weights for the
mismatch of engine and trainer, and other ways to average over tokens (`token_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AGGREGATIONS = ("sequence_mean", "token_mean", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True)
class LossSettings:
    """The knobs of Eq. 4; `MtGRPOConfig` says what each is for."""

    clip_low: float
    clip_high: float
    kl_coefficient: float
    kl_estimator: str
    dual_clip: float = 0.0
    entropy_coefficient: float = 0.0
    importance_cap: float = 0.0


def token_weights(aggregation: str, lengths: Sequence[Sequence[int]], longest: int) -> list[list[float]]:
    """Weight of each own token of each rollout in the loss of a mini-batch; `lengths` [questions][rollouts] are |o_i|.

    sequence_mean: 1 / (questions * rollouts * |o_i|), Eq. 4: a rollout counts once, however long.
    token_mean: 1 / (all own tokens of the mini-batch): a token counts once, so long rollouts count more.
    constant: 1 / (questions * rollouts * `longest`): a sum over tokens with a fixed scale; the only one whose expectation
        does not depend on lengths that the policy itself decides.

    Raises:
        ValueError: the aggregation is unknown.
    """
    if aggregation == "sequence_mean":
        return [[1.0 / (len(lengths) * len(of_question) * max(n, 1)) for n in of_question] for of_question in lengths]
    if aggregation == "token_mean":
        total = max(sum(n for of_question in lengths for n in of_question), 1)
        return [[1.0 / total] * len(of_question) for of_question in lengths]
    if aggregation == "constant":
        return [[1.0 / (len(lengths) * len(of_question) * longest)] * len(of_question) for of_question in lengths]
    raise ValueError(f"mtgrpo.aggregation={aggregation}: set it to one of {', '.join(AGGREGATIONS)}")


def kl_divergence(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(pi_theta || pi_ref) from samples of pi_theta; same shape as the inputs.

    k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r with r = pi_ref / pi_theta; k3 is unbiased and never negative.
    """
    log_ratio = reference - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"mtgrpo.kl_estimator={estimator}: set it to one of {', '.join(KL_ESTIMATORS)}")


def surrogate(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Tensor:
    """min(rho A, clip(rho) A) of Eq. 4; with dual clip c > 1 never below c A where A < 0 (a ratio has no bound)."""
    clipped = ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    found = torch.minimum(ratio * advantages, clipped * advantages)
    if settings.dual_clip:
        found = torch.where(advantages < 0, torch.maximum(found, settings.dual_clip * advantages), found)
    return found


def importance_weights(old_logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_engine, cap) without gradient: tokens were drawn by the engine, whose numerics differ a little."""
    return (old_logprobs - engine_logprobs).exp().clamp(max=cap).detach()


def mtgrpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    settings: LossSettings,
    *,
    engine_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The part of -J that these episodes contribute; parts of a mini-batch add up to its loss.

    Args:
        logprobs: [B, T] log pi_theta of each token, with gradient; a packed row is [1, T].
        old_logprobs: [B, T] log pi_theta_old.
        reference_logprobs: [B, T] log pi_ref.
        advantages: [B, T] A of the token's turn.
        mask: [B, T] bool, tokens that the model wrote.
        weights: [B, T] of each token in the loss (`token_weights`); what stands outside `mask` does not count.
        settings: eps, beta, KL estimator and what is added to Eq. 4.
        engine_logprobs: [B, T] log p by the engine that drew the tokens; needed with `importance_cap`.
        entropy: [B, T] entropy of pi_theta where the token was drawn, with gradient; needed with `entropy_coefficient`.

    Returns:
        The loss (scalar) and detached sums for metrics, each already weighted like the loss: "kl", "clip_share",
        "ratio", "entropy_proxy" (-log pi of the sampled tokens), and where used "entropy" and "importance".
    """
    # where() rather than a product: a masked token may hold any value, and inf * 0 is nan
    own = torch.where(mask, logprobs, 0.0)
    old = torch.where(mask, old_logprobs, 0.0)
    ratio = (own - old).exp()
    objective = surrogate(ratio, advantages, settings)
    of_token = mask * weights
    metrics: dict[str, Tensor] = {}
    if settings.importance_cap:
        assert engine_logprobs is not None
        importance = importance_weights(old, torch.where(mask, engine_logprobs, 0.0), settings.importance_cap)
        objective = importance * objective
        metrics["importance"] = (importance * of_token).sum()
    kl = kl_divergence(own, torch.where(mask, reference_logprobs, 0.0), settings.kl_estimator)
    objective = objective - settings.kl_coefficient * kl
    if settings.entropy_coefficient:
        assert entropy is not None
        entropy = torch.where(mask, entropy, 0.0)
        objective = objective + settings.entropy_coefficient * entropy
        metrics["entropy"] = (entropy.detach() * of_token).sum()
    with torch.no_grad():
        outside = (ratio < 1.0 - settings.clip_low) | (ratio > 1.0 + settings.clip_high)
        metrics |= {
            "kl": (kl * of_token).sum(),
            "clip_share": (outside * of_token).sum(),
            "ratio": (ratio * of_token).sum(),
            "entropy_proxy": -(own * of_token).sum(),
        }
    return -(objective * of_token).sum(), metrics


def sft_loss(logprobs: Tensor, mask: Tensor, tokens_in_batch: int) -> Tensor:
    """Cross entropy of the answer tokens, a mean over all `tokens_in_batch` of the global batch."""
    return -torch.where(mask, logprobs, 0.0).sum() / tokens_in_batch
