"""The multi-turn environment of Section 3.1: an answer goes in, its scores and the agent's feedback come out.

    reset(episode, scene)  -> question and front image
    step(episode, 0, text) -> scores, feedback, done?      done: the review is clean, or it was the last turn
    step(episode, 1, text) -> ...

An answer that cannot be read has no scores and a format score of 0; the feedback then says what was wrong, and the
model may try again. Replies are kept, so the same (episode, turn) sent twice, as a client does after a lost reply, is
answered twice alike and scored once. All methods may be called from several threads.

This is the environment in one process, for Gymnasium and tests; `served` is the same one over many scoring processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.answer import ParsedAnswer, parse_answer
from nemo_mtdrive.environment.episodes import (
    MAX_AGE_S,
    MAX_EPISODES,
    Episode,
    EpisodeError,
    Episodes,
    OpenedScene,
    OutOfOrder,
    ResetItem,
    StepFailed,
    StepItem,
    UnknownEpisode,
    UnknownScene,
)
from nemo_mtdrive.environment.messages import ScoreItem
from nemo_mtdrive.environment.scenes import SceneSource, load_scene, open_scene, warm_up
from nemo_mtdrive.pdm.review import Review, Reviewer
from nemo_mtdrive.types import Observation, StepResult

__all__ = ["DrivingEnvironment", "Environment", "EpisodeError", "OutOfOrder", "ResetItem", "SceneSource", "StepFailed",
           "StepItem", "UnknownEpisode", "UnknownScene"]


class Environment(Protocol):
    """What rollouts need; `DrivingEnvironment` and `EnvironmentClient` both have it."""

    def reset_many(self, items: Sequence[ResetItem]) -> list[Observation]:
        """Start episodes."""
        ...

    def step_many(self, items: Sequence[StepItem]) -> Sequence[StepResult | StepFailed]:
        """Answer one turn of each of several episodes; a scene whose scoring fails fails its own episodes only."""
        ...

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """Forget episodes; unknown ones are ignored."""
        ...


class DrivingEnvironment:
    """Episodes over a scene source and a reviewer, scored in this process."""

    def __init__(self, scenes: SceneSource, agent: Reviewer, max_turns: int, *, max_episodes: int = MAX_EPISODES,
                 max_age_s: float = MAX_AGE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.scenes = scenes
        self.agent = agent
        self._episodes = Episodes(max_turns, max_episodes=max_episodes, max_age_s=max_age_s, clock=clock)
        self._opened: WeakValueDictionary[str, OpenedScene] = WeakValueDictionary()
        self._resets = 0
        self._lock = threading.RLock()

    def reset(self, episode_id: str, scene_id: str, want_image: bool) -> Observation:
        """Start an episode, or start it anew where the id is known.

        Raises:
            UnknownScene: the source has no such scene.
            EpisodeError: the scene can be scored but not driven (no history or command), or its file cannot be used.
        """
        with self._lock:
            opened, image = self._open(scene_id, want_image)
            self._resets += 1
            self._episodes.start(episode_id, opened, self._resets)
        return Observation(episode_id, scene_id, opened.prompt, opened.image_key, image)

    def reset_many(self, items: Sequence[ResetItem]) -> list[Observation]:
        """`reset` for each (episode_id, scene_id, want_image)."""
        return [self.reset(*item) for item in items]

    def step(self, episode_id: str, turn: int, answer: str) -> StepResult:
        """Score one answer; `step_many` with one item."""
        return self.step_many([(episode_id, turn, answer)])[0]

    def step_many(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Score one answer of each of several episodes; answers to the same scene are reviewed as one batch.

        All items are checked before anything is scored: where one is refused, no episode has moved. What the reviewer
        raises is raised here as it is; then no episode has moved either.

        Raises:
            UnknownEpisode, OutOfOrder: see `Episodes.check`.
        """
        with self._lock:
            fresh: dict[str, tuple[Episode, ParsedAnswer]] = {}
            episodes = [self._episodes.check(episode_id, turn) for episode_id, turn, _ in items]
            for episode, (episode_id, turn, answer) in zip(episodes, items, strict=True):
                if turn == len(episode.replies) and episode_id not in fresh:
                    fresh[episode_id] = (episode, parse_answer(answer))
            reviews = self._review(fresh)
            for episode_id, (episode, parsed) in fresh.items():
                self._episodes.answer(episode, parsed, reviews.get(episode_id))
            return [episode.replies[turn] for episode, (_, turn, _) in zip(episodes, items, strict=True)]

    def close(self, episode_id: str) -> None:
        """Forget an episode; an unknown one is ignored."""
        with self._lock:
            self._episodes.close(episode_id)

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """`close` each."""
        for episode_id in episode_ids:
            self.close(episode_id)

    def score_many(self, items: Sequence[ScoreItem]) -> list[list[Review] | str]:
        """Review trajectories without episodes, as `EnvironmentClient.score_many` does.

        Args:
            items: (scene_id, trajectories [B, 8, 3] in the ego frame) each.

        Returns:
            For each item its reviews, or why it has none ("UnknownScene: ...").
        """
        results: list[list[Review] | str] = []
        for scene_id, trajectories in items:
            try:
                with self._lock:
                    known = self._opened.get(scene_id)
                    scene = known.scene if known is not None and known.scene is not None else load_scene(
                        self.scenes, scene_id)
                    results.append(list(self.agent.review(scene, trajectories)))
            except EpisodeError as error:
                results.append(f"{type(error).__name__}: {error}")
        return results

    @property
    def open_episodes(self) -> int:
        """Episodes kept now, ended ones that nobody closed included."""
        return len(self._episodes)

    def warm_up(self) -> None:
        """Review one trajectory of the first scene, so that kernels are compiled before the first request."""
        with self._lock:
            warm_up(self.scenes, self.agent)

    def _open(self, scene_id: str, want_image: bool) -> tuple[OpenedScene, NDArray[np.uint8] | None]:
        """Load a scene once for all its running episodes; the image is drawn only where wanted or not yet named."""
        known = self._opened.get(scene_id)
        if known is not None and not want_image:
            return known, None
        scene = known.scene if known is not None else None
        opened, image = open_scene(self.scenes, scene if scene is not None else load_scene(self.scenes, scene_id))
        if known is None:
            self._opened[scene_id] = known = opened
        return known, image if want_image else None

    def _review(self, fresh: Mapping[str, tuple[Episode, ParsedAnswer]]) -> dict[str, Review]:
        """Reviews by episode id, for the answers that have a trajectory; one call a scene."""
        by_scene: dict[OpenedScene, dict[str, NDArray[np.float64]]] = {}
        for episode_id, (episode, parsed) in fresh.items():
            if parsed.trajectory is not None:
                assert episode.opened is not None, "a fresh turn belongs to a running episode"
                by_scene.setdefault(episode.opened, {})[episode_id] = parsed.trajectory
        reviews: dict[str, Review] = {}
        for opened, trajectories in by_scene.items():
            assert opened.scene is not None, "scenes of this environment are in this process"
            found = self.agent.review(opened.scene, np.stack(list(trajectories.values())))
            reviews.update(zip(trajectories, found, strict=True))
        return reviews
