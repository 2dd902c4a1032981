"""The scripts as a user calls them: exit codes, one line on stderr, the comparison of both sides."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import read_hf, same_bits, write_hf

FOLDER = Path(__file__).resolve().parents[2] / "converters"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import hf_to_nemo
    import nemo_to_hf

    return {"hf_to_nemo.py": hf_to_nemo, "nemo_to_hf.py": nemo_to_hf}


def call(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(FOLDER / name), *map(str, arguments)])
    code: int = scripts[name].main()
    return code


def test_there_and_back_with_a_check(scripts: dict[str, ModuleType], tied: Path, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nemo, back = tmp_path / "nemo", tmp_path / "back"
    assert call(scripts, monkeypatch, "hf_to_nemo.py", "--hf", tied, "--out", nemo, "--tp", 2, "--pp", 2, "--check") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == str(nemo)
    assert "check: logits differ by" in shown.err and "the first choice agrees on 100.0%" in shown.err
    assert call(scripts, monkeypatch, "nemo_to_hf.py", "--nemo", nemo, "--out", back, "--shard-size", "200KB") == 0
    assert same_bits(read_hf(back), read_hf(tied))
    half = tmp_path / "half"
    assert call(scripts, monkeypatch, "nemo_to_hf.py", "--nemo", nemo, "--out", half, "--dtype", "bfloat16", "--check") == 0


def test_another_model_does_not_pass_the_check(tied: Path, tmp_path: Path) -> None:
    from nemo_mtdrive.models.compare import compare_logits
    from nemo_mtdrive.models.convert import hf_to_nemo

    config = json.loads((tied / "config.json").read_text())
    state = read_hf(tied)
    state["model.layers.2.self_attn.k_proj.bias"] = state["model.layers.2.self_attn.k_proj.bias"] + 1  # a small mistake
    state["visual.blocks.1.mlp.up_proj.bias"] = state["visual.blocks.1.mlp.up_proj.bias"].flip(0)
    other = write_hf(tmp_path / "other", config, state, 1)
    found = compare_logits(tied, hf_to_nemo(other, tmp_path / "nemo"))
    assert not found.equal and found.difference > 1e-3


def test_wrong_requests_are_exit_2_and_one_line(scripts: dict[str, ModuleType], tied: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied, source)
    (source / "model-00001-of-00003.safetensors").unlink()
    assert call(scripts, monkeypatch, "hf_to_nemo.py", "--hf", source, "--out", tmp_path / "nemo") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf_to_nemo.py: ")]
    assert len(lines) == 1 and lines[0].endswith("is named by model.safetensors.index.json and absent; fetch it again")
    assert call(scripts, monkeypatch, "nemo_to_hf.py", "--nemo", source, "--out", tmp_path / "back") == 2
    assert "no weights folder there; give a NeMo 2 checkpoint directory" in capsys.readouterr().err
    for wrong in (["--tp", "0"], ["--shard-size", "much"]):
        script = "hf_to_nemo.py" if wrong[0] == "--tp" else "nemo_to_hf.py"
        with pytest.raises(SystemExit) as ended:
            call(scripts, monkeypatch, script, "--hf", source, "--nemo", source, "--out", tmp_path / "x", *wrong)
        assert ended.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
