"""`nemo-mtdrive plan` counts what Megatron holds, says what fits, and refuses what does not divide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_mtdrive.cli import main

GIB = 1 << 30


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    code = main(["plan", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["fits"] else 1)
    return found


def test_the_7b_on_32_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--model", "7b", "--tp", "4", "--pp", "2", "--gpus", "32")
    assert found["parameters"] == 8_292_166_656 and found["data"] == 4 and found["fits"]
    for stage in found["stages"]:
        assert stage["weights"] == 2 * stage["parameters"] and stage["gradients"] == 4 * stage["parameters"]
        assert stage["optimizer"] == 12 * stage["parameters"] // 4  # shared out over data-parallel ranks
        parts = ("weights", "gradients", "optimizer", "activations", "logits")
        assert stage["total"] == sum(stage[part] for part in parts) + 4 * GIB
    first, last = found["stages"]
    assert first["logits"] == 0 < last["logits"]
    layer = 4 * 2 * 3584 + (2 * 128 * (2 * 28 + 2 * 4) + 4 * 28 + 2 * 3 * 18944) // 4  # bytes a token, by hand
    assert last["activations"] == 11500 * 14 * layer


def test_less_is_kept_where_more_is_computed_again(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("--model", "7b", "--tp", "4", "--gpus", "8")
    kept = [plan(capsys, *grid, "--recompute", name)["stages"][0]["activations"] for name in ("none", "selective", "full")]
    assert kept == sorted(kept, reverse=True)
    longest = plan(capsys, *grid)["longest"]
    assert longest["none"] < longest["selective"] < longest["full"]
    fits = plan(capsys, *grid, "--sequence", str(longest["none"]))
    beyond = plan(capsys, *grid, "--sequence", str(longest["none"] + 256))
    assert fits["fits"] and not beyond["fits"]


def test_a_plan_that_does_not_fit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "72b", "--tp", "8", "--gpus", "8"]) == 1
    text = capsys.readouterr().out
    assert "73.41 B parameters" in text and "does NOT fit" in text
    assert "longest sequence that fits: none (recompute none)" in text


def test_a_directory_is_planned_too(tied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from .conftest import read_hf

    assert plan(capsys, "--model", str(tied))["parameters"] == sum(tensor.numel() for tensor in read_hf(tied).values())


@pytest.mark.parametrize(("arguments", "line"), [
    (("--model", "7b", "--tp", "8", "--gpus", "8"), "--tp 8 does not divide the 28 attention heads: set it to 1, 2 or 4"),
    (("--model", "3b", "--tp", "4", "--gpus", "8"), "--tp 4 does not divide the 2 groups of keys: set it to 1 or 2"),
    (("--model", "7b", "--pp", "3", "--gpus", "3"), "--pp 3 does not divide 28 layers: take a divisor"),
    (("--model", "7b", "--tp", "4", "--gpus", "30"), "--gpus 30 does not divide by --tp 4 x --pp 1: set a multiple of 4"),
    (("--model", "8b"), "--model 8b: set it to 3b, 7b, 32b, 72b or a model directory"),
])
def test_what_does_not_divide_is_one_line(arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert capsys.readouterr().err == f"nemo-mtdrive: {line}\n"
