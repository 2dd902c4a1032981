"""A model directory that drives: its engine in this process, playing episodes against an environment in this process.

    driver = ModelDriver.open(Path("hf"), rollout=config.rollout, reward=config.reward)
    driver.play(tasks, DrivingEnvironment(scenes, reviewer, driver.max_turns), on_episode)

What training does over many processes (`rollout.worker`), here for evaluation, labelling and the bootstrap of SFT data:
the same episodes, from the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.config import ConfigError, RewardConfig, RolloutConfig
from nemo_mtdrive.dialogue.conversation import Conversation
from nemo_mtdrive.dialogue.tokenizer import Tokenizer, TokenizerError
from nemo_mtdrive.environment.env import Environment
from nemo_mtdrive.rollout.engine import Engine, EngineError
from nemo_mtdrive.rollout.multi_turn import OnEpisode, OnProgress, RolloutSettings, run_tasks
from nemo_mtdrive.rollout.vllm import open_vllm
from nemo_mtdrive.transfer.images import grid_of
from nemo_mtdrive.types import RolloutTask

PREFILL_TOKENS = 16384
VERSION = 0
"""Policy version of the episodes: there are no other weights than the directory's."""

OpenEngine = Callable[[Mapping[str, Any], Tokenizer, RolloutConfig, str], Engine]
"""(HF's config.json, tokenizer, settings, device) -> an engine without weights."""


def open_native(hf: Mapping[str, Any], tokenizer: Tokenizer, rollout: RolloutConfig, device: str) -> Engine:
    """The engine of this environment; `device` as torch names it, empty for the GPU where there is one."""
    import torch

    from nemo_mtdrive.rollout.native import NativeEngine

    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return NativeEngine(
        hf, stop_token=tokenizer.im_end, forbidden_tokens=tokenizer.forbidden_below(hf["vocab_size"]).tolist(),
        max_context=min(rollout.max_context, hf["max_position_embeddings"]), dtype=getattr(torch, rollout.dtype),
        device=chosen, prefill_tokens=PREFILL_TOKENS, top_p=rollout.top_p)


ENGINES: Mapping[str, OpenEngine] = {"native": open_native, "vllm": open_vllm}
"""vllm is there in the rollout environment alone (docs/rollout.md)."""


class ModelDriver:
    """An engine with weights, its tokenizer, and how episodes are played with them."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, settings: RolloutSettings) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self._asked = 0

    @classmethod
    def open(cls, directory: Path, *, rollout: RolloutConfig, reward: RewardConfig, engine: str = "native",
             device: str = "") -> ModelDriver:
        """Load a model.

        Args:
            directory: Hugging Face's, NeMo 2's, a checkpoint of a run, or a run (its last checkpoint); the tokenizer is
                the one in it.
            rollout: turns, lengths, dtype and how many episodes run at once; the context is at most the model's own.
            reward: weights of Eq. 2, for the rewards in the episodes.
            engine: a key of `ENGINES`.
            device: as the engine names it; empty takes the GPU where there is one.

        Raises:
            ConfigError: an unknown engine, or a directory that cannot be used; one line.
        """
        from nemo_mtdrive.models.directories import hf_files, model_config, model_directory
        from nemo_mtdrive.models.hf_weights import hf_weights
        from nemo_mtdrive.models.whole_directory import ConversionError

        if engine not in ENGINES:
            raise ConfigError(f"engine={engine!r}: set it to one of {', '.join(ENGINES)}")
        try:
            found = model_directory(directory)
            tokenizer = Tokenizer.load(hf_files(found))
            opened = ENGINES[engine](model_config(found), tokenizer, rollout, device)
            opened.load_weights(hf_weights(found), VERSION)
        except (ConversionError, TokenizerError, EngineError) as error:
            raise ConfigError(f"model: {error}") from error
        return cls(opened, tokenizer, RolloutSettings(rollout.max_turns, rollout.max_answer_tokens, rollout.max_running,
                                                      reward.pdm_weight, reward.format_weight,
                                                      reward.progressive_weight))

    @property
    def max_turns(self) -> int:
        """Most turns of an episode."""
        return self.settings.max_turns

    def close(self) -> None:
        """End what the engine has started; no other call may follow."""
        self.engine.close()

    def play(self, tasks: Sequence[RolloutTask], environment: Environment, on_episode: OnEpisode,
             on_progress: OnProgress | None = None) -> None:
        """Play `group_size` episodes of every task; each goes to `on_episode` as it ends (see `run_tasks`).

        The same tasks in the same order give the same episodes: each samples from its own seed, and which episodes run
        together does not depend on time.
        """
        run_tasks(tasks, self.engine, environment, self.tokenizer, self.settings, on_episode, on_progress)

    def ask(self, image: NDArray[np.uint8], questions: Sequence[str], max_answer_tokens: int) -> list[str]:
        """The model's most probable answers to single questions about one image [H, W, 3], in order.

        What the questions have in common from their start on, the image above all, is computed once. No environment is
        involved, and episodes may be running. Raises ConversationError for a question that holds a special token.
        """
        answers: list[str] = []
        for first in range(0, len(questions), self.settings.max_running):
            answers += self._ask(image, questions[first:first + self.settings.max_running], max_answer_tokens)
        return answers

    def _ask(self, image: NDArray[np.uint8], questions: Sequence[str], max_answer_tokens: int) -> list[str]:
        names = [f"question/{self._asked + number}" for number in range(len(questions))]
        self._asked += len(questions)
        prompts = [Conversation(self.tokenizer, text, grid_of(image)).tokens for text in questions]
        shared = shared_start(prompts)
        self.engine.add(names, prompts[0][:shared], image)
        for name, prompt in zip(names, prompts, strict=True):
            self.engine.extend(name, prompt[shared:])
        found = self.engine.generate(names, max_answer_tokens, 0.0, [0] * len(names))
        self.engine.remove(names)
        return [self.tokenizer.decode(found[name].tokens) for name in names]


def shared_start(prompts: Sequence[NDArray[np.int32]]) -> int:
    """How many tokens all prompts begin with, so that at least one of each is left."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    together = np.stack([prompt[:shortest] for prompt in prompts])
    differs = (together != together[0]).any(axis=0)
    return int(np.argmax(differs)) if differs.any() else shortest
