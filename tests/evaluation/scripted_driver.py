"""A driver whose answers are written down, and a model directory that opens it: for the tests of whole evaluations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config
from nemo_mtdrive.rollout.engine import Generated

Say = Callable[[Scene, int], str]
"""Scene, turn -> the answer."""


def improving(scene: Scene, turn: int) -> str:
    """Nonsense, then constant velocity, then from the third turn on what the human drove."""
    if turn == 0 and int(scene.scene_id[-1]) % 2:
        return "I do not know."
    assert scene.future is not None
    return answer_text(constant_velocity(scene) if turn < 2 else scene.future)


class WrittenEngine:
    """Says `say(scene, turn)` in the episodes of an evaluation, whose ids name the scene; `No.` to every question."""

    def __init__(self, source: SceneSource, say: Say) -> None:
        self.tokenizer, self.max_context, self.version = Tokenizer.load(TINY_TOKENIZER), 8192, 0
        self._source, self._say = source, say
        self._turns: dict[str, int] = {}
        self.asked = 0

    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        assert image is not None
        self._turns |= dict.fromkeys(sequence_ids, 0)

    def extend(self, sequence_id: str, tokens: NDArray[np.int32]) -> None:
        assert sequence_id in self._turns

    def generate(self, sequence_ids: Sequence[str], max_new_tokens: int, temperature: float,
                 seeds: Sequence[int]) -> dict[str, Generated]:
        answers = {}
        for name in sequence_ids:
            ids = [*self.tokenizer.encode(self._answer(name)).tolist(), self.tokenizer.im_end]
            assert len(ids) <= max_new_tokens
            answers[name] = Generated(np.array(ids, np.int32), np.full(len(ids), -0.5, np.float32))
            self._turns[name] += 1
        return answers

    def _answer(self, name: str) -> str:
        if name.startswith("question/"):
            self.asked += 1
            return "No."
        return self._say(self._source.load(name.split("/")[3]), self._turns[name])

    def remove(self, sequence_ids: Iterable[str]) -> None:
        for name in sequence_ids:
            del self._turns[name]

    def load_weights(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """It has none."""

    def sleep(self) -> None:
        """It holds nothing."""

    wake_up = close = sleep


def opens(source: SceneSource, say: Say) -> Callable[..., WrittenEngine]:
    """An entry of `model_driver.ENGINES`."""
    return lambda hf, tokenizer, rollout, device: WrittenEngine(source, say)


def write_tiny(folder: Path) -> Path:
    """A Hugging Face directory of a tiny random model with the tiny tokenizer."""
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    config = tiny_hf_config(
        vocab_size=tokenizer.vocab_size, image_pad=tokenizer.image_pad, video_pad=tokenizer.video_pad,
        vision_start=tokenizer.vision_start, vision_end=tokenizer.vision_end, im_start=tokenizer.im_start,
        im_end=tokenizer.im_end, layers=2, mlp=64, vision_hidden=64, vision_mlp=64)
    shutil.copytree(TINY_TOKENIZER, folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_hf_state(config, seed=5), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
