r"""The mtGRPO objective (Eq. 4) as a loss to be minimised, and the estimators of its KL term.

    J = E_q 1/G sum_i 1/|o_i| sum_t { min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL }

with rho = pi_theta / pi_old of token t and |o_i| the number of tokens that the model wrote in rollout i (all turns; the
prompt, the image and the feedback are not the model's own). The paper computes KL by the K3 method (Section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSettings:
    """eps (low and high side), beta and the KL estimator of Eq. 4."""

    clip_low: float
    clip_high: float
    kl_coefficient: float
    kl_estimator: str


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
    raise ValueError(f"mtgrpo.kl_estimator={estimator}: set it to one of k1, k2, k3")


def mtgrpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    settings: LossSettings,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The part of -J that these episodes contribute; parts of a mini-batch add up to its loss.

    Args:
        logprobs: [B, T] log pi_theta of each token, with gradient.
        old_logprobs: [B, T] log pi_theta_old.
        reference_logprobs: [B, T] log pi_ref.
        advantages: [B, T] A of the token's turn.
        mask: [B, T] bool, tokens that the model wrote.
        weights: [B] 1 / (questions in the mini-batch * valid rollouts of this question); 0 for an invalid episode.
        settings: eps, beta, KL estimator.

    Returns:
        The loss (scalar) and detached sums for metrics, each already weighted like the loss: "kl", "clip_share",
        "ratio", "entropy_proxy" (-log pi of the sampled tokens).
    """
    # where() rather than a product: a masked token may hold any value, and inf * 0 is nan
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    kl = kl_divergence(torch.where(mask, logprobs, 0.0), torch.where(mask, reference_logprobs, 0.0),
                       settings.kl_estimator)
    per_token = surrogate - settings.kl_coefficient * kl

    token_weights = mask * (weights / mask.sum(dim=1).clamp(min=1))[:, None]  # 1/|o_i|, then the mean over rollouts
    loss = -(per_token * token_weights).sum()
    with torch.no_grad():
        metrics = {
            "kl": (kl * token_weights).sum(),
            "clip_share": ((clipped != ratio) * token_weights).sum(),
            "ratio": (ratio * token_weights).sum(),
            "entropy_proxy": -(torch.where(mask, logprobs, 0.0) * token_weights).sum(),
        }
    return loss, metrics


def sft_loss(logprobs: Tensor, mask: Tensor, tokens_in_batch: int) -> Tensor:
    """Cross entropy of the answer tokens, a mean over all `tokens_in_batch` of the global batch."""
    return -torch.where(mask, logprobs, 0.0).sum() / tokens_in_batch
