"""`evaluate`, `compare` and `label` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_mtdrive.cli import main

SCENES = "procedural://?count=2&seed=40&width=56&height=28"


@pytest.mark.parametrize("command", ["evaluate", "compare", "label"])
def test_help_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"example: nemo-mtdrive {command}" in capsys.readouterr().out


def test_evaluate_then_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "evaluation")
    assert main(["evaluate", "--driver", "human", "constant_velocity", "--scenes", SCENES, "--out", out,
                 "--record", "1"]) == 0
    printed = capsys.readouterr()
    assert "Constant velocity" in printed.out and "drivers: 2/2 scenes" in printed.err
    assert main(["evaluate", "--driver", "human", "constant_velocity", "--scenes", SCENES, "--out", out, "--record", "0",
                 "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["human"]["scenes"] == 2
    assert main(["compare", f"{out}:constant_velocity", f"{out}:human", "--out", str(tmp_path / "compared")]) == 0
    assert "PDMS" in capsys.readouterr().out
    assert json.loads((tmp_path / "compared" / "compare.json").read_text())["second"] == "Human"
    assert main(["compare", f"{out}:human", f"{out}:human", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["ties"] == 2


@pytest.mark.parametrize(("arguments", "words"), [
    (("evaluate", "--scenes", SCENES), "nothing to evaluate; set --model DIR, --driver NAME, or both"),
    (("evaluate", "--driver", "human", "--scenes", SCENES, "--count", "9"), "has 2 scenes; set it to 2 or less"),
    (("evaluate", "--driver", "human", "--scenes", "/nowhere"), "/nowhere: no such folder"),
    (("evaluate", "--model", "/nowhere", "--scenes", SCENES), "/nowhere: neither config.json nor a weights folder there"),
    (("evaluate", "--model", "a=", "--scenes", SCENES), "--model a=: set it as NAME=DIR"),
    (("evaluate", "--model", "a=MODEL", "--model", "a=MODEL", "--scenes", SCENES), "a_oracle: two rows of one name"),
    (("evaluate", "--model", "MODEL", "--engine", "abacus", "--scenes", SCENES), "--engine abacus: set it to one of native"),
    (("evaluate", "--model", "MODEL", "--scenes", SCENES, "rollout.max_turn=3"), "max_turn"),
    (("label", "--model", "/nowhere", "--scenes", SCENES), "neither config.json nor a weights folder there"),
])
def test_wrong_requests_are_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    given = [argument.replace("MODEL", str(tmp_path / "model")) for argument in arguments]
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert words in complaint and complaint.startswith("nemo-mtdrive: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [
    ("evaluate", "--turns", "2..6"), ("evaluate", "--turns", "0"), ("evaluate", "--record", "-1"),
    ("label", "--threshold", "80"), ("evaluate", "--feedback", "mine"), ("compare", "--turn", "0")])
def test_numbers_that_cannot_be_meant(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2


def test_compare_without_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "give a folder that `nemo-mtdrive evaluate` wrote" in capsys.readouterr().err
