"""The trainer's step against Eq. 4 worked in plain PyTorch on the same groups: weights, masks, mini-batches, order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_mtdrive.algorithms.advantage import ESTIMATORS, group_advantages
from nemo_mtdrive.algorithms.loss import LossSettings
from nemo_mtdrive.algorithms.mini_batches import assemble
from nemo_mtdrive.algorithms.mtgrpo import MTGRPOTrainer
from nemo_mtdrive.algorithms.policy import DataShare, LossFunction, MicroBatch
from nemo_mtdrive.algorithms.updates import DumpPlace
from nemo_mtdrive.config import MtGRPOConfig, load_config
from nemo_mtdrive.config_rollout import RolloutConfig
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.transfer.tensors import TensorCache
from nemo_mtdrive.types import Episode, Group, RolloutTask, Turn
from tests.algorithms.test_loss import reference_loss

GRID = (1, 2, 2)
IMAGE = np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TINY_TOKENIZER)


def episode(tokenizer: Tokenizer, task: RolloutTask, index: int, rewards: list[float], valid: bool = True) -> Episode:
    turns = [(f"turn {j} of {task.scene_id} {index}", "go on" if j + 1 < len(rewards) else None)
             for j in range(len(rewards))]
    talk = encode_dialogue(tokenizer, f"drive {task.scene_id}", GRID, turns)
    spans = [(int(np.flatnonzero(talk.turn_of_token == j)[0]), int(np.flatnonzero(talk.turn_of_token == j)[-1]) + 1)
             for j in range(len(rewards))]
    return Episode(
        task.episode_id(index), task.scene_id, index, 0, task.policy_version, talk.tokens, talk.turn_of_token,
        np.zeros(len(talk.tokens), dtype=np.float32), ("k",), (GRID,),
        tuple(Turn(j, *spans[j], turns[j][0], None, None, 1.0, r, "") for j, r in enumerate(rewards)), valid,
        "clean" if valid else "error: the server is gone")


REWARDS = {
    "a": [[0.2, 0.9], [0.8], [0.5, 0.3, 1.0], [0.1]],
    "b": [[0.6], [0.6], [0.7, 0.1], [0.3]],
    "c": [[1.0], [0.0], [0.4], [0.4, 0.5]],
}
INVALID = ("b", 1)


class ScriptedRollouts:
    """Groups with the rewards above for whatever scenes are asked for."""

    policy_version = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.published = 0
        self.calls: list[tuple[list[RolloutTask], bool]] = []

    def generate(self, tasks: list[RolloutTask], *, more: bool = False) -> list[Group]:
        self.calls.append((tasks, more))
        return [Group(t.scene_id, tuple(episode(self.tokenizer, t, i, r, (t.scene_id, i) != INVALID)
                                        for i, r in enumerate(REWARDS[t.scene_id]))) for t in tasks]

    def images(self, episodes: Sequence[Episode]) -> Callable[[str], np.ndarray]:
        return {"k": IMAGE}.__getitem__

    def publish_next(self) -> None:
        self.published += 1

    def collect(self) -> dict[str, float]:
        return {}


class BigramPolicy:
    """log p(token | the token before): a table of token classes, so that gradients are easy to write down. Plain SGD."""

    CLASSES = 61

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = (self.CLASSES, self.CLASSES)
        self.table = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        self.reference = self.table.detach() + 0.1 * torch.randn(size, generator=generator, dtype=torch.float64)
        self.loss_function: LossFunction | None = None
        self.want_entropy = False
        self.temperature = 1.0
        self.lr = 0.0
        self.gradients: list[Tensor] = []

    def score(self, tokens: Tensor, table: Tensor) -> Tensor:
        classes = tokens % self.CLASSES
        found = torch.log_softmax(table, -1)[classes[:, :-1], classes[:, 1:]]
        return torch.cat([torch.zeros(len(tokens), 1, dtype=found.dtype), found], 1)

    def entropy(self, tokens: Tensor, table: Tensor) -> Tensor:
        logprobs = torch.log_softmax(table, -1)
        found = -(logprobs.exp() * logprobs).sum(-1)[(tokens % self.CLASSES)[:, :-1]]
        return torch.cat([torch.zeros(len(tokens), 1, dtype=found.dtype), found], 1)

    def set_lr(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = lr

    def set_reference(self) -> None:
        self.reference = self.table.detach().clone()

    def prepare_for_training_step(self) -> None:
        self.table.grad = None

    def get_loss_and_metrics(self, batch: Sequence[MicroBatch], forward_only: bool) -> tuple[float, dict[str, float]]:
        assert self.loss_function is not None
        total = 0.0
        for micro in batch:
            extra = {"entropy": self.entropy(micro["tokens"], self.table)} if self.want_entropy else {}
            loss, _ = self.loss_function(self.score(micro["tokens"], self.table), micro | extra)
            loss.backward()
            total += loss.item()
        return total, {}

    def finish_training_step(self) -> float:
        assert self.table.grad is not None
        self.gradients.append(self.table.grad.clone())
        with torch.no_grad():
            self.table -= self.lr * self.table.grad
        return float(self.table.grad.norm())

    def get_inference_log_probs(self, batch: Sequence[MicroBatch]) -> list[Tensor]:
        return [self.score(micro["tokens"], self.table).detach() for micro in batch]

    def get_init_policy_logprobs(self, batch: Sequence[MicroBatch]) -> list[Tensor]:
        return [self.score(micro["tokens"], self.reference).detach() for micro in batch]

    def export_hf_state(self) -> Iterator[tuple[str, Tensor]]:
        yield "table", self.table


def trainer(tokenizer: Tokenizer, *overrides: str, share: tuple[int, int] = (0, 1), iptc: bool = True) -> MTGRPOTrainer:
    config = load_config("scratch_cpu", ["mtgrpo.prompts_per_step=3", "mtgrpo.mini_batch_prompts=3", "mtgrpo.lr=0.5",
                                      "mtgrpo.group_size=4", "mtgrpo.kl_coefficient=0.05", "rollout.max_turns=3",
                                      "rollout.temperature=1.0", *overrides])
    return MTGRPOTrainer(config.mtgrpo, BigramPolicy(0), DataShare(*share, torch.device("cpu")),
                         ScriptedRollouts(tokenizer), TensorCache("cpu", 1 << 30, iptc), tokenizer, list(REWARDS), seed=4,
                         rollout=config.rollout, dump=DumpPlace(Path("never"), 0, writes=False))


def expected_gradient(policy: BigramPolicy, groups: list[Group], estimator: str, questions: int) -> Tensor:
    """Eq. 4 over whole groups, one episode at a time, from the policy as it is now."""
    settings = LossSettings(0.2, 0.2, 0.05, "k3")
    table = policy.table.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        valid = sum(e.valid for e in group.episodes)
        for e, advantages in zip(group.episodes, group_advantages(group, estimator, max_turns=3), strict=True):
            if not e.valid:
                continue
            tokens = torch.as_tensor(e.tokens.astype(np.int64))[None]
            own = torch.as_tensor(e.turn_of_token >= 0)[None]
            of_token = torch.as_tensor([advantages[j] if j >= 0 else 0.0 for j in e.turn_of_token])[None]
            logprobs = policy.score(tokens, table)
            total = total + reference_loss(logprobs, policy.score(tokens, policy.table).detach(),
                                           policy.score(tokens, policy.reference), of_token, own,
                                           torch.tensor([1.0 / (questions * valid)], dtype=torch.float64), settings)
    return torch.autograd.grad(total, table)[0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("budget", [40, 100000])
def test_a_step_is_eq_4_on_the_groups(tokenizer: Tokenizer, estimator: str, budget: int) -> None:
    """Whatever the micro-batches; the invalid episode takes no part."""
    run = trainer(tokenizer, f"mtgrpo.estimator={estimator}", f"mtgrpo.micro_batch_tokens={budget}")
    groups = run.rollouts.generate(run.draw_tasks(0))
    expected = expected_gradient(run.policy, groups, estimator, questions=3)
    metrics = run.step(0)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(run.policy.gradients[0], expected, atol=1e-7, rtol=0)  # advantages travel as fp32
    assert metrics["episodes/invalid"] == 1.0
    assert run.rollouts.published == 1


def test_mini_batches_are_whole_groups_and_update_one_after_another(tokenizer: Tokenizer) -> None:
    run = trainer(tokenizer, "mtgrpo.mini_batch_prompts=1", "mtgrpo.inner_updates=2")
    groups = run.rollouts.generate(run.draw_tasks(0))
    first = expected_gradient(run.policy, groups[:1], "cross_turn", questions=1)
    run.step(0)
    assert len(run.policy.gradients) == 6
    torch.testing.assert_close(run.policy.gradients[0], first, atol=1e-7, rtol=0)


def test_the_papers_step_is_two_mini_batches_of_128_questions(tokenizer: Tokenizer) -> None:
    """Section 4.1: 256 questions of 8 rollouts, mini-batches of 128, over the 8 data ranks of a 32-GPU run."""
    settings, rollout = MtGRPOConfig(), RolloutConfig()
    tasks = [RolloutTask(f"s{slot}", 8, 1, 0, 0, 1.0, slot=slot) for slot in range(256)]
    groups = [Group(task.scene_id, tuple(episode(tokenizer, task, i, [0.1 * i]) for i in range(8))) for task in tasks]
    found: list[Counter[str]] = [Counter(), Counter()]
    for rank in range(8):
        mini_batches = assemble(0, groups, settings, rollout, DataShare(rank, 8, torch.device("cpu")))
        assert len(mini_batches) == 2
        for scenes, mini_batch in zip(found, mini_batches, strict=True):
            scenes.update(e.scene_id for micro in mini_batch for e in micro.episodes)
    assert [set(scenes) for scenes in found] == [{f"s{slot}" for slot in slots} for slots in (range(128), range(128, 256))]
    assert all(count == 8 for scenes in found for count in scenes.values())


def test_four_steps_are_algorithm_1(tokenizer: Tokenizer) -> None:
    """I = 2 iterations of M = 2 steps of mu = 2 passes over 3 mini-batches, against the listing in plain loops: when pi_ref
    and pi_old are taken, which group each update is on, and with which learning rate."""
    run = trainer(tokenizer, "mtgrpo.iterations=2", "mtgrpo.steps=2", "mtgrpo.inner_updates=2",
                  "mtgrpo.mini_batch_prompts=1")
    table, reference = run.policy.table.detach().clone(), run.policy.reference
    settings = LossSettings(0.2, 0.2, 0.05, "k3")
    for iteration in range(2):
        if iteration:
            reference = table.clone()
        for step in range(2 * iteration, 2 * iteration + 2):
            groups = run.rollouts.generate(run.draw_tasks(step))
            old = table.clone()
            for group in groups * 2:
                leaf = table.clone().requires_grad_()
                total = torch.zeros((), dtype=torch.float64)
                for e, of_turn in zip(group.episodes, group_advantages(group, "cross_turn", max_turns=3), strict=True):
                    tokens = torch.as_tensor(e.tokens.astype(np.int64))[None]
                    own = torch.as_tensor(e.turn_of_token >= 0)[None]
                    of_token = torch.as_tensor([of_turn[j] if j >= 0 else 0.0 for j in e.turn_of_token])[None]
                    weight = torch.tensor([e.valid / sum(other.valid for other in group.episodes)], dtype=torch.float64)
                    total = total + reference_loss(run.policy.score(tokens, leaf), run.policy.score(tokens, old),
                                                   run.policy.score(tokens, reference), of_token, own, weight, settings)
                table = table - 0.5 * torch.autograd.grad(total, leaf)[0]
            run.step(step)
            torch.testing.assert_close(run.policy.table.detach(), table, atol=1e-6, rtol=0)
            torch.testing.assert_close(run.policy.reference, reference, atol=1e-6, rtol=0)
    assert len(run.policy.gradients) == 24


def test_the_learning_rate_warms_up_and_falls_over_all_iterations(tokenizer: Tokenizer) -> None:
    run = trainer(tokenizer, "mtgrpo.steps=2", "mtgrpo.iterations=2", "mtgrpo.warmup_steps=2", "mtgrpo.lr_end=0.2")
    logged = [run.step(step)["lr"] for step in range(4)]
    assert logged == pytest.approx([0.25, 0.5, 0.5, 0.5 * (0.2 + 0.8 * 0.5)])
    assert isinstance(run.policy, BigramPolicy) and run.policy.lr == logged[-1], "and it is what the policy learns with"


def test_the_entropy_bonus_reaches_the_policy(tokenizer: Tokenizer) -> None:
    """Eq. 4 and 0.3 times the entropy at every own token, weighted alike; fp64."""
    run = trainer(tokenizer, "mtgrpo.entropy_coefficient=0.3")
    groups = run.rollouts.generate(run.draw_tasks(0))
    expected = expected_gradient(run.policy, groups, "cross_turn", questions=3)
    table = run.policy.table.detach().clone().requires_grad_()
    bonus = torch.zeros((), dtype=torch.float64)
    for group in groups:
        valid = [e for e in group.episodes if e.valid]
        for e in valid:
            at = run.policy.entropy(torch.as_tensor(e.tokens.astype(np.int64))[None], table)[0]
            bonus = bonus + at[torch.as_tensor(e.turn_of_token >= 0)].mean() / (3 * len(valid))
    (of_bonus,) = torch.autograd.grad(bonus, table)
    run.step(0)
    assert of_bonus.abs().max() > 1e-3
    torch.testing.assert_close(run.policy.gradients[0], expected - 0.3 * of_bonus, atol=1e-7, rtol=0)
    plain = trainer(tokenizer)
    plain.step(0)
    assert not plain.policy.want_entropy
    torch.testing.assert_close(plain.policy.gradients[0], expected, atol=1e-7, rtol=0)


def test_data_ranks_add_up_to_the_whole(tokenizer: Tokenizer) -> None:
    parts = []
    for rank in range(3):
        run = trainer(tokenizer, "mtgrpo.micro_batch_tokens=60", share=(rank, 3))
        run.step(0)
        parts.append(run.policy.gradients[0])
    whole = trainer(tokenizer, "mtgrpo.micro_batch_tokens=60")
    whole.step(0)
    torch.testing.assert_close(sum(parts), whole.policy.gradients[0], atol=1e-12, rtol=0)


def test_a_rank_without_an_episode_still_takes_part(tokenizer: Tokenizer) -> None:
    run = trainer(tokenizer, share=(20, 24))  # more ranks than episodes
    run.step(0)
    assert len(run.policy.gradients) == 1
    assert (run.policy.gradients[0] == 0).all()


def test_the_tensor_cache_changes_nothing(tokenizer: Tokenizer) -> None:
    with_cache, without = trainer(tokenizer), trainer(tokenizer, iptc=False)
    for step in range(2):
        hits, misses = with_cache.step(step), without.step(step)
        assert hits["iptc/hits"] > 0 and misses["iptc/hits"] == 0
    assert torch.equal(with_cache.policy.table, without.policy.table)


def tie(group: Group) -> Group:
    return replace(group, episodes=tuple(replace(e, turns=tuple(replace(t, reward=0.5) for t in e.turns))
                                         for e in group.episodes))


class HalfTied(ScriptedRollouts):
    """Scene b gives no spread; whatever is asked for more is as scripted."""

    def generate(self, tasks: list[RolloutTask], *, more: bool = False) -> list[Group]:
        return [tie(group) if group.scene_id == "b" and not more else group
                for group in super().generate(tasks, more=more)]


def test_tied_groups_are_kept_dropped_or_refilled(tokenizer: Tokenizer) -> None:
    """A dropped group leaves the mean over questions, its KL term included; a refill draws as many as were lost."""
    runs = {}
    for choice in ("keep", "drop", "refill"):
        run = trainer(tokenizer, f"mtgrpo.tied_groups={choice}")
        run.rollouts = HalfTied(tokenizer)
        metrics = run.step(0)
        runs[choice] = run
        assert metrics["groups/generated"] == (4 if choice == "refill" else 3)
        assert metrics["groups/trained"] == (2 if choice == "drop" else 3)
        with_spread = [group for group in run.groups[:3] if group.scene_id != "b"]
        trained = {"keep": run.groups, "drop": with_spread, "refill": with_spread + run.groups[3:]}[choice]
        expected = expected_gradient(BigramPolicy(0), trained, "cross_turn", questions=len(trained))
        torch.testing.assert_close(run.policy.gradients[0], expected, atol=1e-7, rtol=0)
    (first, _), (second, more) = runs["refill"].rollouts.calls
    assert more and len(second) == 1
    assert second[0].episode_id(0) not in {task.episode_id(0) for task in first}
    assert second[0].seed not in {task.seed for task in first}


def test_a_refill_ends_after_its_rounds(tokenizer: Tokenizer) -> None:
    class AllTied(ScriptedRollouts):
        def generate(self, tasks: list[RolloutTask], *, more: bool = False) -> list[Group]:
            return [tie(group) for group in super().generate(tasks, more=more)]

    run = trainer(tokenizer, "mtgrpo.tied_groups=refill", "mtgrpo.refill_rounds=2")
    run.rollouts = AllTied(tokenizer)
    before = run.policy.table.detach().clone()
    metrics = run.step(0)
    assert len(run.rollouts.calls) == 3 and metrics["groups/trained"] == 0
    assert torch.equal(run.policy.table, before)


def test_tasks_depend_on_the_step_alone(tokenizer: Tokenizer) -> None:
    run = trainer(tokenizer)
    tasks = run.draw_tasks(5)
    run.draw_tasks(0)
    assert run.draw_tasks(5) == tasks
    assert len({task.seed for step in range(4) for task in run.draw_tasks(step)}) == 12


def test_an_episode_with_nothing_in_it_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """An episode that never started has no token; a group of such is no mini-batch."""
    run = trainer(tokenizer)
    task = run.draw_tasks(0)[0]
    empty = Episode(task.episode_id(0), task.scene_id, 0, 0, 0, np.zeros(0, np.int32), np.zeros(0, np.int16),
                    np.zeros(0, np.float32), (), (), (), False, "error: no server")
    assert run.assemble(0, [Group(task.scene_id, (empty,))]) == []
