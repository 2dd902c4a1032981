"""Packed sequences: the conversations of a micro-batch in one row without padding, each attending to itself only.

A packed micro-batch has tokens int64 [1, T], positions int64 [3, 1, T] that begin again with each conversation, and
`segments` int32 [S + 1], the bounds (0, ..., T). Images, and what a loss reads per token ([1, T]), stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


def packed_params(segments: Tensor, length: int) -> PackedSeqParams:
    """Megatron's description of a packed row of `length` tokens.

    Args:
        segments: [S + 1] bounds; tokens behind the last one (padding to a round length) join the last segment, where
            causal attention hides them from the others.

    Raises:
        ValueError: the bounds do not ascend from 0, or go beyond the row.
    """
    bounds = segments.to(torch.int32).clone()
    lengths = bounds.diff()
    if bounds.numel() < 2 or bounds[0] != 0 or int(lengths.min()) < 1 or bounds[-1] > length:
        raise ValueError(f"segments={segments.tolist()}: want bounds that ascend from 0 to the row's {length} tokens")
    bounds[-1] = length
    longest = int(bounds.diff().max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def predicted_tokens(segments: Tensor, length: int) -> Tensor:
    """bool [1, length]: every token of a segment but its first, which nothing predicts."""
    predicted = torch.arange(length, device=segments.device) < segments[-1]
    predicted[segments[:-1].long()] = False
    return predicted[None]


def pack(microbatch: Mapping[str, Any]) -> dict[str, Any]:
    """A padded micro-batch as a packed one: tokens, positions and whatever else is [B, T] lose their padding.

    `lengths` stays, so that `unpack` can put numbers per token back in place.
    """
    lengths = microbatch["lengths"]
    shape = microbatch["tokens"].shape
    real = torch.arange(shape[1], device=lengths.device) < lengths[:, None]
    packed = {
        name: value[real][None] if isinstance(value, Tensor) and value.shape == shape else value
        for name, value in microbatch.items()
    }
    packed["positions"] = microbatch["positions"][:, real][:, None]
    packed["segments"] = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return packed


def unpack(values: Tensor, lengths: Tensor) -> Tensor:
    """[1, T] numbers per packed token -> [B, longest], 0 in the padding."""
    return torch.nn.utils.rnn.pad_sequence(list(values[0].split(lengths.tolist())), batch_first=True)
