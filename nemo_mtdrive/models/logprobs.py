"""Log-probabilities and entropies of given tokens from logits that are sharded over the vocabulary.

Without gradients (pi_old, pi_ref) they come from NeMo-Aligner's `from_parallel_logits_to_logprobs`, block by block. Where
gradients or entropies are wanted, a function of ours gives the same numbers (a test holds the two together) in the
logits' own memory: softmax is rebuilt block by block in the backward pass, and no [B, T, vocabulary] one-hot is made.
Everything is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_mtdrive.models.aligner import from_parallel_logits_to_logprobs

_BLOCK = 1024
"""Rows (tokens) of logits worked on at once."""


def scored_tokens(lengths: Tensor, length: int) -> Tensor:
    """bool [B, length]: every real token but the first, which nothing predicts."""
    column = torch.arange(length, device=lengths.device)
    return (column > 0) & (column < lengths[:, None])


def token_logprobs(logits: Tensor, tokens: Tensor, scored: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Score some tokens of right-padded sequences.

    Args:
        logits: [scored tokens, vocabulary / tp], the distributions that they were drawn from, in batch order.
        tokens: int64 [B, T].
        scored: bool [B, T].

    Returns:
        logprobs float32 [B, T]: entry t is log p(tokens[t] | tokens[<t]), 0 where not scored;
        entropy float32 [B, T] of the distribution that token t was drawn from, or None.
    """
    if want_entropy or logits.requires_grad:
        logprobs, entropy = _VocabParallelScores.apply(logits, tokens[scored], want_entropy)
    else:
        logprobs, entropy = _without_gradient(logits, tokens[scored]), None

    def spread(scores: Tensor) -> Tensor:
        return torch.zeros(scored.shape, device=scores.device).masked_scatter(scored, scores)

    return spread(logprobs), spread(entropy) if want_entropy else None


def _without_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """[N, V / tp] logits, [N] targets -> [N] log-probs, by NeMo-Aligner."""
    blocks = [from_parallel_logits_to_logprobs(logits[None, rows].float(), targets[None, rows], inference_only=True,
                                               higher_stability=True, ignore_last=False)[0]
              for rows in _blocks(len(targets))]
    return torch.cat(blocks) if blocks else torch.zeros(0, device=logits.device)


class _VocabParallelScores(torch.autograd.Function):
    """[N, V / tp] logits, [N] targets -> [N] log-probs and [N] entropies (zeros when not wanted)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor]:
        group = parallel_state.get_tensor_model_parallel_group()
        start = parallel_state.get_tensor_model_parallel_rank() * logits.shape[1]
        local = targets - start
        elsewhere = (local < 0) | (local >= logits.shape[1])
        local = local.masked_fill(elsewhere, 0)

        peak = logits.amax(dim=1).float()
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        sums = torch.zeros(3, len(targets), device=logits.device)
        for rows in _blocks(len(targets)):
            shifted = logits[rows].float() - peak[rows, None]
            sums[1, rows] = shifted.gather(1, local[rows, None]).squeeze(1).masked_fill(elsewhere[rows], 0.0)
            weights = shifted.exp()
            sums[0, rows] = weights.sum(dim=1)
            if want_entropy:
                sums[2, rows] = weights.mul_(shifted).sum(dim=1)
        dist.all_reduce(sums, group=group)
        total, target, weighted = sums
        log_total = total.log()
        entropy = log_total - weighted / total if want_entropy else torch.zeros_like(log_total)
        ctx.save_for_backward(logits, peak + log_total, local, elsewhere, entropy)
        ctx.want_entropy = want_entropy
        return target - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprob_gradient: Tensor, entropy_gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, normaliser, local, elsewhere, entropy = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _blocks(len(local)):
            logprobs = logits[rows].float() - normaliser[rows, None]
            scale = -logprob_gradient[rows, None]
            if ctx.want_entropy:  # dH/dlogit = -p (log p + H)
                scale = scale - entropy_gradient[rows, None] * (logprobs + entropy[rows, None])
            block = logprobs.exp_().mul_(scale)
            chosen = logprob_gradient[rows].masked_fill(elsewhere[rows], 0.0)
            block.scatter_add_(1, local[rows, None], chosen[:, None])
            gradient[rows] = block
        return gradient, None, None


def _blocks(rows: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]
