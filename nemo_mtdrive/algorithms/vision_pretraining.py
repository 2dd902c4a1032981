"""A vision tower that has seen roads before it meets language, as that of a released Qwen2.5-VL has seen the web.

Next-token loss alone hardly asks a new tower for anything: after the first points of an answer the rest follows from them,
and the text before has speed and command. So the tower and its patch merger first learn by regression what a picture says:
the human's trajectory from picture, history and command, and the ground ahead, cell by cell (`data.views`). The head reads
the mean of the image tokens, normalised as the language model's first layer does it, so what it finds there one attention
head finds as well. Head and grid are dropped afterwards; what remains is a tower, and a language model of random weights
(`language_pretraining`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nemo_mtdrive.algorithms.resumable import ResumableTraining
from nemo_mtdrive.config_pretraining import PretrainingConfig
from nemo_mtdrive.data.sampler import EpochSampler
from nemo_mtdrive.data.views import COLUMNS, LAYERS, ROWS, Views
from nemo_mtdrive.driving.scene import COMMANDS
from nemo_mtdrive.image_key import resized
from nemo_mtdrive.transfer.images import grid_of, pixel_values
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S

WIDTH = 256
"""Of the head's hidden layer."""
HISTORY_SCALE = (0.1, 1.0, 5.0)
"""Metres ahead, metres aside and radians of the past come to the head in about the same range."""
LEAST_SPREAD = 0.02
"""Of a coordinate of the trajectories around constant velocity [m or rad], where all are alike."""
CODE_SCALE = 4.0
"""The mean of normalised tokens is small where they differ; the head sees it times this."""

Picture = NDArray[np.uint8]


class Head(torch.nn.Module):
    """From the tokens of pictures to trajectories and ground."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mixed = torch.nn.Linear(hidden + 9 + len(COMMANDS), WIDTH)
        self.points = torch.nn.Linear(WIDTH, 3 * TRAJECTORY_POINTS)
        self.ground = torch.nn.Linear(hidden, len(LAYERS) * ROWS * COLUMNS)

    def forward(self, tokens: Tensor, history: Tensor, command: Tensor) -> tuple[Tensor, Tensor]:
        """[n, cells, hidden], [n, 4, 3], [n] -> [n, 8, 3] off constant velocity in spreads, [n, 2, ROWS, COLUMNS] logits."""
        normal = tokens * torch.rsqrt(tokens.square().mean(dim=-1, keepdim=True) + 1e-6)
        code = normal.mean(dim=1) * CODE_SCALE
        past = (history[:, :3] * history.new_tensor(HISTORY_SCALE)).flatten(1)  # the last pose is the origin
        mixed = F.gelu(self.mixed(torch.cat([code, past, F.one_hot(command, len(COMMANDS)).to(code.dtype)], dim=1)))
        return self.points(mixed).unflatten(1, (TRAJECTORY_POINTS, 3)), self.ground(code).unflatten(1, (-1, ROWS, COLUMNS))


class VisionPretraining(ResumableTraining):
    """Trains a tower on views; what a step draws depends on its number alone, so a run goes on as the same run.

    Args:
        network: with the tower; its parameters named `vision_...` are trained.
        hidden: width of an image token.
        views: numbers of the training scenes. picture: reads the picture of a scene, [H, W, 3] of one size for all.
        settings, seed: of the training.
    """

    def __init__(self, network: torch.nn.Module, hidden: int, views: Views, picture: Callable[[str], Picture],
                 settings: PretrainingConfig, seed: int) -> None:
        torch.manual_seed(seed)
        self._network, self._views, self._picture = network, views, picture
        self._settings, self._seed = settings, seed
        self._head = Head(hidden)
        trained = {name: value for name, value in network.named_parameters() if name.startswith("vision_")}
        trained |= {f"head.{name}": value for name, value in self._head.named_parameters()}
        super().__init__(trained, settings.steps, settings.lr, settings.warmup_steps, settings.weight_decay)
        self._head.to(self.device)
        self._sampler = EpochSampler(len(views.ids), seed)
        spread = (views.future - straight_on(views.speed)).std(axis=0).clip(min=LEAST_SPREAD)
        self._spread = torch.from_numpy(spread).to(self.device)

    def train_step(self) -> float:
        """One optimizer step on the next batch, half of it mirrored; returns the loss."""
        settings = self._settings
        rows = np.array(self._sampler.take(self.step * settings.batch_size, settings.batch_size))
        mirrored = np.random.default_rng((self._seed, self.step)).random(len(rows)) < 0.5
        predicted, logits, future, ground = self._forward(self._views, rows, rows, mirrored)
        of_points = F.smooth_l1_loss((predicted - future) / self._spread, torch.zeros_like(future), beta=0.3)
        loss = of_points + settings.ground_weight * F.binary_cross_entropy_with_logits(logits, ground)
        return self.update(loss)

    @torch.no_grad()
    def measure(self, views: Views) -> dict[str, float]:
        """ADE [m] on scenes that were not learned from: with their own pictures, with another scene's, and of constant
        velocity; and the share of the ground's cells that are told right, layer by layer."""
        count, size = len(views.ids), self._settings.batch_size
        own, others, cells = [], [], []
        for start in range(0, count, size):
            rows = np.arange(start, min(start + size, count))
            plain = np.zeros(len(rows), dtype=bool)
            predicted, logits, future, ground = self._forward(views, rows, rows, plain)
            own.append(distance(predicted, future))
            cells.append(((logits > 0) == (ground > 0.5)).float().mean(dim=(2, 3)))
            others.append(distance(self._forward(views, rows, (rows + count // 2) % count, plain)[0], future))
        straight = distance(torch.from_numpy(straight_on(views.speed)), torch.from_numpy(views.future))
        ades = {"ADE": torch.cat(own), "ADE_other_picture": torch.cat(others), "ADE_constant_velocity": straight}
        right = torch.cat(cells).mean(dim=0)
        return {name: round(float(value.mean()), 4) for name, value in ades.items()} | {
            f"{name}_cells_right": round(float(right[place]), 4) for place, name in enumerate(LAYERS)}

    def _forward(self, views: Views, rows: NDArray[np.int64], shown: NDArray[np.int64], mirrored: NDArray[np.bool_],
                 ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Trajectories [n, 8, 3] and ground logits of `rows` with the pictures of `shown`, then the true ones."""
        pictures = [resized(self._picture(views.ids[row])) for row in shown]
        pictures = [np.ascontiguousarray(picture[:, ::-1]) if flip else picture
                    for picture, flip in zip(pictures, mirrored, strict=True)]
        grids = torch.tensor([grid_of(picture) for picture in pictures])
        tower: Any = self._network
        tokens = tower.encode_images(pixel_values(pictures, self.device), grids.to(self.device)).unflatten(
            0, (len(pictures), -1))
        history, command, future, ground = (value.to(self.device) for value in _targets(views, rows, mirrored))
        offsets, logits = self._head(tokens, history, command)
        straight = torch.from_numpy(straight_on(views.speed[rows])).to(self.device)
        return straight + offsets * self._spread, logits, future, ground


def straight_on(speed: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n] -> [n, 8, 3] the trajectories of constant velocity."""
    points = np.zeros((len(speed), TRAJECTORY_POINTS, 3), dtype=np.float32)
    points[:, :, 0] = speed[:, None] * (TRAJECTORY_STEP_S * np.arange(1, TRAJECTORY_POINTS + 1))
    return points


def distance(one: Tensor, other: Tensor) -> Tensor:
    """[n, 8, 3] twice -> [n] mean distance of their points [m]."""
    return (one.cpu() - other.cpu())[..., :2].norm(dim=-1).mean(dim=1)


def _targets(views: Views, rows: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> Sequence[Tensor]:
    """History, command, future and ground of rows; in a mirror left is right."""
    history, future = views.history[rows].copy(), views.future[rows].copy()
    command, ground = views.command[rows].copy(), views.ground[rows].astype(np.float32)
    for poses in (history, future):
        poses[mirrored] *= np.array([1, -1, -1], dtype=np.float32)
    command[mirrored] = len(COMMANDS) - 1 - command[mirrored]
    ground[mirrored] = ground[mirrored][..., ::-1]
    return [torch.from_numpy(value) for value in (history, command, future, ground)]
