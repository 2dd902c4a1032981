"""Whole RL updates and SFT steps of the real model on process grids equal those of one rank; skipped updates agree."""

from __future__ import annotations

from typing import Any

import pytest

TWO_RANKS = ("tensor", "pipeline", "data")
GRIDS = ("single", *TWO_RANKS)
LOSS = 1e-6
NORM = 2e-5
"""Relative. Gradients agree to 1e-7, but torch.norm of 500,000 fp32 numbers rounds by 1e-5; a shard has half of them."""


@pytest.mark.parametrize("grid", TWO_RANKS)
def test_rl_updates_equal_those_of_one_rank(grids: dict[str, Any], grid: str) -> None:
    """Two steps of two mini-batches, each passed through twice, with KL, clip and entropy bonus in force."""
    mine, single = grids[grid]["rl"], grids["single"]["rl"]
    assert len(mine["updates"]) == len(single["updates"]) == 8
    for update, expected in zip(mine["updates"], single["updates"], strict=True):
        assert update.keys() == expected.keys() >= {"loss", "kl", "ratio", "entropy", "clip_share", "grad_norm"}
        assert update["loss"] == pytest.approx(expected["loss"], abs=LOSS)
        assert update["grad_norm"] == pytest.approx(expected["grad_norm"], rel=NORM)
        for name in ("kl", "ratio", "entropy", "entropy_proxy"):
            assert update[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    assert mine["invalid"] == single["invalid"]
    assert_same_weights(mine["weights"], single["weights"])


@pytest.mark.parametrize("grid", GRIDS)
def test_the_first_ratio_is_exactly_1_and_kl_0_at_the_reference(grids: dict[str, Any], grid: str) -> None:
    """pi_old is what the trainer itself scores, so nothing but an update can move the ratio."""
    updates = grids[grid]["rl"]["updates"]
    assert updates[0]["away"] == 0.0 and updates[4]["away"] == 0.0  # the first update of each step
    assert updates[0]["kl"] == 0.0 and updates[4]["kl"] > 0.0  # the reference is that of the first step
    assert all(update["away"] > 0.0 for index, update in enumerate(updates) if index % 4)
    assert updates[0]["ratio"] == pytest.approx(1.0, abs=1e-6)  # a sum of weights in fp32


@pytest.mark.parametrize("grid", TWO_RANKS)
def test_sft_steps_equal_those_of_one_rank(grids: dict[str, Any], grid: str) -> None:
    mine, single = grids[grid]["sft"], grids["single"]["sft"]
    for (loss, norm, tokens), expected in zip(mine["steps"], single["steps"], strict=True):
        assert loss == pytest.approx(expected[0], rel=LOSS)
        assert norm == pytest.approx(expected[1], rel=NORM)
        assert tokens == expected[2]
    assert single["steps"][2][0] < single["steps"][0][0]
    assert_same_weights(mine["weights"], single["weights"])


@pytest.mark.parametrize("grid", TWO_RANKS)
def test_a_rank_with_nothing_to_learn_takes_part(grids: dict[str, Any], grid: str) -> None:
    mine, single = grids[grid]["lonely"], grids["single"]["lonely"]
    assert mine["update"]["loss"] == pytest.approx(single["update"]["loss"], abs=LOSS)
    assert_same_weights(mine["weights"], single["weights"])


@pytest.mark.parametrize("grid", GRIDS)
def test_a_nan_is_skipped_by_all_ranks_alike(grids: dict[str, Any], grid: str) -> None:
    """One in an advantage that a single data rank has; one in a gradient of one rank alone, whose loss is finite."""
    found = grids[grid]["poisoned"]
    assert found["healthy"] == 0.0
    assert found["advantage"] == 1.0 and not found["has_loss"]
    assert found["untouched"]  # weights and optimizer state, bit by bit, on every rank
    assert found["gradient"] == 1.0 and found["gradient_norm"] == "nan" and abs(found["gradient_loss"]) < 1.0
    assert found["still_untouched"]
    assert found["goes_on"] == 0.0 and found["moved"]
    assert found["stops"].startswith("rl step 4: loss nan, gradient norm nan; 3 updates were not finite, "
                                     "mtgrpo.max_skipped_updates=2: look into ")
    ranks = ("rank-0", "rank-1") if grid == "data" else ("rank-0",)
    for update in ("rl-000001-00", "rl-000002-00", "rl-000004-00"):
        for rank in ranks:
            assert {f"{update}/{rank}/about.json", f"{update}/{rank}/micro-00.npz"} <= set(found["dumps"])
    assert {name.split("/")[1] for name in found["dumps"]} == set(ranks)


def test_packed_equals_padded(grids: dict[str, Any]) -> None:
    """The trainers' row of four episodes, three of which share a picture, against a padded batch of them."""
    found = grids["single"]["layouts"]
    packed, padded = found["tokens"]
    assert packed < padded and found["pictures"] == 2
    assert found["loss"] <= 1e-6
    assert found["gradient"] <= 1e-6 and found["worst"] <= 5e-6  # of all parameters together, and of each alone


def assert_same_weights(mine: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert mine.keys() == expected.keys()
    for name, values in expected.items():
        assert mine[name] == pytest.approx(values, rel=1e-5, abs=1e-4), name
