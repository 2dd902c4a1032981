"""Episodes of several turns, many at a time (Section 3.1 and lines 6 to 9 of Algorithm 1).

The episodes of a worker move in waves: all that run write one answer together, one call scores the answers, those that
are done leave, and tasks that wait take their places. So a batch mixes scenes and turns, and which episodes it holds
depends on their contents alone, never on timing: the same tasks, weights and seeds give the same episodes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.conversation import Conversation, ConversationError
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.environment.client import EnvironmentUnavailable
from nemo_mtdrive.environment.env import Environment, EpisodeError, StepFailed, StepItem
from nemo_mtdrive.environment.reward import turn_reward
from nemo_mtdrive.rollout.engine import Engine, EngineError
from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer.images import grid_of
from nemo_mtdrive.types import Episode, RolloutTask, StepResult, Turn

Image = NDArray[np.uint8]

ENVIRONMENT_ERRORS = (EnvironmentUnavailable, EpisodeError)
"""What makes an episode invalid and leaves the others alone: no result could be had, or this one was refused."""

CUT = "error: cut"
"""How the reason of an episode starts that was cut by its deadline."""

OnEpisode = Callable[[Episode, Mapping[str, Image]], None]
"""Called as each episode ends with the record and uint8 [H, W, 3] for each of its image keys; it must return soon
(IPSS serialises in its own threads)."""

OnProgress = Callable[[int, int, int], None]
"""Called after each wave: (wave, episodes running, episodes done)."""


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played and rewarded."""

    max_turns: int
    max_answer_tokens: int
    max_running: int
    """Most episodes that run at once (bounds the engine's memory); a group of one scene is always started whole."""
    pdm_weight: float
    """w_p of Eq. 2."""
    format_weight: float
    """w_f of Eq. 2."""
    progressive_weight: float = 0.0
    """w of `environment.reward`."""
    episode_timeout_s: float = math.inf
    """An episode that took longer when a turn of it ends is cut: it is invalid, the others of its group go on."""

    def reward(self, result: StepResult, before: Sequence[Turn]) -> float:
        """r_ij of Eq. 2, given the turns before."""
        return turn_reward(result.scores, result.format_score, self.pdm_weight, self.format_weight, self.progressive_weight,
                           before[-1].pdm_score if before else None)


def episode_seed(task: RolloutTask, index: int) -> int:
    """Seed of the index-th episode of a task, below 2**63."""
    return int(np.random.SeedSequence((task.seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def turn_seed(seed: int, turn: int) -> int:
    """Seed from which one answer of an episode is sampled, below 2**63."""
    return int(np.random.SeedSequence((seed, turn)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass
class _Running:
    """One episode on its way."""

    task: RolloutTask
    index: int
    image_key: str
    image: Image
    talk: Conversation
    version: int
    turns: list[Turn] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.talk)

    @property
    def id(self) -> str:
        return self.task.episode_id(self.index)

    @property
    def seed(self) -> int:
        return episode_seed(self.task, self.index)

    def add_turn(self, result: StepResult, reward: float) -> None:
        start, stop = self.talk.spans[-1]
        number = len(self.turns)
        self.turns.append(
            Turn(
                index=number,
                start=start,
                stop=stop,
                answer=self.talk.answer(number),
                trajectory=result.trajectory,
                scores=result.scores,
                format_score=result.format_score,
                reward=reward,
                feedback=result.feedback,
                violations=result.violations,
            )
        )

    def record(self, reason: str) -> Episode:
        """The episode up to its last scored answer; a reason that starts with "error" makes it invalid."""
        end = self.turns[-1].stop if self.turns else self.prompt_length
        return Episode(
            episode_id=self.id,
            scene_id=self.task.scene_id,
            index=self.index,
            seed=self.seed,
            policy_version=self.version,
            tokens=self.talk.tokens[:end],
            turn_of_token=self.talk.turn_of_token[:end],
            logprobs=self.talk.logprobs[:end],
            image_keys=(self.image_key,),
            image_grids=self.talk.image_grids,
            turns=tuple(self.turns),
            valid=not reason.startswith("error"),
            reason=reason,
        )


def _check_version(episode: _Running, version: int | None) -> None:
    """All turns of an episode come from the weights that it began with: its `policy_version` holds for each of them.

    Raises:
        EngineError: the engine has other weights now, so this answer is of another policy.
    """
    if version != episode.version:
        raise EngineError(f"{episode.id}: began with policy version {episode.version}, its turn {len(episode.turns) + 1} "
                          f"was written with {version}: load weights between batches of tasks, not while episodes run")


def _never_started(task: RolloutTask, index: int, version: int, reason: str) -> Episode:
    """An invalid episode for which there is not even a prompt."""
    return Episode(
        episode_id=task.episode_id(index),
        scene_id=task.scene_id,
        index=index,
        seed=episode_seed(task, index),
        policy_version=version,
        tokens=np.zeros(0, dtype=np.int32),
        turn_of_token=np.zeros(0, dtype=np.int16),
        logprobs=np.zeros(0, dtype=np.float32),
        image_keys=(),
        image_grids=(),
        turns=(),
        valid=False,
        reason=reason,
    )


def run_tasks(
    tasks: Sequence[RolloutTask],
    engine: Engine,
    environment: Environment,
    tokenizer: Tokenizer,
    settings: RolloutSettings,
    on_episode: OnEpisode,
    on_progress: OnProgress | None = None,
) -> None:
    """Play `group_size` episodes of every task and hand each to `on_episode` as it ends.

    An episode ends with reason "clean" (no violation left), "max_turns", or "context" (the next turn would not fit the
    engine's `max_context`). Where the environment or the prompt fails, it ends invalid with "error: ..." and the others
    go on. Engine errors and a refused token are not caught: they end the worker.
    """
    rollout = _Rollout(engine, environment, tokenizer, settings, on_episode)
    waiting = deque(tasks)
    wave = 0
    while waiting or rollout.running:
        while waiting and rollout.has_room_for(waiting[0].group_size):
            rollout.start(waiting.popleft())
        rollout.play_turn()
        wave += 1
        if on_progress is not None:
            on_progress(wave, len(rollout.running), rollout.done)


class _Rollout:
    """The running episodes and what is done to them in a wave."""

    def __init__(
        self,
        engine: Engine,
        environment: Environment,
        tokenizer: Tokenizer,
        settings: RolloutSettings,
        on_episode: OnEpisode,
    ) -> None:
        self.running: list[_Running] = []
        self.done = 0
        self._engine = engine
        self._environment = environment
        self._tokenizer = tokenizer
        self._settings = settings
        self._on_episode = on_episode

    def has_room_for(self, episodes: int) -> bool:
        """Whether so many more may run; a group larger than the limit runs alone."""
        return not self.running or len(self.running) + episodes <= self._settings.max_running

    def start(self, task: RolloutTask) -> None:
        """Open the episodes of a task: one image, one prompt, computed once for all of them."""
        version = self._engine.version
        assert version is not None, "a worker loads weights before it takes tasks"
        ids = [task.episode_id(index) for index in range(task.group_size)]
        try:
            with span("environment"):
                first, *_ = self._environment.reset_many([(name, task.scene_id, name == ids[0]) for name in ids])
            if first.image is None:
                raise EpisodeError(f"{ids[0]}: asked for the image, got none")
            talks = [Conversation(self._tokenizer, first.prompt, grid_of(first.image)) for _ in ids]
        except (*ENVIRONMENT_ERRORS, ConversationError) as error:
            for index in range(task.group_size):
                self._finish(_never_started(task, index, version, f"error: {error}"), {})
            return
        group = [
            _Running(task, index, first.image_key, first.image, talk, version) for index, talk in enumerate(talks)
        ]
        prompt = len(talks[0])
        if prompt + self._settings.max_answer_tokens > self._engine.max_context:
            reason = (
                f"error: a prompt of {prompt} tokens and an answer of {self._settings.max_answer_tokens} exceed "
                f"rollout.max_context={self._engine.max_context}: raise it"
            )
            self._leave([(episode, reason) for episode in group])
            return
        with span("generate"):
            self._engine.add(ids, talks[0].tokens, first.image)
        self.running += group

    def play_turn(self) -> None:
        """Let every running episode answer once, score the answers, and let those that are done leave."""
        if not self.running:
            return
        self._answer()
        results = self._score()
        ends = [(episode, self._take(episode, results[episode.id])) for episode in self.running]
        gone = [(episode, reason) for episode, reason in ends if reason]
        self.running = [episode for episode, reason in ends if not reason]
        self._engine.remove([episode.id for episode, _ in gone])
        self._leave(gone)

    def _score(self) -> dict[str, StepResult | str]:
        """The environment's results by episode id; in place of a result, what went wrong."""
        try:
            return self._step(self.running)
        except EpisodeError as error:
            if len(self.running) == 1:
                return {self.running[0].id: f"error: {error}"}
        except EnvironmentUnavailable as error:
            return {episode.id: f"error: {error}" for episode in self.running}
        # one request for all was refused: ask one by one, so that a scene that fails takes no other with it
        results: dict[str, StepResult | str] = {}
        for episode in self.running:
            try:
                results |= self._step([episode])
            except ENVIRONMENT_ERRORS as error:
                results[episode.id] = f"error: {error}"
        return results

    def _step(self, episodes: Sequence[_Running]) -> dict[str, StepResult | str]:
        asked: list[StepItem] = [(e.id, len(e.turns), e.talk.answer(len(e.turns))) for e in episodes]
        with span("environment"):
            results = self._environment.step_many(asked)
        for (name, turn, _), result in zip(asked, results, strict=True):
            if (result.episode_id, result.turn) != (name, turn):
                raise EpisodeError(f"asked for {name} turn {turn}, got {result.episode_id} turn {result.turn}")
        return {result.episode_id: f"error: {result.reason}" if isinstance(result, StepFailed) else result
                for result in results}

    def _answer(self) -> None:
        """One answer of each running episode; a batch has one temperature, so different ones go one after another."""
        for temperature in sorted({episode.task.temperature for episode in self.running}):
            batch = [episode for episode in self.running if episode.task.temperature == temperature]
            seeds = [turn_seed(episode.seed, len(episode.turns)) for episode in batch]
            with span("generate"):
                answers = self._engine.generate(
                    [episode.id for episode in batch], self._settings.max_answer_tokens, temperature, seeds
                )
            for episode in batch:
                _check_version(episode, self._engine.version)
                episode.talk.add_answer(*answers[episode.id])

    def _take(self, episode: _Running, result: StepResult | str) -> str:
        """Record a scored turn and open the next one; returns why the episode ends, "" while it goes on."""
        if isinstance(result, str):
            return result
        episode.add_turn(result, self._settings.reward(result, episode.turns))
        if result.done:
            return result.reason
        if len(episode.turns) >= self._settings.max_turns:
            return "max_turns"
        taken = time.monotonic() - episode.started
        if taken > self._settings.episode_timeout_s:
            return (f"{CUT} after {len(episode.turns)} turns in {taken:.0f} s, rollout.episode_timeout_s="
                    f"{self._settings.episode_timeout_s:g}")
        known = len(episode.talk)
        try:
            episode.talk.add_feedback(result.feedback)
        except ConversationError as error:
            return f"error: {error}"
        if len(episode.talk) + self._settings.max_answer_tokens > self._engine.max_context:
            return "context"
        self._engine.extend(episode.id, episode.talk.tokens[known:])
        return ""

    def _leave(self, gone: Sequence[tuple[_Running, str]]) -> None:
        """Hand over episodes that ended, and let the environment forget them."""
        closed = [episode.id for episode, reason in gone if not reason.startswith("error")]
        if closed:
            with suppress(EnvironmentUnavailable):  # it forgets them by their age as well
                self._environment.close_many(closed)
        for episode, reason in gone:
            self._finish(episode.record(reason), {episode.image_key: episode.image})

    def _finish(self, episode: Episode, images: Mapping[str, Image]) -> None:
        self.done += 1
        self._on_episode(episode, images)
