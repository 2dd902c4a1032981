"""Conversations of different lengths and shared images -> packed micro-batches, dealt evenly to the data-parallel ranks.

A micro-batch is one row of S conversations, T tokens in all and no padding (`models.packing`), with U different images:
tokens [1, T] int64, positions [3, 1, T] int64 (mRoPE, from 0 in each conversation), segments [S + 1] int32 (their bounds),
mask [1, T] bool (tokens to learn from), pixel_values [N, 1176] fp32 and image_grid_thw [U, 3] of the different images in
order of first use, image_index [runs] int64: which of them feeds each placeholder run of the row in order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypeVar

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


Record = TypeVar("Record", bound=Any)


def balance(lengths: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Indices of the sequences in each micro-batch of each data-parallel rank: [ranks][micro-batches][sequences].

    Neighbours stay together (the rollouts of a scene share its image, which is encoded once a micro-batch). With L the
    longest sequence, a rank has at most the mean and L tokens, and at least the mean less L where no rank has a single
    sequence; every rank has the same number of micro-batches, or one a sequence where it has fewer sequences than that. A
    micro-batch has at most `budget` tokens, unless one sequence alone has more. Ranks beyond the number of sequences have
    none. The same arguments give the same answer.
    """
    shares = _deal(lengths, ranks)
    count = max(len(_fill(share, lengths, budget)) for share in shares)
    return [_even(share, lengths, budget, count) for share in shares]


def _deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Cut the row of sequences into a part a rank, each cut where the tokens before it are nearest to even."""
    count = len(lengths)
    if count <= ranks:
        return [[index] for index in range(count)] + [[] for _ in range(ranks - count)]
    before = [0, *accumulate(lengths)]
    cuts = [0]
    for rank in range(1, ranks):
        ideal = before[-1] * rank / ranks
        after = bisect_left(before, ideal)
        nearest = after if before[after] - ideal < ideal - before[after - 1] else after - 1
        cuts.append(max(cuts[-1] + 1, min(nearest, count - (ranks - rank))))  # nobody goes without
    return [list(range(start, stop)) for start, stop in pairwise([*cuts, count])]


def _fill(share: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """One micro-batch after the other up to `capacity` tokens: the fewest that neighbours can be in."""
    filled: list[list[int]] = []
    room = -1
    for index in share:
        if lengths[index] > room:
            filled.append([])
            room = capacity
        filled[-1].append(index)
        room -= lengths[index]
    return filled


def _even(share: Sequence[int], lengths: Sequence[int], budget: int, count: int) -> list[list[int]]:
    """`count` micro-batches, the largest as small as can be; fewer only where there are fewer sequences."""
    capacities = range(budget + 1)
    smallest = bisect_left(capacities, True, key=lambda capacity: len(_fill(share, lengths, capacity)) <= count)
    parts = _fill(share, lengths, smallest)
    while len(parts) < min(count, len(share)):  # ties: [5, 5, 5, 5] in three parts
        largest = max((part for part in parts if len(part) > 1), key=lambda part: sum(lengths[index] for index in part))
        at = parts.index(largest)
        parts[at:at + 1] = [largest[:len(largest) // 2], largest[len(largest) // 2:]]
    return parts


def silent(sequence: Record) -> Record:
    """A sequence of which nothing is learned: what a data-parallel rank runs that would have none, since all take part."""
    return replace(sequence, turn_of_token=np.full_like(sequence.turn_of_token, NOT_OURS))


def joined(rows: Iterable[NDArray[np.generic]], dtype: torch.dtype) -> Tensor:
    """Numbers a token of each sequence, [T_i] -> the packed row [1, T]."""
    return torch.from_numpy(np.concatenate(list(rows)))[None].to(dtype)


def build_micro_batch(sequences: Sequence[Tokens], images: Callable[[str], Payload] | None, tokenizer: Tokenizer,
                      device: torch.device) -> MicroBatch:
    """The tensors of a micro-batch on the device; see the module's docstring. Each different image goes in once.

    With `images` None the pixels are left out: `pictures` has them.
    """
    grids = {key: grid for s in sequences for key, grid in zip(s.image_keys, s.image_grids, strict=True)}
    place = {key: number for number, key in enumerate(grids)}
    positions = [mrope_positions(s.tokens, s.image_grids, tokenizer.image_pad, tokenizer.vision_start) for s in sequences]
    batch = {
        "tokens": joined((s.tokens for s in sequences), torch.int64),
        "positions": torch.from_numpy(np.concatenate(positions, axis=1)).to(torch.int64)[:, None],
        "segments": torch.tensor([0, *accumulate(len(s.tokens) for s in sequences)], dtype=torch.int32),
        "mask": joined((s.turn_of_token != NOT_OURS for s in sequences), torch.bool),
        "image_grid_thw": torch.tensor(list(grids.values()), dtype=torch.int64).reshape(-1, 3),
        "image_index": torch.tensor([place[key] for s in sequences for key in s.image_keys], dtype=torch.int64),
    }
    on_device = {name: tensor.to(device) for name, tensor in batch.items()}
    if images is None:
        return on_device
    return on_device | {"pixel_values": pixel_values([images(key) for key in grids], device)}
