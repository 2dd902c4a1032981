"""A whole small reproduction by the real commands: scenes, data, SFT, evaluation, a table and a page; then nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_mtdrive.cli import main
from nemo_mtdrive.reproduce.marks import read_mark
from nemo_mtdrive.reproduce.recipe import RECIPES
from nemo_mtdrive.reproduce.results import read_result


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_table_and_a_page_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = OmegaConf.merge(OmegaConf.load(RECIPES / "recipe.yaml"), {
        "scenes": {"width": 56, "height": 28}, "mock": {"shares": [0.5]}, "vision": {"steps": 0}, "language": {"steps": 0},
        "rl": {"turns": 2, "sweep": 2}, "sft": {"multi": {"set": ["rollout.max_turns=1", "rollout.max_answer_tokens=24"]}}})
    OmegaConf.save(recipe, tmp_path / "recipe.yaml")
    out = tmp_path / "out"
    command = ["reproduce", "mock", "--out", str(out), "--seeds", "1", "--scale", "0.0005", "--held-out", "3", "--recipe",
               str(tmp_path / "recipe.yaml")]
    assert main(command) == 0
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in files] == ["mock.json", "mock.md", "mock.csv", "mock.svg"]
    result = read_result(out, "mock")
    assert result is not None and result.scenes == 3 and result.seeds == [1]
    assert result.made_of["cpu_seconds"] > 0 and result.made_of["stages"] == 5
    (tmp_path / "page.md").write_text("<!-- reproduce:mock -->\n<!-- /reproduce:mock -->\n")
    assert main(["reproduce", "page", "--out", str(out), "--page", str(tmp_path / "page.md")]) == 0
    assert "| 50% |" in (tmp_path / "page.md").read_text() and (tmp_path / "page" / "mock.svg").is_file()
    capsys.readouterr()

    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*") if path.is_file()}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*") if path.is_file()} == before
    assert main([*command, "--held-out", "4"]) == 2
    assert "scenes_held_out, eval_sft_mock_50-s1 made of other values" in capsys.readouterr().err
    mark = read_mark(out, "scenes_held_out")
    assert mark is not None and mark.done, "and nothing was lost by asking"

    assert main(["reproduce", "pack", *command[2:], "--measured", str(tmp_path / "measured")]) == 0
    packed = {Path(line).name for line in capsys.readouterr().out.split()}
    assert {"eval_sft_mock_50-s1.tar.xz", "sft_mock_50-s1.tar.xz", "scenes_train.tar.xz"} <= packed
    other = [*command[2:], "--out", str(tmp_path / "other")]
    assert main(["reproduce", "unpack", *other, "--measured", str(tmp_path / "measured")]) == 0
    assert main(["reproduce", "mock", *other]) == 0
    assert read_result(tmp_path / "other", "mock") == result, "the same table, from the records, with nothing made"
