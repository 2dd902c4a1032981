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
    """The human neither hits anybody nor leaves the drivable area in any of the 80 windows: no exception to explain."""
    source = AV2Scenes(str(shared_dir / "data" / "av2" / "logs"), 0, 224, 112)
    agent = PDMAgent("oracle", 1)
    unclean = []
    for name in source.ids():
        scene = source.load(name)
        prepared = agent.prepare(scene)
        measured = prepared.measure(prepared.simulate(scene.future[None]))
        if (measured.no_collision[0], measured.drivable_area[0]) != (1.0, 1.0):
            unclean.append(name)
    assert (len(source.ids()), unclean) == (80, [])
