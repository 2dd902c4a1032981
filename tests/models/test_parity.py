"""The Megatron model is HF's: logits, loss, gradients and log-probs, with images of several sizes in one batch."""

from __future__ import annotations

from typing import Any

import pytest

TOLERANCE = 1e-5


@pytest.mark.parametrize("grid", ["tensor", "data"])
@pytest.mark.parametrize("number", ["logits", "loss", "gradients", "logprobs"])
def test_equals_hf(found: dict[str, Any], grid: str, number: str) -> None:
    assert found[grid]["parity"][number] <= TOLERANCE
    assert found[grid]["parity"]["logits_scale"] > 1
    assert found[grid]["parity"]["gradients_scale"] > 0.1


@pytest.mark.parametrize("grid", ["tensor", "data"])
def test_forward_only_gives_the_training_loss(found: dict[str, Any], grid: str) -> None:
    assert found[grid]["parity"]["forward_only_loss"] == 0.0


def test_vision_windows_and_angles_are_hfs(found: dict[str, Any]) -> None:
    geometry = found["data"]["vision_geometry"]
    assert geometry["order"] and geometry["windows"]
    assert geometry["rotary"] == 0.0
    assert geometry["images"] == [0, 128, 224, 364, 504, 508]  # the third has two frames, each by itself


@pytest.mark.parametrize("grid", ["tensor", "data"])
def test_one_image_for_several_sequences_equals_copies_of_it(found: dict[str, Any], grid: str) -> None:
    sharing = found[grid]["sharing"]
    assert sharing["loss"] <= TOLERANCE
    assert sharing["gradients"] <= TOLERANCE
    assert sharing["vision_scale"] > 0.01


def test_images_that_do_not_fit_the_placeholders_are_named(found: dict[str, Any]) -> None:
    assert found["tensor"]["sharing"]["missing"] == "112 image placeholders, but the images of image_index fill 80"
    assert found["tensor"]["sharing"]["beyond"] == "image_index names image 8 of 2: it counts from 0"
