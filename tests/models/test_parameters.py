"""The one map of names: every HF tensor goes into a Megatron shard and comes out again bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models.parameters import COLUMNS, GATED, ROWS, Layout, fused_qkv, grouped_qkv, rules

from . import material


@pytest.mark.parametrize("grid", ["tensor", "data", "pipeline"])
def test_weights_come_back_bit_by_bit(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["round_trip"] == {"names": True, "bits": True, "tensors": len(material.weights())}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    ("layout", "shapes"),
    [
        (ROWS, [(8, 3)]),
        (COLUMNS, [(3, 8)]),
        (GATED, [(8, 3), (8, 3)]),
        (grouped_qkv(heads=8, groups=4), [(16, 3), (8, 3), (8, 3)]),
        (fused_qkv(heads=4), [(24, 3)]),
    ],
    ids=["rows", "columns", "gated", "grouped_qkv", "fused_qkv"],
)
def test_split_and_merge_undo_each_other(layout: Layout, shapes: list[tuple[int, int]], size: int) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    shards = layout.split(tensors, size)
    assert len(shards) == size and len({shard.shape for shard in shards}) == 1
    assert all(torch.equal(one, other) for one, other in zip(layout.merge(shards), tensors, strict=True))


def test_query_groups_are_interleaved() -> None:
    """Four heads on two groups: q0 q1 k0 v0 | q2 q3 k1 v1, each rank with whole groups."""
    query, key, value = torch.arange(4.0)[:, None], torch.tensor([[10.0], [11.0]]), torch.tensor([[20.0], [21.0]])
    first, second = grouped_qkv(heads=4, groups=2).split([query, key, value], 2)
    assert first.flatten().tolist() == [0, 1, 10, 20]
    assert second.flatten().tolist() == [2, 3, 11, 21]


def test_each_rank_has_gates_and_ups() -> None:
    gate, up = torch.arange(4.0)[:, None], torch.arange(10.0, 14.0)[:, None]
    first, second = GATED.split([gate, up], 2)
    assert first.flatten().tolist() == [0, 1, 10, 11]
    assert second.flatten().tolist() == [2, 3, 12, 13]


@pytest.mark.parametrize("tied", [False, True])
def test_rules_cover_hf_exactly(tied: bool) -> None:
    config = Qwen2_5_VLConfig.from_dict(material.hf_config() | {"tie_word_embeddings": tied})
    names = [name for rule in rules(config, 1) for name in rule.hf]
    expected = set(material.weights()) - ({"lm_head.weight"} if tied else set())
    assert len(names) == len(set(names)) and set(names) == expected


def test_tied_embedding_is_loaded_twice_and_exported_once() -> None:
    config = Qwen2_5_VLConfig.from_dict(material.hf_config() | {"tie_word_embeddings": True})
    copies = [rule for rule in rules(config, 2) if "model.embed_tokens.weight" in rule.hf]
    assert [(rule.stage, rule.exported) for rule in copies] == [(0, True), (1, False)]
