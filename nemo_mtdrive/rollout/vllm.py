"""The vLLM engine: `AsyncLLM` behind the interface of the native one, in an environment of its own.

vLLM keeps no sequence between requests: each answer is a request with the whole conversation, of which its prefix cache
knows all but what is new, across the turns of an episode and across the episodes of a scene. vLLM gets the trainer's
token ids and the trainer's pixel values (`patchify`), each image as one item with one range of placeholders: nothing
is tokenized, resized or expanded a second time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.image_key import image_key
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
from nemo_mtdrive.rollout.vllm_start import engine_arguments, set_environment, write_model_directory
from nemo_mtdrive.transfer.images import patchify

if TYPE_CHECKING:
    import torch
    from vllm.inputs import MultiModalInput
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from nemo_mtdrive.config import RolloutConfig
    from nemo_mtdrive.dialogue.tokenizer import Tokenizer
    from nemo_mtdrive.rollout.vllm_weights import WeightRoute

SHUTDOWN_S = 20.0
"""How long vLLM's processes may take to end before they are killed, which leaves their shared memory behind [s]."""


class VLLMError(EngineError):
    """vLLM could not be started, or it ended."""


@dataclass(frozen=True)
class _Image:
    """An image as vLLM takes it; the sequences of a scene share it."""

    key: str
    """Of vLLM's caches: the image's content."""
    item: Any
    """vLLM's `MultiModalKwargsItem` with pixel_values [patches, 1176] and image_grid_thw."""
    place: Any
    """vLLM's `PlaceholderRange` in the prompt."""


@dataclass
class _Sequence:
    tokens: NDArray[np.int32]
    image: _Image | None


@dataclass
class CacheCounts:
    """What vLLM's prefix cache was asked for and had, in tokens, since the engine started."""

    asked: int = 0
    hit: int = 0
    images_sent: int = 0
    """Images that went to the workers as pixels; all others were known there."""


@dataclass
class _Loop:
    """An event loop in a thread of its own: AsyncLLM lives there, the engine's caller need not be asynchronous."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.loop.run_forever, name="vllm", daemon=True)
        self.thread.start()

    def call(self, work: Awaitable[Any]) -> Any:
        """Run it there and wait; an exception that ends the wait (a signal's) cancels it."""

        async def run() -> Any:
            return await work

        future = asyncio.run_coroutine_threadsafe(run(), self.loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        async def cancel_others() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.call(cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class VLLMEngine:
    """`rollout.engine.Engine` over vLLM's AsyncLLM."""

    def __init__(
        self, config: Mapping[str, Any], tokenizer: Tokenizer, rollout: RolloutConfig, device: str, max_context: int
    ) -> None:
        """Start vLLM without weights: call `load_weights` before `generate`.

        `config` is HF's config.json; `device` is "cpu", "cuda" or empty for what there is. Raises VLLMError.
        """
        self._forbidden = tokenizer.forbidden_below(config["vocab_size"]).tolist()
        self._stop_token = tokenizer.im_end
        check_stop_token(self._stop_token, self._forbidden)
        self._image_token = config["image_token_id"]
        self._max_context = max_context
        self._sequences: dict[str, _Sequence] = {}
        self._version: int | None = None
        self._asleep = self._closed = False
        self._requests = 0
        self.counts = CacheCounts()
        self._on_cpu = set_environment(rollout, device)
        self._dtype_name = rollout.dtype
        self._top_p = rollout.top_p
        self._directory = tempfile.TemporaryDirectory(prefix="mtdrive-vllm-")
        self._loop = _Loop()
        try:
            write_model_directory(Path(self._directory.name), config, tokenizer)
            self._start(rollout, config)
        except BaseException:
            self.close()
            raise

    def _start(self, rollout: RolloutConfig, config: Mapping[str, Any]) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        from nemo_mtdrive.rollout.vllm_weights import hf_weight_shapes

        self._shapes = hf_weight_shapes(config)

        async def start() -> AsyncLLM:
            arguments = engine_arguments(Path(self._directory.name), rollout, self._max_context, self._on_cpu)
            return AsyncLLM.from_engine_args(arguments)

        try:
            self._llm: AsyncLLM = self._loop.call(start())
        except (RuntimeError, ValueError, OSError) as error:
            raise VLLMError(f"vLLM did not start: {error}") from error
        self._loop.call(self._llm.collective_rpc("mtdrive_prepare", args=(os.getpid(), self._forbidden)))
        self._route = self._open_route(rollout)

    def _open_route(self, rollout: RolloutConfig) -> WeightRoute:
        import torch

        from nemo_mtdrive.rollout.vllm_weights import GPURoute, SharedMemoryRoute

        if self._on_cpu:
            return SharedMemoryRoute(self._llm, self._loop.call)
        return GPURoute(rollout.vllm.weight_transfer, self._llm, self._loop.call, self._shapes,
                        getattr(torch, rollout.dtype), rollout.vllm.tensor_parallel)

    @property
    def version(self) -> int | None:
        """Policy version of the loaded weights; None before the first load or after a load that failed."""
        return self._version

    @property
    def max_context(self) -> int:
        """Most tokens that one sequence may hold, answers included."""
        return self._max_context

    def length(self, sequence_id: str) -> int:
        """Tokens of the sequence so far."""
        return len(self._sequence(sequence_id).tokens)

    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        """Open sequences that share one prompt; see `Engine.add`. vLLM computes it with the first answer."""
        self._require_weights()
        first, count = check_prompt(
            sequence_ids, self._sequences, tokens, image, self._image_token, self._max_context)
        self.wake_up()
        shared = None if image is None else _image_input(image, first, count)
        for name in sequence_ids:
            self._sequences[name] = _Sequence(np.asarray(tokens, dtype=np.int32), shared)

    def extend(self, sequence_id: str, tokens: NDArray[np.int32]) -> None:
        """Append tokens that the model did not write; see `Engine.extend`."""
        sequence = self._sequence(sequence_id)
        check_extension(sequence_id, len(sequence.tokens), tokens, self._image_token, self._max_context)
        sequence.tokens = np.concatenate((sequence.tokens, np.asarray(tokens, dtype=np.int32)))

    def generate(
        self, sequence_ids: Sequence[str], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> dict[str, Generated]:
        """Let the sequences write one answer each; see `Engine.generate`."""
        self._require_weights()
        check_call(sequence_ids, max_new_tokens, temperature, seeds)
        if not sequence_ids:
            return {}
        sequences = [self._sequence(name) for name in sequence_ids]
        check_room(max(len(sequence.tokens) for sequence in sequences), max_new_tokens, self._max_context)
        outputs = self._call(self._ask_all(sequences, max_new_tokens, temperature, seeds))
        answers = {}
        for name, sequence, output in zip(sequence_ids, sequences, outputs, strict=True):
            answer = _generated(output)
            sequence.tokens = np.concatenate((sequence.tokens, answer.tokens))
            answers[name] = answer
            self.counts.asked += len(output.prompt_token_ids)
            self.counts.hit += output.num_cached_tokens
        return answers

    def remove(self, sequence_ids: Iterable[str]) -> None:
        """Forget the sequences; vLLM reuses their blocks as it needs them."""
        for name in sequence_ids:
            self._sequence(name)
            del self._sequences[name]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace every weight in place and forget all that the old ones computed; see `Engine.load_weights`."""
        check_none_alive(self._sequences, "new weights, their cache belongs to the old policy")
        self._version = None
        self.wake_up()
        self._route.send(checked_weights(weights, self._shapes))
        self._reset_caches()
        self._version = version

    def sleep(self) -> None:
        """Give memory back; see `Engine.sleep`. On a GPU this is vLLM's sleep mode at level 1; on a CPU, for which vLLM
        has none, the pages of the KV cache go back to the kernel."""
        check_none_alive(self._sequences, "sleep")
        if self._asleep:
            return
        self._reset_caches()
        if self._on_cpu:
            self._call(self._llm.collective_rpc("mtdrive_free_cache"))
        else:
            self._call(self._llm.sleep(level=1))
        self._asleep = True

    def wake_up(self) -> None:
        """Take the memory again; see `Engine.wake_up`."""
        if self._asleep and not self._on_cpu:
            self._call(self._llm.wake_up())
        self._asleep = False

    def close(self) -> None:
        """End vLLM's processes; see `Engine.close`."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "_route"):
            self._route.close()
            del self._route  # it holds vLLM too
        if hasattr(self, "_llm"):
            self._llm.shutdown(timeout=SHUTDOWN_S)
            del self._llm  # now, while there is still an interpreter for its finalizer
        self._loop.close()
        self._directory.cleanup()

    async def _ask_all(
        self, sequences: Sequence[_Sequence], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[RequestOutput]:
        """All requests at once; where one fails, the others are given up too."""
        tasks = [asyncio.create_task(self._ask(sequence, max_new_tokens, temperature, seed))
                 for sequence, seed in zip(sequences, seeds, strict=True)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, sequence: _Sequence, max_new_tokens: int, temperature: float, seed: int) -> RequestOutput:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = SamplingParams(
            temperature=temperature, top_p=self._top_p, seed=seed, max_tokens=max_new_tokens,
            stop_token_ids=[self._stop_token], ignore_eos=True, logprobs=0, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY)
        self._requests += 1
        final = None
        async for output in self._llm.generate(self._input(sequence), settings, f"request-{self._requests}"):
            final = output
        if final is None or not final.finished:
            raise VLLMError(f"vLLM gave up request-{self._requests} without an answer")
        return final

    def _input(self, sequence: _Sequence) -> MultiModalInput | Any:
        from vllm.inputs import mm_input, tokens_input

        ids = sequence.tokens.tolist()
        image = sequence.image
        if image is None:
            return tokens_input(ids)
        hashes, items = {"image": [image.key]}, {"image": [image.item]}
        # what the workers have already is not sent again: then the item becomes None
        self._llm.input_processor.inject_into_mm_cache(hashes, items)
        self.counts.images_sent += items["image"][0] is not None
        return mm_input(ids, items, hashes, {"image": [image.place]})

    def _reset_caches(self) -> None:
        """Prefix cache, pixel cache, encoder cache: all of them hold what the old weights made of it, or its key."""
        if not self._call(self._llm.reset_prefix_cache()):
            raise VLLMError("vLLM did not reset its prefix cache: a request is still running")
        self._call(self._llm.reset_mm_cache())
        self._call(self._llm.reset_encoder_cache())

    def _call(self, work: Awaitable[Any]) -> Any:
        """Run a coroutine of vLLM's; its own errors come as ours."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            return self._loop.call(work)
        except (EngineDeadError, EngineGenerateError) as error:
            raise VLLMError(f"vLLM failed: {error.__cause__ or error}; its log stands above") from error

    def _require_weights(self) -> None:
        if self._version is None:
            raise EngineError("the engine has no (complete) weights: call load_weights first")

    def _sequence(self, name: str) -> _Sequence:
        try:
            return self._sequences[name]
        except KeyError:
            raise EngineError(f"no sequence {name!r}: add() it first") from None


def open_vllm(hf: Mapping[str, Any], tokenizer: Tokenizer, rollout: RolloutConfig, device: str) -> VLLMEngine:
    """The engine of the rollout environment, as `model_driver.open_native` opens the native one. Raises VLLMError."""
    longest = min(rollout.max_context, hf["max_position_embeddings"])
    return VLLMEngine(hf, tokenizer, rollout, device, longest)


def _image_input(image: NDArray[np.uint8], first: int, count: int) -> _Image:
    from vllm.multimodal.inputs import (
        MultiModalFieldConfig,
        MultiModalKwargsItems,
        PlaceholderRange,
    )

    pixels, grid = patchify([image])
    fields = {"pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grid.prod(-1)),
              "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True)}
    (item,) = MultiModalKwargsItems.from_hf_inputs({"pixel_values": pixels, "image_grid_thw": grid}, fields)["image"]
    return _Image(image_key(image), item, PlaceholderRange(offset=first, length=count))


def _generated(output: RequestOutput) -> Generated:
    (answer,) = output.outputs
    tokens = np.array(answer.token_ids, dtype=np.int32)
    scored = answer.logprobs or []
    if len(scored) != len(tokens) or output.num_cached_tokens is None:
        raise VLLMError(f"vLLM scored {len(scored)} of {len(tokens)} tokens: it must be the version of the lock file")
    logprobs = [entry[token].logprob for entry, token in zip(scored, answer.token_ids, strict=True)]
    return Generated(tokens, np.array(logprobs, dtype=np.float32))
