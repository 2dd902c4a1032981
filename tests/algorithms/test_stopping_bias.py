"""What each estimator's update is in expectation, worked out exactly on small decision processes (docs/mtgrpo.md).

A process is a table: state -> action -> (reward, next state or None). The policy is a softmax a state. Every group of G
rollouts is enumerated with its probability, so expectations are sums, not samples, and the exact gradient is autograd's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_mtdrive.algorithms.advantage import ESTIMATORS, advantages_of
from nemo_mtdrive.algorithms.loss import LossSettings, mtgrpo_loss, token_weights

GROUP = 3


@dataclass(frozen=True)
class Process:
    """Up to `max_turns` turns; state 0 comes first."""

    max_turns: int
    table: tuple[tuple[tuple[float, int | None], ...], ...]

    def rollouts(self) -> list[tuple[list[tuple[int, int]], list[float]]]:
        """Every rollout: its (state, action) a turn and its rewards."""
        found = []

        def grow(state: int, taken: list[tuple[int, int]], rewards: list[float]) -> None:
            for action, (reward, following) in enumerate(self.table[state]):
                now = ([*taken, (state, action)], [*rewards, reward])
                if following is None or len(now[0]) == self.max_turns:
                    found.append(now)
                else:
                    grow(following, *now)

        grow(0, [], [])
        return found


STOP, GO = 0, 1
TEMPTING = Process(2, (((0.60, None), (0.65, 1)), ((0.20, None), (0.30, None))))
"""Going on pays a little more at once, and the answer that it ends with is worse: the right thing is to stop."""
REFINING = Process(3, (((0.9, None), (0.3, 1), (0.5, 2)), ((0.7, None), (0.4, 2), (0.1, None)),
                       ((0.8, None), (0.6, None), (0.2, None))))
"""Three turns whose number the policy decides; rewards of all sizes."""


def logits_for(process: Process, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = max(len(actions) for actions in process.table)
    return torch.randn(len(process.table), width, generator=generator, dtype=torch.float64).requires_grad_()


def log_policy(process: Process, logits: Tensor) -> list[Tensor]:
    return [torch.log_softmax(logits[state, :len(actions)], 0) for state, actions in enumerate(process.table)]


def carried(rewards: Sequence[float], turns: int) -> float:
    """The objective of `unbiased`: the mean over all N turns, the last reward carried on."""
    return (sum(rewards) + rewards[-1] * (turns - len(rewards))) / turns


OBJECTIVES = {"carried": carried, "mean": lambda rewards, turns: sum(rewards) / len(rewards),
              "last": lambda rewards, turns: rewards[-1], "sum": lambda rewards, turns: sum(rewards)}


def exact_gradient(process: Process, logits: Tensor, objective: str) -> Tensor:
    policy = log_policy(process, logits)
    expected = sum(torch.stack([policy[s][a] for s, a in taken]).sum().exp()
                   * OBJECTIVES[objective](rewards, process.max_turns) for taken, rewards in process.rollouts())
    return torch.autograd.grad(expected, logits)[0]


def expected_update(process: Process, logits: Tensor, estimator: str) -> Tensor:
    """E over groups of 1/G sum_i sum_j A_ij grad log pi(a_ij), term by term."""
    policy = log_policy(process, logits)
    rollouts = process.rollouts()
    log_probs = [torch.stack([policy[s][a] for s, a in taken]) for taken, _ in rollouts]
    chances = [float(row.detach().sum().exp()) for row in log_probs]
    total = torch.zeros((), dtype=torch.float64)
    for members in itertools.product(range(len(rollouts)), repeat=GROUP):
        advantages = advantages_of([rollouts[m][1] for m in members], estimator, process.max_turns)
        chance = math.prod(chances[m] for m in members)
        for m, of_turn in zip(members, advantages, strict=True):
            total = total + chance / GROUP * (torch.as_tensor(of_turn) * log_probs[m]).sum()
    return torch.autograd.grad(total, logits)[0]


def misdirection(update: Tensor, gradient: Tensor) -> float:
    """sin of the angle between them: what no learning rate can mend."""
    cosine = float((update * gradient).sum() / (update.norm() * gradient.norm()))
    return math.sqrt(max(0.0, 1 - cosine**2))


@pytest.mark.parametrize("process", [TEMPTING, REFINING])
@pytest.mark.parametrize("seed", range(3))
def test_unbiased_is_the_exact_gradient_and_turn_wise_ones_are_of_no_such_objective(process: Process, seed: int) -> None:
    logits = logits_for(process, seed)
    exact = exact_gradient(process, logits, "carried")
    torch.testing.assert_close(expected_update(process, logits, "unbiased"), exact, atol=1e-14, rtol=0)
    for estimator in ("per_turn", "cross_turn"):
        update = expected_update(process, logits, estimator)
        for objective in ("carried", "mean", "last"):
            off = misdirection(update, exact_gradient(process, logits, objective))
            assert off > 0.02, (estimator, objective, off)


def test_only_unbiased_and_sequence_see_what_going_on_costs() -> None:
    """In TEMPTING every objective but the plain sum falls with GO; per_turn and cross_turn push GO up all the same."""
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    push = {name: float(expected_update(TEMPTING, logits, name)[0, GO]) for name in ESTIMATORS}
    for objective in ("carried", "mean", "last"):
        assert exact_gradient(TEMPTING, logits, objective)[0, GO] < 0
    assert push["per_turn"] > 0.1 and push["cross_turn"] > 0.1
    assert push["unbiased"] < 0 and push["sequence"] < 0


def learn(process: Process, estimator: str, steps: int, lr: float = 0.3, group: int = 8, seed: int = 0) -> list[Tensor]:
    """Policies [actions] a state after training with the estimator and the trainer's own loss, a token a turn."""
    rng = np.random.default_rng(seed)
    logits = torch.zeros(len(process.table), max(map(len, process.table)), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=lr / 10)
    rollouts = process.rollouts()
    settings = LossSettings(0.2, 0.2, kl_coefficient=0.0, kl_estimator="k3")
    for _ in range(steps):
        policy = log_policy(process, logits)
        log_probs = [torch.stack([policy[s][a] for s, a in taken]) for taken, _ in rollouts]
        chances = np.array([float(row.detach().sum().exp()) for row in log_probs])
        members = rng.choice(len(rollouts), size=group, p=chances / chances.sum())
        advantages = advantages_of([rollouts[m][1] for m in members], estimator, process.max_turns)
        pad = torch.nn.utils.rnn.pad_sequence
        new = pad([log_probs[m] for m in members], batch_first=True)
        mask = pad([torch.ones(len(a), dtype=torch.bool) for a in advantages], batch_first=True)
        weights = token_weights("constant", [[len(a) for a in advantages]], process.max_turns)[0]
        of_turn = pad([torch.as_tensor(a) for a in advantages], batch_first=True)
        of_token = torch.tensor(weights, dtype=torch.float64)[:, None].expand_as(of_turn)
        loss, _ = mtgrpo_loss(new, new.detach(), new.detach(), of_turn, mask, of_token, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach().exp() for p in log_policy(process, logits)]


RIGHT = Process(3, tuple(tuple((1.0, None) if action == 2 - state else (0.1 * action, state + 1) for action in range(4))
                         for state in range(3)))
"""Choose the right one of four answers: it ends the episode with reward 1; another is told to try again, three times."""


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_learns_the_right_answer(estimator: str) -> None:
    policies = learn(RIGHT, estimator, steps=200)
    assert policies[0][2] > 0.9, policies


def test_per_turn_learns_to_prolong_and_unbiased_does_not() -> None:
    """TEMPTING again, now learned: going on is never the right thing."""
    assert learn(TEMPTING, "per_turn", steps=200)[0][GO] > 0.9
    assert learn(TEMPTING, "unbiased", steps=200)[0][GO] < 0.1
