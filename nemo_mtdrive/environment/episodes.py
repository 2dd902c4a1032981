"""The state of episodes, without any scoring: which turn is next, what was answered, what is forgotten.

Shared by the environment in this process (`env.DrivingEnvironment`) and the served one (`served.ServedEnvironment`).
Replies are kept, so the same (episode, turn) asked twice is answered twice alike. Nothing here locks or waits: its owner
calls it from one thread, or under its own lock.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from nemo_mtdrive.dialogue.answer import ParsedAnswer
from nemo_mtdrive.dialogue.prompt import unreadable_feedback
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.types import StepResult

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


@dataclass(frozen=True)
class StepFailed:
    """In place of a `StepResult`: the scene's scoring failed. The episode has not moved; it is invalid, never scored 0."""

    episode_id: str
    turn: int
    reason: str
    """What failed, one line."""


@dataclass(frozen=True, eq=False)
class OpenedScene:
    """What all episodes of a scene share."""

    scene_id: str
    prompt: str
    image_key: str
    scene: Scene | None
    """The scene itself where it is scored in this process; None where other processes hold it."""


@dataclass(eq=False)
class Episode:
    """State of one episode; `opened` is dropped when it ends, its replies stay."""

    episode_id: str
    opened: OpenedScene | None
    started: float
    order: int
    """Number of the request that started it; see `Episodes.start`."""
    replies: list[StepResult] = field(default_factory=list)


class Episodes:
    """The episodes of one environment."""

    def __init__(self, max_turns: int, *, max_episodes: int = MAX_EPISODES, max_age_s: float = MAX_AGE_S,
                 clock: Callable[[], float] = time.monotonic) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns}: set it to 1 or more")
        self.max_turns = max_turns
        self._max_episodes = max_episodes
        self._max_age_s = max_age_s
        self._clock = clock
        self._episodes: OrderedDict[str, Episode] = OrderedDict()  # in order of their start

    def __len__(self) -> int:
        """Episodes kept now, ended ones that nobody closed included."""
        return len(self._episodes)

    def start(self, episode_id: str, opened: OpenedScene, order: int) -> None:
        """Start an episode, or start it anew where the id is known.

        `order` grows with every request. A request that was overtaken, as the first attempt of one that its client sent
        twice, must not start an episode anew that has gone on since: such a start is ignored.
        """
        known = self._episodes.get(episode_id)
        if known is not None and known.order > order:
            return
        self._episodes.pop(episode_id, None)
        self._episodes[episode_id] = Episode(episode_id, opened, self._clock(), order)
        self._evict()

    def check(self, episode_id: str, turn: int) -> Episode:
        """The episode, where `turn` is its next one or has its reply already (`turn < len(episode.replies)`).

        Raises:
            UnknownEpisode: no such episode.
            OutOfOrder: a turn before its predecessor, or after the end.
        """
        episode = self._episodes.get(episode_id)
        if episode is None:
            raise UnknownEpisode(f"episode {episode_id!r}: not open here; reset it first")
        answered = len(episode.replies)
        if 0 <= turn < answered:
            return episode
        if episode.opened is None:
            raise OutOfOrder(f"episode {episode_id!r}: got turn {turn}, but it ended with turn {answered - 1}")
        if turn != answered:
            raise OutOfOrder(f"episode {episode_id!r}: got turn {turn}, want turn {answered}")
        return episode

    def answer(self, episode: Episode, parsed: ParsedAnswer, review: Review | None) -> StepResult:
        """Record the reply to the episode's next turn; `review` is None for an answer that could not be read."""
        turn = len(episode.replies)
        last = turn == self.max_turns - 1
        if review is None:
            feedback = unreadable_feedback(parsed.problem)
            result = StepResult(episode.episode_id, turn, None, None, parsed.format_score, feedback, [], last,
                                "max_turns" if last else "")
        else:
            clean = not review.violations
            result = StepResult(
                episode.episode_id, turn, parsed.trajectory, dict(review.scores), parsed.format_score,
                "" if clean else review.feedback, [dict(violation) for violation in review.violations], clean or last,
                "clean" if clean else "max_turns" if last else "")
        episode.replies.append(result)
        if result.done:
            episode.opened = None
        return result

    def close(self, episode_id: str) -> None:
        """Forget an episode; an unknown one is ignored."""
        self._episodes.pop(episode_id, None)

    def _evict(self) -> None:
        oldest_start = self._clock() - self._max_age_s
        while self._episodes:
            episode_id, episode = next(iter(self._episodes.items()))
            if len(self._episodes) <= self._max_episodes and episode.started >= oldest_start:
                return
            del self._episodes[episode_id]
