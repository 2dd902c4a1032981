"""What a rollout needs of an inference engine: sequences that keep their cache, and tokens in, tokens out.

An engine never sees text. A sequence is opened with a prompt (`add`, one prompt for all episodes of a scene), grows by
the user's turns (`extend`) and by its own answers (`generate`), and is dropped (`remove`) when its episode ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class EngineError(RuntimeError):
    """A call that the engine cannot serve: the message says what was got and what to do."""


class WeightsError(EngineError):
    """Weights that do not fit the model: an unknown, missing or repeated name, or a wrong shape."""


class Generated(NamedTuple):
    """One answer of the model."""

    tokens: NDArray[np.int32]
    """[n] sampled ids; the last one is <|im_end|> unless the answer was cut at `max_new_tokens`."""
    logprobs: NDArray[np.float32]
    """[n] log p of each token at the call's temperature (1 where that is 0), nothing masked: as the trainer computes it."""


class Engine(Protocol):
    """An inference engine: `rollout.native.NativeEngine` in the training environment, `rollout.vllm.VLLMEngine` in its own.

    Both refuse the same requests in the same words (`rollout.engine_checks`).
    """

    @property
    def version(self) -> int | None:
        """Policy version of the loaded weights; None before the first load or after a load that failed."""

    @property
    def max_context(self) -> int:
        """Most tokens that one sequence may hold, answers included."""

    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        """Open sequences that share one prompt (computed once).

        `tokens` [n] hold the image's placeholders expanded; `image` is uint8 RGB [H, W, 3], sides multiples of 28.
        Raises EngineError for a known id, an empty or too long prompt, or placeholders that do not fit the image.
        """

    def extend(self, sequence_id: str, tokens: NDArray[np.int32]) -> None:
        """Append tokens that the model did not write (text only); computed with the next `generate`."""

    def generate(
        self, sequence_ids: Sequence[str], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> dict[str, Generated]:
        """Let the sequences write until <|im_end|> or `max_new_tokens`; the cache is kept for the next turn.

        `temperature` 0 is greedy. Each sequence samples from its own stream, made from its seed, so its answer does not
        depend on the others in the batch beyond float noise.
        """

    def remove(self, sequence_ids: Iterable[str]) -> None:
        """Forget the sequences and free their cache."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace every weight in place from (HF name, tensor) pairs, in any order.

        Raises EngineError while sequences are alive (their cache would be of the old policy) and WeightsError for a
        set that does not fit; after a WeightsError the engine refuses to generate until a load succeeds.
        """

    def sleep(self) -> None:
        """Give the memory of all caches back, and on a GPU that of the weights too (they wait in host memory), so that
        a trainer on the same device can have it. `add` and `load_weights` wake the engine.

        Raises EngineError while sequences are alive.
        """

    def wake_up(self) -> None:
        """Take the memory again; the caches are empty. Does nothing while awake."""

    def close(self) -> None:
        """End what the engine has started. Safe to call twice; no other call may follow."""
