"""Whole evaluations: the same tables whatever came between, rows that may not be mixed, files that others read."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.config import Config, ConfigError, ParallelConfig, RolloutConfig, ScenesConfig, save_config
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.driving.command import generate_scenes
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources import open_scenes
from nemo_mtdrive.evaluation.command import Evaluation, ModelRow, evaluate
from nemo_mtdrive.evaluation.label import Labelling, label
from nemo_mtdrive.evaluation.players import ModelPlay
from nemo_mtdrive.evaluation.report import write_report
from nemo_mtdrive.evaluation.row_files import RowFiles, open_side
from nemo_mtdrive.evaluation.scene_sets import SceneSet, open_set
from nemo_mtdrive.evaluation.settings import sampling_config
from nemo_mtdrive.models.convert import hf_to_nemo
from nemo_mtdrive.rollout import model_driver
from nemo_mtdrive.telemetry.progress import Progress, open_progress
from tests.evaluation.scripted_driver import improving, opens, write_tiny

ADDRESS = "procedural://?count=6&seed=40&width=112&height=56"
SAMPLING = RolloutConfig(max_turns=4, max_answer_tokens=160, max_context=4096, temperature=1.0, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return open_set(ADDRESS, 0, 0, 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture
def progress() -> Iterator[Progress]:
    with open(os.devnull, "w") as quiet, open_progress(quiet, plain_every_s=60.0) as shown:
        yield shown


@pytest.fixture
def written(scenes: SceneSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine `written` that first does badly, then as the human."""
    monkeypatch.setitem(model_driver.ENGINES, "written", opens(scenes.arguments.open(), improving))  # type: ignore[arg-type]


def request(out: Path, scenes: SceneSet, model: Path | None = None, *, engine: str = "written", feedback: str = "oracle",
            drivers: tuple[str, ...] = (), recorded: int = 0, batch: int = 2, **sampling: Any) -> Evaluation:
    rows = []
    if model is not None:
        config = Config(rollout=replace(SAMPLING, **sampling))
        play = ModelPlay(model, scenes.arguments, feedback, config, engine, seed=3, group_size=1, batch=batch)
        rows.append(ModelRow(f"m_{feedback}", f"m ({feedback})", play))
    return Evaluation(out, scenes, rows, drivers, batch, engines=1, recorded=recorded)


def tables(out: Path) -> dict[str, str]:
    """Everything of an evaluation that must not depend on how it went."""
    names = [*out.glob("*.md"), *out.glob("*.csv"), *out.glob("*.tex"), *out.glob("trajectories/*")]
    found = {path.relative_to(out).as_posix(): path.read_text() for path in names}
    summary = json.loads((out / "summary.json").read_text())
    kept = {name: part for name, part in summary.items() if name not in ("seconds", "settings")}
    return found | {"summary": json.dumps(kept)}


def test_a_model_that_gets_better(tmp_path: Path, scenes: SceneSet, tiny: Path, written: None, progress: Progress) -> None:
    asked = request(tmp_path, scenes, tiny, drivers=("human", "constant_velocity", "pdm_closed"), recorded=2)
    summary = evaluate(asked, progress)
    row, human = summary["m_oracle"], summary["human"]
    assert row["label"] == "m (oracle)" and "verdicts" not in row
    assert row["turn_1"]["parse_rate"] == 50.0 and row["last_turn"]["parse_rate"] == 100.0
    found = row["sweep"]
    assert list(found["turns"]) == ["1", "2", "3", "4"]
    assert found["turns"]["1"]["PDMS"] == row["turn_1"]["PDMS"] and found["turns"]["4"]["PDMS"] == row["last_turn"]["PDMS"]
    assert found["turns"]["2"]["PDMS"] == pytest.approx(summary["constant_velocity"]["last_turn"]["PDMS"], abs=0.5)
    assert row["by_turn"]["3"] == found["turns"]["3"]["PDMS"]
    assert found["turns"]["3"]["behind_best"]["PDMS"] == 0.0 and found["best"] == 3
    assert human["last_turn"]["ADE"] == 0.0 and human["last_turn"]["NC"] == 100.0 == human["last_turn"]["DAC"]
    assert summary["pdm_closed"]["last_turn"]["EP"] > 80.0
    lines = [json.loads(line) for line in (tmp_path / "trajectories" / "m_oracle.jsonl").read_text().splitlines()]
    assert [line["token"] for line in lines] == list(scenes.ids)
    assert all(np.array(line["trajectory"]).shape == (8, 3) for line in lines)
    rows = list(csv.DictReader((tmp_path / "by_turn.csv").open()))
    assert [line["Turns"] for line in rows] == ["1", "2", "3", "4"] and "best" in rows[2][""]
    assert float(rows[3]["PDMS"]) == row["last_turn"]["PDMS"] and rows[3]["PDMS_low"]
    kinds = {line["Kind"] for line in csv.DictReader((tmp_path / "by_kind.csv").open())}
    assert kinds == set(row["kinds"])
    page = write_report(tmp_path).read_text()
    assert "m (oracle)" in page and "PDM-Closed" in page
    assert len((tmp_path / "rollouts" / "human-000000.jsonl").read_text().splitlines()) == 2


def test_hf_and_nemo_directories_of_one_model_give_the_same_table_every_time(tmp_path: Path, scenes: SceneSet, tiny: Path,
                                                                              progress: Progress) -> None:
    nemo = hf_to_nemo(tiny, tmp_path / "nemo")
    few = replace(scenes, ids=scenes.ids[:3])
    short = {"engine": "native", "max_turns": 2, "max_answer_tokens": 24}
    for out, model in (("hf", tiny), ("again", tiny), ("from_nemo", nemo)):
        evaluate(request(tmp_path / out, few, model, **short), progress)
    answers = [turn.answer for episode in RowFiles(tmp_path / "hf", "m_oracle").read()[0] for turn in episode.turns]
    assert len(answers) == 6 == len(set(answers)), "random weights say something else each time"
    for other in ("again", "from_nemo"):
        assert tables(tmp_path / other) == tables(tmp_path / "hf")
        assert [turn.answer for episode in RowFiles(tmp_path / other, "m_oracle").read()[0]
                for turn in episode.turns] == answers


def test_an_evaluation_that_was_killed_goes_on_to_the_same_table(tmp_path: Path, scenes: SceneSet,
                                                                 progress: Progress) -> None:
    drivers = ("human", "constant_velocity")
    evaluate(request(tmp_path / "whole", scenes, drivers=drivers, batch=1), progress)
    command = [sys.executable, "-m", "nemo_mtdrive.cli", "evaluate", "--driver", *drivers, "--scenes", ADDRESS, "--out",
               str(tmp_path / "killed"), "--batch", "1", "--record", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    kept = tmp_path / "killed" / "episodes" / "human"
    try:
        while not (kept / "00001.jsonl").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.jsonl")}
    assert len(before) >= 2
    evaluate(request(tmp_path / "killed", scenes, drivers=drivers, batch=1), progress)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert {name: (kept / name).stat().st_mtime_ns for name in before} == before, "what was done is not done again"


def test_rows_are_added_and_never_mixed(tmp_path: Path, scenes: SceneSet, tiny: Path, written: None,
                                        progress: Progress) -> None:
    evaluate(request(tmp_path, scenes, drivers=("human",)), progress)
    both = evaluate(request(tmp_path, scenes, tiny, drivers=("human",)), progress)
    assert {"human", "m_oracle"} <= both.keys()
    with pytest.raises(ConfigError, match=r"episodes with rollout=.* set another --out"):
        evaluate(request(tmp_path, scenes, tiny, temperature=0.5), progress)
    with pytest.raises(ConfigError, match="episodes with count=6, not 5"):
        evaluate(request(tmp_path, replace(scenes, ids=scenes.ids[:5]), drivers=("human",)), progress)
    (tmp_path / "episodes" / "human" / "00001.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"00001.jsonl: not episodes of an evaluation"):
        evaluate(request(tmp_path, scenes, drivers=("human",)), progress)


@pytest.mark.usefixtures("written")
def test_it_says_how_a_model_samples(tmp_path: Path, scenes: SceneSet, tiny: Path) -> None:
    """A model that lies in no run samples by the defaults; nobody should have to guess that from its scores."""
    said = io.StringIO()
    with open_progress(said, plain_every_s=60.0) as shown:
        asked = request(tmp_path, replace(scenes, ids=scenes.ids[:1]), tiny, temperature=0.25, top_p=0.9, max_turns=2)
        evaluate(asked, shown)
    assert "samples at rollout.temperature=0.25, rollout.top_p=0.9, up to 2 turns" in said.getvalue()


def test_feedback_of_the_model_itself_is_held_against_the_scorer(tmp_path: Path, scenes: SceneSet, tiny: Path,
                                                                 written: None, progress: Progress) -> None:
    summary = evaluate(request(tmp_path, scenes, tiny, feedback="self", max_turns=3, max_context=8192), progress)
    found = summary["m_self"]["verdicts"]
    assert found["DAC"]["recall"] in (100.0, None) and found["any"]["accused"] == found["any"]["trajectories"] == 15
    assert found["any"]["precision"] == pytest.approx(100.0 * found["any"]["failing"] / 15, abs=1e-3)
    assert summary["m_self"]["turns"]["counts"] == {"3": 6}, "it never finds itself without fault"
    episodes, _ = RowFiles(tmp_path, "m_self").read()
    told = episodes[0].turns[-1]
    assert [violation["metric"] for violation in told.violations] == ["DAC"] * 8 + ["NC"] * 8 + ["TTC"] * 8
    assert "fail to stay within the drivable area" in told.feedback and "with Objects" not in told.feedback
    assert "verdicts.md" in {path.name for path in tmp_path.iterdir()}


def test_kinematic_feedback_is_scored_by_the_recorded_future(tmp_path: Path, scenes: SceneSet, tiny: Path, written: None,
                                                             progress: Progress) -> None:
    oracle = evaluate(request(tmp_path / "oracle", scenes, tiny), progress)["m_oracle"]
    kinematic = evaluate(request(tmp_path / "kinematic", scenes, tiny, feedback="kinematic"), progress)["m_kinematic"]
    assert kinematic["turn_1"] == oracle["turn_1"], "the same first answers, scored alike"
    assert kinematic["verdicts"]["DAC"]["precision"] in (100.0, None), "the map is the same for both"


def test_labels_are_the_best_turns_and_rejects_say_why(tmp_path: Path, scenes: SceneSet, tiny: Path,
                                                       monkeypatch: pytest.MonkeyPatch, progress: Progress) -> None:
    source = scenes.arguments.open()
    lost, off = scenes.ids[0], scenes.ids[1]

    def say(scene: Scene, turn: int) -> str:
        assert scene.future is not None
        if scene.scene_id == lost:
            return "I do not know."
        return answer_text(scene.future + np.array([0.0, 30.0, 0.0])) if scene.scene_id == off else improving(scene, turn)

    monkeypatch.setitem(model_driver.ENGINES, "written", opens(source, say))  # type: ignore[arg-type]
    play = request(tmp_path, scenes, tiny).models[0].play
    asked = Labelling(tmp_path, scenes, play, threshold=0.5, engines=1)
    summary = label(asked, progress)
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    rejected = {line["scene_id"]: line for line in map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())}
    assert summary["labels"] == len(labels) and len(labels) + len(rejected) == 6
    assert rejected[lost] == {"scene_id": lost, "best": None, "reasons": ["no answer held a trajectory that could be read"]}
    reasons = rejected[off]["reasons"]
    assert reasons[0] == "PDMS 0.000 is below 0.5" and any(reason.startswith("DAC 0 at points ") for reason in reasons)
    for line in labels:
        assert line["scores"]["PDMS"] >= 0.5 and line["provenance"]["model"] == str(tiny)
        assert json.loads((tmp_path / "labels" / f"{line['scene_id']}.json").read_text()) == line["trajectory"]
    kept, _ = RowFiles(tmp_path, "label").read()
    best = {episode.scene_id: max(turn.pdm_score for turn in episode.turns) for episode in kept}
    assert {line["scene_id"]: line["scores"]["PDMS"] for line in labels} == {
        name: score for name, score in best.items() if score >= 0.5}
    assert summary["rows"]["label"]["PDMS"] >= summary["rows"]["first_turn"]["PDMS"]
    stricter = label(replace(asked, threshold=1.0), progress)
    assert stricter["labels"] == sum(score >= 1.0 for score in best.values())
    assert len(list((tmp_path / "labels").glob("*.json"))) == stricter["labels"]


def test_sampling_is_that_of_the_models_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "rl-000001"
    checkpoint.mkdir(parents=True)
    (run / "splits.json").write_text('{"train": ["a"], "held_out": ["b"]}')
    save_config(Config(rollout=replace(SAMPLING, temperature=0.25), parallel=ParallelConfig(tensor=1, data=1)),
                run / "config.yaml")
    assert sampling_config(checkpoint, []).rollout.temperature == 0.25
    assert sampling_config(run, ["rollout.max_turns=10"]).rollout == replace(SAMPLING, temperature=0.25, max_turns=10)
    assert sampling_config(run, ["rollout.temperature=0"]).rollout.temperature == 0.0, "greedy"
    assert sampling_config(tmp_path, []).rollout == RolloutConfig()
    for wrong, words in (("rollout.turns=3", "turns"), ("mtgrpo.steps=3", "set keys of rollout, reward, agent"),
                         ("rollout.max_turns=many", "many"), ("rollout.max_turns=0", "set it to a positive number")):
        with pytest.raises(ConfigError, match=words):
            sampling_config(run, [wrong])


def test_scenes_of_a_run_are_those_that_it_held_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    scenes = ScenesConfig(count=2, held_out=1, seed=50, image_width=56, image_height=28)
    generate_scenes(3, 50, run / "scenes", 56, 28, {}, 1, lambda _: None, difficulty=0.5, commands={})
    ids = open_scenes(f"files://{run / 'scenes'}").ids()
    (run / "splits.json").write_text(json.dumps({"train": [ids[0], ids[2]], "held_out": [ids[1]]}))
    save_config(Config(scenes=scenes, parallel=ParallelConfig(tensor=1, data=1)), run / "config.yaml")
    found = open_set(str(run), 0, 0, 0)
    assert found.ids == [ids[1]] and found.arguments.open().image(ids[1]).shape == (28, 56, 3)
    assert open_set(str(run / "scenes"), 2, 0, 0).ids == list(ids[:2])
    with pytest.raises(ConfigError, match="has 1 scenes; set it to 1 or less"):
        open_set(str(run), 2, 0, 0)
    assert found.batches(4) == {0: [(0, ids[1])]} and found.digest != open_set(str(run / "scenes"), 2, 0, 0).digest


def test_drivers_on_real_logs(tmp_path: Path, shared_dir: Path, progress: Progress) -> None:
    windows = open_set(f"av2://{shared_dir / 'data' / 'av2' / 'logs'}", 0, 56, 28)
    assert len(windows.ids) == 80
    few = replace(windows, ids=windows.ids[::8])
    summary = evaluate(request(tmp_path, few, drivers=("human", "constant_velocity"), batch=20), progress)
    human, constant = summary["human"]["last_turn"], summary["constant_velocity"]["last_turn"]
    assert human["NC"] == 100.0 == human["DAC"] and human["PDMS"] > constant["PDMS"]


def test_rows_of_a_folder_are_named(tmp_path: Path, scenes: SceneSet, progress: Progress) -> None:
    evaluate(request(tmp_path, scenes, drivers=("human", "constant_velocity")), progress)
    assert open_side(f"{tmp_path}:constant_velocity").label == "Constant velocity"
    with pytest.raises(ConfigError, match="it has constant_velocity, human"):
        open_side(str(tmp_path))
    with pytest.raises(ConfigError, match="it has constant_velocity, human"):
        open_side(f"{tmp_path}:mine")
    with pytest.raises(ConfigError, match="nemo-mtdrive evaluate"):
        open_side(str(tmp_path / "nothing"))
