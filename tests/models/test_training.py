"""Training is the same sum over micro-batches on every process grid; the reference policy is kept apart."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("grid", ["data", "pipeline", "sequence"])
def test_steps_equal_those_of_tensor_parallel(found: dict[str, Any], grid: str) -> None:
    """Two data-parallel ranks with half the micro-batches each, two pipeline stages, and two tensor shards with sequence
    parallelism, against two tensor shards."""
    expected = found["tensor"]["training"]["steps"]
    for step, (loss, norm, tokens) in enumerate(found[grid]["training"]["steps"]):
        assert loss == pytest.approx(expected[step][0], rel=1e-5)
        assert norm == pytest.approx(expected[step][1], rel=1e-5)
        assert tokens == expected[step][2]
    assert found[grid]["training"]["weights"] <= 1e-5


def test_the_loss_falls_and_metrics_are_summed(found: dict[str, Any]) -> None:
    steps = found["tensor"]["training"]["steps"]
    assert steps[2][0] < steps[1][0] < steps[0][0]
    assert {tokens for _, _, tokens in steps} == {226.0}


@pytest.mark.parametrize("grid", ["tensor", "pipeline"])
def test_reference_is_the_policy_as_it_was(found: dict[str, Any], grid: str) -> None:
    reference = found[grid]["reference"]
    assert reference["reference"]  # bit by bit
    assert reference["moved"] > 1e-3
    assert reference["untouched"]


def test_generation_without_an_engine_is_refused(found: dict[str, Any]) -> None:
    assert found["tensor"]["reference"]["no_engine"] == "this model has no rollout engine: give engine= when it is built"
