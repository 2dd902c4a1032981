"""Log-probs and entropies from vocabulary-parallel logits, and what each entry is the log-prob of."""

from __future__ import annotations

from typing import Any

import pytest

GRIDS = pytest.mark.parametrize("grid", ["tensor", "data"])


@GRIDS
@pytest.mark.parametrize("number", ["logprobs", "entropy", "gradient"])
def test_equals_dense_torch(found: dict[str, Any], grid: str, number: str) -> None:
    assert found[grid]["scoring"][number] <= 2e-6


@GRIDS
def test_equals_nemo_aligner(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["scoring"]["aligner"] <= 2e-6


@GRIDS
def test_first_entry_and_padding_are_zero(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["scoring"]["first_entry"] == 0.0
    assert found[grid]["scoring"]["padding"] == 0.0


@GRIDS
def test_only_scored_tokens_get_a_log_prob_and_the_same_one(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["scoring"]["mask"] <= 2e-6
    assert found[grid]["scoring"]["mask_zeros"] == 0.0


def test_entry_t_is_of_token_t_given_the_tokens_before(found: dict[str, Any]) -> None:
    alignment = found["tensor"]["alignment"]
    assert alignment["before"] == 0.0  # another token at t leaves the entries before t alone
    assert alignment["at"] > 1e-3  # and changes the entry at t


def test_padding_and_other_rows_do_not_matter(found: dict[str, Any]) -> None:
    assert found["tensor"]["alignment"]["padding"] == 0.0
    assert found["tensor"]["alignment"]["alone"] <= 1e-5
