"""The vectorised draw: frequencies, streams, masks and the log-probability at the temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nemo_mtdrive.rollout.sampling import LARGEST_UNIFORM, sample, uniforms

NOTHING = torch.zeros(6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_follow_the_tempered_probabilities(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -0.5, 1.1])
    forbidden = NOTHING.clone()
    forbidden[3] = -torch.inf
    rows, steps = 50, 400
    numbers = torch.from_numpy(uniforms(list(range(rows)), steps))
    drawn = torch.cat(
        [sample(logits.expand(rows, 6), forbidden, temperature, numbers[:, step])[0] for step in range(steps)]
    )
    expected = torch.softmax((logits + forbidden).double() / temperature, 0).numpy() * len(drawn)
    counts = np.bincount(drawn.numpy(), minlength=6)
    assert counts[3] == 0
    kept = expected > 0
    assert stats.chisquare(counts[kept], expected[kept]).pvalue > 0.01


@pytest.mark.parametrize(("top_p", "kept"), [(1e-6, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.97, 5), (1.0, 5)])
def test_a_nucleus_is_the_fewest_tokens_that_have_the_mass(top_p, kept):
    """Of 0.5, 0.3, 0.1, 0.06, 0.04 in a row and backwards in the next; drawn as often as their shares of the nucleus say."""
    masses = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04, 0.0])
    logits, draws = torch.stack((masses, masses.flip(0))).log(), 4000
    numbers = torch.from_numpy(uniforms([1, 2], draws))
    drawn = torch.stack([sample(logits, NOTHING, 1.0, numbers[:, step], top_p)[0] for step in range(draws)], 1)
    shares = masses[:kept].double().numpy() / masses[:kept].double().sum().item()
    for row in (drawn[0], 5 - drawn[1]):
        counts = np.bincount(row.numpy(), minlength=6)
        assert counts[kept:].sum() == 0
        assert kept == 1 or stats.chisquare(counts[:kept], shares * draws).pvalue > 0.01


def test_tokens_that_are_alike_fill_the_nucleus_in_the_order_of_their_ids_and_forbidden_ones_have_no_mass():
    forbidden = NOTHING.clone()
    forbidden[0] = -torch.inf
    numbers = torch.linspace(0.0, LARGEST_UNIFORM, 50, dtype=torch.float64)
    tokens, logprobs = sample(torch.zeros(50, 6), forbidden, 1.0, numbers, top_p=0.5)
    assert sorted(set(tokens.tolist())) == [1, 2, 3]  # 3 of 5 have at least half
    torch.testing.assert_close(logprobs, torch.full((50,), 1 / 6).log())  # of the whole softmax


def test_logprobs_are_those_of_the_unmasked_model_at_the_temperature():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    forbidden = NOTHING.clone()
    forbidden[0] = -torch.inf
    for temperature in (0.0, 0.3, 2.0):
        tokens, logprobs = sample(logits, forbidden, temperature, torch.full((4,), 0.4, dtype=torch.float64))
        expected = (logits / (temperature or 1.0)).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=0)


def test_greedy_takes_the_best_allowed_token():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0, 0.0, 0.0]])
    forbidden = NOTHING.clone()
    forbidden[1] = -torch.inf
    assert sample(logits, forbidden, 0.0, None)[0].tolist() == [2]


@pytest.mark.parametrize("number", [0.0, LARGEST_UNIFORM])
def test_the_ends_of_the_unit_interval_never_reach_a_masked_token(number):
    """Masked tokens at both ends of the vocabulary, and totals that round: still a token with probability."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 5000, generator=generator) * 5
    forbidden = torch.zeros(5000)
    forbidden[:7] = forbidden[-9:] = -torch.inf
    tokens, _ = sample(logits, forbidden, 1.0, torch.full((64,), number, dtype=torch.float64))
    assert tokens.min() >= 7 and tokens.max() < 5000 - 9


def test_a_row_of_numbers_depends_on_its_seed_alone():
    together = uniforms([5, 6, 5], 10)
    assert together[0].tolist() == together[2].tolist() == uniforms([5], 10)[0].tolist()
    assert together[0].tolist() != together[1].tolist()
    assert uniforms([5], 20)[0, :10].tolist() == together[0].tolist()  # nor on how many are drawn


def test_sampling_without_numbers_is_refused():
    with pytest.raises(ValueError, match="needs a random number for each row"):
        sample(torch.zeros(1, 6), NOTHING, 1.0, None)
