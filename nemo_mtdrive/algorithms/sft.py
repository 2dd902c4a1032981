"""SFT cold start (Section 3.2): cross entropy on the last answer of single-turn and two-turn conversations."""

from __future__ import annotations

import math

from torch import Tensor

from nemo_mtdrive.algorithms.batch import build_micro_batch, pack
from nemo_mtdrive.algorithms.loss import sft_loss
from nemo_mtdrive.algorithms.policy import DataShare, MicroBatch, Policy
from nemo_mtdrive.config import SFTConfig
from nemo_mtdrive.data.datasets import SFTDataset, TokenSequence
from nemo_mtdrive.data.sampler import EpochSampler
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.telemetry.timers import StepTimers
from nemo_mtdrive.types import NOT_OURS


def learning_rate(step: int, settings: SFTConfig) -> float:
    """Linear warm-up to `lr`, then a cosine to a hundredth of it at the last step."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done)))


class SFTTrainer:
    """One optimizer step at a time; what a step draws depends on its number alone, so a resumed run is the same run."""

    def __init__(self, settings: SFTConfig, policy: Policy, share: DataShare, dataset: SFTDataset,
                 tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._policy = policy
        self._share = share
        self._dataset = dataset
        self._tokenizer = tokenizer
        pools = [dataset.indices("single_turn"), dataset.indices("multi_turn")]
        shares = [1.0 - settings.two_turn_share, settings.two_turn_share]
        found = [(pool, share) for pool, share in zip(pools, shares, strict=True) if pool and share > 0]
        whole = sum(share for _, share in found)
        counts = [round(settings.batch_size * share / whole) for _, share in found]
        counts[0] = settings.batch_size - sum(counts[1:])
        self._draws = [(pool, count, EpochSampler(len(pool), settings.seed + kind))
                       for kind, ((pool, _), count) in enumerate(zip(found, counts, strict=True))]

    def step(self, step: int) -> dict[str, float]:
        """Train on the global batch of this step; returns its metrics."""
        timers = StepTimers()
        with timers("batch"):
            sequences = self._draw(step)
            learned = sum(int((s.turn_of_token != NOT_OURS).sum()) for s in sequences)
            micro_batches = self._micro_batches(sequences)
        with timers("update"):
            self._policy.temperature = 1.0
            self._policy.set_lr(learning_rate(step, self._settings))
            self._policy.loss_function = lambda logprobs, batch: self._loss(logprobs, batch, learned)
            self._policy.prepare_for_training_step()
            loss, metrics = self._policy.get_loss_and_metrics(micro_batches, forward_only=False)
            grad_norm = self._policy.finish_training_step()
        return {"loss": loss, "grad_norm": grad_norm, "lr": learning_rate(step, self._settings),
                "tokens": float(sum(len(s.tokens) for s in sequences)), "samples": float(len(sequences)),
                **metrics, **timers.collect()}

    def _draw(self, step: int) -> list[TokenSequence]:
        return [self._dataset[pool[index]] for pool, count, sampler in self._draws
                for index in sampler.take(step * count, count)]

    def _micro_batches(self, sequences: list[TokenSequence]) -> list[MicroBatch]:
        """This data rank's share: conversations of like length together, micro-batches dealt to the ranks."""
        chunks = pack([len(s.tokens) for s in sequences], self._settings.micro_batch_tokens)
        while len(chunks) < self._share.size:  # every rank takes part
            longest = max(chunks, key=len)
            chunks += [longest[len(longest) // 2:]]
            del longest[len(longest) // 2:]
        return [build_micro_batch([sequences[i] for i in chunk], self._dataset.image, self._tokenizer, self._share.device)
                for chunk in chunks[self._share.rank::self._share.size]]

    @staticmethod
    def _loss(logprobs: Tensor, batch: MicroBatch, learned: int) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(logprobs, batch["mask"], learned), {}
