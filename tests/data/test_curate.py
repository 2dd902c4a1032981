"""SFT data of generated scenes: lines, images, provenance, resume, and what the trainer makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.data.curate import CurationTask, SceneArguments, curate
from nemo_mtdrive.data.datasets import DataError, SFTDataset, read_image
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.pdm.agent import PDMAgent

SCENES = SceneArguments("procedural", "", 6, 0, 224, 112)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft_data")
    done: list[int] = []
    counts = curate(CurationTask(SCENES, out, "oracle"), list(SCENES.open().ids()), 1, done.append)
    assert sum(done) == 6 and counts["single_turn"] == 6 and counts["multi_turn"] >= 1
    return out


def lines(data: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(data.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_lines_are_the_papers_conversations(data: Path) -> None:
    scenes = SCENES.open()
    agent = PDMAgent("oracle", 8)
    for line in lines(data):
        scene = scenes.load(line["scene_id"])
        roles = [message["role"] for message in line["messages"]]
        texts = [message["content"] for message in line["messages"]]
        assert texts[0].startswith("<image>\nAs an autonomous driving system, predict the vehicle's trajectory")
        assert texts[-1] == answer_text(scene.future)
        assert line["provenance"]["target"] == "human"
        if line["kind"] == "multi_turn":
            assert roles == ["user", "assistant", "user", "assistant"]
            assert texts[1] == answer_text(constant_velocity(scene))
            (review,) = agent.review(scene, parse_answer(texts[1]).trajectory[None])
            assert texts[2] == review.feedback != ""
            assert line["provenance"]["turn_1"] == "constant_velocity"


def test_images_are_named_by_content(data: Path) -> None:
    scenes = SCENES.open()
    for line in lines(data):
        (name,) = line["images"]
        stored = read_image(data / name)
        assert np.array_equal(stored, scenes.image(line["scene_id"]))
        assert image_key(stored) == Path(name).stem


def test_what_is_there_is_not_made_again(data: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in data.glob("*.jsonl")}
    counts = curate(CurationTask(SCENES, data, "oracle"), list(SCENES.open().ids()), 1, lambda _: None)
    assert counts["single_turn"] == 6
    assert {path.name: path.stat().st_mtime_ns for path in data.glob("*.jsonl")} == before


def test_only_the_last_answer_is_learned(data: Path) -> None:
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    dataset = SFTDataset(data, tokenizer)
    assert len(dataset.indices("single_turn")) == 6
    for index, line in enumerate(lines(data)):
        sequence = dataset[index]
        learned = sequence.tokens[sequence.turn_of_token >= 0]
        assert learned[-1] == tokenizer.im_end
        assert tokenizer.decode(learned) == line["messages"][-1]["content"]
        assert sequence.image_grids == ((1, 8, 16),)
        assert (sequence.tokens == tokenizer.image_pad).sum() == 32


def test_broken_data_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    with pytest.raises(DataError, match="no SFT data there"):
        SFTDataset(tmp_path, tokenizer)
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "assistant", "content": ""}], "kind": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: roles"):
        SFTDataset(tmp_path, tokenizer)
    (tmp_path / "a.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: not a line"):
        SFTDataset(tmp_path, tokenizer)
    with pytest.raises(DataError, match="no such image"):
        read_image(tmp_path / "gone.png")
