"""Weights leave for the engines piece by piece: the same bits, and little memory beside the model."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("grid", ["tensor", "data", "pipeline"])
def test_pieces_are_the_whole_weights_and_no_rank_holds_many(found: dict[str, Any], grid: str) -> None:
    here = found[grid]["weight_pieces"]
    assert here["bits"]
    assert 0 < here["block"] <= here["bucket"] < here["embedding"] / 5
    # shards, what they make together, and the HF tensors cut from it: three times one matrix of a layer at most
    assert here["most"] <= 3 * here["largest_parameter"] + 2 * here["bucket"]
    assert here["most"] < here["model"] / 2
