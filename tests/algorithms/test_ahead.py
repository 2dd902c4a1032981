"""Rollouts ahead of the trainer: the order of playing, publishing and training, and what a checkpoint carries over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.algorithms.ahead import (
    Pending,
    PendingError,
    RolloutsAhead,
    pending_images,
    read_pending,
    write_pending,
)
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.types import Episode, Group, RolloutTask

IMAGE = np.arange(28 * 56 * 3, dtype=np.uint8).reshape(28, 56, 3)
KEY = image_key(IMAGE)


def episode(scene_id: str, version: int, index: int = 0) -> Episode:
    return Episode(
        episode_id=f"{scene_id}#{index}", scene_id=scene_id, index=index, seed=5, policy_version=version,
        tokens=np.arange(4, dtype=np.int32), turn_of_token=np.asarray([-1, -1, 0, 0], np.int16),
        logprobs=np.asarray([0, 0, -0.5, -0.25], np.float32), turns=(), image_keys=(KEY,), image_grids=((1, 2, 4),),
        valid=True, reason="")


class Workers:
    """Workers that play at once and note what is asked of them; the step is the scene's name."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.version = 0
        self.known: set[str] = set()

    def draw(self, step: int) -> list[RolloutTask]:
        return [RolloutTask(f"s{step}", 2, 1, self.version, step, 1.0, "train", 0)]

    def submit(self, tasks, *, gather_ahead: bool = False):
        self.said.append(f"submit {tasks[0].scene_id} v{tasks[0].policy_version}{' ahead' if gather_ahead else ''}")
        return tasks

    def gather(self, ticket) -> list[Group]:
        self.said.append(f"gather {ticket[0].scene_id}")
        return [Group(task.scene_id, tuple(episode(task.scene_id, task.policy_version, i) for i in range(2)))
                for task in ticket]

    def publish_next(self) -> None:
        self.version += 1
        self.said.append(f"publish v{self.version}")

    def adopt(self, groups, images) -> None:
        self.known |= {key for group in groups for e in group.episodes for key in e.image_keys if key in images}


def test_the_next_step_is_played_while_this_one_trains() -> None:
    workers = Workers()
    ahead = RolloutsAhead(workers, workers.draw, steps=3)
    versions = []
    for step in range(3):
        groups = ahead.take(step)
        assert [group.scene_id for group in groups] == [f"s{step}"]
        versions.append((workers.version, groups[0].episodes[0].policy_version))
        workers.said.append(f"train {step}")
        ahead.weights_changed()
    assert workers.said == [
        "submit s0 v0", "gather s0", "submit s1 v0 ahead", "train 0",
        "gather s1", "publish v1", "submit s2 v1 ahead", "train 1",
        "gather s2", "publish v2", "train 2"]
    assert [trained - played for trained, played in versions] == [0, 1, 1]  # never more than one version behind


def test_a_settled_run_goes_on_alike() -> None:
    """A validation between two steps finds idle workers with the newest weights, and nothing is played twice."""
    workers = Workers()
    ahead = RolloutsAhead(workers, workers.draw, steps=3)
    ahead.take(0)
    ahead.weights_changed()
    ahead.settle()
    assert workers.said[-2:] == ["gather s1", "publish v1"]
    assert ahead.take(1)[0].episodes[0].policy_version == 0
    assert workers.said[-1] == "submit s2 v1 ahead"


def test_what_was_in_flight_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    workers = Workers()
    ahead = RolloutsAhead(workers, workers.draw, steps=3)
    ahead.take(0)
    ahead.weights_changed()
    ahead.settle()
    assert ahead.pending is not None
    write_pending(tmp_path / "pending", ahead.pending)

    found = read_pending(tmp_path / "pending")
    workers = Workers()
    later = RolloutsAhead(workers, workers.draw, steps=3)
    later.restore(found, pending_images(found, lambda scene_id: IMAGE))
    groups = later.take(1)
    assert workers.known == {KEY}
    assert workers.said == ["submit s2 v0 ahead"]  # nothing of step 1 again
    original = ahead.pending.groups[0].episodes
    for one, other in zip(groups[0].episodes, original, strict=True):
        assert one.episode_id == other.episode_id and one.policy_version == other.policy_version
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_rollouts_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    pending = Pending(4, [Group("s4", (episode("s4", 3),))])
    workers = Workers()
    ahead = RolloutsAhead(workers, workers.draw, steps=9)
    ahead.restore(pending, {KEY: IMAGE})
    with pytest.raises(PendingError, match="step 7 is due, but the rollouts that wait are of step 4"):
        ahead.take(7)
    with pytest.raises(PendingError, match="scene s4: its picture is not the one that was rolled out"):
        pending_images(pending, lambda scene_id: IMAGE + 1)
    write_pending(tmp_path / "pending", pending)
    (tmp_path / "pending").write_bytes((tmp_path / "pending").read_bytes()[:-9] + b"\0" * 9)
    with pytest.raises(PendingError, match="resume from another checkpoint"):
        read_pending(tmp_path / "pending")
