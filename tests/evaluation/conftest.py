"""Hand-made episodes and a run directory made of them by the real recorder, logger and summary."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.config import Config, save_config
from nemo_mtdrive.driving.camera import front_camera, render
from nemo_mtdrive.driving.generator import generate
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.evaluate import Bootstrap, facts_of, summarise
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.telemetry.metrics import MetricsLogger
from nemo_mtdrive.telemetry.recorder import EpisodeRecorder
from tests.evaluation.hand_episodes import HOSTILE, make_episode, make_turn


@pytest.fixture(scope="session")
def generated() -> Scene:
    """A crossing with a lead vehicle from the generator, with the camera that takes its picture."""
    return replace(generate(3, {"crossing": 1.0, "lead": 1.0}), camera=front_camera(224, 112, "front.png"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium (requirements/debian.txt), or Chrome; skips where there is none, and fails in CI."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium, and in CI it must be there: install requirements/debian.txt")
        pytest.skip("no chromium: install the packages of requirements/debian.txt")
    return found


@pytest.fixture
def run_dir(tmp_path: Path, generated: Scene) -> Path:
    """A finished run: config, metrics of two phases, summary, dumps of two stages with a hostile answer."""
    assert generated.future is not None
    image = render(generated, 224, 112)
    key = image_key(image)
    off = generated.future + np.array([0.0, 6.0, 0.0])
    first = make_turn(0, 0.0, dac=0.0, trajectory=off, answer="veering",
                      violations=[{"metric": "DAC", "point": point, "object": None} for point in (6, 7)])
    better = make_episode(generated.scene_id, first, make_turn(1, 0.9, trajectory=generated.future), image=key)
    hostile = make_episode(generated.scene_id, make_turn(0, None, answer=HOSTILE), index=1, image=key)
    run = tmp_path / "runs" / "mine"
    recorder = EpisodeRecorder(run, max_episodes=4, with_tokens=False)
    facts = {generated.scene_id: facts_of(generated)}
    summary = {}
    for stage, episodes in (("after_sft", [hostile]), ("after_rl", [better, hostile])):
        recorder.record(0, stage, episodes, prompts={generated.scene_id: "Where to?"}, images={key: image},
                        scenes={generated.scene_id: generated})
        summary[stage] = summarise(episodes, facts=facts, bootstrap=Bootstrap(100, 0))
    (run / "summary.json").write_text(json.dumps(summary | {"seconds": 12.5, "checkpoints": ["rl-000002"]}))
    save_config(Config(), run / "config.yaml")
    for phase, name in (("sft", "loss"), ("rl", "reward/mean")):
        with MetricsLogger(run, phase=phase, resume_step=None, tensorboard=False, wandb=None) as logger:
            for step in range(3):
                logger.log(step, {name: 1.0 / (step + 1), "timers/update": 2.0, "odd <metric>": float("nan")})
    return run
