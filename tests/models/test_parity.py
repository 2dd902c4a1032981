"""The Megatron model is HF's: logits, loss, entropies, log-probs, gradients; padded and packed, on every process grid.

In float32 both programs round, and add in another order. HF's own float32 gradients are up to 3e-6 (relative norm) from
the exact ones, so two float32 gradients can agree to that and no better; in float64 they agree to 1e-14.
"""

from __future__ import annotations

from typing import Any

import pytest

from .conversations import CONVERSATIONS, hf_configs

GRIDS = ("tensor", "data", "pipeline", "sequence")
CASES = [f"{name}/{kind}/{layout}" for name in hf_configs() for kind in CONVERSATIONS for layout in ("padded", "packed")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_hf(found: dict[str, Any], grid: str, case: str) -> None:
    compared = found[grid]["against_hf"][case]
    assert compared["names"]
    assert compared["loss"] <= 1e-6
    assert compared["logprobs"] <= 1e-5
    assert compared["entropy"] <= 1e-6
    if grid != "pipeline":  # there the log-probs on every stage stand for the logits
        assert compared["logits"] <= 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_float32_gradients_differ_from_hfs_by_rounding_only(found: dict[str, Any], grid: str, case: str) -> None:
    compared = found[grid]["against_hf"][case]
    assert compared["gradients"][0] <= 6e-6, compared["gradients"]
    if "rounding" in compared:
        assert compared["rounding"] <= compared["hf_rounding"]  # no further from the exact gradient than HF's own


@pytest.mark.parametrize("grid", ["tensor", "data"])
def test_every_gradient_is_hfs_in_float64(found: dict[str, Any], grid: str) -> None:
    for case, numbers in found[grid]["exact"].items():
        assert numbers["gradients"][0] <= 1e-12, (case, numbers["gradients"])
        assert max(numbers["loss"], numbers["entropy"]) <= 1e-12, case


def test_vision_windows_and_angles_are_hfs(found: dict[str, Any]) -> None:
    geometry = found["data"]["vision_geometry"]
    assert geometry["order"] and geometry["windows"]
    assert geometry["rotary"] == 0.0
    assert geometry["images"] == [0, 128, 224, 364, 504, 508]  # the third has two frames, each by itself


@pytest.mark.parametrize(("grid", "check"), [("tensor", "sharing"), ("data", "sharing"), ("tensor", "packed_sharing")])
def test_one_image_for_several_sequences_equals_copies_of_it(found: dict[str, Any], grid: str, check: str) -> None:
    """Siblings of a group share their image: it is encoded once, and their gradients add up in the tower."""
    sharing = found[grid][check]
    assert sharing["loss"] <= 1e-6
    assert sharing["gradients"] <= 1e-5
    assert sharing["vision_scale"] > 0.01


def test_images_that_do_not_fit_the_placeholders_are_named(found: dict[str, Any]) -> None:
    assert found["tensor"]["sharing"]["missing"] == "112 image placeholders, but the images of image_index fill 80"
    assert found["tensor"]["sharing"]["beyond"] == "image_index names image 8 of 2: it counts from 0"
