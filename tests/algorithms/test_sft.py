"""The SFT trainer: its schedule, and a step that is cross entropy over the answers of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_mtdrive.algorithms.policy import DataShare
from nemo_mtdrive.algorithms.sft import SFTTrainer
from nemo_mtdrive.algorithms.updates import DumpPlace
from nemo_mtdrive.config import SFTConfig, SFTStage
from nemo_mtdrive.data.datasets import DataError, TokenSequence
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from tests.algorithms.test_mtgrpo import GRID, IMAGE, BigramPolicy


class Conversations:
    """Ten single-turn and five two-turn conversations."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.rows = [self.row(tokenizer, [(f"answer {i}", None)]) for i in range(10)]
        self.rows += [self.row(tokenizer, [(f"bad {i}", "no"), (f"a better answer {i}", None)]) for i in range(5)]

    @staticmethod
    def row(tokenizer: Tokenizer, turns: list[tuple[str, str | None]]) -> TokenSequence:
        talk = encode_dialogue(tokenizer, "drive", GRID, turns)
        learned = talk.turn_of_token.copy()
        learned[learned < len(turns) - 1] = -1
        return TokenSequence(talk.tokens, learned, ("k",), (GRID,))

    def kinds(self) -> dict[str, list[int]]:
        return {"single_turn": list(range(10)), "multi_turn": list(range(10, 15))}

    def image(self, key: str):
        return IMAGE

    def read_ahead(self, keys) -> None:
        self.early = set(keys)

    def __getitem__(self, index: int) -> TokenSequence:
        return self.rows[index]


@pytest.fixture(scope="module")
def conversations() -> Conversations:
    return Conversations(Tokenizer.load(TINY_TOKENIZER))


def trainer(conversations: Conversations, share: tuple[int, int] = (0, 1), tokens: int = 100,
            stages: list[SFTStage] | None = None, max_tokens: int = 1000) -> SFTTrainer:
    settings = SFTConfig(stages or [SFTStage(steps=10)], batch_size=8, micro_batch_tokens=tokens, lr=0.1, warmup_steps=0)
    return SFTTrainer(settings, BigramPolicy(0), DataShare(*share, torch.device("cpu")), conversations,
                      Tokenizer.load(TINY_TOKENIZER), max_tokens, DumpPlace(Path("never"), 0, writes=False))


def test_the_next_batchs_images_are_read_early(conversations: Conversations) -> None:
    run = trainer(conversations)
    run.step(8)
    assert conversations.early == {"k"}
    early = run._early
    assert early is not None and [id(row) for row in early.sequences] == [id(row) for row in trainer(conversations)._draw(9)]
    assert run._batch(9) is early and run._batch(7) is not early


def two_turns(conversations: Conversations, drawn: list[TokenSequence]) -> int:
    return sum(any(row is two for two in conversations.rows[10:]) for row in drawn)


def test_what_a_step_draws_comes_again(conversations: Conversations) -> None:
    run = trainer(conversations)
    drawn = run._draw(3)
    run._draw(0)
    assert len(drawn) == 8 and [id(row) for row in run._draw(3)] == [id(row) for row in drawn]
    assert [id(row) for row in trainer(conversations)._draw(3)] == [id(row) for row in drawn]


def test_an_epoch_has_every_conversation_once_or_as_often_as_is_asked(conversations: Conversations) -> None:
    whole = trainer(conversations, stages=[SFTStage(epochs=8)])  # 15 samples: 8 epochs are 15 batches of 8
    assert whole.steps == 15
    drawn = [id(row) for step in range(15) for row in whole._draw(step)]
    assert all(drawn.count(id(row)) == 8 for row in conversations.rows)
    mixed = trainer(conversations, stages=[SFTStage({"single_turn": 0.5, "multi_turn": 3.0}, epochs=2)])
    assert mixed.steps == 5 and sum(two_turns(conversations, mixed._draw(step)) for step in range(5)) == 30


def test_two_stages_follow_each_other_each_with_its_own_schedule(conversations: Conversations) -> None:
    run = trainer(conversations, stages=[SFTStage({"single_turn": 1.0}, steps=2),
                                         SFTStage({"multi_turn": 1.0}, steps=3, lr=0.02)])
    assert run.steps == 5
    assert [two_turns(conversations, run._draw(step)) for step in range(5)] == [0, 0, 8, 8, 8]
    metrics = [run.step(step) for step in range(5)]
    assert [row["stage"] for row in metrics] == [0, 0, 1, 1, 1]
    assert (metrics[0]["lr"], metrics[2]["lr"]) == (0.1, 0.02) and metrics[1]["lr"] < 0.1 and metrics[3]["lr"] < 0.02
    assert [row["epoch"] for row in metrics] == pytest.approx([0.8, 1.6, 1.6, 3.2, 4.8])


def test_data_that_is_not_there_is_refused(conversations: Conversations) -> None:
    with pytest.raises(DataError, match=r"sft.stages\[0\]: no understanding data; there is multi_turn, single_turn"):
        trainer(conversations, stages=[SFTStage({"understanding": 1.0})])


def test_conversations_that_are_too_long_are_left_out_and_counted(conversations: Conversations) -> None:
    limit = max(len(row.tokens) for row in conversations.rows[:10])
    run = trainer(conversations, max_tokens=limit)
    steps = [step for step in range(10) if len(run._draw(step)) < 8]
    metrics = run.step(steps[0])
    assert metrics["samples_too_long"] == 8 - len(run._draw(steps[0])) > 0
    with pytest.raises(DataError, match="more than 3 tokens; set rollout.max_context higher"):
        trainer(conversations, max_tokens=3).step(0)


def test_a_step_is_the_mean_over_the_answers(conversations: Conversations) -> None:
    run = trainer(conversations)
    policy = BigramPolicy(0)
    losses = []
    for row in run._draw(0):
        tokens = torch.as_tensor(row.tokens.astype("int64"))[None]
        own = torch.as_tensor(row.turn_of_token >= 0)[None]
        losses.append(-policy.score(tokens, policy.table)[own])
    expected = torch.cat(losses).mean()
    metrics = run.step(0)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(expected, policy.table)
    torch.testing.assert_close(run._policy.gradients[0], gradient, atol=1e-14, rtol=0)


@pytest.mark.parametrize("tokens", [100, 100000])
def test_data_ranks_and_micro_batches_add_up(conversations: Conversations, tokens: int) -> None:
    """Also where one micro-batch would hold everything: it is split, so that no rank is left out."""
    whole = trainer(conversations, tokens=100000)
    whole.step(0)
    parts = []
    for rank in range(2):
        run = trainer(conversations, share=(rank, 2), tokens=tokens)
        run.step(0)
        parts.append(run._policy.gradients[0])
    torch.testing.assert_close(sum(parts), whole._policy.gradients[0], atol=1e-14, rtol=0)
