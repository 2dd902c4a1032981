"""The callbacks inside a real Lightning trainer: opened, called and closed at the right moments, however it ends."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nemo_mtdrive.callbacks.base import Callback
from nemo_mtdrive.callbacks.checkpointing import Checkpointing, CheckpointStore, random_state, set_random_state
from nemo_mtdrive.callbacks.ipss import IPSS
from nemo_mtdrive.callbacks.iptc import IPTC
from nemo_mtdrive.callbacks.weight_sync import WeightSync
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.link import open_receiver, open_sender
from nemo_mtdrive.transfer.segments import RunFolder
from nemo_mtdrive.transfer.stream import EpisodeStream
from nemo_mtdrive.transfer.weights import WeightPublisher, WeightReader

from ..transfer.make_episodes import assert_same_episode, make_episode, make_image, make_task

import lightning.pytorch as pl  # isort: skip  after callbacks.base, which makes its import work


class Line(pl.LightningModule):
    """y = w x; reads its inputs through IPTC three times a step, as the phases do, and its episodes through IPSS."""

    def __init__(self, ipss: IPSS, iptc: IPTC, fail_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.rewards: list[list[float]] = []
        self._ipss, self._iptc, self._fail_at = ipss, iptc, fail_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == self._fail_at:
            raise ValueError("loss is NaN")
        task, image = make_task("scene", group_size=2, step=batch_idx), make_image(0)
        for index in range(2):
            self._ipss.on_episode_end(make_episode(task, index, image), {image_key(image): image})
        collected = self._ipss.collect([task], deadline_s=10)
        assert self._ipss.on_rollout_end().episodes == 2
        self.rewards.append([episode.rewards[0] for episode in collected.groups[0].episodes])
        assert_same_episode(collected.groups[0].episodes[1], make_episode(task, 1, image))
        for _ in ("log_prob", "reference", "update"):
            x = self._iptc.get("0", lambda: {"x": batch.clone()})["x"]
        return ((self.weight * x - 3) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(torch.ones(6), batch_size=2)  # type: ignore[arg-type]


class Setting:
    """All callbacks of a run, with one receiver and one stream in this process."""

    def __init__(self, root: Path, checkpoints: Path, fail_at: int = -1) -> None:
        self.folder = RunFolder(root, "run")
        options: dict[str, Any] = {"shm_root": root, "image_budget_bytes": 1 << 20}

        def open_stream() -> EpisodeStream:
            endpoint = self.ipss.collector.endpoint
            sender = open_sender("shm", [endpoint], "run", in_flight=4, lost_after_s=5, **options)
            return EpisodeStream(sender, threads=1, in_flight=4, flush_timeout_s=10)

        receiver = partial(open_receiver, "shm", "tcp://127.0.0.1:0", "run", keep_frames=False, **options)
        self.ipss = IPSS(receiver, open_stream)
        self.iptc = IPTC("cpu", 1 << 20, enabled=True)
        self.model = Line(self.ipss, self.iptc, fail_at)
        publisher = WeightPublisher(self.folder, writes=True, keep=2)
        self.sync = WeightSync(publisher, lambda: self.model.state_dict().items(), version=0)
        self.store = CheckpointStore(
            checkpoints, keep=1, metric="", higher_is_better=True, rank=0, world_size=1, barrier=lambda: None
        )
        self.checkpointing = Checkpointing(
            self.store, every_steps=2, write_weights=lambda path: torch.save({}, path / "w.pt"),
            trainer_state=lambda: {"version": self.sync.version, "random": random_state()},
        )

    def fit(self, workdir: Path) -> None:
        callbacks: list[Callback] = [self.ipss, self.iptc, self.sync, self.checkpointing]
        pl.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, default_root_dir=str(workdir),
        ).fit(self.model)


@pytest.fixture
def shm_root() -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm", prefix="mtdrive-tests-") as folder:
        yield Path(folder)


def test_a_run_streams_caches_publishes_and_saves(shm_root: Path, tmp_path: Path) -> None:
    setting = Setting(shm_root, tmp_path / "checkpoints")
    setting.fit(tmp_path)
    expected = [[make_episode(make_task("scene", 2, step), i, make_image(0)).rewards[0] for i in range(2)]
                for step in range(3)]
    assert setting.model.rewards == expected
    assert setting.iptc.last_step["iptc/hits"] == 2 and setting.iptc.last_step["iptc/misses"] == 1
    version, tensors = WeightReader(setting.folder).read()
    assert version == setting.sync.version == 3
    assert torch.equal(tensors["weight"], setting.model.weight.detach())
    latest = setting.store.latest()
    assert latest is not None and latest.name == "rl-000002" and latest.state["version"] in (1, 2)
    assert setting.ipss._collector is None and setting.ipss._stream is None
    setting.folder.close()


def test_a_failing_step_closes_the_link(shm_root: Path, tmp_path: Path) -> None:
    setting = Setting(shm_root, tmp_path / "checkpoints", fail_at=1)
    with pytest.raises(ValueError, match="loss is NaN"):
        setting.fit(tmp_path)
    assert setting.ipss._collector is None and setting.ipss._stream is None
    setting.folder.close()


class Seeing(pl.LightningModule):
    """A head on a frozen tower; log-prob, reference and update look at the same images."""

    def __init__(self, iptc: IPTC) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tower = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.GELU()).requires_grad_(False)
        self.head = torch.nn.Linear(8, 1)
        self.runs: list[int] = []
        self.tower.register_forward_hook(lambda *_: self.runs.append(len(self.losses)))
        self.losses: list[float] = []
        self._iptc = iptc

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        phases = [self.head(self._iptc.embeddings("images", lambda: batch, self.tower)) for _ in range(3)]
        loss = (phases[2] - phases[0].detach() + phases[1].detach() - 1).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(torch.randn(8, 12, generator=torch.Generator().manual_seed(4)), batch_size=2)  # type: ignore[arg-type]


def fit(model: pl.LightningModule, workdir: Path, *callbacks: Callback) -> None:
    pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=str(workdir),
    ).fit(model)


def test_embeddings_of_a_frozen_tower_are_made_once_a_step_and_change_no_bit(tmp_path: Path) -> None:
    models = {}
    for enabled in (True, False):
        iptc = IPTC("cpu", 1 << 20, enabled)
        models[enabled] = Seeing(iptc)
        fit(models[enabled], tmp_path, iptc)
    assert models[True].runs == [0, 1, 2, 3] and models[False].runs == sorted([0, 1, 2, 3] * 3)
    assert models[True].losses == models[False].losses and len(set(models[True].losses)) == 4
    assert torch.equal(models[True].head.weight, models[False].head.weight)


def test_embeddings_that_would_not_hold_are_refused_with_the_reason() -> None:
    iptc, tower, other = IPTC("cpu", 1 << 20, True), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weight and 1 others are trained, so every update changes them"):
        iptc.embeddings("a", lambda: torch.ones(1, 2), tower)
    tower.requires_grad_(False)
    with pytest.raises(ValueError, match="the reference has another weight"):
        iptc.embeddings("a", lambda: torch.ones(1, 2), tower, other)
    other.load_state_dict(tower.state_dict())
    assert torch.equal(iptc.embeddings("a", lambda: torch.ones(1, 2), tower, other), tower(torch.ones(1, 2)))


def test_the_version_goes_on_from_a_checkpoint(shm_root: Path) -> None:
    with RunFolder(shm_root, "run") as folder:
        publisher = WeightPublisher(folder, writes=True, keep=1)
        sync = WeightSync(publisher, lambda: [("w", torch.ones(1))], version=0)
        sync.load_state_dict(json.loads(json.dumps({"version": 41})))
        assert sync.on_step_end() == 42 == sync.state_dict()["version"] == WeightReader(folder).latest()


def test_an_end_that_was_not_given_is_named() -> None:
    with pytest.raises(ValueError, match="give open_receiver on training ranks"):
        _ = IPSS().collector
    with pytest.raises(ValueError, match="give open_stream where episodes are rolled out"):
        _ = IPSS().stream


def test_random_state_survives_json() -> None:
    def draw() -> tuple[Any, ...]:
        return random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(5).tolist()  # noqa: NPY002

    random.gauss(0, 1)  # leaves a second value waiting in the generator
    np.random.normal()  # noqa: NPY002
    state = json.loads(json.dumps(random_state()))
    first, rest = draw(), draw()
    set_random_state(state)
    assert (draw(), draw()) == (first, rest)
    with pytest.raises(ValueError, match="random state of 3 CUDA devices"):
        set_random_state(state | {"cuda": ["", "", ""]})
