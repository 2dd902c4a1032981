"""Scenes of random nonsense: every score is in 0..1 and every failing metric is named, without a warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import (
    TRACK_TYPES,
    Area,
    Ego,
    Lane,
    Roadblock,
    Scene,
    SceneMap,
    Track,
    TrafficLight,
)
from nemo_mtdrive.pdm.agent import PDMAgent

SEEDS = 40


def nonsense(seed: int) -> Scene:
    """Crossed and tiny rings, lanes without length, ids that do not exist, flat boxes, repeated times, red lights."""
    random = np.random.default_rng(seed)

    def ring() -> np.ndarray:
        return random.normal(0.0, [20.0, 6.0], (random.integers(1, 7), 2)).round(random.integers(0, 3))

    def some(names: list[str]) -> tuple[str, ...]:
        return tuple(str(name) for name in random.choice(names, size=random.integers(0, 3)))

    lane_ids = [f"l{i}" for i in range(random.integers(0, 7))] + ["no lane"]
    block_ids = [f"b{i}" for i in range(random.integers(0, 5))] + ["no block"]
    blocks = tuple(
        Roadblock(name, str(random.choice(["roadblock", "roadblock_connector"])), ring(), some(lane_ids),
                  some(block_ids), some(block_ids))
        for name in block_ids[:-1]
    )
    lanes = tuple(
        Lane(name, "lane", str(random.choice(block_ids)), ring(), ring() if random.random() < 0.8 else np.zeros((3, 2)),
             random.choice([None, 0.0, 5.0]), some(lane_ids), some(lane_ids))
        for name in lane_ids[:-1]
    )
    tracks = []
    for i in range(random.integers(0, 6)):
        count = random.integers(1, 8)
        rows = np.column_stack([random.choice(np.arange(-1.0, 6.0, 0.5), count), random.normal(0.0, 10.0, (count, 2)),
                                random.normal(0.0, 2.0, count), random.normal(0.0, 5.0, (count, 2))])
        size = np.abs(random.normal(2.0, 2.0, 3)) * (random.random() > 0.1)
        tracks.append(Track(f"t{i}", str(random.choice(TRACK_TYPES)), size, rows))
    pose = np.append(random.normal(0.0, 5.0, 2), random.normal())
    ego = Ego(pose, random.normal(0.0, 6.0, 2), random.normal(0.0, 2.0, 2))
    scene_map = SceneMap(blocks, lanes, (Area("i", ring()),), (Area("c", ring()),))
    lights = tuple(TrafficLight(name, True) for name in lane_ids[:2])
    return Scene(f"nonsense {seed}", "test", ego, scene_map, some(block_ids), lights, tuple(tracks))


@pytest.mark.parametrize("perception", ["oracle", "kinematic"])
def test_nonsense_is_scored_soundly(perception: str) -> None:
    agent = PDMAgent(perception, 1)
    for seed in range(SEEDS):
        plans = np.random.default_rng(seed).normal(0.0, 10.0, (3, 8, 3))
        plans[1] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reviews = agent.review(nonsense(seed), plans)
        for review in reviews:
            assert all(0.0 <= value <= 1.0 for value in review.scores.values()), (seed, review.scores)
            failing = {metric for metric in ("NC", "DAC", "TTC") if review.scores[metric] < 1.0}
            assert {violation["metric"] for violation in review.violations} == failing, seed
