"""A language model that knows how a plan is written before it sees one, as a released Qwen2.5-VL knows how to count.

Of random weights it has to learn from a few thousand pictures what digits are, that eight points make a plan, that a vehicle
goes on as it came, and what the picture says, all from the same tokens. So it first reads conversations without a picture
about vehicles that nobody has seen (`data.motions`), every token of them, each once. The tower is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_mtdrive.algorithms.batch import build_micro_batch
from nemo_mtdrive.algorithms.policy import MicroBatch
from nemo_mtdrive.algorithms.resumable import ResumableTraining
from nemo_mtdrive.config_pretraining import LanguageConfig
from nemo_mtdrive.data.datasets import TokenSequence
from nemo_mtdrive.data.motions import talk
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.types import NOT_OURS

TRAINED, MEASURED = 0, 1
"""Streams of conversations: those that are learned from, and others."""


class LanguagePretraining(ResumableTraining):
    """Trains a language model on drawn conversations; what a step draws depends on its number alone.

    Args:
        network: all but its parameters named `vision_...` are trained.
        logprobs: micro-batch -> [n] the network's log p of the tokens in its mask.
        settings, seed: of the training.
    """

    def __init__(self, network: torch.nn.Module, logprobs: Callable[[MicroBatch], Tensor], tokenizer: Tokenizer,
                 settings: LanguageConfig, seed: int) -> None:
        self._logprobs, self._tokenizer = logprobs, tokenizer
        self._settings, self._seed = settings, seed
        trained = {name: value for name, value in network.named_parameters() if not name.startswith("vision_")}
        super().__init__(trained, settings.steps, settings.lr, settings.warmup_steps, settings.weight_decay)

    def train_step(self) -> float:
        """One optimizer step on the next conversations; returns their cross entropy [nats a token]."""
        return self.update(self._cross_entropy(self._draw(TRAINED, self.step)))

    @torch.no_grad()
    def measure(self) -> float:
        """Cross entropy [nats a token] of conversations that are not learned from."""
        count = -(-self._settings.measured // self._settings.batch_size)
        return float(np.mean([float(self._cross_entropy(self._draw(MEASURED, number))) for number in range(count)]))

    def _draw(self, stream: int, number: int) -> list[TokenSequence]:
        rng = np.random.default_rng((self._seed, stream, number))
        return [self._sequence(rng) for _ in range(self._settings.batch_size)]

    def _sequence(self, rng: np.random.Generator) -> TokenSequence:
        drawn = talk(rng)
        tokens = np.asarray(encode_dialogue(self._tokenizer, drawn.question, None, drawn.turns).tokens, dtype=np.int32)
        learned = np.zeros(len(tokens), dtype=np.int16)
        learned[0] = NOT_OURS  # nothing comes before it
        return TokenSequence(tokens, learned, (), ())

    def _cross_entropy(self, sequences: Sequence[TokenSequence]) -> Tensor:
        return -self._logprobs(build_micro_batch(sequences, None, self._tokenizer, self.device)).mean()
