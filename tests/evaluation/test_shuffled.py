"""Other pictures: no scene keeps its own, all else stays, and what the picture was worth is told exactly."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nemo_mtdrive.config import Config, ConfigError, RolloutConfig
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.driving.trajectory import ade
from nemo_mtdrive.evaluation.command import Evaluation, ModelRow, evaluate
from nemo_mtdrive.evaluation.evaluate import Bootstrap, SceneFacts
from nemo_mtdrive.evaluation.players import ModelPlay
from nemo_mtdrive.evaluation.scene_sets import open_set
from nemo_mtdrive.evaluation.shuffled import SUFFIX, other_pictures, picture_effect
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.rollout import model_driver
from nemo_mtdrive.telemetry.progress import Progress, open_progress
from nemo_mtdrive.types import Episode
from tests.evaluation.hand_episodes import make_episode, make_turn
from tests.evaluation.scripted_driver import WrittenEngine, write_tiny

SCENES = "procedural://?count=5&seed=40&width=112&height=56"
AHEAD = np.array([1.0, 0.0, 0.0])


class SeeingEngine(WrittenEngine):
    """Drives a metre ahead of where the human of the scene that it sees drove."""

    def __init__(self, source: SceneSource) -> None:
        super().__init__(source, lambda scene, turn: "")
        self._shown = {image_key(source.image(name)): name for name in source.ids()}
        self._seen: dict[str, str] = {}

    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        super().add(sequence_ids, tokens, image)
        assert image is not None
        self._seen |= dict.fromkeys(sequence_ids, self._shown[image_key(image)])

    def _answer(self, name: str) -> str:
        future = self._source.load(self._seen[name]).future
        assert future is not None
        return answer_text(future + AHEAD)


@pytest.fixture
def progress() -> Iterator[Progress]:
    with open(os.devnull, "w") as quiet, open_progress(quiet, plain_every_s=60.0) as shown:
        yield shown


@pytest.mark.parametrize("count", [2, 3, 7, 200])
def test_no_scene_keeps_its_picture_and_each_is_shown_once(count: int) -> None:
    names = [f"s{number}" for number in range(count)]
    for seed in range(20):
        found = other_pictures(names, seed)
        assert sorted(found) == sorted(names) == sorted(found.values())
        assert all(name != other for name, other in found.items())
    assert other_pictures(names, 3) == other_pictures(names, 3)
    assert count < 7 or other_pictures(names, 3) != other_pictures(names, 4)


def test_one_scene_has_no_other_picture() -> None:
    with pytest.raises(ConfigError, match="got 1 scene, set of 2 or more"):
        other_pictures(["alone"], 0)


def test_a_model_that_looks_is_led_astray(tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = open_set(SCENES, 0, 0, 0)
    source = scenes.arguments.open()
    monkeypatch.setitem(model_driver.ENGINES, "seeing", lambda hf, tokenizer, rollout, device: SeeingEngine(source))
    config = Config(rollout=RolloutConfig(max_turns=1, max_answer_tokens=160, max_context=4096, temperature=1.0,
                                          dtype="float32", threads=1))
    play = ModelPlay(write_tiny(tmp_path / "hf"), scenes.arguments, "oracle", config, "seeing", 3, 1, 2)
    pictures = other_pictures(scenes.ids, 9)
    rows = [ModelRow("m", "m", play), ModelRow("m" + SUFFIX, "m, other pictures", replace(play, pictures=pictures))]
    out = tmp_path / "out"
    found = evaluate(Evaluation(out, scenes, rows, (), 2, engines=1, recorded=2), progress)["m" + SUFFIX]["picture_effect"]
    futures = {name: future for name in scenes.ids if (future := source.load(name).future) is not None}
    astray = float(np.mean([ade(futures[pictures[name]] + AHEAD, futures[name]) for name in scenes.ids]))
    assert found["all"]["ADE"] == pytest.approx(1.0, abs=0.01)
    assert found["all"]["ADE_other"] == pytest.approx(astray, abs=0.01)
    assert found["all"]["worse_percent"] == pytest.approx(100.0 * (astray / 1.0 - 1.0), rel=0.02)
    assert found["all"]["PDMS_lost"] == pytest.approx(found["all"]["PDMS"] - found["all"]["PDMS_other"], abs=1e-3) and (
        found["all"]["PDMS_lost"] > 0.0)
    table = list(csv.DictReader((out / "pictures.csv").open()))
    assert table[0]["Kind"] == "all" and {row["Kind"] for row in table[1:]} == set(found["kinds"])
    shown = [json.loads(line) for line in (out / "rollouts" / f"m{SUFFIX}-000000.jsonl").read_text().splitlines()]
    assert [record["image_keys"] for record in shown] == [[image_key(source.image(pictures[record["scene_id"]]))]
                                                          for record in shown], "the page shows what the model saw"
    with pytest.raises(ConfigError, match="episodes with pictures="):
        other = replace(rows[1], play=replace(play, pictures=other_pictures(scenes.ids, 10)))
        evaluate(Evaluation(out, scenes, [rows[0], other], (), 2, engines=1, recorded=0), progress)


def test_the_effect_of_known_errors() -> None:
    human = np.zeros((8, 3))
    facts = {name: SceneFacts(kind, human) for name, kind in (("a", "x"), ("b", "x"), ("c", "y"))}

    def played(offsets: dict[str, float | None], scores: dict[str, float]) -> list[Episode]:
        return [make_episode(name, make_turn(0, None) if offset is None else
                             make_turn(0, scores[name], trajectory=human + np.array([offset, 0.0, 0.0])))
                for name, offset in offsets.items()]

    own = played({"a": 1.0, "b": 3.0, "c": 4.0}, {"a": 0.9, "b": 0.5, "c": 1.0})
    other = played({"a": 2.0, "b": 4.0, "c": None}, {"a": 0.5, "b": 0.6, "c": 0.0})
    found = picture_effect(own, other, facts, Bootstrap(200, 0))
    assert found["all"] | {"worse_ci95": 0, "PDMS_lost_ci95": 0} == {
        "scenes": 3, "ADE": 2.0, "ADE_other": 3.0, "worse_percent": 50.0, "worse_ci95": 0, "PDMS": 80.0,
        "PDMS_other": 36.6667, "PDMS_lost": 43.3333, "PDMS_lost_ci95": 0}, "an unread answer has no ADE, and PDMS 0"
    low, high = found["all"]["worse_ci95"]
    assert low == pytest.approx(100.0 / 3.0, abs=1e-3) and high == pytest.approx(100.0), "one of the two scenes alone"
    assert found["kinds"]["y"]["ADE"] is None and found["kinds"]["y"]["worse_percent"] is None
    assert found["kinds"]["y"]["PDMS_lost"] == 100.0 and found["kinds"]["y"]["PDMS_lost_ci95"] is None
