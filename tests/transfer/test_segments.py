"""Nothing of a run stays in shared memory, however its processes end."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.images import ImageStore
from nemo_mtdrive.transfer.segments import RunFolder, TransferError, run_path, sweep, sweep_abandoned

from .conftest import RUN
from .make_episodes import make_image
from .processes import start_with_answer


def hold_an_image(pipe: Connection, root: Path) -> None:
    """Put an image into shared memory and wait to be killed."""
    image = make_image(0)
    ImageStore(RunFolder(root, RUN), 1 << 20).put(image_key(image), image)
    pipe.send("there")
    signal.pause()


def test_sweep_frees_what_a_killed_process_left(shm_root: Path) -> None:
    process, pipe = start_with_answer(hold_an_image, shm_root)
    assert pipe.recv() == "there"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert any(run_path(shm_root, RUN).rglob("*"))
    assert sweep(shm_root, RUN) >= make_image(0).nbytes
    assert not list(shm_root.iterdir())
    assert sweep(shm_root, RUN) == 0


def test_runs_without_a_living_process_are_found_and_removed_alone(shm_root: Path) -> None:
    process, pipe = start_with_answer(hold_an_image, shm_root)
    assert pipe.recv() == "there"
    with RunFolder(shm_root, "alive") as alive:
        assert sweep_abandoned(shm_root) == []
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert sweep_abandoned(shm_root) == [RUN]
        assert list(shm_root.iterdir()) == [alive.path]
    assert sweep_abandoned(shm_root) == ["alive"]


def test_a_folder_that_is_just_being_made_is_left_alone(shm_root: Path) -> None:
    young = run_path(shm_root, "young")
    young.mkdir()
    assert sweep_abandoned(shm_root) == []
    os.utime(young, (0, 0))
    assert sweep_abandoned(shm_root) == ["young"]


@pytest.mark.parametrize("run_id", ["", "a/b", "..", ".hidden", "x" * 65, "a b"])
def test_a_run_id_that_is_no_folder_name_is_refused(shm_root: Path, run_id: str) -> None:
    with pytest.raises(ValueError, match="run_id="):
        sweep(shm_root, run_id)


def test_a_root_that_is_not_there_is_named(shm_root: Path) -> None:
    with pytest.raises(TransferError, match="no such folder; set it to a tmpfs"):
        RunFolder(shm_root / "absent", RUN)
