"""The multi-turn environment of Section 3.1: an answer goes in, its scores and the agent's feedback come out.

    reset(episode, scene)  -> question and front image
    step(episode, 0, text) -> scores, feedback, done?      done: the review is clean, or it was the last turn
    step(episode, 1, text) -> ...

An answer that cannot be read has no scores and a format score of 0; the feedback then says what was wrong, and the
model may try again. Replies are kept, so the same (episode, turn) sent twice, as a client does after a lost reply, is
answered twice alike and scored once. All methods may be called from several threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.answer import ParsedAnswer, parse_answer
from nemo_mtdrive.dialogue.prompt import first_question, unreadable_feedback
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.pdm.review import Review, Reviewer
from nemo_mtdrive.types import TRAJECTORY_POINTS, TRAJECTORY_STEP_S, Observation, StepResult

MAX_EPISODES = 65536
"""Episodes kept; the oldest go first."""
MAX_AGE_S = 6 * 3600.0
"""Age after which an episode that nobody closed is dropped [s]."""

ResetItem = tuple[str, str, bool]
"""(episode_id, scene_id, want_image)"""
StepItem = tuple[str, int, str]
"""(episode_id, turn, answer)"""


class EpisodeError(ValueError):
    """A request that does not fit the episode; the message says which, what was got and what is wanted."""


class UnknownEpisode(EpisodeError):
    """No such episode: never reset, closed, or dropped for its age."""


class UnknownScene(EpisodeError):
    """The scene source has no such scene."""


class OutOfOrder(EpisodeError):
    """A turn that is not the next one of its episode."""


class SceneSource(Protocol):
    """Where scenes come from (`nemo_mtdrive.driving.sources`)."""

    def ids(self) -> Sequence[str]:
        """The ids of all scenes."""
        ...

    def load(self, scene_id: str) -> Scene:
        """The scene; KeyError when there is none of this id, SceneError when it cannot be used."""
        ...

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """[H, W, 3] the front image at the model's size."""
        ...


class Environment(Protocol):
    """What rollouts need; `DrivingEnvironment` and `EnvironmentClient` both have it."""

    def reset_many(self, items: Sequence[ResetItem]) -> list[Observation]:
        """Start episodes."""
        ...

    def step_many(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Answer one turn of each of several episodes."""
        ...

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """Forget episodes; unknown ones are ignored."""
        ...


@dataclass(frozen=True)
class _Opened:
    """What all episodes of a scene share."""

    scene: Scene
    prompt: str
    image_key: str


@dataclass
class _Episode:
    """State of one episode; `opened` is dropped when it ends, its replies stay."""

    opened: _Opened | None
    started: float
    replies: list[StepResult] = field(default_factory=list)


class DrivingEnvironment:
    """Episodes over a scene source and a reviewer."""

    def __init__(self, scenes: SceneSource, agent: Reviewer, max_turns: int, *, max_episodes: int = MAX_EPISODES,
                 max_age_s: float = MAX_AGE_S, clock: Callable[[], float] = time.monotonic) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns}: set it to 1 or more")
        self.scenes = scenes
        self.agent = agent
        self.max_turns = max_turns
        self._max_episodes = max_episodes
        self._max_age_s = max_age_s
        self._clock = clock
        self._episodes: OrderedDict[str, _Episode] = OrderedDict()  # in order of their start
        self._opened: WeakValueDictionary[str, _Opened] = WeakValueDictionary()
        self._lock = threading.RLock()

    def reset(self, episode_id: str, scene_id: str, want_image: bool) -> Observation:
        """Start an episode, or start it anew where the id is known.

        Raises:
            UnknownScene: the source has no such scene.
            EpisodeError: the scene can be scored but not driven (no history or command), or its file cannot be used.
        """
        with self._lock:
            opened, image = self._open(scene_id, want_image)
            self._episodes.pop(episode_id, None)
            self._episodes[episode_id] = _Episode(opened, self._clock())
            self._evict()
        return Observation(episode_id, scene_id, opened.prompt, opened.image_key, image)

    def reset_many(self, items: Sequence[ResetItem]) -> list[Observation]:
        """`reset` for each (episode_id, scene_id, want_image)."""
        return [self.reset(*item) for item in items]

    def step(self, episode_id: str, turn: int, answer: str) -> StepResult:
        """Score one answer; `step_many` with one item."""
        return self.step_many([(episode_id, turn, answer)])[0]

    def step_many(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Score one answer of each of several episodes; answers to the same scene are reviewed as one batch.

        All items are checked before anything is scored: where one is refused, no episode has moved.

        Raises:
            UnknownEpisode, OutOfOrder: see `_check`.
        """
        with self._lock:
            fresh: dict[str, tuple[_Opened, int, ParsedAnswer]] = {}
            for episode_id, turn, answer in items:
                opened = self._check(episode_id, turn)
                if opened is not None and episode_id not in fresh:
                    fresh[episode_id] = (opened, turn, parse_answer(answer))
            reviews = self._review(fresh)
            for episode_id, (_, turn, parsed) in fresh.items():
                reply = self._reply(episode_id, turn, parsed, reviews.get(episode_id))
                episode = self._episodes[episode_id]
                episode.replies.append(reply)
                if reply.done:
                    episode.opened = None
            return [self._episodes[episode_id].replies[turn] for episode_id, turn, _ in items]

    def close(self, episode_id: str) -> None:
        """Forget an episode; an unknown one is ignored."""
        with self._lock:
            self._episodes.pop(episode_id, None)

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """`close` each."""
        for episode_id in episode_ids:
            self.close(episode_id)

    @property
    def open_episodes(self) -> int:
        """Episodes kept now, ended ones that nobody closed included."""
        return len(self._episodes)

    def warm_up(self) -> None:
        """Review one trajectory of the first scene, so that kernels are compiled before the first request."""
        scene = self.scenes.load(self.scenes.ids()[0])
        times = TRAJECTORY_STEP_S * np.arange(1, TRAJECTORY_POINTS + 1)
        straight = np.zeros((1, TRAJECTORY_POINTS, 3))
        straight[0, :, 0] = times * float(scene.ego.velocity[0])
        with self._lock:
            self.agent.review(scene, straight)

    def _open(self, scene_id: str, want_image: bool) -> tuple[_Opened, NDArray[np.uint8] | None]:
        """Load a scene once for all its running episodes; the image is drawn only where wanted or not yet named."""
        opened = self._opened.get(scene_id)
        if opened is not None and not want_image:
            return opened, None
        try:
            scene = opened.scene if opened else self.scenes.load(scene_id)
            if scene.history is None or scene.command is None:
                raise EpisodeError(f"scene {scene_id!r}: no history or command, so it can be scored but not driven")
            image = self.scenes.image(scene_id)
        except KeyError as error:
            raise UnknownScene(f"scene {scene_id!r}: the source has no such scene") from error
        except SceneError as error:
            raise EpisodeError(f"scene {scene_id!r}: {error}") from error
        if opened is None:
            opened = _Opened(scene, first_question(scene.history, scene.command), image_key(image))
            self._opened[scene_id] = opened
        return opened, image if want_image else None

    def _check(self, episode_id: str, turn: int) -> _Opened | None:
        """What a fresh turn is scored with; None where the turn has its reply already.

        Raises:
            UnknownEpisode: no such episode.
            OutOfOrder: a turn before its predecessor, or after the end.
        """
        episode = self._episodes.get(episode_id)
        if episode is None:
            raise UnknownEpisode(f"episode {episode_id!r}: not open here; reset it first")
        answered = len(episode.replies)
        if 0 <= turn < answered:
            return None
        if episode.opened is None:
            raise OutOfOrder(f"episode {episode_id!r}: got turn {turn}, but it ended with turn {answered - 1}")
        if turn != answered:
            raise OutOfOrder(f"episode {episode_id!r}: got turn {turn}, want turn {answered}")
        return episode.opened

    def _review(self, fresh: Mapping[str, tuple[_Opened, int, ParsedAnswer]]) -> dict[str, Review]:
        """Reviews by episode id, for the answers that have a trajectory; one call a scene."""
        by_scene: dict[str, list[tuple[str, _Opened, NDArray[np.float64]]]] = {}
        for episode_id, (opened, _, parsed) in fresh.items():
            if parsed.trajectory is not None:
                batch = by_scene.setdefault(opened.scene.scene_id, [])
                batch.append((episode_id, opened, parsed.trajectory))
        reviews: dict[str, Review] = {}
        for batch in by_scene.values():
            trajectories = np.stack([trajectory for _, _, trajectory in batch])
            found = self.agent.review(batch[0][1].scene, trajectories)
            reviews.update((episode_id, review) for (episode_id, _, _), review in zip(batch, found, strict=True))
        return reviews

    def _reply(self, episode_id: str, turn: int, parsed: ParsedAnswer, review: Review | None) -> StepResult:
        last = turn == self.max_turns - 1
        if review is None:
            feedback = unreadable_feedback(parsed.problem)
            return StepResult(episode_id, turn, None, None, parsed.format_score, feedback, [], last,
                              "max_turns" if last else "")
        clean = not review.violations
        return StepResult(episode_id, turn, parsed.trajectory, dict(review.scores), parsed.format_score,
                          "" if clean else review.feedback, [dict(v) for v in review.violations], clean or last,
                          "clean" if clean else "max_turns" if last else "")

    def _evict(self) -> None:
        oldest_start = self._clock() - self._max_age_s
        while self._episodes:
            episode_id, episode = next(iter(self._episodes.items()))
            if len(self._episodes) <= self._max_episodes and episode.started >= oldest_start:
                return
            del self._episodes[episode_id]
