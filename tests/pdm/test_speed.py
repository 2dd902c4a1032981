"""A floor under the reward's speed, in processor time so that a busy machine does not matter."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from nemo_mtdrive.driving.scene import load_scene
from nemo_mtdrive.pdm.agent import PDMAgent

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm"
FLOOR_PER_S = 1000.0
BATCH = 8


def test_eight_trajectories_of_a_prepared_scene() -> None:
    agent = PDMAgent("oracle", 8)
    work = []
    for path in sorted(GOLDEN.glob("*.json"))[::8]:
        scene = load_scene(path)
        plans = np.resize(np.stack([case.trajectory for case in scene.cases]), (BATCH, 8, 3))
        agent.review(scene, plans)
        work.append((scene, plans))
    started = time.process_time()
    for scene, plans in work * 4:
        agent.review(scene, plans)
    rate = 4 * len(work) * BATCH / (time.process_time() - started)
    assert rate >= FLOOR_PER_S, f"{rate:.0f} trajectories/s"
