"""A round of the bootstrap, with a model whose answers are written here: resume, the checker, and another model's round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.config import AgentConfig, Config, ConfigError, RolloutConfig, SFTDataConfig
from nemo_mtdrive.data import bootstrap
from nemo_mtdrive.data.bootstrap import curate_with_model
from nemo_mtdrive.data.check import CheckTask, check_folder
from nemo_mtdrive.data.curate import CurationTask, SceneArguments
from nemo_mtdrive.data.lines import answers_of
from nemo_mtdrive.data.model_answers import ModelPlay
from nemo_mtdrive.data.multi_turn import feedback_on
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.types import Episode, Turn
from tests.data.conftest import lines_of

SCENES = SceneArguments("", "", 0, 0, 0, 0, "procedural://?count=25&seed=0&width=56&height=28")
PLAY = ModelPlay(Path("runs/sft_2"), "mark", SCENES, "oracle", Config(rollout=RolloutConfig(max_turns=2)), "native", 2, 5)


def play_scene(scene_id: str) -> list[Episode]:
    """Two episodes: too fast and farther out in turn; no words of sense, then the human's."""
    scene, agent = SCENES.open().load(scene_id), PDMAgent("oracle", 1)
    plans = ["Wait.", answer_text(scene.future)], [answer_text(scene.future * [2.4, 1.0, 1.0]),
                                                   answer_text(scene.future * [1.9, 1.0, 1.0] + [0.0, 7.0, 0.0])]
    episodes = []
    for index, answers in enumerate(plans):
        turns = []
        for number, answer in enumerate(answers):
            feedback = feedback_on(answer, scene, agent)
            turns.append(Turn(number, 0, 1, answer, parse_answer(answer).trajectory, None, 1.0, 0.0, feedback))
            if not feedback:
                break
        empty = np.zeros(0, dtype=np.int32)
        episodes.append(Episode(f"{scene_id}/{index}", scene_id, index, 0, 0, empty, empty.astype(np.int16),
                                empty.astype(np.float32), (), (), tuple(turns), True, "max_turns"))
    return episodes


@pytest.fixture
def chunks_played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []

    def play_chunks(play: ModelPlay, chunks: Mapping[int, Sequence[str]],
                    engines: int) -> Iterator[tuple[int, list[Episode]]]:
        for number, ids in reversed(chunks.items()):
            asked.append(number)
            yield number, [episode for scene_id in ids for episode in play_scene(scene_id)]

    monkeypatch.setattr(bootstrap, "play_chunks", play_chunks)
    return asked


def test_a_round(chunks_played: list[int], tmp_path: Path) -> None:
    ids = list(SCENES.open().ids())
    whole, killed = (CurationTask(SCENES, tmp_path / name, "oracle", SFTDataConfig(mock_share=1.0)) for name in "wk")
    statistics = curate_with_model(whole, PLAY, ids, 1, lambda _: None)
    lines = lines_of(whole.out, "multi_turn_after_2")
    assert [line["scene_id"] for line in lines] == sorted(line["scene_id"] for line in lines)
    assert statistics["lines"] == {"multi_turn": len(lines)} and statistics["multi_turn"]["feedback"]["unreadable"] >= 25
    assert {line["provenance"]["model"] for line in lines} == {"runs/sft_2"}
    (first,) = [line for line in lines if line["id"] == "p0000000/multi_turn/after_2/0"]
    assert answers_of(first)[0] == "Wait." and len(answers_of(first)) == 2
    assert {len(answers_of(line)) for line in lines if line["id"].endswith("mock")} >= {3, 4}
    assert check_folder(CheckTask(whole.out, SCENES, AgentConfig(), ()), 1, lambda _: None) == (len(lines), [])

    (killed.out / ".parts").mkdir(parents=True)
    (killed.out / "curation.json").write_bytes((whole.out / "curation.json").read_bytes())
    text = (whole.out / "multi_turn_after_2.jsonl").read_text().splitlines(keepends=True)
    part = [row for row, line in zip(text, lines, strict=True) if line["scene_id"] < "p0000020"]
    (killed.out / ".parts" / "multi_turn_after_2-00000.jsonl").write_text("".join(part))
    chunks_played.clear()
    done: list[int] = []
    curate_with_model(killed, PLAY, ids, 1, done.append)
    assert (chunks_played, done) == ([1], [20, 5])
    for name in ("multi_turn_after_2.jsonl", "stats.json", "dataset_info.json"):
        assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()

    with pytest.raises(ConfigError, match="its multi_turn_after_2 was made with play="):
        curate_with_model(whole, replace(PLAY, mark="trained on"), ids, 1, lambda _: None)
