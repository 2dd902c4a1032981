"""Pixels bitwise as HF makes them; one copy of an image a node, within a budget."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_mtdrive.image_key import ImageSettings, image_key, resized
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators
from nemo_mtdrive.transfer.images import ImageStore, grid_of, patchify, pixel_values, write_patches_with_torch
from nemo_mtdrive.transfer.segments import RunFolder, TransferError

from .make_episodes import make_image
from .processes import claim_image, finish, hold_image, start_with_answer

SIZE = 64 + 56 * 84 * 3
"""Bytes of one stored test image."""


def hf_pixels(images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model family's own processor makes of the images."""
    declare_torchvision_operators()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    found = Qwen2VLImageProcessor(do_resize=False)(images, return_tensors="pt")
    return found["pixel_values"], found["image_grid_thw"]


def test_patchify_is_bitwise_the_image_processor() -> None:
    every_byte = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)
    images = [
        make_image(1, 112, 224),
        make_image(2, 28, 28),
        np.asfortranarray(make_image(3, 84, 56)),
        np.resize(every_byte, (56, 56, 3)),
        np.zeros((28, 56, 3), np.uint8),
        np.ones((28, 56, 3), np.uint8),
    ]
    expected_pixels, expected_grid = hf_pixels(images)
    pixels, grid = patchify(images)
    assert pixels.dtype == torch.float32 and grid.dtype == torch.int64
    assert pixels.shape == expected_pixels.shape and pixels.numpy().tobytes() == expected_pixels.numpy().tobytes()
    assert torch.equal(grid, expected_grid)
    assert [tuple(row) for row in grid.tolist()] == [grid_of(image) for image in images]


@pytest.mark.parametrize("height, width, settings", [
    (1080, 1920, ImageSettings()),
    (1080, 1920, ImageSettings(3136, 1_003_520)),
    (540, 960, ImageSettings()),
    (100, 333, ImageSettings()),
    (30, 41, ImageSettings(min_pixels=3136)),
    (56, 84, ImageSettings()),
])
def test_a_camera_picture_resized_and_patchified_is_bitwise_the_image_processor(
    height: int, width: int, settings: ImageSettings
) -> None:
    declare_torchvision_operators()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    picture = make_image(height, height, width)
    processor = Qwen2VLImageProcessor(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    expected = processor([picture], return_tensors="pt")
    pixels, grid = patchify([resized(picture, settings)])
    assert torch.equal(grid, expected["image_grid_thw"])
    assert pixels.shape == expected["pixel_values"].shape and torch.equal(pixels, expected["pixel_values"])


def test_another_device_computes_the_same_rows() -> None:
    """The path of accelerators, taken here on the CPU through its own operators."""
    image = make_image(5, 84, 112)
    rows = torch.empty(48, 1176)
    write_patches_with_torch(image, rows)
    assert torch.equal(rows, patchify([image])[0])


def test_pixel_values_takes_images_and_patches_alike() -> None:
    images = [make_image(1), make_image(2, 28, 56)]
    patches = [patchify([image])[0].numpy() for image in images]
    assert torch.equal(pixel_values([images[0], patches[1]]), patchify(images)[0])
    assert pixel_values([]).shape == (0, 1176)
    assert patchify([])[1].shape == (0, 3)


@pytest.mark.parametrize("shape", [(28, 30, 3), (14, 28, 3), (28, 28), (28, 28, 4)])
def test_images_that_do_not_fit_the_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 28"):
        patchify([np.zeros(shape, np.uint8)])


def test_an_image_is_stored_once_and_read_without_copying(run_folder: RunFolder) -> None:
    store, other = ImageStore(run_folder, 1 << 20), ImageStore(run_folder, 1 << 20)
    image = make_image(0)
    key = image_key(image)
    assert store.put(key, image) is True
    assert other.put(key, image) is False and store.put(key, image) is False
    assert store.used_bytes == SIZE and key in other
    view = other.get(key)
    assert np.array_equal(view, image) and not view.flags.writeable and not view.flags.owndata
    store.close()
    other.close()
    assert np.array_equal(view, image)


def test_an_image_in_use_by_another_process_is_not_evicted(run_folder: RunFolder, shm_root: Path) -> None:
    store = ImageStore(run_folder, 2 * SIZE)
    first, second, third = (make_image(seed) for seed in range(3))
    for image in (first, second):
        store.put(image_key(image), image)
    process, pipe = start_with_answer(hold_image, shm_root, image_key(first))
    assert pipe.recv() == first.tobytes()
    store.release_all()
    store.put(image_key(third), third)  # the oldest is in use: the second has to go
    assert image_key(first) in store and image_key(second) not in store
    with pytest.raises(TransferError, match=r"image store: \d+ bytes in use .* set transfer.image_store_mb higher"):
        store.put(image_key(second), second)
    pipe.send("go")
    assert pipe.recv() == "released"
    assert store.put(image_key(second), second) is True
    assert image_key(first) not in store and store.used_bytes == 2 * SIZE
    finish(process)


def test_a_view_keeps_its_image_after_release(run_folder: RunFolder) -> None:
    store = ImageStore(run_folder, SIZE)
    first, second = make_image(0), make_image(1)
    view = store.share(image_key(first), first)
    with pytest.raises(TransferError, match="in use"):
        store.put(image_key(second), second)
    assert np.array_equal(view, first)
    del view
    store.put(image_key(second), second)
    with pytest.raises(KeyError):
        store.get(image_key(first))


def test_the_least_recently_used_image_goes_first(run_folder: RunFolder) -> None:
    store = ImageStore(run_folder, 2 * SIZE)
    images = [make_image(seed) for seed in range(3)]
    keys = [image_key(image) for image in images]
    for key, image in zip(keys[:2], images[:2], strict=True):
        store.put(key, image)
        store.release(key)
    store.get(keys[0])
    store.release(keys[0])
    store.put(keys[2], images[2])
    assert [key in store for key in keys] == [True, False, True]


@pytest.mark.parametrize("key, image", [("../x", make_image(0)), ("0" * 31, make_image(0)), ("0" * 32, make_image(0, 54))])
def test_what_is_no_key_or_no_image_of_the_model_is_refused(run_folder: RunFolder, key: str, image: np.ndarray) -> None:
    store = ImageStore(run_folder, 1 << 20)
    with pytest.raises(ValueError, match=r"must be 32 hex digits|multiples of 28"):
        store.put(key, image)
    assert store.used_bytes == 0


def test_one_process_of_a_node_has_the_claim_on_an_image(run_folder: RunFolder, shm_root: Path) -> None:
    store, other = ImageStore(run_folder, 1 << 20), ImageStore(run_folder, 1 << 20)
    key = image_key(make_image(0))
    assert store.claim(key) and store.claim(key) and not other.claim(key)
    store.unclaim(key)
    assert other.claim(key) and not store.claim(key)
    other.put(key, make_image(0))
    assert store.claim(key), "a claim ends when the image is there"
    process, pipe = start_with_answer(claim_image, shm_root, image_key(make_image(1)))
    assert pipe.recv() is True and not store.claim(image_key(make_image(1)))
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert store.claim(image_key(make_image(1))), "a dead process claims nothing"


def test_an_image_is_mapped_once_a_process(run_folder: RunFolder) -> None:
    store = ImageStore(run_folder, 1 << 20)
    image = make_image(0)
    views = [store.share(image_key(image), image) for _ in range(3)] + [store.get(image_key(image))]
    assert len({id(view) for view in views}) == 1
