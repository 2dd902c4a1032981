"""The reward function for TRL: its contract, over both environments, and inside TRL's own GRPOTrainer."""

from __future__ import annotations

import re
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest

from nemo_mtdrive.config import RewardConfig
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER
from nemo_mtdrive.environment.env import DrivingEnvironment
from nemo_mtdrive.environment.trl import PDMReward, completion_text, grpo_rows
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators
from tests.environment.environment_fakes import MAX_TURNS, FakeReviewer, FakeScenes, answer

PERFECT, SIDEWAYS, UNREADABLE = answer(0.0), answer(3.0), "I would rather walk."
REWARDS = {PERFECT: 1.0, SIDEWAYS: 0.8 * 0.25 + 0.2, UNREADABLE: 0.0}


@pytest.fixture(params=["here", "served"])
def reward(request):
    if request.param == "here":
        return PDMReward(DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS))
    return PDMReward(request.getfixturevalue("client"))


def test_rewards_are_eq_2_in_the_order_of_the_completions(reward):
    completions = [PERFECT, UNREADABLE, SIDEWAYS, PERFECT, SIDEWAYS]
    got = reward(prompts=["?"] * 5, completions=completions, scene_id=["s0", "s1", "s0", "s2", "s1"],
                 completion_ids=[[1]] * 5, anything="else")
    assert got == pytest.approx([REWARDS[text] for text in completions])
    assert all(isinstance(value, float) for value in got)
    assert reward.__name__ == "pdm_reward"
    assert reward(prompts=[], completions=[], scene_id=[]) == []


def test_chat_completions_are_the_assistants_words(reward):
    chats = [[{"role": "assistant", "content": PERFECT}],
             [{"role": "user", "content": "?"}, {"role": "assistant", "content": [{"type": "text", "text": SIDEWAYS}]}],
             [{"role": "assistant", "content": None}], []]
    assert [completion_text(chat) for chat in chats] == [PERFECT, SIDEWAYS, "", ""]
    prompts = [[{"role": "user", "content": "?"}]] * 4
    assert reward(prompts=prompts, completions=chats, scene_id=["s0"] * 4) == pytest.approx([1.0, 0.4, 0.0, 0.0])


def test_weights_are_eq_2s():
    environment = DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS)
    weighted = PDMReward(environment, RewardConfig(pdm_weight=0.5, format_weight=2.0))
    assert weighted(prompts=["?"], completions=[SIDEWAYS], scene_id=["s0"]) == [pytest.approx(0.5 * 0.25 + 2.0)]


def test_what_cannot_be_scored_is_none_never_zero(reward):
    got = reward(prompts=["?"] * 3, completions=[PERFECT, PERFECT, UNREADABLE], scene_id=["s0", "nowhere", "nowhere"])
    assert got == [pytest.approx(1.0), None, 0.0]


@pytest.mark.parametrize("columns", [{}, {"scene": ["s0"]}, {"scene_id": ["s0", "s1"]}, {"scene_id": "s0"}])
def test_a_dataset_without_scene_ids_is_told(columns):
    reward = PDMReward(DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS))
    with pytest.raises(ValueError, match="give the dataset a column scene_id"):
        reward(prompts=["?"], completions=[PERFECT], **columns)


def test_rows_of_a_dataset():
    rows = grpo_rows(FakeScenes())
    assert [row["scene_id"] for row in rows] == ["s0", "s1", "s2", "s3"]  # `bare` cannot be driven
    assert rows[0]["prompt"].startswith("As an autonomous driving system")
    chat = grpo_rows(FakeScenes(), ["s2"], chat=True)
    assert chat == [{"prompt": [{"role": "user", "content": rows[2]["prompt"]}], "scene_id": "s2"}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trls_grpo_trainer_learns_from_it(tmp_path, monkeypatch):
    """The real trainer, a GPT-2 of a few thousand weights that answers from a list, two steps on CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    declare_torchvision_operators()  # transformers imports torchvision
    import torch
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TINY_TOKENIZER / "tokenizer.json"), padding_side="left",
                                        eos_token="<|im_end|>", pad_token="<|endoftext|>")
    answers = cycle([PERFECT, SIDEWAYS, UNREADABLE, SIDEWAYS])

    class Answering(GPT2LMHeadModel):
        def generate(self, input_ids, **_):
            texts = [[*tokenizer.encode(next(answers)), tokenizer.eos_token_id] for _ in input_ids]
            longest = max(map(len, texts))
            padded = [text + [tokenizer.pad_token_id] * (longest - len(text)) for text in texts]
            return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    torch.manual_seed(0)
    model = Answering(GPT2Config(vocab_size=len(tokenizer), n_positions=1024, n_embd=16, n_layer=1, n_head=2))
    before = [weight.detach().clone() for weight in model.parameters()]
    reward = PDMReward(DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS))
    calls: list[SimpleNamespace] = []

    class Noted(PDMReward):
        def __call__(self, prompts, completions, **columns):
            values = reward(prompts, completions, **columns)
            calls.append(SimpleNamespace(completions=completions, columns=columns, values=values))
            return values

    settings = GRPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_steps=2, beta=0.0,
                          max_prompt_length=400, max_completion_length=400, learning_rate=1e-2, logging_steps=1,
                          report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = GRPOTrainer(model, reward_funcs=Noted(reward._scorer), args=settings, processing_class=tokenizer,
                          train_dataset=Dataset.from_list(grpo_rows(FakeScenes())))
    trainer.train()

    assert len(calls) == 2 and trainer.state.global_step == 2
    for call in calls:
        assert re.sub(r"\s", "", call.completions[0]) == re.sub(r"\s", "", PERFECT)
        assert len(set(call.columns["scene_id"])) == 1  # a group is of one scene
        assert call.values == pytest.approx([1.0, 0.4, 0.0, 0.4])
    logged = [entry["rewards/pdm_reward/mean"] for entry in trainer.state.log_history if "rewards/pdm_reward/mean" in entry]
    assert logged == pytest.approx([0.45, 0.45])
    assert any((after != old).any() for after, old in zip(model.parameters(), before, strict=True))
    assert np.isfinite([float(weight.sum()) for weight in model.parameters()]).all()
