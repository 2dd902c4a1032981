"""Making SFT data: lines, images, provenance; and that a killed command loses nothing, doubles nothing, changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.config import ConfigError, SFTDataConfig
from nemo_mtdrive.data.curate import CurationTask, SceneArguments, curate
from nemo_mtdrive.data.datasets import SFTDataset, read_image
from nemo_mtdrive.data.folder import working_in
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.image_key import image_key
from tests.data.conftest import SCENES, SETTINGS, lines_of

FILES = ("single_turn.jsonl", "multi_turn.jsonl", "understanding.jsonl", "stats.json", "dataset_info.json", "curation.json")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_single_turn_is_the_papers_conversation(curated: Path) -> None:
    scenes = SCENES.open()
    lines = lines_of(curated, "single_turn")
    assert [line["scene_id"] for line in lines] == list(scenes.ids())
    for line in lines:
        question, answer = line["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"].startswith("<image>\nAs an autonomous driving system, predict the vehicle's trajectory")
        assert answer["content"] == answer_text(scenes.load(line["scene_id"]).future)


def test_every_line_says_where_it_comes_from(curated: Path) -> None:
    lines = lines_of(curated)
    assert len({line["id"] for line in lines}) == len(lines)
    for line in lines:
        provenance = line["provenance"]
        assert list(provenance) == ["source", "licence", "scene", "model", "seed", "perception", "answers", "metric", "form"]
        assert provenance["source"] == "nemo_mtdrive generator" and provenance["licence"]
        assert provenance["scene"] == line["scene_id"]
        assert provenance["seed"] == SETTINGS.seed and provenance["model"] == ""
        assert len(provenance["answers"]) == len(line["messages"]) // 2
        assert provenance["perception"] == ("" if line["kind"] == "single_turn" else "oracle")


def test_images_are_named_by_content(curated: Path) -> None:
    scenes = SCENES.open()
    for line in lines_of(curated, "single_turn"):
        (name,) = line["images"]
        stored = read_image(curated / name)
        assert np.array_equal(stored, scenes.image(line["scene_id"]))
        assert image_key(stored) == Path(name).stem
    used = {name for line in lines_of(curated) for name in line["images"]}
    assert used == {f"images/{path.name}" for path in (curated / "images").iterdir()}


def test_the_trainer_reads_all_kinds(curated: Path) -> None:
    dataset = SFTDataset(curated, Tokenizer.load(TINY_TOKENIZER))
    assert {kind: len(indices) for kind, indices in dataset.kinds().items()} == {
        kind: len(lines_of(curated, kind)) for kind in ("single_turn", "multi_turn", "understanding")}
    lines = [json.loads(text) for path in sorted(curated.glob("*.jsonl")) for text in path.read_text().splitlines()]
    for index, line in enumerate(lines):
        sequence = dataset[index]
        learned = sequence.tokens[sequence.turn_of_token >= 0]
        assert Tokenizer.load(TINY_TOKENIZER).decode(learned) == line["messages"][-1]["content"]


def test_what_is_there_is_not_made_again(curated: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(curated, tmp_path / "copy")
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
    done: list[int] = []
    curate(CurationTask(SCENES, folder, "oracle", SETTINGS), list(SCENES.open().ids()), 1, done.append)
    assert sum(done) == 24
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")} == stamps


def test_many_processes_make_the_same_bytes(curated: Path, tmp_path: Path) -> None:
    curate(CurationTask(SCENES, tmp_path / "many", "oracle", SETTINGS), list(SCENES.open().ids()), 2, lambda _: None)
    assert contents(tmp_path / "many") == contents(curated)


def test_kinds_made_one_by_one_are_the_same_bytes(curated: Path, tmp_path: Path) -> None:
    out = tmp_path / "apart"
    for kind in ("understanding", "single_turn", "multi_turn"):
        curate(CurationTask(SCENES, out, "oracle", replace(SETTINGS, kinds=[kind])), list(SCENES.open().ids()), 1,
               lambda _: None)
    apart, together = contents(out), contents(curated)
    assert json.loads(apart.pop("curation.json")) == json.loads(together.pop("curation.json"))
    assert apart == together


COMMAND = [sys.executable, "-m", "nemo_mtdrive.cli", "curate", "multi-turn", "--scenes",
           "procedural://?count=60&seed=0&width=56&height=28", "--workers", "1", "--out"]


def test_a_killed_command_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*COMMAND, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(killed.glob(".parts/multi_turn-*.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {path.name: path.stat().st_mtime_ns for path in killed.glob(".parts/multi_turn-*.jsonl")}
    if not (killed / "multi_turn.jsonl").exists():  # else it was too fast to be caught in the middle
        assert first
    (killed / ".parts" / f".multi_turn-00001.jsonl.{os.getpid()}").write_text("half a li")
    for folder in (killed, whole):
        done = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert contents(killed) == contents(whole)
    assert json.loads(done.stdout)["lines"] == {"multi_turn": len(lines_of(whole))}
    assert "of 2 turns" in done.stderr


def test_another_request_in_the_folder_is_refused(curated: Path) -> None:
    ids = list(SCENES.open().ids())
    for task, words in (
        (CurationTask(SCENES, curated, "kinematic", SETTINGS), "perception=oracle, got kinematic"),
        (CurationTask(SCENES, curated, "oracle", replace(SETTINGS, mock_share=0.1)), "mock_share=0.7, got 0.1"),
        (CurationTask(SCENES, curated, "oracle", replace(SETTINGS, seed=9)), "seed=5, got 9"),
    ):
        with pytest.raises(ConfigError, match=words):
            curate(task, ids, 1, lambda _: None)
    with pytest.raises(ConfigError, match="count=24, got 23"):
        curate(CurationTask(SCENES, curated, "oracle", SETTINGS), ids[1:], 1, lambda _: None)


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with working_in(tmp_path), pytest.raises(ConfigError, match="another `nemo-mtdrive curate` works there"):
        curate(CurationTask(SCENES, tmp_path, "oracle", SETTINGS), list(SCENES.open().ids()), 1, lambda _: None)


def test_runs_share_a_folder_that_is_done(curated: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in curated.rglob("*")}
    with working_in(curated):
        statistics = curate(CurationTask(SCENES, curated, "oracle", SETTINGS), list(SCENES.open().ids()), 1, lambda _: None)
    assert statistics == json.loads((curated / "stats.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in curated.rglob("*")} == before


def test_scenes_that_teach_nothing_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = SceneArguments("", "", 0, 0, 0, 0, "procedural://?count=2&seed=0&width=56&height=28")
    source = scenes.open()
    blind: dict[str, Scene] = {"p0000000": replace(source.load("p0000000"), future=None)}

    class Source:
        ids, image = source.ids, source.image

        def load(self, scene_id: str) -> Scene:
            return blind.get(scene_id) or source.load(scene_id)

    monkeypatch.setattr(SceneArguments, "open", lambda self: Source())
    statistics = curate(CurationTask(scenes, tmp_path, "oracle", SFTDataConfig(kinds=["single_turn"])),
                        list(source.ids()), 1, lambda _: None)
    assert statistics["lines"] == {"single_turn": 1} and statistics["asked"] == {"single_turn": 2}
    assert [line["scene_id"] for line in lines_of(tmp_path)] == ["p0000001"]
