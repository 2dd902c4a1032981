"""Language is learned from drawn conversations: what it is told, what stays, going on, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nemo_mtdrive.algorithms.language_pretraining import LanguagePretraining
from nemo_mtdrive.algorithms.policy import MicroBatch
from nemo_mtdrive.config_pretraining import LanguageConfig
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from tests.algorithms.commands import run_command

TOKENIZER = Tokenizer.load(TINY_TOKENIZER)


class Bigrams(torch.nn.Module):
    """Tells a token by the one before it; a tower that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.vision_map = torch.nn.Linear(2, 2)
        self.read = torch.nn.Embedding(TOKENIZER.vocab_size, 32)
        self.write = torch.nn.Linear(32, TOKENIZER.vocab_size)

    def logprobs(self, batch: MicroBatch) -> Tensor:
        assert "pixel_values" not in batch and not batch["image_grid_thw"].numel()
        rows = torch.log_softmax(self.write(self.read(batch["tokens"][0, :-1])), dim=-1)
        return rows.gather(1, batch["tokens"][0, 1:, None])[batch["mask"][0, 1:], 0]


def training(**settings: float) -> LanguagePretraining:
    chosen = LanguageConfig(**{"steps": 40, "batch_size": 4, "lr": 1e-2, "warmup_steps": 4, "measured": 10} | settings)  # type: ignore[arg-type]
    model = Bigrams()
    return LanguagePretraining(model, model.logprobs, TOKENIZER, chosen, seed=1)


def test_it_learns_to_go_on() -> None:
    run = training()
    before = run.measure()
    for _ in range(40):
        run.train_step()
    assert before > 7.0 > 4.5 > run.measure(), "7.5 is a guess among the tokens; 4.5 knows what follows what"


def test_all_is_learned_but_what_nothing_comes_before() -> None:
    run = training(batch_size=3)
    drawn = run._draw(0, 0)
    assert len(drawn) == 3
    assert all((sequence.turn_of_token[1:] >= 0).all() and sequence.turn_of_token[0] < 0 for sequence in drawn)
    counts: list[int] = []
    run._logprobs = lambda batch: counts.append(int(batch["mask"].sum())) or torch.zeros(1)  # type: ignore[assignment,func-returns-value]
    run._cross_entropy(drawn)
    assert counts == [sum(len(sequence.tokens) - 1 for sequence in drawn)]


def test_nothing_is_read_twice_and_the_measured_are_others() -> None:
    run = training()
    read = {sequence.tokens.tobytes() for stream, numbers in ((0, range(5)), (1, range(2))) for number in numbers
            for sequence in run._draw(stream, number)}
    assert len(read) == 7 * 4


def test_the_tower_stays() -> None:
    run = training()
    assert sorted(run._trained) == ["read.weight", "write.bias", "write.weight"]


def test_a_killed_training_goes_on_as_the_same(tmp_path: Path) -> None:
    whole, first, second = training(), training(), training()
    losses = [whole.train_step() for _ in range(6)]
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "state", "this")
    assert not second.load(tmp_path / "state", "that")
    assert second.load(tmp_path / "state", "this")
    assert [second.train_step() for _ in range(3)] == pytest.approx(losses[3:], rel=1e-5)


def test_the_command(tmp_path: Path) -> None:
    """From a tower's directory: the tower is the same, the language is not; asked again nothing is done."""
    scenes, seen, out = tmp_path / "scenes", tmp_path / "seen", tmp_path / "start"
    done = run_command("scenes", "generate", "--count", "4", "--width", "56", "--height", "28", "--workers", "1", "--out",
                       str(scenes))
    assert done.returncode == 0, done.stderr
    small = ["model.layers=1", "model.head_size=64", "scenes.image_width=56", "scenes.image_height=28"]
    done = run_command("pretrain-vision", "--out", str(seen), "scenes.source=files", f"scenes.path={scenes}",
                       "scenes.held_out=1", "pretraining.batch_size=2", "pretraining.steps=1", *small)
    assert done.returncode == 0, done.stderr
    words = ["pretrain-language", "--out", str(out), "language.batch_size=2", "language.measured=2"]
    done = run_command(*words, f"model.init_from={seen}", "language.steps=3", "language.save_every=1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["steps"], report["conversations"]) == (3, 6)
    assert report["cross_entropy"] < report["cross_entropy_before"]
    assert not list(tmp_path.glob(".start*"))
    old, new = (load_file(folder / "model.safetensors") for folder in (seen, out))
    same = {name for name, value in new.items() if torch.equal(value, old[name])}
    assert {name for name in new if name.startswith("visual.")} == {name for name in same if "visual." in name} != set()
    assert {name for name in new if "visual." not in name and "norm" not in name and "bias" not in name}.isdisjoint(same)
    again = run_command(*words, f"model.init_from={seen}", "language.steps=3", "language.save_every=1")
    assert json.loads(again.stdout.splitlines()[-1]) == report
    for wrong, told in (([f"model.init_from={seen}", "language.steps=4"], "it holds something else than what is asked for"),
                        (["language.steps=3"], "model.init_from='': set it to the model whose language is to learn"),
                        ([f"model.init_from={tmp_path}/none", "language.steps=3"], "none")):
        other = run_command(*words, *wrong)
        assert other.returncode == 2 and told in other.stderr, other.stderr
