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

from nemo_mtdrive.algorithms.policy import MicroBatch
from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.transfer.images import pixel_values
from nemo_mtdrive.types import NOT_OURS

Payload = NDArray[np.uint8] | NDArray[np.float32]
"""An image as a link delivered it: uint8 [H, W, 3], or its patches float32 [n, 1176] (the baseline)."""


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


def build_micro_batch(sequences: Sequence[Tokens], images: Callable[[str], Payload], tokenizer: Tokenizer,
                      device: torch.device) -> MicroBatch:
    """The tensors of a micro-batch on the device; see the module's docstring. Each different image goes in once."""
    grids = {key: grid for s in sequences for key, grid in zip(s.image_keys, s.image_grids, strict=True)}
    keys = list(grids)
    positions = [mrope_positions(s.tokens, s.image_grids, tokenizer.image_pad, tokenizer.vision_start) for s in sequences]
    batch = {
        "tokens": pad((s.tokens for s in sequences), torch.int64, tokenizer.end_of_text),
        "positions": torch.stack([pad((p[axis] for p in positions), torch.int64) for axis in range(3)]),
        "lengths": torch.tensor([len(s.tokens) for s in sequences]),
        "mask": pad((s.turn_of_token != NOT_OURS for s in sequences), torch.bool),
        "image_grid_thw": torch.tensor(list(grids.values()), dtype=torch.int64).reshape(-1, 3),
        "image_index": torch.tensor([keys.index(key) for s in sequences for key in s.image_keys], dtype=torch.int64),
    }
    on_device = {name: tensor.to(device) for name, tensor in batch.items()}
    return on_device | {"pixel_values": pixel_values([images(key) for key in keys], device)}
