"""Other trainers read the data as it is: each test asks of it what one reader's documentation demands.

- Hugging Face `datasets` (installed here) loads the JSON lines, one file or a mixture of kinds, and the pictures.
- TRL, dataset formats: a conversational language-modelling set has a column `messages` of {role, content}; with pictures
  a column `images` of as many as there are marks.
- LLaMA-Factory, data/README.md: `dataset_info.json` names each set; sharegpt formatting with `columns` and `tags`; roles at
  odd places are the user's, at even ones the assistant's, as many of each; as many `<image>` as paths in `images`, relative
  to the folder (`media_dir`, by default `dataset_dir`).
- ms-swift, Custom dataset: `messages` and `images`, `<image>` marks; extra keys are dropped; paths are relative to
  ROOT_IMAGE_DIR.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from nemo_mtdrive.data.formats import PREFIX
from tests.data.conftest import lines_of

KINDS = ("single_turn", "multi_turn", "understanding")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS] + [KINDS])
def test_hugging_face_loads_every_kind_and_any_mixture(curated: Path, cache: str, kinds: tuple[str, ...]) -> None:
    files = [str(curated / f"{kind}.jsonl") for kind in kinds]
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
    assert loaded.to_list() == [line for kind in kinds for line in lines_of(curated, kind)]
    assert loaded.column_names == ["id", "kind", "scene_id", "messages", "images", "provenance"]


def test_trl_gets_messages_and_pictures(curated: Path, cache: str) -> None:
    loaded = datasets.load_dataset("json", data_files=str(curated / "multi_turn.jsonl"), split="train", cache_dir=cache)
    pictures = loaded.map(lambda line: {"images": [str(curated / name) for name in line["images"]]}).cast_column(
        "images", datasets.Sequence(datasets.Image()))
    for line in pictures.select(range(3)):
        assert [message["role"] for message in line["messages"]] == ["user", "assistant"] * (len(line["messages"]) // 2)
        assert [image.size for image in line["images"]] == [(224, 112)]


def test_llama_factory_finds_every_set(curated: Path) -> None:
    described = json.loads((curated / "dataset_info.json").read_text())
    assert sorted(described) == sorted(f"{PREFIX}{kind}" for kind in KINDS)
    for name, entry in described.items():
        assert entry["formatting"] == "sharegpt"
        assert (curated / entry["file_name"]).is_file()
        tags, columns = entry["tags"], entry["columns"]
        lines = lines_of(curated, name.removeprefix(PREFIX))
        for line in lines:
            messages = line[columns["messages"]]
            assert len(messages) % 2 == 0
            for place, message in enumerate(messages):
                wanted = tags["assistant_tag"] if place % 2 else tags["user_tag"]
                assert message[tags["role_tag"]] == wanted and isinstance(message[tags["content_tag"]], str)
            marks = sum(message[tags["content_tag"]].count("<image>") for message in messages)
            assert marks == len(line[columns["images"]])
            assert all((curated / image).is_file() for image in line[columns["images"]])


def test_swift_gets_its_standard_format(curated: Path) -> None:
    for kind in KINDS:
        for line in lines_of(curated, kind):
            assert {"messages", "images"} <= line.keys()
            assert not line.keys() & {"rejected_response", "label", "tools", "objects", "videos", "audios"}
            assert {message["role"] for message in line["messages"]} == {"user", "assistant"}
            assert line["messages"][-1]["role"] == "assistant" and line["messages"][-1]["content"]
            text = "".join(message["content"] for message in line["messages"])
            assert "<video>" not in text and "<audio>" not in text
