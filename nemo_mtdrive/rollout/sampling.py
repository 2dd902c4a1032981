"""One vectorised draw for a batch of next-token distributions, each row from its own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_UNIFORM = 1.0 - 2.0**-32
"""Keeps `u * total < total` in float64, so that a draw never falls behind the last token."""


def uniforms(seeds: Sequence[int], count: int) -> NDArray[np.float64]:
    """[len(seeds), count] numbers in [0, 1), row r from Philox of seeds[r]: it never depends on the other rows."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds]
    return np.minimum(np.stack(rows), LARGEST_UNIFORM)


def sample(logits: Tensor, forbidden: Tensor, temperature: float, numbers: Tensor | None,
           top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [B] at the temperature, nothing masked, from float32 logits [B, V].

    `forbidden` [V] is 0 or -inf and acts on the draw only. Temperature 0 takes the most probable allowed token, with its
    log-probability at temperature 1; else the inverse of the cumulative distribution is taken at `numbers` [B] (float64,
    in [0, LARGEST_UNIFORM]), over each row's most probable tokens that together have `top_p` or more of the mass.
    """
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    allowed = logits + forbidden
    if temperature == 0.0:
        tokens = allowed.argmax(-1)
    else:
        if numbers is None:
            raise ValueError(f"temperature={temperature}: sampling needs a random number for each row, got none")
        cumulative = _nucleus(torch.softmax(allowed, -1), top_p).cumsum(-1, dtype=torch.float64)
        # right=True: the first token whose cumulative exceeds the target, which is never one of probability 0
        tokens = torch.searchsorted(cumulative, (numbers * cumulative[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return tokens, logprobs


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """[B, V] with 0 for all but each row's fewest tokens that have `top_p` of the mass; equal ones in order of their ids."""
    if top_p == 1.0:
        return probabilities
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    return torch.zeros_like(probabilities).scatter_(-1, places, ordered.masked_fill_(before >= top_p, 0.0))
