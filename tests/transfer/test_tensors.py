"""IPTC's cache: built once a step on the device, never stale, never changed behind a phase's back."""

from __future__ import annotations

import pytest
import torch

from nemo_mtdrive.transfer.tensors import TensorCache, Tensors

BYTES = 8 * 4 + 4 * 8
"""Of one set that `Builder` makes."""


class Builder:
    """Makes the tensors of a micro-batch and counts how often."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> Tensors:
        self.built += 1
        return {"tokens": torch.arange(4), "pixels": torch.full((8,), float(self.built))}


@pytest.mark.parametrize(("enabled", "built", "hits"), [(True, 1, 2), (False, 3, 0)])
def test_three_phases_build_once_with_the_cache_and_thrice_without(enabled: bool, built: int, hits: int) -> None:
    cache, builder = TensorCache("cpu", 1 << 20, enabled), Builder()
    for _ in ("log_prob", "reference", "update"):
        assert torch.equal(cache.get("0/0", builder)["tokens"], torch.arange(4))
    assert builder.built == built
    metrics = cache.on_step_end()
    assert (metrics["iptc/hits"], metrics["iptc/misses"]) == (hits, built)
    assert metrics["iptc/bytes_uploaded"] == built * BYTES and metrics["iptc/bytes_kept"] == enabled * BYTES


def test_phases_share_memory_but_not_the_dict() -> None:
    cache, builder = TensorCache("cpu", 1 << 20, True), Builder()
    first = cache.get("a", builder)
    first["old_logprobs"] = torch.zeros(1)
    second = cache.get("a", builder)
    assert second["pixels"].data_ptr() == first["pixels"].data_ptr() and "old_logprobs" not in second


def test_the_step_end_drops_everything() -> None:
    cache, builder = TensorCache("cpu", 1 << 20, True), Builder()
    cache.get("a", builder)
    cache.on_step_end()
    assert cache.get("a", builder)["pixels"][0] == 2
    assert cache.on_step_end()["iptc/misses"] == 1


def test_a_full_cache_keeps_what_it_has_and_builds_the_rest() -> None:
    cache, first, second = TensorCache("cpu", BYTES, True), Builder(), Builder()
    for _ in range(3):
        cache.get("a", first)
        cache.get("b", second)
    assert (first.built, second.built) == (1, 3)
    metrics = cache.on_step_end()
    assert (metrics["iptc/hits"], metrics["iptc/refused"], metrics["iptc/bytes_kept"]) == (2, 3, BYTES)


def test_a_change_in_place_is_found() -> None:
    cache, builder = TensorCache("cpu", 1 << 20, True), Builder()
    cache.get("a", builder)["pixels"].add_(1)
    with pytest.raises(RuntimeError, match="tensor 'pixels' of 'a' was changed in place"):
        cache.get("a", builder)


def test_what_depends_on_the_weights_goes_when_they_change() -> None:
    cache, inputs, embeddings = TensorCache("cpu", 1 << 20, True), Builder(), Builder()
    for _ in range(2):
        cache.get("a", inputs)
        cache.get(("vision", "a"), embeddings, of_weights=True)
        cache.on_weights_changed()
    assert (inputs.built, embeddings.built) == (1, 2)
    assert cache.on_step_end()["iptc/bytes_kept"] == BYTES


def test_what_is_dropped_gives_its_bytes_back() -> None:
    cache, builder = TensorCache("cpu", BYTES, True), Builder()
    cache.get("a", builder)
    cache.drop("a")
    cache.drop("never there")
    cache.get("b", builder)
    metrics = cache.on_step_end()
    assert (metrics["iptc/bytes_kept"], metrics["iptc/refused"], builder.built) == (BYTES, 0, 2)


def test_further_metrics_join_the_steps() -> None:
    cache = TensorCache("cpu", 1 << 20, True)
    cache.watch(lambda: {"vision/encoded_update": 3.0})
    assert cache.on_step_end()["vision/encoded_update"] == 3.0


def test_tensors_built_in_an_inference_phase_can_be_trained_on() -> None:
    cache, builder = TensorCache("cpu", 1 << 20, True), Builder()
    with torch.inference_mode():
        cache.get("a", builder)
    weight = torch.ones(8, requires_grad=True)
    (cache.get("a", builder)["pixels"] * weight).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones(8))
