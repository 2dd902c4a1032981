"""The command line: help that teaches, results on stdout, and one line with exit code 2 for what cannot be done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_mtdrive.cli import main

GOLDEN = Path(__file__).parent / "golden" / "pdm" / "g014_intersection_straight.json"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nemo_mtdrive.cli", *arguments], capture_output=True, text=True,
                          timeout=120)


@pytest.mark.parametrize("command", ["score", "import-caches", "train-reviewer", "scenes generate", "scenes import",
                                     "scenes show", "curate single-turn", "curate multi-turn", "curate understanding",
                                     "curate rl-set", "curate check",
                                     "rl", "sft", "report", "serve-env", "rollout-worker", "train-rank"])
def test_every_command_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"example: nemo-mtdrive {command}" in capsys.readouterr().out


def test_score_prints_a_json_line_a_case() -> None:
    done = run("score", str(GOLDEN))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    cases = json.loads(GOLDEN.read_text())["cases"]
    assert [line["case"] for line in lines] == [case["name"] for case in cases]
    assert list(lines[0]) == ["scene_id", "case", "NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS"]
    for line, case in zip(lines, cases, strict=True):
        assert line["PDMS"] == pytest.approx(case["expected"]["PDMS"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rl", "mtgrpo.group_size=1"), "mtgrpo.group_size=1: set it to 2 or more"),
        (("rl", "--config-name", "nothing"), "nothing"),
        (("rl", "scenes=av2", "scenes.path=/nowhere"), "scenes.path='/nowhere': no such folder"),
        (("score", "/nowhere.json"), "/nowhere.json"),
        (("score", str(Path(__file__))), "test_cli.py"),
        (("score", str(Path(__file__).parent)), "no scenes (*.json, *.arrow)"),
        (("score", str(GOLDEN), "--trajectory", str(GOLDEN)), "want JSON of 8 x [x, y, heading]"),
        (("score", str(GOLDEN), "--caches", "/nowhere"), "no imported metric caches"),
        (("import-caches", str(GOLDEN), "--out", "/tmp/never"), "set --trust-pickle"),
        (("import-caches", "/nowhere", "--out", "/tmp/never", "--trust-pickle"), "no metric_cache.pkl there"),
        (("train-reviewer", "--scenes", "/nowhere", "--out", "/tmp/never"), "/nowhere"),
        (("scenes", "show", "/nowhere.json"), "/nowhere.json"),
        (("report", "/nowhere"), "/nowhere"),
        (("curate", "single-turn", "--scenes", "/nowhere", "--out", "/tmp/never"), "/nowhere"),
        (("scenes", "generate", "--count", "0", "--out", "x"), "got 0, set it to 1 or more"),
        (("dance",), "dance"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("nemo-mtdrive")]
    assert len(said) == 1


def test_a_run_directory_of_another_config_is_refused(tmp_path: Path) -> None:
    from nemo_mtdrive.config import load_config
    from nemo_mtdrive.jobs import open_run_dir

    open_run_dir(load_config("scratch_cpu", [f"run_dir={tmp_path}"]))
    done = run("rl", "--config-name", "scratch_cpu", f"run_dir={tmp_path}", "scenes.seed=99")
    assert done.returncode == 2
    assert "it holds a run with other `scenes`" in done.stderr


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        (["mtgrpo.steps=2"], ["mtgrpo.steps=3"], False),
        (["mtgrpo.steps=2"], ["mtgrpo.steps=1"], True),
        (["mtgrpo.steps=2", "mtgrpo.iterations=2"], ["mtgrpo.steps=3", "mtgrpo.iterations=2"], True),
        (["mtgrpo.steps=2"], ["mtgrpo.steps=3", "mtgrpo.lr=1"], True),
        (["mtgrpo.steps=2", "mtgrpo.lr_end=0.1"], ["mtgrpo.steps=3", "mtgrpo.lr_end=0.1"], True),
    ],
    ids=["more steps", "fewer steps", "more steps of each iteration", "another learning rate",
         "a learning rate that has fallen"],
)
def test_a_resumed_run_may_only_get_longer(tmp_path: Path, before: list[str], now: list[str], refused: bool) -> None:
    from nemo_mtdrive.config import ConfigError, load_config, read_config
    from nemo_mtdrive.jobs import open_run_dir

    open_run_dir(load_config("scratch_cpu", [f"run_dir={tmp_path}", *before]))
    again = load_config("scratch_cpu", [f"run_dir={tmp_path}", "resume=true", *now])
    if not refused:
        open_run_dir(again)
        assert read_config(tmp_path / "config.yaml").mtgrpo.steps == 3
        return
    with pytest.raises(ConfigError, match="other `mtgrpo`"):
        open_run_dir(again)
