"""Supervised fine-tuning (Section 3.2): cross entropy on the answers of single-turn, multi-turn and understanding data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from nemo_mtdrive.algorithms.batch import balance, build_micro_batch, silent
from nemo_mtdrive.algorithms.loss import sft_loss
from nemo_mtdrive.algorithms.policy import DataShare, MicroBatch, Policy
from nemo_mtdrive.algorithms.schedule import learning_rate
from nemo_mtdrive.algorithms.updates import DumpPlace, Updates
from nemo_mtdrive.config import SFTConfig
from nemo_mtdrive.data.datasets import DataError, SFTDataset, TokenSequence
from nemo_mtdrive.data.sampler import MixedSampler
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.telemetry.timers import StepTimers
from nemo_mtdrive.types import NOT_OURS

LR_END = 0.01
"""Of its rate, at the end of each stage."""


@dataclass(frozen=True)
class Stage:
    """A stretch of steps on one mixture of data."""

    first_step: int
    steps: int
    sampler: MixedSampler
    lr: float


@dataclass(frozen=True)
class GlobalBatch:
    """What all data ranks train on in a step, and this one's part."""

    step: int
    sequences: list[TokenSequence]
    mine: list[list[TokenSequence]]
    """Micro-batches of this data rank."""


def plan_stages(settings: SFTConfig, dataset: SFTDataset) -> list[Stage]:
    """The stages of a config on the data that is there, one after another.

    Raises:
        DataError: a stage wants a kind of data that is not there.
    """
    kinds, stages = dataset.kinds(), list[Stage]()
    for number, wanted in enumerate(settings.stages):
        weights = {kind: weight for kind, weight in wanted.kinds.items() if weight} or dict.fromkeys(kinds, 1.0)
        missing = sorted(weights.keys() - kinds.keys())
        if missing:
            raise DataError(f"sft.stages[{number}]: no {' or '.join(missing)} data; there is {', '.join(sorted(kinds))}")
        names = sorted(weights)
        pools, shares = [kinds[name] for name in names], [weights[name] for name in names]
        sampler = MixedSampler(pools, shares, settings.seed + 100 * number)
        steps = wanted.steps or math.ceil(wanted.epochs * sampler.epoch_size / settings.batch_size)
        stages.append(Stage(sum(stage.steps for stage in stages), steps, sampler, wanted.lr or settings.lr))
    return stages


class SFTTrainer:
    """One optimizer step at a time; what a step draws depends on its number alone, so a run that was stopped in the middle
    of an epoch goes on as the same run.

    Args:
        max_tokens: conversations that are longer are left out, and counted.
        dump: where updates go whose loss or gradient is not finite.

    Raises:
        DataError: see `plan_stages`.
    """

    def __init__(self, settings: SFTConfig, policy: Policy, share: DataShare, dataset: SFTDataset,
                 tokenizer: Tokenizer, max_tokens: int, dump: DumpPlace) -> None:
        self._settings = settings
        self._policy = policy
        self._share = share
        self._dataset = dataset
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._updates = Updates("sft", policy, settings.max_skipped_updates, dump)
        self._stages = plan_stages(settings, dataset)
        self.steps = sum(stage.steps for stage in self._stages)
        """Of all stages."""
        self._early: GlobalBatch | None = None

    def step(self, step: int) -> dict[str, float]:
        """Train on the global batch of this step; returns its metrics.

        Raises:
            DataError: all its conversations are too long.
        """
        timers = StepTimers()
        number, stage = self._stage(step)
        lr = learning_rate(step - stage.first_step, stage.steps, stage.lr, self._settings.warmup_steps, LR_END)
        with timers("batch"):
            batch = self._batch(step)
            sequences, mine = batch.sequences, batch.mine
            too_long = self._settings.batch_size - len(sequences)
            learned = sum(int((s.turn_of_token != NOT_OURS).sum()) for s in sequences)
            micro_batches = [build_micro_batch(packed, self._dataset.image, self._tokenizer, self._share.device)
                             for packed in mine]
            self._read_ahead(step + 1)
        with timers("update"):
            self._policy.temperature = 1.0
            self._policy.set_lr(lr, self._settings.weight_decay)
            self._policy.loss_function = lambda logprobs, batch: self._loss(logprobs, batch, learned)
            self._policy.want_entropy = False
            contents = [[key for sequence in packed for key in sequence.image_keys] for packed in mine]
            metrics = self._updates.run(step, 0, micro_batches, contents)
        return {"lr": lr,
                "tokens": float(sum(len(s.tokens) for s in sequences)), "samples": float(len(sequences)),
                "samples_too_long": float(too_long), "stage": float(number),
                "epoch": (step + 1 - stage.first_step) * self._settings.batch_size / stage.sampler.epoch_size,
                **metrics, **timers.collect()}

    def _batch(self, step: int) -> GlobalBatch:
        if self._early is not None and self._early.step == step:
            return self._early
        sequences = self._draw(step)
        return GlobalBatch(step, sequences, self._share_of(sequences))

    def _read_ahead(self, step: int) -> None:
        """Draw a step early, so that its images are read from disk while this one computes."""
        if step < self.steps:
            self._early = self._batch(step)
            self._dataset.read_ahead({key for packed in self._early.mine for s in packed for key in s.image_keys})

    def _stage(self, step: int) -> tuple[int, Stage]:
        """The stage of a step, and its number."""
        return next((number, stage) for number, stage in enumerate(self._stages) if step < stage.first_step + stage.steps)

    def _draw(self, step: int) -> list[TokenSequence]:
        _, stage = self._stage(step)
        size = self._settings.batch_size
        drawn = [self._dataset[index] for index in stage.sampler.take((step - stage.first_step) * size, size)]
        fitting = [sequence for sequence in drawn if len(sequence.tokens) <= self._max_tokens]
        if not fitting:
            raise DataError(f"SFT step {step}: all {size} conversations have more than {self._max_tokens} tokens; set "
                            "rollout.max_context higher")
        return fitting

    def _share_of(self, sequences: list[TokenSequence]) -> list[list[TokenSequence]]:
        """This data rank's micro-batches; a rank that would have none learns nothing of the first conversation."""
        shares = balance([len(s.tokens) for s in sequences], self._settings.micro_batch_tokens, self._share.size)
        return [[sequences[i] for i in indices] for indices in shares[self._share.rank]] or [[silent(sequences[0])]]

    @staticmethod
    def _loss(logprobs: Tensor, batch: MicroBatch, learned: int) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(logprobs, batch["mask"], learned), {}
