"""The learned agent's training: its labels, its inference against torch's, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.algorithms.reward_model import RewardTraining, area_under_curve, fit
from nemo_mtdrive.data.plans import PLANS, sample_plans
from nemo_mtdrive.data.reward_set import concatenate, label, split
from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.reward_model import HEADS, RewardModel
from nemo_mtdrive.types import SCORE_NAMES


@pytest.fixture(scope="module")
def labelled():
    agent = PDMAgent("oracle", 1)
    scenes = [generate(seed, MIXTURE) for seed in range(930, 934)]
    return agent, scenes, [label(scene, sample_plans(scene, 5), agent) for scene in scenes]


def test_labels_are_the_agents_words(labelled):
    agent, scenes, sets = labelled
    for scene, data in zip(scenes, sets, strict=True):
        reviews = agent.review(scene, sample_plans(scene, 5))
        assert len(reviews) == PLANS and data.missed == 0
        for row, review in enumerate(reviews):
            assert data.scores[row].tolist() == [review.scores[name] for name in SCORE_NAMES]
            assert data.heads[row, HEADS.index("NC")] == (review.scores["NC"] == 1.0)
            named = {(v["metric"], v["point"]) for v in review.violations}
            assert {p for m, p in named if m == "DAC"} == set(np.flatnonzero(data.off_road[row]))
            assert sum(v["metric"] != "DAC" for v in review.violations) == data.pairs[row].sum()


def test_plans_are_of_all_sorts_and_seeded(labelled):
    _, scenes, sets = labelled
    assert (sample_plans(scenes[0], 5) == sample_plans(scenes[0], 5)).all()
    assert (sample_plans(scenes[0], 5) != sample_plans(scenes[0], 6)).any()
    table = concatenate(sets).scores
    for name in ("NC", "DAC", "TTC", "C"):
        assert 0.02 < (table[:, SCORE_NAMES.index(name)] < 1.0).mean() < 0.9


def test_held_out_scenes_are_never_learned_from():
    names = [f"s{n}" for n in range(20)]
    learned, measured = split(names, 0.25, 3)
    assert len(measured) == 5 and sorted(learned + measured) == sorted(names)
    assert split(names, 0.25, 3) == (learned, measured) != split(names, 0.25, 4)
    assert [len(part) for part in split(names[:2], 0.01, 3)] == [1, 1]
    with pytest.raises(ValueError, match="want 2 or more"):
        split(names[:1], 0.5, 3)


def test_it_learns_the_same_with_the_same_seed_and_numpy_says_what_torch_learned(labelled):
    data = concatenate(labelled[2])
    losses = []
    training = RewardTraining(hidden=32, epochs=60, batch=32, seed=4)
    weights = fit(data, training, lambda _, loss: losses.append(loss))
    assert len(losses) == 60 and losses[-1] < 0.4 * losses[0]
    again = fit(data, training, lambda _, loss: None)
    assert all((weights[name] == again[name]).all() for name in weights)
    predicted = RewardModel(weights, "oracle").predict(data.features)
    right = (predicted.heads >= 0.5) == (data.heads >= 0.5)
    assert right[:, :5].mean() > 0.9  # on what it has seen: numpy's forward pass is torch's


def test_the_report_holds_the_model_against_the_best_constant(reward_model_folder: Path):
    report = json.loads((reward_model_folder / "report.json").read_text())
    assert (report["scenes"], report["held_out_scenes"], report["perception"]) == (18, 6, "oracle")
    assert set(report["held_out"]) == set(SCORE_NAMES)
    assert report["held_out"]["DAC"]["AUC"] > 0.7
    assert report["held_out"]["PDMS"]["MAE"] < report["held_out"]["PDMS"]["MAE_constant"]


def test_area_under_curve():
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert area_under_curve(scores, positive) == pytest.approx(0.75)
    assert area_under_curve(np.zeros(4), positive) == pytest.approx(0.5)
    assert area_under_curve(scores, np.ones(4, dtype=bool)) is None
