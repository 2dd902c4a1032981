"""Checkpoints are whole or not there, and the right ones stay."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from nemo_mtdrive.callbacks.retention import CheckpointError, CheckpointStore, open_checkpoint


def open_store(root: Path, keep: int = 2, metric: str = "", higher_is_better: bool = True) -> CheckpointStore:
    return CheckpointStore(
        root, keep=keep, metric=metric, higher_is_better=higher_is_better, rank=0, world_size=1, barrier=lambda: None
    )


def write(path: Path) -> None:
    """Weights as NeMo lays them out: folders in the checkpoint."""
    (path / "weights").mkdir()
    (path / "weights" / "0_0.distcp").write_bytes(b"weights")


def names(store: CheckpointStore) -> list[str]:
    return [checkpoint.name for checkpoint in store.all()]


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "checkpoints")
    assert store.latest() is None and store.best() is None
    state = {"step": 3, "sampler": [1, 2], "rng": {"torch": "AAA="}, "version": 4, "seed": 2**63}
    path = store.save("rl-000003", write, state, {"PDMS": 88.1})
    found = store.latest()
    assert found is not None and found.path == path and found.state == state and found.metrics == {"PDMS": 88.1}
    assert (found.path / "weights" / "0_0.distcp").read_bytes() == b"weights"
    assert open_checkpoint(tmp_path / "checkpoints" / "latest", 0, 1) == found


def test_the_newest_stay_in_order_of_saving_not_of_name(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name in ("sft-000100", "rl-000000", "rl-000025", "rl-000050"):
        store.save(name, write, {"name": name})
    assert names(store) == ["rl-000025", "rl-000050"]
    assert (tmp_path / "latest").resolve().name == "rl-000050" and not (tmp_path / "best").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "rl-000025", "rl-000050"]


@pytest.mark.parametrize(("higher", "best"), [(True, "rl-2"), (False, "rl-3")])
def test_the_best_stays_beside_the_newest(tmp_path: Path, higher: bool, best: str) -> None:
    store = open_store(tmp_path, keep=1, metric="PDMS", higher_is_better=higher)
    for step, value in enumerate([0.5, float("nan"), 0.9, 0.1, 0.4, 0.3]):
        store.save(f"rl-{step}", write, {}, {"PDMS": value})
    store.save("rl-6", write, {})
    assert names(store) == [best, "rl-6"]
    assert (tmp_path / "best").resolve().name == best


def test_of_equals_the_newest_is_best(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=1, metric="PDMS")
    for step in range(3):
        store.save(f"rl-{step}", write, {}, {"PDMS": 1.0})
    assert names(store) == ["rl-2"]


def test_a_save_that_failed_leaves_the_one_before(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save("rl-1", write, {})

    def fails(path: Path) -> None:
        write(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save("rl-2", fails, {})
    assert names(store) == ["rl-1"] and (tmp_path / "latest").resolve().name == "rl-1"
    store.save("rl-2", write, {})
    assert names(store) == ["rl-1", "rl-2"]
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save("rl-3", write, {"rng": object()})
    assert not (tmp_path / ".rl-3").exists()


def test_the_same_name_replaces(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for value in (1, 2):
        store.save("rl-1", write, {"value": value})
    assert [checkpoint.state for checkpoint in store.all()] == [{"value": 2}]


def test_a_folder_without_the_marker_is_no_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save("rl-1", write, {})
    store.save("rl-2", write, {})
    (tmp_path / "rl-2" / "complete.json").unlink()
    latest = store.latest()
    assert latest is not None and latest.name == "rl-1"
    with pytest.raises(CheckpointError, match="so it is no whole checkpoint"):
        open_checkpoint(tmp_path / "rl-2", 0, 1)


def test_other_formats_and_noise_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    marker = store.save("rl-1", write, {}) / "complete.json"
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(CheckpointError, match="checkpoint format 2, this program reads 1"):
        store.latest()
    for noise in ("[]", "{}", "{", json.dumps(content | {"metrics": 3})):
        marker.write_text(noise)
        with pytest.raises(CheckpointError, match="not a checkpoint marker"):
            store.latest()


@pytest.mark.parametrize("name", ["", "latest", "best", ".hidden", "a/b", ".."])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="checkpoint name"):
        open_store(tmp_path).save(name, write, {})


def test_ranks_write_together_and_keep_their_own_state(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def barrier() -> None:
        together.wait(10)

    stores = [
        CheckpointStore(tmp_path, keep=1, metric="", higher_is_better=True, rank=rank, world_size=2, barrier=barrier)
        for rank in range(2)
    ]

    def rank_saves(rank: int) -> None:
        for step in range(3):
            stores[rank].save(f"rl-{step}", lambda path: (path / f"shard{rank}").touch(), {"rank": rank, "step": step})

    threads = [threading.Thread(target=rank_saves, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for rank, store in enumerate(stores):
        latest = store.latest()
        assert latest is not None and latest.state == {"rank": rank, "step": 2} and latest.world_size == 2
        assert (latest.path / "shard0").exists() and (latest.path / "shard1").exists()
    for rank in range(3):  # other ranks than saved it: all read the first one's
        other = open_checkpoint(tmp_path / "latest", rank, 3)
        assert not other.same_ranks and other.state == {"rank": 0, "step": 2}
    (tmp_path / "latest" / "trainer_state.rank00001.json").unlink()
    with pytest.raises(CheckpointError, match="rank00001.json: gone"):
        _ = open_checkpoint(tmp_path / "latest", 1, 2).state


def test_a_run_that_starts_anew_forgets(tmp_path: Path) -> None:
    store = open_store(tmp_path / "checkpoints")
    store.save("rl-1", write, {})
    store.clear()
    assert store.latest() is None
    store.clear()
