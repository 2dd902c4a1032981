"""What cannot be converted is one clear line, and no directory is left that looks like a result."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemo_mtdrive.models.convert import hf_to_nemo, nemo_to_hf
from nemo_mtdrive.models.whole_directory import ConversionError, OutputError, whole_directory

from .conftest import read_hf

SHARD = "model-00002-of-00003.safetensors"


def cut(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as stream:
        stream.truncate((folder / SHARD).stat().st_size - 10)


def cut_in_header(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as stream:
        stream.truncate(100)


def remove_file(folder: Path) -> None:
    (folder / SHARD).unlink()


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = read_hf(folder)
    edit(state)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(state, folder / "model.safetensors")


def lose_tensor(folder: Path) -> None:
    change(folder, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))


def add_tensor(folder: Path) -> None:
    change(folder, lambda state: state.update(adapter=torch.zeros(2)))


def mix_dtypes(folder: Path) -> None:
    change(folder, lambda state: state.update({"model.norm.weight": state["model.norm.weight"].float()}))


def quantise(folder: Path) -> None:
    change(folder, lambda state: state.update({"model.norm.weight": torch.zeros(256, dtype=torch.int8)}))


def halve(folder: Path) -> None:
    change(folder, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))


def reshape(folder: Path) -> None:
    change(folder, lambda state: state.update({"model.norm.weight": torch.zeros(255, dtype=torch.bfloat16)}))


def other_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def text_as_config(folder: Path) -> None:
    (folder / "config.json").write_text("hello")


@pytest.mark.parametrize(("spoil", "line"), [
    (cut, f"{SHARD}: cut short: "),
    (cut_in_header, f"{SHARD}: cut short or no safetensors file"),
    (remove_file, f"{SHARD} is named by model.safetensors.index.json and absent; fetch it again"),
    (lose_tensor, "model.layers.1.mlp.up_proj.weight is absent; the directory is not whole"),
    (add_tensor, "adapter is not part of Qwen2.5-VL"),
    (mix_dtypes, "all must be bfloat16 or all float32; convert them with --dtype"),
    (quantise, "model.norm.weight has dtype I8; weights must be BF16, F32, F16"),
    (halve, "weights are float16 (visual.patch_embed.proj.weight): all must be bfloat16 or all float32"),
    (reshape, "model.norm.weight has shape [255], config.json says [256]"),
    (other_family, "model_type='qwen2_vl'; only 'qwen2_5_vl' (Qwen2.5-VL) can be converted"),
    (no_config, "no config.json there; give a Hugging Face directory of Qwen2.5-VL"),
    (text_as_config, "config.json: not JSON"),
])
def test_what_is_wrong_with_the_source_is_one_line(spoil: Callable[[Path], None], line: str, tied: Path,
                                                   tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied, source)
    spoil(source)
    with pytest.raises(ConversionError) as caught:
        hf_to_nemo(source, tmp_path / "out" / "nemo")
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(("tensor", "pipeline", "line"), [
    (4, 1, "--tp 4 does not divide the 2 groups of keys: set it to 1 or 2"),
    (3, 1, "--tp 3 does not divide the 4 attention heads: set it to 1 or 2"),
    (1, 3, "--pp 3 does not divide 4 layers: take a divisor"),
])
def test_splits_that_do_not_divide_are_refused(tensor: int, pipeline: int, line: str, tied: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=line):
        hf_to_nemo(tied, tmp_path / "nemo", tensor_size=tensor, pipeline_size=pipeline)


def test_what_is_there_is_kept_unless_told(tied: Path, tmp_path: Path) -> None:
    out = tmp_path / "nemo"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(ConversionError, match="nemo exists: name another directory"):
        hf_to_nemo(tied, out)
    assert [path.name for path in out.iterdir()] == ["precious"]
    hf_to_nemo(tied, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["context", "weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["nemo"]


@pytest.fixture(scope="module")
def nemo(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_to_nemo(tied, tmp_path_factory.mktemp("nemo") / "tied", tensor_size=2)


class Harm:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of the checkpoint was run')",)


@pytest.mark.parametrize(("file", "content", "line"), [
    ("weights/__1_0.distcp", b"", "__1_0.distcp: absent or cut short"),
    ("weights/__1_0.distcp", None, "__1_0.distcp: absent or cut short"),
    ("weights/__1_0.distcp", b"0" * 10_000_000, "cannot be read; fetch the checkpoint again"),
    ("weights/.metadata", None, "no metadata.json or .metadata there"),
    ("weights/.metadata", b"junk", ".metadata: damaged"),
    ("weights/.metadata", pickle.dumps(Harm()), "names builtins.exec, which no checkpoint needs"),
    ("weights/metadata.json", b'{"sharded_backend": "zarr"}', "sharded_backend='zarr'; only torch_dist can be read"),
    ("context/hf/config.json", None, "another program wrote it; name the directory of its Hugging Face model with --hf"),
])
def test_what_is_wrong_with_a_nemo_directory_is_one_line(file: str, content: bytes | None, line: str, nemo: Path,
                                                          tmp_path: Path) -> None:
    source = tmp_path / "nemo"
    shutil.copytree(nemo, source)
    if content is None:
        (source / file).unlink()
    else:
        (source / file).write_bytes(content)
    with pytest.raises(ConversionError) as caught:
        nemo_to_hf(source, tmp_path / "hf")
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["nemo"]


def test_another_models_config_is_refused(nemo: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no tensor module.language_model.output_layer.weight; the checkpoint"):
        nemo_to_hf(nemo, tmp_path / "hf", files=plain)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "line"), [
    ({"num_hidden_layers": 3}, "4 layers in module.language_model.decoder.layers.self_attention.linear_qkv.weight,"
                               " config.json says 3"),
    ({"intermediate_size": 64}, "mlp.gate_proj.weight: the checkpoint has [128, 256], config.json says [64, 256]"),
])
def test_a_config_of_other_sizes_is_refused(change: dict[str, int], line: str, nemo: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    config = json.loads((nemo / "context" / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConversionError) as caught:
        nemo_to_hf(nemo, tmp_path / "out", files=tmp_path / "hf")
    assert line in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("direction", ["to_nemo", "to_hf"])
def test_a_full_disk_leaves_nothing(direction: str, tied: Path, nemo: Path, tmp_path: Path) -> None:
    """Writes fail past 50 kB, as they do where there is no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="no room left .*; nothing was kept") as caught:
            hf_to_nemo(tied, tmp_path / "out") if direction == "to_nemo" else nemo_to_hf(nemo, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_room_is_asked_for_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="1000000.00 GB are to be written and"), \
            whole_directory(tmp_path / "out", overwrite=False, expected_bytes=10**15):
        raise AssertionError("work began")
    assert not list(tmp_path.iterdir())


def test_an_error_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "out", overwrite=True, expected_bytes=0) as folder:
        (folder / "new").touch()
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/old"]
