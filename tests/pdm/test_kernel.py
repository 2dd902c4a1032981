"""Where compiled code is kept: named after the sources, and elsewhere when the install may not be written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numba
import pytest

from nemo_mtdrive.pdm import kernel


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's files in which the kept code is looked up anew."""
    here = tmp_path / "package" / "pdm"
    shutil.copytree(Path(kernel.__file__).parent, here, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(kernel.__file__).parent.parent / "types.py", here.parent)
    monkeypatch.setattr(kernel, "_HERE", here)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return here


def folder() -> Path | None:
    return kernel.cache_folder.__wrapped__()


def test_a_change_of_any_compiled_file_is_a_new_folder_and_the_old_one_goes(sources: Path) -> None:
    first = folder()
    assert first is not None and first.parent == sources / "__pycache__"
    assert folder() == first
    with (sources / "geometry.py").open("a") as file:
        file.write("# changed\n")
    second = folder()
    assert second is not None and second != first and second.is_dir() and not first.exists()
    with (sources / "feedback.py").open("a") as file:
        file.write("# nothing in it is compiled\n")
    assert folder() == second


def test_an_install_that_may_not_be_written_keeps_its_code_in_the_users_cache(sources: Path, tmp_path: Path) -> None:
    (sources / "__pycache__").write_text("a file where the folder would be: nobody, root neither, can write there")
    kept = folder()
    assert kept is not None and kept.parent == tmp_path / "cache" / "nemo_mtdrive"


def test_without_any_place_it_compiles_each_time_and_says_so(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sources / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    assert folder() is None
    assert "set NUMBA_CACHE_DIR" in caplog.text
