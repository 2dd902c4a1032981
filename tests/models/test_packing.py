"""Packed micro-batches: what packing keeps, what it drops, and which tokens are predicted."""

from __future__ import annotations

import pytest
import torch

from nemo_mtdrive.models.packing import pack, packed_params, predicted_tokens, unpack
from nemo_mtdrive.models.qwen25_vl import scored_mask

from . import conversations


def _batch() -> dict[str, torch.Tensor]:
    return conversations.batch(conversations.hf_configs()["default"], "mixed")


def test_packing_drops_padding_only() -> None:
    batch = _batch()
    packed = pack(batch)
    lengths = batch["lengths"].tolist()
    assert packed["segments"].tolist() == [0, lengths[0], lengths[0] + lengths[1], sum(lengths)]
    assert packed["tokens"].shape == (1, sum(lengths)) and packed["positions"].shape == (3, 1, sum(lengths))
    for row, (tokens, length) in enumerate(zip(packed["tokens"][0].split(lengths), lengths, strict=True)):
        assert torch.equal(tokens, batch["tokens"][row, :length])
    starts = packed["positions"][:, 0, packed["segments"][:-1].long()]
    assert torch.equal(starts, torch.zeros_like(starts))  # M-RoPE begins again with each conversation
    assert packed["pixel_values"] is batch["pixel_values"]


def test_numbers_per_token_come_back_in_place() -> None:
    batch = _batch()
    real = torch.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]
    assert torch.equal(unpack(pack(batch)["weight"], batch["lengths"]), batch["weight"] * real)


def test_the_same_tokens_are_scored() -> None:
    batch = _batch() | {"mask": _batch()["weight"] > _batch()["weight"].mean()}
    packed = pack(batch)
    scored = unpack(scored_mask(packed).float(), batch["lengths"])
    assert torch.equal(scored.bool(), scored_mask(batch))


def test_nothing_predicts_first_tokens_nor_padding_behind_the_segments() -> None:
    predicted = predicted_tokens(torch.tensor([0, 2, 5]), 7)
    assert predicted.tolist() == [[False, True, False, True, True, False, False]]


def test_padding_joins_the_last_segment() -> None:
    """Megatron's rotary tables for packed rows need bounds that end with the row."""
    params = packed_params(torch.tensor([0, 2, 5]), 8)
    assert params.cu_seqlens_q.tolist() == [0, 2, 8]
    assert (params.max_seqlen_q, params.qkv_format, params.cu_seqlens_q.dtype) == (6, "thd", torch.int32)


@pytest.mark.parametrize("bounds", [[0], [1, 4], [0, 3, 3, 4], [0, 4, 9]])
def test_bad_bounds_are_named(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="want bounds that ascend from 0 to the row's 8 tokens"):
        packed_params(torch.tensor(bounds), 8)
