"""Token sequences of different lengths and shared images -> the padded tensors of a micro-batch.

Shapes of a micro-batch of B sequences, padded on the right to T tokens, with U different images:
tokens [B, T] int64, positions [3, B, T] int64 (mRoPE), lengths [B], mask [B, T] bool (tokens to learn from),
pixel_values [N, 1176] fp32 and image_grid_thw [U, 3] of the different images in order of first use, image_index [runs]
int64: which of them feeds each placeholder run of the batch in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.transfer.images import patchify
from nemo_mtdrive.types import NOT_OURS

MicroBatch = dict[str, Tensor]
Image = NDArray[np.uint8]


class Tokens(Protocol):
    """A conversation to be scored: `types.Episode` and `data.datasets.TokenSequence` are both."""

    @property
    def tokens(self) -> NDArray[np.int32]: ...

    @property
    def turn_of_token(self) -> NDArray[np.int16]: ...

    @property
    def image_keys(self) -> tuple[str, ...]: ...

    @property
    def image_grids(self) -> tuple[tuple[int, int, int], ...]: ...


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of sequences that go together, longest first, so that padded tokens stay within `budget` a micro-batch.

    A sequence longer than the budget gets a micro-batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad(rows: Iterable[NDArray[np.generic]], dtype: torch.dtype, fill: float = 0) -> Tensor:
    """Rows [T_i] -> [B, max T] of `dtype`, `fill` to the right."""
    tensors = [torch.as_tensor(np.ascontiguousarray(row)).to(dtype) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def build_micro_batch(sequences: Sequence[Tokens], images: Callable[[str], Image], tokenizer: Tokenizer) -> MicroBatch:
    """The tensors of a micro-batch on the CPU; see the module's docstring. Each different image is patchified once."""
    keys = list(dict.fromkeys(key for sequence in sequences for key in sequence.image_keys))
    pixel_values, grids = patchify([images(key) for key in keys])
    positions = [mrope_positions(s.tokens, s.image_grids, tokenizer) for s in sequences]
    return {
        "tokens": pad((s.tokens for s in sequences), torch.int64, tokenizer.end_of_text),
        "positions": torch.stack([pad((p[axis] for p in positions), torch.int64) for axis in range(3)]),
        "lengths": torch.tensor([len(s.tokens) for s in sequences]),
        "mask": pad((s.turn_of_token != NOT_OURS for s in sequences), torch.bool),
        "pixel_values": pixel_values,
        "image_grid_thw": grids,
        "image_index": torch.tensor([keys.index(key) for s in sequences for key in s.image_keys], dtype=torch.int64),
    }
