"""The tower learns what pictures say: the step's draw, the mirror, the measure, going on, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_mtdrive.algorithms.vision_pretraining import VisionPretraining, straight_on
from nemo_mtdrive.config_pretraining import PretrainingConfig
from nemo_mtdrive.data.views import COLUMNS, ROWS, Views
from tests.algorithms.commands import run_command

HIDDEN = 16


class Tower(torch.nn.Module):
    """Two tokens a picture of 28 x 56, a linear map of its pixels, and a part that is not the tower's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.vision_map = torch.nn.Linear(8 * 1176, 2 * HIDDEN)
        self.language = torch.nn.Linear(2, 2)

    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        return self.vision_map(pixel_values.reshape(-1, 8 * 1176)).reshape(-1, HIDDEN)


def views(count: int = 32) -> Views:
    """Scenes p0, p1, ... alike but for where they go: every second one to the left, the others to the right."""
    speed = np.full(count, 8.0, dtype=np.float32)
    future = straight_on(speed)
    future[::2, :, 1] += np.linspace(0.5, 6.0, 8, dtype=np.float32)
    future[1::2, :, 1] -= np.linspace(0.5, 6.0, 8, dtype=np.float32)
    ground = np.zeros((count, 2, ROWS, COLUMNS), dtype=bool)
    ground[::2, 0, :, COLUMNS // 2:] = True
    ground[1::2, 0, :, :COLUMNS // 2] = True
    return Views([f"p{number}" for number in range(count)], np.zeros((count, 4, 3), dtype=np.float32),
                 np.ones(count, dtype=np.int64), speed, future, ground)


def picture(name: str) -> np.ndarray:
    """Bright on the side where the scene goes."""
    number = int(name[1:])
    pixels = np.random.default_rng(number).integers(0, 100, (28, 56, 3), dtype=np.uint8)
    pixels[:, 28 * (number % 2):28 * (number % 2) + 28] += 120
    return pixels


def training(**settings: float) -> VisionPretraining:
    chosen = PretrainingConfig(**{"steps": 60, "batch_size": 8, "lr": 3e-3, "warmup_steps": 5} | settings)  # type: ignore[arg-type]
    return VisionPretraining(Tower(), HIDDEN, views(), picture, chosen, seed=1)


def test_what_only_the_picture_says_is_learned() -> None:
    """Of the scenes that are measured each one's exchanged picture goes the other way."""
    run = training()
    for _ in range(60):
        run.train_step()
    found = run.measure(views(14))
    assert found["ADE"] < 0.3 * found["ADE_constant_velocity"]
    assert found["ADE_other_picture"] > found["ADE_constant_velocity"]
    assert found["drivable_cells_right"] > 0.9


def test_only_the_tower_is_trained() -> None:
    run = training()
    before = {name: value.detach().clone() for name, value in run._network.named_parameters()}
    run.train_step()
    changed = {name for name, value in run._network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"vision_map.weight", "vision_map.bias"}


def test_a_killed_training_goes_on_as_the_same(tmp_path: Path) -> None:
    whole, first, second = training(), training(), training()
    losses = [whole.train_step() for _ in range(6)]
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "state", "this")
    assert not second.load(tmp_path / "state", "that")
    assert second.step == 0
    assert second.load(tmp_path / "state", "this")
    assert second.step == 3
    assert [second.train_step() for _ in range(3)] == pytest.approx(losses[3:], rel=1e-5)


def test_the_command(tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "start"
    done = run_command("scenes", "generate", "--count", "6", "--width", "56", "--height", "28", "--workers", "1", "--out",
                       str(scenes))
    assert done.returncode == 0, done.stderr
    words = ["pretrain-vision", "--out", str(out), "scenes.source=files", f"scenes.path={scenes}", "scenes.held_out=2",
             "scenes.image_width=56", "scenes.image_height=28", "model.layers=1", "model.head_size=64",
             "pretraining.batch_size=2", "pretraining.save_every=1"]
    done = run_command(*words, "pretraining.steps=2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["scenes"], report["held_out_scenes"], report["steps"]) == (4, 2, 2)
    assert not list(tmp_path.glob(".start*"))
    from nemo_mtdrive.models.start import check_start

    check_start(out, 2, 1)
    again = run_command(*words, "pretraining.steps=2")
    assert json.loads(again.stdout.splitlines()[-1]) == report
    other = run_command(*words, "pretraining.steps=3")
    assert other.returncode == 2
    assert "it holds something else than what is asked for" in other.stderr
