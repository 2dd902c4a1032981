"""A scripted environment and a scripted engine: what an episode gets and says is written down in the test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.environment.client import EnvironmentUnavailable
from nemo_mtdrive.environment.env import EpisodeError, StepFailed
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.rollout.engine import Generated
from nemo_mtdrive.types import SCORE_NAMES, Episode, Observation, StepResult


def scene_image(scene_id: str) -> NDArray[np.uint8]:
    return np.full((56, 84, 3), sum(scene_id.encode()) % 256, dtype=np.uint8)


class ScriptedEnvironment:
    """Clean after `clean_after[scene]` turns; PDMS is (turn + 1) / 10; an answer "bad" cannot be read."""

    def __init__(self, clean_after: Mapping[str, int], max_turns: int, feedback: str = "do better") -> None:
        self.clean_after, self.max_turns, self.feedback = clean_after, max_turns, feedback
        self.scenes: dict[str, str] = {}
        self.steps: list[list[tuple[str, int]]] = []
        """(episode, turn) of every step_many call."""
        self.images_sent: list[str] = []
        self.closed: list[str] = []
        self.down_at: int | None = None
        """Number of the step_many call from which on nobody answers."""
        self.broken_scenes: set[str] = set()
        """A step with one of these is refused."""
        self.failing_scenes: set[str] = set()
        """Their items have no result, others have."""

    def reset_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Observation]:
        for _, scene_id, _ in items:
            if scene_id not in self.clean_after:
                raise EpisodeError(f"scene {scene_id!r}: the source has no such scene")
        self.scenes |= {episode_id: scene_id for episode_id, scene_id, _ in items}
        self.images_sent += [episode_id for episode_id, _, wanted in items if wanted]
        return [self._observe(*item) for item in items]

    def _observe(self, episode_id: str, scene_id: str, want_image: bool) -> Observation:
        image = scene_image(scene_id)
        return Observation(episode_id, scene_id, f"scene {scene_id}?", image_key(image), image if want_image else None)

    def step_many(self, items: Sequence[tuple[str, int, str]]) -> list[StepResult | StepFailed]:
        self.steps.append([(episode_id, turn) for episode_id, turn, _ in items])
        if self.down_at is not None and len(self.steps) > self.down_at:
            raise EnvironmentUnavailable("http://env: no answer in 1.0 s")
        for episode_id, _, _ in items:
            if self.scenes[episode_id] in self.broken_scenes:
                raise EpisodeError(f"{episode_id}: this scene breaks")
        return [StepFailed(*item[:2], "RuntimeError: the map has a hole")
                if self.scenes[item[0]] in self.failing_scenes else self._score(*item) for item in items]

    def _score(self, episode_id: str, turn: int, answer: str) -> StepResult:
        clean = turn + 1 >= self.clean_after[self.scenes[episode_id]]
        done = clean or turn + 1 >= self.max_turns
        read = answer != "bad"
        return StepResult(
            episode_id=episode_id,
            turn=turn,
            trajectory=np.full((8, 3), float(turn)) if read else None,
            scores=dict.fromkeys(SCORE_NAMES, (turn + 1) / 10) if read else None,
            format_score=float(read),
            feedback="" if clean else self.feedback,
            violations=[] if clean else [{"metric": "NC", "point": turn, "object": None}],
            done=done,
            reason="" if not done else "clean" if clean else "max_turns",
        )

    def close_many(self, episode_ids: Sequence[str]) -> None:
        self.closed += episode_ids


class ScriptedEngine:
    """Says `say(seed)`, or what the function is replaced with; checks nothing but keeps what it was asked."""

    def __init__(self, tokenizer: Tokenizer, max_context: int = 4096, version: int | None = 0) -> None:
        self.tokenizer, self.max_context, self.version = tokenizer, max_context, version
        self.say: Callable[[str, int], str] = lambda sequence_id, seed: f"answer {seed % 97}"
        self.sequences: dict[str, list[int]] = {}
        self.batches: list[tuple[tuple[str, ...], float, tuple[int, ...]]] = []
        self.prompts: list[tuple[tuple[str, ...], int]] = []
        self.loaded: dict[str, Any] = {}

    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        assert image is not None
        self.prompts.append((tuple(sequence_ids), int(image[0, 0, 0])))
        self.sequences |= {name: tokens.tolist() for name in sequence_ids}

    def extend(self, sequence_id: str, tokens: NDArray[np.int32]) -> None:
        self.sequences[sequence_id] += tokens.tolist()

    def generate(
        self, sequence_ids: Sequence[str], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> dict[str, Generated]:
        self.batches.append((tuple(sequence_ids), temperature, tuple(seeds)))
        answers = {}
        for name, seed in zip(sequence_ids, seeds, strict=True):
            ids = [*self.tokenizer.encode(self.say(name, seed)).tolist(), self.tokenizer.im_end][:max_new_tokens]
            self.sequences[name] += ids
            answers[name] = Generated(np.array(ids, np.int32), np.full(len(ids), -0.5, np.float32))
        return answers

    def remove(self, sequence_ids: Iterable[str]) -> None:
        for name in sequence_ids:
            del self.sequences[name]

    def load_weights(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        self.loaded, self.version = dict(weights), version

    def sleep(self) -> None:
        assert not self.sequences

    def wake_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class EpisodeLog:
    """Writes episodes to a file, a line each, so that a test can read what another process has played."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, episode: Episode, images: Mapping[str, NDArray[np.uint8]]) -> None:
        with self.path.open("a") as file:
            file.write(f"{episode.episode_id} {episode.reason} {len(episode.turns)} {sorted(images)}\n")
