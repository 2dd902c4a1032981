"""What became of a try is read from what its tasks left behind."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest

from nemo_mtdrive.cluster import judge as module
from nemo_mtdrive.cluster.files import Ended, read_ended, write_ended
from nemo_mtdrive.cluster.judge import cause_of, judge
from nemo_mtdrive.cluster.layout import Role

Usage = namedtuple("Usage", "total used free")


def ended(role: Role = "training-rank", index: int = 0, code: int = 1, time: float = 1.0) -> Ended:
    return Ended(role, index, "node1", code, f"{role}-{index} ended with {code}", time)


@pytest.mark.parametrize(("status", "word", "reason"), [
    ({"finished": True, "reason": ""}, "finished", "all steps are done"),
    ({"finished": False, "reason": "a stop was asked for: mtGRPO step 2 is saved"}, "stopped",
     "a stop was asked for: mtGRPO step 2 is saved"),
])
def test_a_run_that_came_to_its_own_end_says_so(tmp_path: Path, status: dict, word: str, reason: str) -> None:
    (tmp_path / "status.json").write_text(json.dumps(status))
    write_ended(tmp_path, 1, "rollout-worker", 0, 1, "a worker that fell over while all ended")
    verdict = judge(tmp_path, 1)
    assert (verdict.word, verdict.reason) == (word, reason)


def test_no_word_of_anybody_is_tried_again(tmp_path: Path) -> None:
    assert judge(tmp_path, 1).word == "again"


@pytest.mark.parametrize(("role", "code", "word"), [
    ("training-rank", -9, "again"), ("training-rank", 1, "again"), ("training-rank", 2, "failed"),
    ("training-rank", 3, "failed"), ("rollout-worker", 1, "failed"), ("environment-server", -9, "failed"),
])
def test_ranks_are_tried_again_unless_it_is_hopeless(tmp_path: Path, role: Role, code: int, word: str) -> None:
    """Workers and servers were started again where they run, as often as the config says."""
    write_ended(tmp_path, 4, role, 7, code, "it ended; its log: x")
    write_ended(tmp_path, 3, "training-rank", 0, 2, "another try")
    verdict = judge(tmp_path, 4)
    assert verdict.word == word
    assert verdict.reason.endswith(": it ended; its log: x")
    assert verdict.node == read_ended(tmp_path, 4)[0].node


def test_a_full_disk_is_the_reason_whatever_the_tasks_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ended(tmp_path, 1, "training-rank", 0, 1, "OSError: No space left on device")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(1 << 30, 1 << 30, 3 << 20))
    verdict = judge(tmp_path, 1)
    assert verdict.word == "failed"
    assert verdict.reason.startswith(f"the disk is full: 3 MB are free at {tmp_path}")


@pytest.mark.parametrize(("others", "cause"), [
    ([ended(index=1, code=1, time=1.0), ended(index=2, code=-9, time=2.0)], ended(index=2, code=-9, time=2.0)),
    ([ended(index=1, code=-9, time=1.0), ended(index=2, code=3, time=2.0)], ended(index=2, code=3, time=2.0)),
    ([ended(index=1, code=-15, time=1.0), ended(index=2, code=1, time=2.0)], ended(index=2, code=1, time=2.0)),
    ([ended(index=1, code=1, time=2.0), ended(index=2, code=1, time=1.0)], ended(index=2, code=1, time=1.0)),
    ([ended(index=1, code=-9, time=1.0), ended("rollout-worker", 2, 1, 2.0)], ended("rollout-worker", 2, 1, 2.0)),
], ids=["killed before the peers it took along", "one that gave up first of all", "terminated last", "the first",
        "a helper that died too often"])
def test_the_cause_is_not_what_it_took_along(others: list[Ended], cause: Ended) -> None:
    assert cause_of(others) == cause
