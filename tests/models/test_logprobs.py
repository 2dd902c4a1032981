"""Log-probs and entropies fused with the vocabulary-parallel output projection, and what each entry is the log-prob of."""

from __future__ import annotations

from typing import Any

import pytest

GRIDS = pytest.mark.parametrize("grid", ["tensor", "data"])


@GRIDS
@pytest.mark.parametrize("blocks", ["one_block", "blocks"])
def test_equals_dense_torch(found: dict[str, Any], grid: str, blocks: str) -> None:
    """Blocks that are kept, and many that are computed again in the backward pass."""
    scoring = found[grid]["scoring"][blocks]
    assert scoring["logprobs"] <= 2e-6 and scoring["entropy"] <= 1e-6  # log-probs reach 10: a float32 step there is 1e-6
    assert scoring["hidden"] <= 1e-6 and scoring["weight"] <= 1e-6


@GRIDS
def test_equals_nemo_aligner(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["scoring"]["aligner"] <= 2e-6


@GRIDS
def test_first_entry_and_padding_are_zero(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["masking"]["first_entry"] == 0.0
    assert found[grid]["masking"]["padding"] == 0.0


@GRIDS
def test_only_scored_tokens_get_a_log_prob_and_the_same_one(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["masking"]["mask"] <= 2e-6
    assert found[grid]["masking"]["mask_zeros"] == found[grid]["masking"]["none"] == 0.0


def test_entry_t_is_of_token_t_given_the_tokens_before(found: dict[str, Any]) -> None:
    alignment = found["tensor"]["alignment"]
    assert alignment["before"] == 0.0  # another token at t leaves the entries before t alone
    assert alignment["at"] > 1e-3  # and changes the entry at t


def test_padding_and_other_rows_do_not_matter(found: dict[str, Any]) -> None:
    assert found["tensor"]["alignment"]["padding"] == 0.0
    assert found["tensor"]["alignment"]["alone"] <= 1e-5


@GRIDS
def test_whole_logits_are_never_in_memory(found: dict[str, Any], grid: str) -> None:
    """70 tokens in blocks of 5: nothing is larger than what came in (8 wide), forward or backward."""
    blocks, one_block = found[grid]["scoring"]["blocks"], found[grid]["scoring"]["one_block"]
    assert blocks["largest"] == 1.0
    assert one_block["largest"] > 5
    assert (blocks["products"], one_block["products"]) == (4 * 14, 3)  # project, project again, two gradients
