"""Images of a step are decoded, uploaded and encoded once each, whatever the micro-batches that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from nemo_mtdrive.algorithms.batch import Payload
from nemo_mtdrive.algorithms.pictures import Pictures, image_id
from nemo_mtdrive.transfer.images import grid_of, patchify
from nemo_mtdrive.transfer.tensors import TensorCache
from nemo_mtdrive.types import Episode

IMAGES = {key: np.full((28, 28 * (1 + index), 3), 40 * index, dtype=np.uint8) for index, key in enumerate("abc")}


def showing(*keys: str) -> Episode:
    none = np.zeros(0, np.int32)
    return Episode("e", "s", 0, 0, 0, none, none.astype(np.int16), none.astype(np.float32), keys,
                   tuple(grid_of(IMAGES[key]) for key in keys), (), True, "clean")


class Decoding:
    """Counts how often images are asked for, and which."""

    def __init__(self) -> None:
        self.calls = 0
        self.keys: list[str] = []

    def __call__(self, episodes: Sequence[Episode]) -> Callable[[str], Payload]:
        self.calls += 1

        def find(key: str) -> Payload:
            self.keys.append(key)
            return IMAGES[key]

        return find


def pictures(enabled: bool = True) -> tuple[Pictures, Decoding]:
    decoding = Decoding()
    return Pictures(TensorCache("cpu", 1 << 20, enabled), decoding, torch.device("cpu")), decoding


MICRO_BATCHES = [[showing("a"), showing("a")], [showing("a"), showing("b", "c")], [showing("c")]]


@pytest.mark.parametrize("enabled", [True, False])
def test_pixels_are_those_of_the_different_images_in_order(enabled: bool) -> None:
    seen, decoding = pictures(enabled)
    for _ in ("log_prob", "reference", "update"):
        for episodes, keys in zip(MICRO_BATCHES, ("a", "abc", "c"), strict=True):
            found = seen.of(episodes)
            assert torch.equal(found["pixel_values"], patchify([IMAGES[key] for key in keys])[0])
            assert found["image_ids"].tolist() == [image_id(key) for key in keys]
    assert sorted(decoding.keys) == (["a", "b", "c"] if enabled else sorted("aabcc" * 3))
    assert decoding.calls == (2 if enabled else 9)
    assert seen.collect() == {"vision/images": 3.0} and seen.collect() == {"vision/images": 0.0}


def test_a_frozen_tower_runs_once_an_image_and_pixels_are_not_kept() -> None:
    seen, decoding = pictures()
    encoded: list[list[int]] = []

    def encode(pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        encoded.append(grid.tolist()[0])
        return pixels.view(-1, 4, pixels.shape[1]).mean(1)[:, :5]

    seen.encode = encode
    seen.prefetch("b", IMAGES["b"])  # leaves the tower to the phases, where all ranks run it in one order
    assert encoded == []
    for _ in range(3):
        for episodes, keys in zip(MICRO_BATCHES, ("a", "abc", "c"), strict=True):
            found = seen.of(episodes)
            pixels, _grid = patchify([IMAGES[key] for key in keys])
            assert torch.equal(found["image_features"], pixels.view(-1, 4, 1176).mean(1)[:, :5])
            assert "pixel_values" not in found
    assert encoded == [[1, 2, 2], [1, 2, 4], [1, 2, 6]] and decoding.keys == ["a", "c"]
    assert seen._cache.metrics.bytes_kept == 4 * 5 * (1 + 2 + 3)  # embeddings alone


def test_what_came_early_is_not_decoded_again() -> None:
    seen, decoding = pictures()
    for key in ("a", "b", "c", "a"):
        seen.prefetch(key, IMAGES[key])
    for episodes in MICRO_BATCHES:
        seen.of(episodes)
    assert decoding.calls == 0


def test_episodes_without_images_need_none() -> None:
    seen, _ = pictures()
    assert seen.of([showing()]) == {}
