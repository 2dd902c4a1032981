"""Scenes under the PDM score: who recorded a scene drives well, and constant velocity leaves something to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources.av2 import AV2Scenes
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.pdm.agent import PDMAgent


def test_expert_scores_well_and_constant_velocity_gets_feedback(scenes: list[Scene]) -> None:
    agent = PDMAgent("oracle", 1)
    reviews = [agent.review(scene, np.stack([scene.future, constant_velocity(scene)])) for scene in scenes]
    expert = [review[0].scores for review in reviews]
    assert np.mean([scores["NC"] for scores in expert]) >= 0.975
    assert np.mean([scores["DAC"] for scores in expert]) >= 0.975
    assert np.mean([scores["C"] for scores in expert]) >= 0.95
    assert np.mean([scores["PDMS"] for scores in expert]) >= 0.88
    blamed = np.mean([review[1].feedback != "" for review in reviews])
    assert 0.2 <= blamed <= 0.6


def test_recorded_drives_are_clean(shared_dir: Path) -> None:
    # every ninth window; all 80 hold, but take a minute
    source = AV2Scenes(str(shared_dir / "data" / "av2" / "logs"), 0, 224, 112)
    agent = PDMAgent("oracle", 1)
    for name in source.ids()[::9]:
        scene = source.load(name)
        scores = agent.review(scene, scene.future[None])[0].scores
        assert (scores["NC"], scores["DAC"]) == (1.0, 1.0), name
