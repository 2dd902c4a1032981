"""HF -> NeMo -> HF gives every bit back, whatever ranks either side is for; what comes out is a model that loads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from nemo_mtdrive.models.connectors import HFExporter, HFImporter
from nemo_mtdrive.models.convert import hf_to_nemo, nemo_to_hf
from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel

from .conftest import CARRIED, plain_config, read_hf, same_bits, write_hf

GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("tensor", "pipeline"), GRIDS)
@pytest.mark.parametrize("name", ["plain", "tied"])
def test_every_bit_comes_back(name: str, tensor: int, pipeline: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(name)
    nemo = hf_to_nemo(source, tmp_path / "nemo", tensor_size=tensor, pipeline_size=pipeline)
    shards = sorted(path.name for path in (nemo / "weights").glob("*.distcp"))
    assert shards == [f"__{rank}_0.distcp" for rank in range(tensor * pipeline)]  # as so many ranks would have written
    back = nemo_to_hf(nemo, tmp_path / "back", shard_bytes=300_000)
    assert same_bits(read_hf(back), read_hf(source))
    assert {path: (back / path).read_text() for path in CARRIED} == CARRIED
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "nemo"]  # nothing is left beside


def test_shards_hold_what_the_index_says(plain: Path, tmp_path: Path) -> None:
    nemo = hf_to_nemo(plain, tmp_path / "nemo")
    back = nemo_to_hf(nemo, tmp_path / "back", shard_bytes=1_000_000)
    index = json.loads((back / "model.safetensors.index.json").read_text())
    files = sorted(back.glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 1_010_000 for file in files)  # no tensor is larger
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read_hf(back).values())
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt") as opened:
            assert dict.fromkeys(opened.keys(), file.name).items() <= index["weight_map"].items()
    assert len(index["weight_map"]) == len(read_hf(back))


@pytest.mark.parametrize("name", ["plain", "tied"])
def test_what_comes_out_loads_in_transformers_with_equal_logits(name: str, tmp_path: Path,
                                                                request: pytest.FixtureRequest) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    source: Path = request.getfixturevalue(name)
    back = nemo_to_hf(hf_to_nemo(source, tmp_path / "nemo", tensor_size=2), tmp_path / "back")
    tokens = torch.arange(3, 40)[None]
    logits = []
    for folder in (source, back):
        model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"]
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits)


def test_dtypes_can_be_changed(plain: Path, tmp_path: Path) -> None:
    nemo = hf_to_nemo(plain, tmp_path / "nemo", dtype=torch.bfloat16)
    expected = {name: tensor.bfloat16() for name, tensor in read_hf(plain).items()}
    assert same_bits(read_hf(nemo_to_hf(nemo, tmp_path / "half")), expected)
    widened = {name: tensor.float() for name, tensor in expected.items()}
    assert same_bits(read_hf(nemo_to_hf(nemo, tmp_path / "whole", dtype=torch.float32)), widened)
    said = [json.loads((tmp_path / name / "config.json").read_text())["torch_dtype"] for name in ("half", "whole")]
    assert said == ["bfloat16", "float32"]


def test_a_copy_of_the_tied_head_is_left_out(tied: Path, tmp_path: Path) -> None:
    state = read_hf(tied)
    config = json.loads((tied / "config.json").read_text())
    copied = write_hf(tmp_path / "hf", config, state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, 1)
    assert same_bits(read_hf(nemo_to_hf(hf_to_nemo(copied, tmp_path / "nemo"), tmp_path / "back")), state)


def test_a_config_of_newer_transformers_is_read(plain: Path, tmp_path: Path) -> None:
    config = plain_config()
    vision = config.pop("vision_config")
    family = {"model_type": "qwen2_5_vl", "vision_config": vision, "tie_word_embeddings": config["tie_word_embeddings"]}
    nested = family | {"text_config": config | {"model_type": "qwen2_5_vl_text"}}
    source = write_hf(tmp_path / "hf", nested, read_hf(plain), 2)
    back = nemo_to_hf(hf_to_nemo(source, tmp_path / "nemo"), tmp_path / "back")
    assert same_bits(read_hf(back), read_hf(plain)) and json.loads((back / "config.json").read_text()) == nested


def test_nemo_finds_the_converters_and_the_model(tied: Path, tmp_path: Path) -> None:
    from nemo.lightning import io

    importer = Qwen25VLModel.importer(f"hf://{tied}")
    assert isinstance(importer, HFImporter)
    nemo = importer(tmp_path / "nemo")
    context = io.load_context(nemo / "context")
    assert isinstance(context.model, Qwen25VLModel)
    config = context.model.config
    assert config.image_token_id == 200 and config.language_transformer_config.mrope_section == [8, 12, 12]
    assert config.vision_transformer_config.num_layers == 3 and config.params_dtype == torch.bfloat16
    exporter = io.api.load_connector_from_trainer_ckpt(nemo, "hf")
    assert isinstance(exporter, HFExporter)
    assert same_bits(read_hf(exporter(tmp_path / "back")), read_hf(tied))


def test_megatron_can_unpickle_what_was_written(plain: Path, tmp_path: Path) -> None:
    """The metadata is torch's own records, not ours."""
    nemo = hf_to_nemo(plain, tmp_path / "nemo")
    metadata = pickle.loads((nemo / "weights" / ".metadata").read_bytes())
    assert type(metadata).__name__ == "MCoreMetadata"
    qkv = metadata.state_dict_metadata["module.language_model.decoder.layers.self_attention.linear_qkv.weight"]
    assert tuple(qkv.size) == (2, 768, 256)
