"""RL sets: hard scenes whole, as many others, and resumed judgements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.config import Config, ConfigError, RolloutConfig
from nemo_mtdrive.data import rl_set
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.model_answers import ModelPlay
from nemo_mtdrive.data.prepare import rl_scenes
from nemo_mtdrive.data.rl_set import RLSetSettings, choose, judgement, make_rl_set, rl_set_table
from nemo_mtdrive.types import Episode, Turn

PLAY = ModelPlay(Path("model"), "mark", SceneArguments("", "", 0, 0, 0, 0, "procedural://?count=45&seed=0"), "oracle",
                 Config(rollout=RolloutConfig(max_turns=1)), "native", 1, 5)
IDS = [f"p{number:07d}" for number in range(45)]


def played(scene_id: str, score: float, feedback: str = "", valid: bool = True) -> Episode:
    empty = np.zeros(0, dtype=np.int32)
    scores = dict.fromkeys(("NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS"), score)
    violations = [{"metric": "TTC", "point": 1, "object": None}] if feedback else []
    turn = Turn(0, 0, 1, "text", np.zeros((8, 3)), scores, 1.0, score, feedback, violations)
    return Episode(f"e/{scene_id}", scene_id, 0, 0, 0, empty, empty.astype(np.int16), empty.astype(np.float32), (), (),
                   (turn,) if valid else (), valid, "max_turns" if valid else "error: no picture")


def play_of(scene_id: str) -> Episode:
    """Every fifth scene is rejected, every fifth scores 0.79, one is lost, the others score 0.8."""
    number = int(scene_id[1:])
    if number == 7:
        return played(scene_id, 0.0, valid=False)
    return played(scene_id, {1: 0.79}.get(number % 5, 0.8), "1. The TTC metric reveals ..." if number % 5 == 0 else "")


@pytest.fixture
def chunks_played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The model's play is replaced; the numbers of the chunks that were asked for."""
    asked: list[int] = []

    def play_chunks(play: ModelPlay, chunks: Mapping[int, Sequence[str]], engines: int) -> Iterator[tuple[int, Any]]:
        for number, ids in reversed(chunks.items()):
            asked.append(number)
            yield number, [play_of(scene_id) for scene_id in ids]

    monkeypatch.setattr(rl_set, "play_chunks", play_chunks)
    return asked


def test_categories() -> None:
    assert judgement(played("p1", 1.0, "feedback"), PLAY, 0.8) == {
        "scene_id": "p1", "category": "rejected", "PDMS": 1.0, "metrics": ["TTC"], "readable": True, "reason": "",
        "provenance": {"scene": "p1", "model": "model", "seed": 5, "perception": "oracle"}}
    assert judgement(played("p1", 0.79), PLAY, 0.8)["category"] == "low_score"
    assert judgement(played("p1", 0.8), PLAY, 0.8)["category"] == "other"
    lost = judgement(played("p1", 0.0, valid=False), PLAY, 0.8)
    assert (lost["category"], lost["PDMS"], lost["reason"]) == ("lost", None, "error: no picture")


def test_all_hard_scenes_and_as_many_others(chunks_played: list[int], tmp_path: Path) -> None:
    statistics = make_rl_set(PLAY, IDS, tmp_path, RLSetSettings(0.8, 1.0), 1, lambda _: None)
    assert statistics["judged"] == {"lost": 1, "low_score": 9, "other": 26, "rejected": 9}
    assert statistics["taken"] == {"low_score": 9, "other": 18, "rejected": 9}
    lines = [json.loads(text) for text in (tmp_path / "rl_set.jsonl").read_text().splitlines()]
    names = [line["scene_id"] for line in lines]
    assert names == sorted(names) == (tmp_path / "scenes.txt").read_text().split()
    assert {name for name in IDS if int(name[1:]) % 5 in (0, 1)} <= set(names) and "p0000007" not in names
    assert "rejected         9       9" in rl_set_table(statistics)


def test_others_are_drawn_with_a_seed() -> None:
    lines = [judgement(play_of(scene_id), PLAY, 0.8) for scene_id in IDS]
    taken = [line["scene_id"] for line in choose(lines, 0.5, 1)]
    assert len(taken) == 18 + 9 and taken == [line["scene_id"] for line in choose(lines, 0.5, 1)]
    assert taken != [line["scene_id"] for line in choose(lines, 0.5, 2)]
    assert len(choose(lines, 100.0, 1)) == 44  # all there are but the lost one
    assert choose([], 1.0, 1) == []


def test_a_killed_command_judges_only_what_is_missing(chunks_played: list[int], tmp_path: Path) -> None:
    make_rl_set(PLAY, IDS, tmp_path / "whole", RLSetSettings(0.8, 1.0), 1, lambda _: None)
    (tmp_path / "killed" / ".parts").mkdir(parents=True)
    (tmp_path / "killed" / "curation.json").write_bytes((tmp_path / "whole" / "curation.json").read_bytes())
    first = (tmp_path / "whole" / "judged.jsonl").read_text().splitlines(keepends=True)[:20]
    (tmp_path / "killed" / ".parts" / "judged-00000.jsonl").write_text("".join(first))
    chunks_played.clear()
    make_rl_set(PLAY, IDS, tmp_path / "killed", RLSetSettings(0.8, 1.0), 1, lambda _: None)
    assert chunks_played == [2, 1]
    for name in ("judged.jsonl", "rl_set.jsonl", "scenes.txt", "stats.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_model_or_sft_data_in_the_folder_is_refused(chunks_played: list[int], tmp_path: Path, curated: Path) -> None:
    make_rl_set(PLAY, IDS, tmp_path, RLSetSettings(0.8, 1.0), 1, lambda _: None)
    with pytest.raises(ConfigError, match="its judged was made with play="):
        make_rl_set(replace(PLAY, mark="other"), IDS, tmp_path, RLSetSettings(0.8, 1.0), 1, lambda _: None)
    with pytest.raises(ConfigError, match="SFT data and RL sets do not share a folder"):
        make_rl_set(PLAY, IDS, curated, RLSetSettings(0.8, 1.0), 1, lambda _: None)


def test_a_run_takes_the_set(tmp_path: Path) -> None:
    config = Config()
    assert rl_scenes(config, IDS) == IDS
    config.scenes.rl_set = str(tmp_path / "scenes.txt")
    (tmp_path / "scenes.txt").write_text("p0000030\np0000002\nelsewhere\n")
    assert rl_scenes(config, IDS) == ["p0000002", "p0000030"]
    with pytest.raises(ConfigError, match="none of its 3 scenes is among the 1 training scenes"):
        rl_scenes(config, ["p0000001"])
