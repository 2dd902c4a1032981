"""Which episodes a figure shows, by name and by choice; the command, for a run and for a scene with trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nemo_mtdrive.cli import main
from nemo_mtdrive.driving.scene import Scene, save_scene
from nemo_mtdrive.evaluation.episode_figures import find, pick, write_scene_figure
from nemo_mtdrive.evaluation.figures import COLOURS
from nemo_mtdrive.evaluation.run_files import RunError, read_episodes, read_run
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.telemetry.recorder import EpisodeRecorder
from tests.evaluation.hand_episodes import make_episode, make_turn
from tests.evaluation.pages import large_run, violating_turn

GREY = np.full((112, 224, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, generated: Scene) -> Path:
    return large_run(tmp_path_factory.mktemp("thirty"), generated, GREY, 30)


def test_the_choice_is_repaired_episodes_of_different_kinds(run: Path) -> None:
    chosen = pick(read_run(run).dumps, 4)
    kinds = [episode.excerpt.kind for episode in chosen if episode.excerpt]
    assert sorted(kinds[:3]) == ["bend/cut_in", "crossing/lead", "straight/free"]
    assert all(len(episode.turns) == 2 and not episode.turns[-1]["violations"] for episode in chosen)
    assert len({episode.record["scene_id"] for episode in chosen}) == 4
    assert len(pick(read_run(run).dumps, 99)) == 27  # every tenth never answers


def test_an_episode_by_its_id_or_its_scene(run: Path) -> None:
    (dump,) = read_run(run).dumps
    episodes = read_episodes(dump)
    assert find(episodes, "evaluation/0/s00004/0") is find(episodes, "s00004") is episodes[4]
    with pytest.raises(RunError, match=r"'s99': not recorded; there are evaluation/0/s00000/0, .* and 25 more"):
        find(episodes, "s99")
    with pytest.raises(RunError, match="recorded 2 times; name one of"):
        find([*episodes, episodes[4]], "s00004")


def test_the_command_draws_each_form(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"f.{form}" for form in ("png", "svg", "pdf")]
    assert main(["figure", str(run), "s00000", "s00001", *(f"--out={file}" for file in files)]) == 0
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    height, width = cv2.imread(str(files[0])).shape[:2]
    assert height > 1000 and width > 1000  # two rows, two turns
    assert main(["figure", str(run), "--stage", "evaluation", f"--out={tmp_path / 'one.png'}"]) == 0
    assert cv2.imread(str(tmp_path / "one.png")).shape[0] < height


@pytest.mark.parametrize(("arguments", "message"), [
    (["s00000", "--out", "f.jpg"], "set --out to a name that ends in .png, .svg, .pdf"),
    (["--out", "f.png", "--stage", "after_rl"], "no recorded episodes of stage 'after_rl'; set --stage to one of"),
    (["nobody", "--out", "f.png"], "episode 'nobody': not recorded"),
])
def test_a_wrong_request_is_one_line_and_exit_code_2(run: Path, capsys: pytest.CaptureFixture[str],
                                                     arguments: list[str], message: str) -> None:
    assert main(["figure", str(run), *arguments]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1


def test_trajectories_of_a_scene_are_reviewed_and_drawn(tmp_path: Path, generated: Scene,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert generated.future is not None
    save_scene(generated, tmp_path / "scene.json")
    given = []
    for name, path in (("off", generated.future + np.array([0.0, 9.0, 0.0])), ("human", generated.future)):
        (tmp_path / f"{name}.json").write_text(json.dumps(path.tolist()))
        given += ["--trajectory", str(tmp_path / f"{name}.json")]
    out = tmp_path / "figure.svg"
    assert main(["figure", str(tmp_path / "scene.json"), *given, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text().count("#e5342b") > 1  # crosses, beside the one of the key
    assert main(["figure", str(tmp_path / "none.json"), *given, "--out", str(out)]) == 2


def test_what_the_reviewer_names_is_what_is_marked(tmp_path: Path, generated: Scene) -> None:
    assert generated.future is not None
    turn = violating_turn(0, 0.0, generated.future, "NC")
    assert turn.trajectory is not None and turn.scores is not None

    class Reviewer:
        violations = turn.violations

        def review(self, scene: Scene, trajectories: np.ndarray) -> list[Review]:
            assert trajectories.shape == (1, 8, 3) and turn.scores is not None
            return [Review(turn.scores, self.violations, "words that name DAC")]

    def colours(reviewer: Reviewer) -> tuple[int, int]:
        (file,) = write_scene_figure(generated, GREY, [turn.trajectory], reviewer, [tmp_path / "f.svg"])
        return file.read_text().count(COLOURS["NC"]), file.read_text().count(COLOURS["DAC"])

    named, silent = Reviewer(), Reviewer()
    silent.violations = []
    (marked_nc, marked_dac), (clean_nc, clean_dac) = colours(named), colours(silent)
    assert marked_nc > clean_nc and marked_dac == clean_dac


def test_an_episode_without_turns_cannot_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = [make_episode("a", valid=False), make_episode("b", make_turn(0, 0.5))]
    recorder = EpisodeRecorder(tmp_path, max_episodes=2, with_tokens=False)
    recorder.record(0, "train", episodes, prompts={}, images={}, scenes={})
    assert main(["figure", str(tmp_path), "a", "--out", str(tmp_path / "f.png")]) == 2
    assert "no recorded episode with a turn to draw" in capsys.readouterr().err
    assert main(["figure", str(tmp_path), "b", "--out", str(tmp_path / "f.png")]) == 0
