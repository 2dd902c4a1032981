"""The checker takes what was curated, and finds whatever is changed in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_mtdrive.cli import main
from nemo_mtdrive.config import AgentConfig, ConfigError
from nemo_mtdrive.data.check import CheckTask, Problem, check_folder, task_of
from nemo_mtdrive.data.curate import SceneArguments
from tests.data.conftest import SCENES, lines_of

Line = dict[str, Any]


def problems_of(folder: Path, held_out: tuple[str, ...] = ()) -> list[Problem]:
    return check_folder(CheckTask(folder, SCENES, AgentConfig(), held_out), 1, lambda _: None)[1]


def test_every_curated_line_passes(curated: Path) -> None:
    done: list[int] = []
    count, problems = check_folder(task_of(curated, None), 1, done.append)
    assert problems == []
    assert count == sum(done) == len(lines_of(curated)) > 150


@pytest.fixture
def change(curated: Path, tmp_path: Path) -> Callable[[str, int, Callable[[Line], Any]], list[Problem]]:
    """Change one line of a copy that holds this line alone, and check it."""
    def changed(kind: str, number: int, edit: Callable[[Line], Any]) -> list[Problem]:
        folder = tmp_path / f"{kind}{number}"
        folder.mkdir()
        shutil.copytree(curated / "images", folder / "images")
        line = lines_of(curated, kind)[number]
        edited = edit(line)
        line = line if edited is None else edited
        (folder / f"{kind}.jsonl").write_text((line if isinstance(line, str) else json.dumps(line)) + "\n")
        return [problem for problem in problems_of(folder) if problem.number]

    return changed


def set_message(place: int, old: str, new: str) -> Callable[[Line], None]:
    def edit(line: Line) -> None:
        content = line["messages"][place]["content"]
        assert old in content
        line["messages"][place]["content"] = content.replace(old, new, 1)

    return edit


def set_provenance(**values: Any) -> Callable[[Line], None]:
    return lambda line: line["provenance"].update(values)


def drop_first_turn(line: Line) -> None:
    del line["messages"][1:3]
    del line["provenance"]["answers"][0]


@pytest.mark.parametrize(("kind", "edit", "words"), [
    ("single_turn", set_message(1, "(+", "(-"), "the last answer is not the human's"),
    ("single_turn", set_message(0, "t-0", "t-9"), "the question is not the scene's"),
    ("single_turn", set_provenance(answers=["model"]), "the last answer is not the human's"),
    ("single_turn", set_provenance(source="elsewhere"), "the scene's is 'nemo_mtdrive generator'"),
    ("single_turn", set_provenance(scene="p0000002"), "want the line's scene"),
    ("single_turn", set_provenance(seed="5"), "provenance.seed: got '5', want int"),
    ("single_turn", lambda line: line.update(scene_id="p9999999", provenance=line["provenance"] | {"scene": "p9999999"}),
     "the source has no scene p9999999"),
    ("single_turn", lambda line: line.update(kind="two_turn"), "kind 'two_turn', want one of"),
    ("single_turn", lambda line: line.update(images=["images/gone.png"]), "no such image"),
    ("single_turn", lambda line: line["messages"].append({"role": "user", "content": ""}), "want user and assistant in"),
    ("single_turn", set_message(0, "<image>\n", ""), "want one image"),
    ("single_turn", set_message(1, "Here", "<image> Here"), "want one image"),
    ("single_turn", lambda line: line.update(extra=1), "keys ["),
    ("single_turn", lambda line: '{"id": "cut', "line 1 column"),
    ("single_turn", lambda line: "[]", "keys list"),
    ("multi_turn", set_message(2, "Trajectory Point 1", "Trajectory Point 2"), "feedback 1 is not what the agent says"),
    ("multi_turn", set_message(2, " provide an improved", " provide a better"), "feedback 1 is not what the agent says"),
    ("multi_turn", drop_first_turn, "1 answers in multi_turn data"),
    ("multi_turn", set_provenance(perception="lidar"), "want oracle or kinematic"),
    ("multi_turn", lambda line: line["messages"][1].update(line["messages"][-1]), "answer 1 is not rejected"),
    ("understanding", lambda line: line["messages"][1].update(content={"Yes.": "No.", "No.": "Yes."}[
        line["messages"][1]["content"]]), "the scorer's is"),
    ("understanding", lambda line: line["messages"][1].update(content="Maybe."), "want one, 'Yes.' or 'No.'"),
    ("understanding", set_message(0, "Yes or No", "yes or no"), "none of those of the understanding data"),
    ("understanding", set_provenance(form="nothing"), "provenance: "),
])
def test_whatever_is_changed_is_found(change: Callable[..., list[Problem]], kind: str, edit: Callable[[Line], Any],
                                      words: str) -> None:
    (problem,) = change(kind, 1, edit)
    assert (problem.file, problem.number) == (f"{kind}.jsonl", 1)
    assert words in problem.reason


def test_every_wrong_answer_is_found(curated: Path, tmp_path: Path) -> None:
    """All forms and metrics: with yes and no exchanged, every line of the understanding data is wrong."""
    shutil.copytree(curated / "images", tmp_path / "images")
    lines = lines_of(curated, "understanding")
    for line in lines:
        line["messages"][1]["content"] = {"Yes.": "No.", "No.": "Yes."}[line["messages"][1]["content"]]
    (tmp_path / "understanding.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    problems = problems_of(tmp_path)
    assert [problem.number for problem in problems] == list(range(1, len(lines) + 1))
    assert all("the scorer's is" in problem.reason for problem in problems)


def test_doubles_imbalance_and_held_out_scenes_are_found(curated: Path, tmp_path: Path) -> None:
    shutil.copytree(curated, tmp_path / "copy")
    lines = (curated / "understanding.jsonl").read_text().splitlines(keepends=True)
    extra = next(line for line in lines if '"Yes."' in line and '"metric": "EP"' in line)
    (tmp_path / "copy" / "understanding.jsonl").write_text("".join([*lines, extra]))
    found = {str(problem) for problem in problems_of(tmp_path / "copy", ("p0000004",))}
    assert any(f"understanding.jsonl:{len(lines) + 1}: id" in text and "is there already" in text for text in found)
    assert any(text.startswith("understanding.jsonl: EP: ") and "want them within 1%" in text for text in found)
    held = [text for text in found if "scene p0000004 is of a held-out log" in text]
    assert len(held) == sum(line["scene_id"] == "p0000004" for line in lines_of(curated))
    assert len(found) == 2 + len(held)


def test_other_windows_of_a_held_out_log_are_found(curated: Path, tmp_path: Path) -> None:
    line = lines_of(curated, "single_turn")[0] | {"scene_id": "log-3"}
    line["provenance"]["scene"] = "log-3"
    (tmp_path / "single_turn.jsonl").write_text(json.dumps(line) + "\n")
    reasons = [problem.reason for problem in problems_of(tmp_path, ("log-7",))]
    assert "scene log-3 is of a held-out log (that of log-7)" in reasons


def test_images_are_held_against_their_names(curated: Path, tmp_path: Path) -> None:
    shutil.copytree(curated, tmp_path / "copy")
    first, second, *_ = sorted((tmp_path / "copy" / "images").iterdir())
    shutil.copy(first, second)
    wrong = [problem for problem in problems_of(tmp_path / "copy") if "its content is another image's" in problem.reason]
    named = sum(line["images"] == [f"images/{second.name}"] for line in lines_of(curated))
    assert len(wrong) == named > 0


def test_the_command_keeps_held_out_scenes_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, out = "procedural://?count=9&seed=0&width=56&height=28", str(tmp_path / "data")
    make = ["curate", "single-turn", "--scenes", address, "--out", out, "--workers", "1"]
    assert main([*make, "--held-out", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == {"single_turn": 6}
    assert main(["curate", "multi-turn", *make[2:]]) == 0  # the folder's split holds
    split = json.loads((tmp_path / "data" / "splits.json").read_text())
    assert len(split["held_out"]) == 3 and len(split["train"]) == 6
    assert {line["scene_id"] for line in lines_of(tmp_path / "data")} <= set(split["train"])
    capsys.readouterr()
    assert main(["curate", "understanding", *make[2:], "--held-out", "4"]) == 2
    assert "splits.json is of other scenes" in capsys.readouterr().err
    assert main(["curate", "check", out, "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == 3
    file = tmp_path / "data" / "single_turn.jsonl"
    file.write_text(file.read_text().replace("(+", "(-", 1))
    assert main(["curate", "check", out, "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[0]) == {"file": "single_turn.jsonl", "line": 1,
                                                    "problem": "the last answer is not the human's"}
    assert f"{file}:1: the last answer is not the human's" in said.err


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no curation\.json"):
        task_of(tmp_path, None)


def test_scenes_that_moved_are_given(curated: Path) -> None:
    moved = SceneArguments("", "", 0, 0, 0, 0, "procedural://?count=1&seed=0&width=224&height=112")
    assert task_of(curated, moved).scenes == moved and task_of(curated, None).scenes == SCENES
