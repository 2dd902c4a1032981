"""Log-probabilities and entropies of given tokens, straight from hidden states: whole logits are never in memory.

The output projection is done block by block of tokens, with its vocabulary sharded over the tensor-parallel ranks. The
backward pass projects each block again instead of keeping its logits, unless there is one block only. Every block holds
`BLOCK_ELEMENTS` logits of this rank, so that 11,500 tokens of a vocabulary of 152,000 (7 GB in float32) cost 0.8 GB.
The arithmetic behind the projection is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_mtdrive.models.kernels import at_least_float32

BLOCK_ELEMENTS = 1 << 26
"""Logits of a block on one rank; about three float32 tensors of this size are alive at once (0.8 GB)."""


@dataclass(frozen=True)
class Scoring:
    """Which tokens are scored and how; the policy is softmax(logits / temperature)."""

    scored: Tensor
    """bool [B, T]; never t = 0."""
    temperature: float = 1.0
    want_entropy: bool = False


@dataclass(frozen=True)
class Scores:
    """A number for each scored token, in batch order."""

    logprobs: Tensor
    """float32 [scored tokens]: log p(token t | the tokens before)."""
    entropy: Tensor | None
    """float32 [scored tokens] of the distribution that token t was drawn from; None where not wanted."""


def scored_tokens(lengths: Tensor, length: int) -> Tensor:
    """bool [B, length]: every real token but the first, which nothing predicts."""
    column = torch.arange(length, device=lengths.device)
    return (column > 0) & (column < lengths[:, None])


def spread(values: Tensor, scored: Tensor) -> Tensor:
    """[scored tokens] -> float32 [B, T] with 0 where nothing is scored."""
    return torch.zeros(scored.shape, device=values.device).masked_scatter(scored, values)


def project_and_score(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, want_entropy: bool) -> Scores:
    """Scores of `targets` under softmax(hidden @ weight^T / temperature).

    Args:
        hidden: [N, H], equal on all tensor-parallel ranks. Its gradient is this rank's part: sum it over the ranks.
        weight: [V / tp, H], this rank's rows of the output projection.
        targets: int64 [N], ids of the whole vocabulary.
    """
    logprobs, entropy = _ProjectAndScore.apply(hidden, weight, targets, temperature, want_entropy)
    return Scores(logprobs, entropy if want_entropy else None)


def _blocks(rows: int, width: int) -> list[slice]:
    size = max(1, BLOCK_ELEMENTS // width)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _project(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[n, H] -> float32 [n, V / tp]."""
    logits = at_least_float32(hidden @ weight.t())
    return logits if temperature == 1.0 else logits.div_(temperature)


class _ProjectAndScore(torch.autograd.Function):
    """([N, H], [V / tp, H], [N]) -> [N] log-probs and [N] entropies (zeros when not wanted)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, want_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        local = targets - parallel_state.get_tensor_model_parallel_rank() * weight.shape[0]
        elsewhere = (local < 0) | (local >= weight.shape[0])
        local = local.masked_fill(elsewhere, 0)
        peaks = torch.zeros(len(targets), device=hidden.device)
        sums = torch.zeros(3, len(targets), device=hidden.device)
        blocks = _blocks(len(targets), weight.shape[0])
        ctx.logits = None
        for rows in blocks:
            logits = _project(hidden[rows], weight, temperature)
            peaks[rows] = logits.amax(dim=1)
            sums[1, rows] = logits.gather(1, local[rows, None]).squeeze(1)
            shifted = logits - peaks[rows, None]
            exponentials = shifted.exp() if want_entropy else shifted.exp_()
            sums[0, rows] = exponentials.sum(dim=1)
            if want_entropy:
                sums[2, rows] = exponentials.mul_(shifted).sum(dim=1)
            if len(blocks) == 1 and any(ctx.needs_input_grad):
                ctx.logits = logits
            del logits, shifted, exponentials  # before the next block's
        peak, total, target, entropy = _combine(peaks, sums, elsewhere, want_entropy)
        ctx.save_for_backward(hidden, weight, peak, total, local, elsewhere, entropy)
        ctx.temperature, ctx.want_entropy = temperature, want_entropy
        return target - total.log(), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprob: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, peak, total, local, elsewhere, entropy = ctx.saved_tensors
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        hidden_gradient = torch.zeros_like(hidden) if for_hidden else None
        # float32, because a sum over many blocks in bfloat16 would lose the small ones
        weight_gradient = torch.zeros(weight.shape, device=weight.device) if for_weight else None
        for rows in _blocks(len(local), weight.shape[0]):
            logits = _project(hidden[rows], weight, ctx.temperature) if ctx.logits is None else ctx.logits
            shifted = logits.sub_(peak[rows, None])
            scale = -of_logprob[rows, None]
            if ctx.want_entropy:  # dH/dlogit = -p (log p + H)
                constant = (entropy - total.log())[rows, None]
                scale = (shifted + constant).mul_(-of_entropy[rows, None]).add_(scale)
            gradient = shifted.exp_().div_(total[rows, None]).mul_(scale)
            chosen = of_logprob[rows].masked_fill(elsewhere[rows], 0.0)
            gradient.scatter_add_(1, local[rows, None], chosen[:, None])
            gradient = gradient.div_(ctx.temperature).to(weight.dtype)
            if hidden_gradient is not None:
                hidden_gradient[rows] = gradient @ weight
            if weight_gradient is not None:
                _add_product(weight_gradient, gradient.t(), hidden[rows])
            del logits, shifted, scale, gradient
        ctx.logits = None  # overwritten above
        return hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype), None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total is float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _combine(peaks: Tensor, sums: Tensor, elsewhere: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Join the ranks' parts of the vocabulary with two small messages, however many blocks there were.

    Args:
        peaks: [N] the largest logit on this rank.
        sums: [3, N] sum of e^(x - peak), the target's logit, sum of e^(x - peak) (x - peak).

    Returns:
        [N] the largest logit of all, the sum of e^(x - largest), the target's logit less the largest, the entropy (0
        when not wanted).
    """
    group = parallel_state.get_tensor_model_parallel_group()
    peak = peaks.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    lower = peaks - peak
    factor = lower.exp()
    target = (sums[1] - peak).masked_fill(elsewhere, 0.0)
    joined = torch.stack((sums[0] * factor, target, (sums[2] + lower * sums[0]) * factor))
    dist.all_reduce(joined, group=group)
    total, target, weighted = joined
    entropy = total.log() - weighted / total if want_entropy else torch.zeros_like(total)
    return peak, total, target, entropy
