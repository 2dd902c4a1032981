"""The native engine: Qwen2.5-VL with a kept KV cache, inside the training environment (no vLLM, no GPU needed).

A prompt is computed once, when it is added, and copied to the episodes of its scene. Tokens that arrive later wait and
are computed together at the next `generate`, which then decodes all its sequences in step, each at its own length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.rollout.decoding import Decoding
from nemo_mtdrive.rollout.engine import EngineError, Generated
from nemo_mtdrive.rollout.engine_checks import (
    check_call,
    check_extension,
    check_none_alive,
    check_prompt,
    check_room,
    check_stop_token,
    checked_weights,
)
from nemo_mtdrive.rollout.native_cache import SlotCache
from nemo_mtdrive.rollout.native_model import NativeModel
from nemo_mtdrive.rollout.sampling import uniforms
from nemo_mtdrive.transfer.images import grid_of, patchify

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig


@dataclass
class _Sequence:
    """What is known of one sequence; its keys and values are in the cache at `slot`."""

    slot: int
    cached: int
    """Tokens whose keys and values are in the cache."""
    pending: NDArray[np.int64]
    """Tokens that follow them and are not computed yet: never empty, its last one starts the next answer."""
    offset: int
    """Rotary position of text token n is n + offset (an image takes fewer positions than tokens)."""

    @property
    def length(self) -> int:
        return self.cached + len(self.pending)


class NativeEngine:
    """`rollout.engine.Engine` over `NativeModel` and `SlotCache`."""

    def __init__(
        self,
        config: Qwen2_5_VLConfig | Mapping[str, Any],
        *,
        stop_token: int,
        forbidden_tokens: Sequence[int],
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
        prefill_tokens: int,
        top_p: float = 1.0,
    ) -> None:
        """An engine without weights: call `load_weights` before `generate`.

        `stop_token` is <|im_end|>; `forbidden_tokens` are never sampled (`Tokenizer.forbidden`); `prefill_tokens` is
        the most tokens, padding included, that one pass over waiting tokens computes (bounds its memory); answers are
        drawn from the most probable tokens that have `top_p` of the mass.
        """
        self._model = NativeModel(config, max_context, dtype, device)
        self._device = device
        hf = self._model.config
        self._image_token, self._vision_start = hf.image_token_id, hf.vision_start_token_id
        self._merge = hf.vision_config.spatial_merge_size
        self._stop_token = stop_token
        self._forbidden = torch.zeros(hf.vocab_size, device=device)
        self._forbidden[torch.as_tensor(sorted(forbidden_tokens), dtype=torch.long)] = -torch.inf
        check_stop_token(stop_token, forbidden_tokens)
        self._max_context = max_context
        self._prefill_tokens = prefill_tokens
        self._top_p = top_p
        self._cache = SlotCache(
            hf.num_hidden_layers, self._model.kv_heads, self._model.head_dim, dtype=dtype, device=device
        )
        self._sequences: dict[str, _Sequence] = {}
        self._version: int | None = None

    @property
    def version(self) -> int | None:
        """Policy version of the loaded weights; None before the first load or after a load that failed."""
        return self._version

    @property
    def max_context(self) -> int:
        """Most tokens that one sequence may hold, answers included."""
        return self._max_context

    @property
    def cache_bytes(self) -> int:
        """Memory held by keys and values."""
        return self._cache.bytes

    def length(self, sequence_id: str) -> int:
        """Tokens of the sequence so far."""
        return self._sequence(sequence_id).length

    @torch.inference_mode()
    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        """Open sequences that share one prompt; see `Engine.add`."""
        self._require_weights()
        check_prompt(sequence_ids, self._sequences, tokens, image, self._image_token, self._max_context)
        ids = np.asarray(tokens, dtype=np.int64)
        hidden, positions = self._open_prompt(ids, image)

        slots = self._free_slots(len(sequence_ids))
        # the last token is left pending: it starts the first answer, in the same step for all sequences
        shared = len(ids) - 1
        self._cache.reserve(max(slots) + 1, len(ids))
        self._prefill(slots[:1], hidden[:, :shared], positions[:, :, :shared], start=[0])
        self._cache.copy(slots[0], slots[1:], shared)
        offset = int(positions[0, 0, -1]) - shared
        for name, slot in zip(sequence_ids, slots, strict=True):
            self._sequences[name] = _Sequence(slot, cached=shared, pending=ids[shared:], offset=offset)

    def extend(self, sequence_id: str, tokens: NDArray[np.int32]) -> None:
        """Append tokens that the model did not write; see `Engine.extend`."""
        sequence = self._sequence(sequence_id)
        ids = np.asarray(tokens, dtype=np.int64)
        check_extension(sequence_id, sequence.length, ids, self._image_token, self._max_context)
        sequence.pending = np.concatenate((sequence.pending, ids))

    @torch.inference_mode()
    def generate(
        self, sequence_ids: Sequence[str], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> dict[str, Generated]:
        """Let the sequences write one answer each; see `Engine.generate`."""
        self._require_weights()
        check_call(sequence_ids, max_new_tokens, temperature, seeds)
        if not sequence_ids:
            return {}
        sequences = [self._sequence(name) for name in sequence_ids]
        longest = max(sequence.length for sequence in sequences)
        check_room(longest, max_new_tokens, self._max_context)
        self._cache.reserve(0, longest + max_new_tokens)
        self._prefill_pending(sequences)
        self._bring_to_front(sequences)
        numbers = None
        if temperature > 0.0:
            numbers = torch.from_numpy(uniforms(seeds, max_new_tokens)).to(self._device)
        decoding = Decoding(
            self._model,
            self._cache,
            tokens=np.array([sequence.pending[0] for sequence in sequences]),
            lengths=np.array([sequence.cached for sequence in sequences]),
            offsets=np.array([sequence.offset for sequence in sequences]),
        )
        rows = decoding.run(self._stop_token, self._forbidden, max_new_tokens, temperature, numbers, self._top_p)
        answers = {}
        for name, sequence, row in zip(sequence_ids, sequences, rows, strict=True):
            # the last token of the answer is sampled but not computed yet: it waits for the next turn
            sequence.slot = row.slot
            sequence.cached += len(row.tokens)
            sequence.pending = row.tokens[-1:].astype(np.int64)
            answers[name] = Generated(row.tokens, row.logprobs)
        return answers

    def remove(self, sequence_ids: Iterable[str]) -> None:
        """Forget the sequences; see `Engine.remove`."""
        for name in sequence_ids:
            self._sequence(name)
            del self._sequences[name]

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace every weight in place; see `Engine.load_weights`."""
        check_none_alive(self._sequences, "new weights, their cache belongs to the old policy")
        self._version = None
        self._cache.reset()
        targets = self._model.named_weights()
        for name, tensor in checked_weights(weights, {name: target.shape for name, target in targets.items()}):
            targets[name].copy_(tensor)
        self._version = version

    def sleep(self) -> None:
        """Free the cache; see `Engine.sleep`. The weights stay: use vLLM where the trainer shares a GPU and needs theirs."""
        check_none_alive(self._sequences, "sleep")
        self._cache.reset()

    def wake_up(self) -> None:
        """See `Engine.wake_up`: memory is taken again as sequences need it."""

    def close(self) -> None:
        """See `Engine.close`: there is nothing but memory."""

    def _require_weights(self) -> None:
        if self._version is None:
            raise EngineError("the engine has no (complete) weights: call load_weights first")

    def _sequence(self, name: str) -> _Sequence:
        try:
            return self._sequences[name]
        except KeyError:
            raise EngineError(f"no sequence {name!r}: add() it first") from None

    def _free_slots(self, count: int) -> list[int]:
        """The lowest slots that no sequence holds; beyond those allocated if need be."""
        held = {sequence.slot for sequence in self._sequences.values()}
        return [slot for slot in range(len(held) + count) if slot not in held][:count]

    def _open_prompt(self, ids: NDArray[np.int64], image: NDArray[np.uint8] | None) -> tuple[Tensor, Tensor]:
        """Embeddings [1, n, hidden] with the image in its placeholders, and positions [3, 1, n]."""
        places = np.flatnonzero(ids == self._image_token)
        tokens = torch.from_numpy(ids).to(self._device)
        hidden = self._model.embed(tokens)
        grids: list[tuple[int, int, int]] = []
        if image is not None:
            with torch.inference_mode(False):  # patchify keeps a table that a trainer in this process shares
                pixels, grid = patchify([image], self._device)
            grids = [grid_of(image)]
            hidden[torch.from_numpy(places).to(self._device)] = self._model.encode_image(pixels, grid)
        positions = mrope_positions(ids, grids, self._image_token, self._vision_start, self._merge)
        return hidden.unsqueeze(0), torch.from_numpy(np.ascontiguousarray(positions)).to(self._device).unsqueeze(1)

    def _prefill(self, slots: Sequence[int], hidden: Tensor, positions: Tensor, start: Sequence[int]) -> None:
        """Write keys and values of [B, M] new tokens that follow `start` cached ones; rows may be padded at the end.

        Padding writes behind the end of its row, where the next tokens overwrite it before anything reads it.
        """
        new = hidden.shape[1]
        first = torch.tensor(start, device=self._device).unsqueeze(1)
        where = first + torch.arange(new, device=self._device)  # [B, M]
        seen = torch.arange(max(start) + new, device=self._device)
        mask = torch.zeros((len(slots), 1, new, len(seen)), dtype=hidden.dtype, device=self._device)
        mask.masked_fill_((seen > where.unsqueeze(-1)).unsqueeze(1), -torch.inf)
        rows = torch.tensor(list(slots), device=self._device)
        write = (rows.unsqueeze(1).expand_as(where), where)
        self._model.forward(hidden, self._model.rotary(positions), mask, self._cache, rows, write)

    def _prefill_pending(self, sequences: Sequence[_Sequence]) -> None:
        """Compute all pending tokens but the last, in padded batches of rows of similar length."""
        waiting = sorted((s for s in sequences if len(s.pending) > 1), key=lambda s: (len(s.pending), s.slot))
        while waiting:
            width = len(waiting[-1].pending) - 1
            count = max(1, self._prefill_tokens // width)
            batch, waiting = waiting[-count:], waiting[:-count]
            self._cache.reserve(0, max(s.cached for s in batch) + width)
            tokens = np.zeros((len(batch), width), dtype=np.int64)
            for row, sequence in zip(tokens, batch, strict=True):
                row[: len(sequence.pending) - 1] = sequence.pending[:-1]
            start = np.array([s.cached for s in batch])
            offset = np.array([s.offset for s in batch])
            # padding of a long row that waits beside a longer wait would point behind the last position there is
            places = np.minimum((start + offset)[:, None] + np.arange(width), self._max_context - 1)
            positions = torch.from_numpy(places).to(self._device)
            hidden = self._model.embed(torch.from_numpy(tokens).to(self._device))
            self._prefill([s.slot for s in batch], hidden, positions, start.tolist())
            for sequence in batch:
                sequence.cached += len(sequence.pending) - 1
                sequence.pending = sequence.pending[-1:]

    def _bring_to_front(self, sequences: Sequence[_Sequence]) -> None:
        """Reorder slots so that row r is slot r: decoding then reads the cache in place instead of gathering it."""
        holder = {sequence.slot: sequence for sequence in self._sequences.values()}
        for row, sequence in enumerate(sequences):
            if sequence.slot == row:
                continue
            other = holder.get(row)
            self._cache.swap(row, sequence.slot, max(sequence.cached, other.cached if other else 0))
            if other is not None:
                other.slot, holder[sequence.slot] = sequence.slot, other
            else:
                holder.pop(sequence.slot)
            sequence.slot, holder[row] = row, sequence
