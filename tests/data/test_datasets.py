"""SFT data as token sequences: what is learned of each kind, images by their files' headers, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.data.datasets import DataError, SFTDataset, write_image
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer

IMAGE = np.arange(56 * 84 * 3, dtype=np.uint8).reshape(56, 84, 3)


def line(kind: str, *contents: str, images: tuple[str, ...] = ("images/k.png",)) -> dict[str, Any]:
    roles = ["user", "assistant"] * (len(contents) // 2)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return {"id": f"s/{kind}", "kind": kind, "scene_id": "s", "messages": messages, "images": list(images)}


LINES = [
    line("single_turn", "<image>\nDrive.", "straight on"),
    line("multi_turn", "<image>\nDrive.", "first", "No.", "second", "No again.", "third"),
    line("understanding", "<image>\nIs it off?", "Yes.", "And this?", "No."),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TINY_TOKENIZER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images", "k", IMAGE)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in LINES))
    return tmp_path


def learned(dataset: SFTDataset, tokenizer: Tokenizer, index: int) -> list[str]:
    """The answers that are learned, as text."""
    row = dataset[index]
    turns = sorted(set(row.turn_of_token.tolist()) - {-1})
    return [tokenizer.decode(row.tokens[row.turn_of_token == turn]) for turn in turns]


@pytest.mark.parametrize(("learn", "multi_turn"), [("last", ["third"]), ("all", ["first", "second", "third"])])
def test_what_is_learned_of_each_kind(folder: Path, tokenizer: Tokenizer, learn: str, multi_turn: list[str]) -> None:
    dataset = SFTDataset(folder, tokenizer, learn)
    assert dataset.kinds() == {"single_turn": [0], "multi_turn": [1], "understanding": [2]}
    found = [[text.removesuffix("<|im_end|>") for text in learned(dataset, tokenizer, index)] for index in range(3)]
    assert found == [["straight on"], multi_turn, ["Yes.", "No."]]


def test_the_grid_is_the_files_and_the_image_comes_back(folder: Path, tokenizer: Tokenizer) -> None:
    dataset = SFTDataset(folder, tokenizer)
    assert dataset[0].image_grids == ((1, 4, 6),) and dataset[0].image_keys == ("k",)
    dataset.read_ahead(["k"])
    np.testing.assert_array_equal(dataset.image("k"), IMAGE)


def test_a_picture_of_any_size_is_resized_as_the_model_sees_it(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "images" / "k.png").unlink()
    write_image(folder / "images", "k", np.zeros((60, 90, 3), np.uint8))
    dataset = SFTDataset(folder, tokenizer)
    assert dataset[0].image_grids == ((1, 4, 6),) and dataset.image("k").shape == (56, 84, 3)


def test_refusals_name_the_file(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "images" / "k.png").unlink()
    with pytest.raises(DataError, match=r"k\.png: no such image; curate the data again"):
        SFTDataset(folder, tokenizer)[0]
    (folder / "a.jsonl").write_text(json.dumps(line("single_turn", "Drive.", "on", images=())))
    with pytest.raises(DataError, match="s/single_turn: 0 images; a conversation has one"):
        SFTDataset(folder, tokenizer)[0]
    (folder / "a.jsonl").write_text('{"messages": 3}')
    with pytest.raises(DataError, match=r"a\.jsonl:1: not a line of SFT data"):
        SFTDataset(folder, tokenizer)
    (folder / "a.jsonl").unlink()
    with pytest.raises(DataError, match="no SFT data there"):
        SFTDataset(folder, tokenizer)
