"""The environment over scoring processes: episodes are kept here, their answers are reviewed by the pool.

The same rules as `env.DrivingEnvironment`, in one event loop. An answer that is being scored when it is asked for again
(its client's connection broke) is scored once, and both requests get the one result. Work whose deadline passed before a
worker took it is dropped; work that a worker has is finished and kept for whoever asks again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.answer import ParsedAnswer, parse_answer
from nemo_mtdrive.environment.episodes import (
    Episode,
    EpisodeError,
    Episodes,
    OpenedScene,
    ResetItem,
    StepFailed,
    StepItem,
)
from nemo_mtdrive.environment.messages import ScoreItem
from nemo_mtdrive.environment.worker_pool import Deadline, DeadlinePassed, ScoringFailed
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.types import Observation, StepResult

LARGEST_BATCH = 256
"""Trajectories of one scene that are reviewed at once; more are split, so that several workers can share them."""

Opened = tuple[str, str, NDArray[np.uint8] | None]


class Scoring(Protocol):
    """What does the work; `worker_pool.ScoringPool`."""

    async def open(self, scene_id: str, want_image: bool, deadline: Deadline) -> Opened:
        """(prompt, image key, image or None)."""
        ...

    async def review(self, scene_id: str, trajectories: NDArray[np.float64], deadline: Deadline) -> list[Review | str]:
        """A review of each trajectory [B, 8, 3], or what went wrong with it."""
        ...



@dataclass(eq=False)
class _Pending:
    """An answer that is being scored."""

    episode: Episode
    turn: int
    parsed: ParsedAnswer
    deadline: Deadline
    future: asyncio.Future[StepResult | StepFailed | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future())
    """None when it was dropped."""


class ServedEnvironment:
    """Episodes over a pool of scoring processes. All methods raise `DeadlinePassed` when the work was dropped."""

    def __init__(self, scoring: Scoring, max_turns: int) -> None:
        self.episodes = Episodes(max_turns)
        self.scored = 0
        """Trajectories reviewed since the start."""
        self.failed = 0
        """Trajectories whose review failed."""
        self._scoring = scoring
        self._order = itertools.count()
        self._opened: WeakValueDictionary[str, OpenedScene] = WeakValueDictionary()
        self._pending: dict[str, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def reset_many(self, items: Sequence[ResetItem], deadline: Deadline) -> list[Observation]:
        """Start episodes, all or none.

        Raises:
            UnknownScene, EpisodeError, ScoringFailed: a scene cannot be opened.
        """
        order = next(self._order)
        wanted: dict[str, bool] = {}
        for _, scene_id, want_image in items:
            wanted[scene_id] = wanted.get(scene_id, False) or want_image
        found = await asyncio.gather(*(self._open(scene_id, want, deadline) for scene_id, want in wanted.items()),
                                     return_exceptions=True)
        opened: dict[str, tuple[OpenedScene, NDArray[np.uint8] | None]] = {}
        for scene_id, outcome in zip(wanted, found, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            opened[scene_id] = outcome
        if deadline.left_s <= 0:  # its client has gone on without it
            raise DeadlinePassed
        for episode_id, scene_id, _ in items:
            self.episodes.start(episode_id, opened[scene_id][0], order)
        return [Observation(episode_id, scene_id, opened[scene_id][0].prompt, opened[scene_id][0].image_key,
                            opened[scene_id][1] if want_image else None) for episode_id, scene_id, want_image in items]

    async def step_many(self, items: Sequence[StepItem], deadline: Deadline) -> list[StepResult | StepFailed]:
        """Score one answer of each of several episodes, batched by scene.

        All items are checked before anything is scored: where one is refused, no episode has moved.

        Raises:
            UnknownEpisode, OutOfOrder: see `Episodes.check`.
        """
        episodes = [self.episodes.check(episode_id, turn) for episode_id, turn, _ in items]
        due: list[tuple[Episode, int, _Pending | None]] = []
        fresh: dict[OpenedScene, list[_Pending]] = {}
        for episode, (_, turn, answer) in zip(episodes, items, strict=True):
            due.append((episode, turn, self._ask(episode, turn, answer, deadline, fresh)))
        for opened, batch in fresh.items():
            task = asyncio.create_task(self._review(opened, batch, deadline))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        waiting = {pending.future for _, _, pending in due if pending is not None}
        if waiting:
            await asyncio.wait(waiting)
        results: list[StepResult | StepFailed] = []
        for episode, turn, pending in due:
            outcome = episode.replies[turn] if pending is None else pending.future.result()
            if outcome is None:
                raise DeadlinePassed
            results.append(outcome)
        return results

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """Forget episodes; unknown ones are ignored."""
        for episode_id in episode_ids:
            self.episodes.close(episode_id)

    async def score_many(self, items: Sequence[ScoreItem], deadline: Deadline) -> list[list[Review] | str]:
        """Reviews of each item's trajectories, or why the item has none; no episode is involved."""
        by_scene: dict[str, list[int]] = {}
        for row, (scene_id, _) in enumerate(items):
            by_scene.setdefault(scene_id, []).append(row)
        results: list[list[Review] | str] = [[] for _ in items]

        async def score_scene(scene_id: str, rows: Sequence[int]) -> None:
            together = np.concatenate([items[row][1] for row in rows])
            reviews = await self._review_in_parts(scene_id, together, deadline)
            start = 0
            for row in rows:
                stop = start + len(items[row][1])
                results[row] = _whole(reviews[start:stop])
                start = stop

        done = await asyncio.gather(*(score_scene(*entry) for entry in by_scene.items()), return_exceptions=True)
        for outcome in done:
            if outcome is not None:
                raise outcome
        return results

    def _ask(self, episode: Episode, turn: int, answer: str, deadline: Deadline,
             fresh: dict[OpenedScene, list[_Pending]]) -> _Pending | None:
        """What to wait for until the turn has its reply; None when it has. A new answer is put into `fresh`."""
        if turn < len(episode.replies):
            return None
        pending = self._pending.get(episode.episode_id)
        if pending is not None and pending.episode is episode:
            pending.deadline.extend(deadline)
            return pending
        parsed = parse_answer(answer)
        if parsed.trajectory is None:
            self.episodes.answer(episode, parsed, None)
            return None
        assert episode.opened is not None, "a fresh turn belongs to a running episode"
        pending = _Pending(episode, turn, parsed, deadline)
        self._pending[episode.episode_id] = pending
        fresh.setdefault(episode.opened, []).append(pending)
        return pending

    async def _review(self, opened: OpenedScene, batch: Sequence[_Pending], deadline: Deadline) -> None:
        """Review answers to one scene and record what comes; whoever waits for one of them is told."""
        reviews: Sequence[Review | str | None] = [None] * len(batch)
        try:
            together = np.stack([pending.parsed.trajectory for pending in batch if pending.parsed.trajectory is not None])
            reviews = await self._review_in_parts(opened.scene_id, together, deadline)
        except DeadlinePassed:
            return
        finally:
            for pending, review in zip(batch, reviews, strict=True):
                self._settle(pending, review)

    def _settle(self, pending: _Pending, review: Review | str | None) -> None:
        episode = pending.episode
        if self._pending.get(episode.episode_id) is pending:
            del self._pending[episode.episode_id]
        if isinstance(review, Review):
            pending.future.set_result(self.episodes.answer(episode, pending.parsed, review))
        elif review is None:
            pending.future.set_result(None)
        else:
            pending.future.set_result(StepFailed(episode.episode_id, pending.turn, review))

    async def _review_in_parts(self, scene_id: str, trajectories: NDArray[np.float64],
                               deadline: Deadline) -> list[Review | str]:
        """A review of each trajectory of a scene, or why there is none. Raises `DeadlinePassed` only."""
        pieces = [trajectories[start:start + LARGEST_BATCH] for start in range(0, len(trajectories), LARGEST_BATCH)]
        found = await asyncio.gather(*(self._review_part(scene_id, piece, deadline) for piece in pieces),
                                     return_exceptions=True)
        reviews: list[Review | str] = []
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
            reviews += outcome
        failures = sum(isinstance(review, str) for review in reviews)
        self.failed += failures
        self.scored += len(reviews) - failures
        return reviews

    async def _review_part(self, scene_id: str, trajectories: NDArray[np.float64],
                           deadline: Deadline) -> Sequence[Review | str]:
        try:
            return await self._scoring.review(scene_id, trajectories, deadline)
        except (EpisodeError, ScoringFailed) as error:
            return [f"{type(error).__name__}: {error}"] * len(trajectories)

    async def _open(self, scene_id: str, want_image: bool,
                    deadline: Deadline) -> tuple[OpenedScene, NDArray[np.uint8] | None]:
        """A scene once for all its running episodes."""
        known = self._opened.get(scene_id)
        if known is not None and not want_image:
            return known, None
        prompt, image_key, image = await self._scoring.open(scene_id, want_image, deadline)
        opened = self._opened.setdefault(scene_id, OpenedScene(scene_id, prompt, image_key, None))
        return opened, image


def _whole(reviews: Sequence[Review | str]) -> list[Review] | str:
    """The reviews of an item, or the first thing that went wrong with one of them."""
    for review in reviews:
        if isinstance(review, str):
            return review
    return [review for review in reviews if isinstance(review, Review)]

