"""An update whose loss or gradient is not finite: skipped, counted, dumped, and after too many the run ends."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_mtdrive.algorithms.metrics import update_metrics
from nemo_mtdrive.algorithms.policy import MicroBatch
from nemo_mtdrive.algorithms.updates import DumpPlace, NotFinite, Updates, write_dump
from tests.algorithms.test_mtgrpo import BigramPolicy


class OneNumber(BigramPolicy):
    """A policy of one weight, w; the loss is w * micro["x"], summed."""

    def __init__(self) -> None:
        super().__init__(0)
        self.table = torch.ones(1, requires_grad=True)
        self.lr = 0.5

    def get_loss_and_metrics(self, batch: Sequence[MicroBatch], forward_only: bool) -> tuple[float, dict[str, float]]:
        loss = sum(((self.table * micro["x"]).sum() for micro in batch), torch.zeros(()))
        loss.backward()
        return loss.item(), {"kl": 0.25}

    def finish_training_step(self) -> float:
        assert self.table.grad is not None
        return super().finish_training_step() if torch.isfinite(self.table.grad).all() else math.nan


def micro(*x: float) -> MicroBatch:
    return {"x": torch.tensor(x)}


def updates(folder: Path, allowed: int, writes: bool = True) -> Updates:
    return Updates("rl", OneNumber(), allowed, DumpPlace(folder / "nan", 3, writes))


def test_a_finite_update_steps(tmp_path: Path) -> None:
    run = updates(tmp_path, 0)
    assert run.run(0, 0, [micro(1.0, 2.0)], [["e"]]) == {"loss": 3.0, "grad_norm": 3.0, "skipped_updates": 0.0, "kl": 0.25}
    assert run._policy.table.item() == 1.0 - 0.5 * 3.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_update_leaves_the_policy_alone_and_is_dumped(tmp_path: Path, poison: float) -> None:
    run = updates(tmp_path, 1)
    found = run.run(12, 1, [micro(1.0), micro(2.0, poison)], [["a/0"], ["b/0", "b/1"]])
    assert found["skipped_updates"] == 1.0 and not math.isfinite(found["loss"]) and math.isnan(found["grad_norm"])
    assert run._policy.table.item() == 1.0 and run._policy.gradients == [] and run.skipped == 1
    (folder,) = (tmp_path / "nan").iterdir()
    assert folder.name == "rl-000012-01" and [part.name for part in folder.iterdir()] == ["rank-3"]
    about = json.loads((folder / "rank-3" / "about.json").read_text())
    assert about["micro_batches"] == [{"file": "micro-00.npz", "contents": ["a/0"], "not_finite": []},
                                      {"file": "micro-01.npz", "contents": ["b/0", "b/1"], "not_finite": ["x"]}]
    with np.load(folder / "rank-3" / "micro-01.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["x"], np.array([2.0, poison], dtype=np.float32))


def test_more_than_the_allowed_number_ends_the_run_in_a_row_or_not(tmp_path: Path) -> None:
    run = updates(tmp_path, 2)
    for step, x in enumerate([math.nan, 1.0, math.inf, 1.0]):
        run.run(step, 0, [micro(x)], [["e"]])
    with pytest.raises(NotFinite, match=r"^rl step 9: loss nan.* 3 updates were not finite, mtgrpo.max_skipped_updates=2: "):
        run.run(9, 0, [micro(math.nan)], [["e"]])
    assert (tmp_path / "nan" / "rl-000009-00" / "rank-3" / "about.json").exists()


def test_only_one_rank_of_a_replica_dumps(tmp_path: Path) -> None:
    assert updates(tmp_path, 1, writes=False).run(0, 0, [micro(math.nan)], [["e"]])["skipped_updates"] == 1.0
    assert list(tmp_path.iterdir()) == []


def test_a_dump_is_whole_replaces_an_older_one_and_takes_bfloat16(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write_dump(tmp_path / "d" / "rank-0", [{"x": torch.tensor([value], dtype=torch.bfloat16)}], [["e"]], math.nan, 0.0)
    assert [part.name for part in (tmp_path / "d").iterdir()] == ["rank-0"]
    with np.load(tmp_path / "d" / "rank-0" / "micro-00.npz") as arrays:
        assert arrays["x"].dtype == np.float32 and arrays["x"].tolist() == [2.0]


def test_a_step_averages_what_was_done_and_counts_what_was_not() -> None:
    done, skipped = {"loss": 1.0, "skipped_updates": 0.0}, {"loss": math.nan, "skipped_updates": 1.0}
    assert update_metrics([done, skipped, {"loss": 2.0, "skipped_updates": 0.0}]) == {"loss": 1.5, "skipped_updates": 1.0}
    assert update_metrics([skipped]) == {"skipped_updates": 1.0}
    assert update_metrics([]) == {"skipped_updates": 0.0}
