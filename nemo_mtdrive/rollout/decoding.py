"""The decode loop of the native engine: one token a step for every running row, until all have stopped.

Row r of the loop is slot r of the cache. Rows that have stopped stay in the batch (their results are frozen) until so
many have stopped that it pays to move them behind the running ones and go on with a smaller batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_mtdrive.rollout.native_cache import SlotCache
from nemo_mtdrive.rollout.native_model import NativeModel
from nemo_mtdrive.rollout.sampling import sample

COMPACT_AT = 0.75
"""The batch is compacted when at most this part of its rows still runs (a move costs about as much as a few steps)."""


@dataclass
class DecodedRow:
    """What one row has written, and the slot where its cache is now."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    slot: int


class Decoding:
    """State of the running rows, in vectors of length B that shrink when the batch is compacted."""

    def __init__(
        self,
        model: NativeModel,
        cache: SlotCache,
        *,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> None:
        """`tokens` [B] are fed first; `lengths` [B] tokens are cached; text position = length + `offsets` [B]."""
        self._model, self._cache = model, cache
        device = model.device
        self._token = torch.from_numpy(tokens).to(device)
        self._length = torch.from_numpy(lengths).to(device)
        self._offset = torch.from_numpy(offsets).to(device)
        self._row = torch.arange(len(tokens), device=device)
        self._name = np.arange(len(tokens))
        """[B] which row of the call each running row is (they move when the batch is compacted)."""
        self._longest = int(lengths.max())

    def run(
        self, stop_token: int, forbidden: Tensor, max_new_tokens: int, temperature: float, numbers: Tensor | None,
        top_p: float = 1.0,
    ) -> list[DecodedRow]:
        """Decode until every row has written `stop_token` or `max_new_tokens`; results in the order of the call.

        `numbers` [B, max_new_tokens]: uniform random numbers, one a token; None when greedy.
        """
        rows = len(self._name)
        done: list[DecodedRow | None] = [None] * rows
        tokens = torch.zeros((rows, max_new_tokens), dtype=torch.int64, device=self._model.device)
        logprobs = torch.zeros((rows, max_new_tokens), device=self._model.device)
        count = torch.zeros(rows, dtype=torch.int64, device=self._model.device)
        running = torch.ones(rows, dtype=torch.bool, device=self._model.device)
        for step in range(max_new_tokens):
            logits = self._step(running)
            draw = None if numbers is None else numbers[:, step]
            self._token, logprobs[:, step] = sample(logits, forbidden, temperature, draw, top_p)
            tokens[:, step] = self._token
            count += running
            running &= self._token != stop_token
            left = int(running.sum())
            if left and left > COMPACT_AT * len(self._name):
                continue
            order = self._move_running_to_front(running.cpu().numpy())
            tokens, logprobs, count, running = tokens[order], logprobs[order], count[order], running[order]
            self._harvest(done, tokens, logprobs, count, first=left)
            tokens, logprobs, count, running = tokens[:left], logprobs[:left], count[:left], running[:left]
            numbers = None if numbers is None else numbers[order[:left]]
            if not left:
                break
        self._harvest(done, tokens, logprobs, count, first=0)
        return [row for row in done if row is not None]

    def _step(self, running: Tensor) -> Tensor:
        """Feed each row's token, return the next logits [B, V]; rows that stopped write behind their end and stay."""
        batch = len(self._name)
        where = self._length.unsqueeze(1)
        seen = torch.arange(self._longest + 1, device=self._model.device)
        mask = torch.zeros((batch, 1, 1, len(seen)), dtype=self._model.dtype, device=self._model.device)
        mask.masked_fill_((seen > where).view(batch, 1, 1, -1), -torch.inf)
        hidden = self._model.embed(self._token.unsqueeze(1))
        rotary = self._model.rotary(where + self._offset.unsqueeze(1))
        write = (self._row.unsqueeze(1), where)
        hidden = self._model.forward(hidden, rotary, mask, self._cache, slice(0, batch), write)
        self._length = self._length + running
        self._longest += 1
        return self._model.logits(hidden[:, 0])

    def _move_running_to_front(self, running: NDArray[np.bool_]) -> Tensor:
        """Swap slots so that running rows come first; returns the order [B] of the old rows and shrinks the state."""
        left = int(running.sum())
        order = np.arange(len(running))
        holes = [row for row in range(left) if not running[row]]
        movers = [row for row in range(left, len(running)) if running[row]]
        for hole, mover in zip(holes, movers, strict=True):
            self._cache.swap(hole, mover, self._longest)
            order[[hole, mover]] = order[[mover, hole]]
        self._name = self._name[order]
        picked = torch.from_numpy(order).to(self._model.device)
        kept = picked[:left]
        self._token, self._length, self._offset = self._token[kept], self._length[kept], self._offset[kept]
        self._row = self._row[:left]
        if left:
            self._longest = int(self._length.max())
        return picked

    def _harvest(
        self, done: list[DecodedRow | None], tokens: Tensor, logprobs: Tensor, count: Tensor, first: int
    ) -> None:
        """Store the results of rows `first`.. and drop them from the list of names."""
        written, ids, scores = count.cpu().numpy(), tokens.cpu().numpy(), logprobs.cpu().numpy()
        for slot in range(first, len(self._name)):
            length = written[slot]
            done[self._name[slot]] = DecodedRow(
                ids[slot, :length].astype(np.int32), scores[slot, :length].astype(np.float32), slot
            )
        self._name = self._name[:first]
