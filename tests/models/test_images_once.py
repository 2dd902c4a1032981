"""The vision tower runs once an image: across micro-batches of a phase, and once a step where it is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_mtdrive.models.vision_memory import FeatureMemory

GRIDS = ("tensor", "data", "pipeline")


@pytest.mark.parametrize("grid", GRIDS)
def test_phases_encode_an_image_once_however_many_micro_batches_show_it(found: dict[str, Any], grid: str) -> None:
    """Four micro-batches show two images."""
    here = found[grid]["tower_runs"]
    assert here["runs"] == {"vision/encoded_embeddings": 0, "vision/encoded_log_prob": 2, "vision/encoded_reference": 2,
                            "vision/encoded_update": 2}
    assert here["without_memory"] == 4
    assert here["difference"] < 1e-6 and here["reference"]


@pytest.mark.parametrize("grid", GRIDS)
def test_embeddings_of_a_frozen_tower_stand_for_pixels_in_every_phase(found: dict[str, Any], grid: str) -> None:
    here = found[grid]["embeddings"]
    assert here["ahead"]["vision/encoded_embeddings"] == 4  # two images, together and one by one
    assert set(here["runs"].values()) == {0}
    assert here["bits"] and here["single"] < 1e-6 and here["single_gradients"] < 1e-6


@pytest.mark.parametrize("grid", GRIDS)
def test_embeddings_that_would_not_hold_are_refused(found: dict[str, Any], grid: str) -> None:
    assert "model.freeze_vision=false, so every update changes them" in found[grid]["tower_runs"]["refused"]
    here = found[grid]["embeddings"]
    assert "model.freeze_projector=false" in here["refused"]
    assert "the reference has another vision_" in here["other_reference"] or grid == "pipeline"


class Tower:
    """Features are the pixels' sums; counts what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def __call__(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(grid))
        return pixels.view(-1, 4, pixels.shape[1]).sum(1)


def microbatch(*names: int) -> dict[str, torch.Tensor]:
    """Images of 2 x 2 patches and of 2 x 4, whose pixels say which they are."""
    sizes = [4 * (1 + name % 2) for name in names]
    pixels = torch.cat([torch.full((size, 3), float(name)) for name, size in zip(names, sizes, strict=True)])
    return {"image_ids": torch.tensor(names), "image_grid_thw": torch.tensor([[1, 2, size // 2] for size in sizes]),
            "pixel_values": pixels}


def test_only_unknown_images_are_encoded_and_all_come_in_order() -> None:
    tower, memory = Tower(), FeatureMemory(1 << 20, merge=4)
    for names in ((1, 2), (2, 3, 1), (3,)):
        batch = microbatch(*names)
        features = memory.features(batch, tower)
        assert features is not None
        assert torch.equal(features, Tower()(batch["pixel_values"], batch["image_grid_thw"]))
    assert tower.encoded == [2, 1]


def test_the_oldest_go_beyond_the_budget() -> None:
    tower, memory = Tower(), FeatureMemory(12, merge=4)  # one cell of three floats
    for name in (2, 2, 4, 4, 2):
        memory.features(microbatch(name), tower)
    assert tower.encoded == [1, 1, 1]


def test_micro_batches_that_do_not_name_their_images_are_left_alone() -> None:
    tower = Tower()
    unnamed = {name: value for name, value in microbatch(1).items() if name != "image_ids"}
    assert FeatureMemory(1 << 20, merge=4).features(unnamed, tower) is None
    assert FeatureMemory(0, merge=4).features(microbatch(1), tower) is None
    assert tower.encoded == []
