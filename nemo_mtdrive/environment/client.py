"""The environment over HTTP, with the same methods as `DrivingEnvironment`, and `score_many` for scores alone.

Steps are idempotent by (episode, turn) and score requests by their id, so what is sent again after a lost reply is not
scored twice. Where a server has lost an episode (it was restarted, or another one of `urls` took over), the client opens
the episode there and repeats its earlier answers: scoring is deterministic, so the episode goes on as it was.
"""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.connection import (
    FIRST_PAUSE_S,
    Connection,
    EnvironmentRefused,
    EnvironmentUnavailable,
)
from nemo_mtdrive.environment.episodes import OutOfOrder, ResetItem, StepFailed, StepItem, UnknownEpisode
from nemo_mtdrive.environment.messages import ScoreItem
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.types import Observation, StepResult

__all__ = ["EnvironmentClient", "EnvironmentRefused", "EnvironmentUnavailable"]

SCORES_A_REQUEST = 4096
"""Trajectories of one score request, or more where one item has more."""
REQUESTS_AT_ONCE = 4
"""Score requests that one `score_many` has under way."""
REOPENINGS = 8
"""Times that a step opens its episodes anew, while servers come and go."""


class EnvironmentClient:
    """One environment server, or several that stand in for each other; safe for threads that play different episodes.

    Args:
        urls: one `http://host:port`, or several; the first is used until it fails.
        token: the server's secret.
        timeout_s: deadline of a call, all attempts together [s].
        retries: failures that are tried again; waiting for a full queue is none.
        waits: a server that is not there, or not ready, is waited for until the deadline and counts as no failure:
            somebody starts it again.
    """

    def __init__(self, urls: str | Sequence[str], token: str, timeout_s: float, retries: int,
                 waits: bool = False) -> None:
        self._connection = Connection([urls] if isinstance(urls, str) else urls, token, retries, waits)
        self._timeout_s = timeout_s
        self._answers: dict[str, tuple[str, list[str]]] = {}  # running episodes: scene id and answers so far

    @property
    def url(self) -> str:
        """The server in use now."""
        return self._connection.url

    def reset(self, episode_id: str, scene_id: str, want_image: bool) -> Observation:
        """See `DrivingEnvironment.reset`."""
        return self.reset_many([(episode_id, scene_id, want_image)])[0]

    def reset_many(self, items: Sequence[ResetItem]) -> list[Observation]:
        """See `DrivingEnvironment.reset_many`; one request.

        Raises:
            UnknownScene, EpisodeError: as the environment raises them.
            EnvironmentUnavailable, EnvironmentRefused: see there.
        """
        if not items:
            return []
        observations = messages.unpack_observations(self._post("/v1/reset", messages.pack_resets(items), self._deadline()))
        self._answers.update((episode_id, (scene_id, [])) for episode_id, scene_id, _ in items)
        return observations

    def step(self, episode_id: str, turn: int, answer: str) -> StepResult:
        """See `DrivingEnvironment.step`.

        Raises:
            EnvironmentUnavailable: as `step_many`, or the scene's scoring failed.
        """
        [result] = self.step_many([(episode_id, turn, answer)])
        if isinstance(result, StepFailed):
            raise EnvironmentUnavailable(f"{self.url}: scoring failed: {result.reason}")
        return result

    def step_many(self, items: Sequence[StepItem]) -> list[StepResult | StepFailed]:
        """See `DrivingEnvironment.step_many`; one request. An item whose scene breaks scoring is a `StepFailed`.

        Raises:
            UnknownEpisode, OutOfOrder: as the environment raises them.
            EnvironmentUnavailable, EnvironmentRefused: see there.
        """
        if not items:
            return []
        results = messages.unpack_results(self._step(items))
        for (episode_id, turn, answer), result in zip(items, results, strict=True):
            _, answers = self._answers.get(episode_id, ("", []))
            if isinstance(result, StepResult) and result.done:
                self._answers.pop(episode_id, None)
            elif isinstance(result, StepResult) and turn == len(answers):
                answers.append(answer)
        return results

    def close(self, episode_id: str) -> None:
        """See `DrivingEnvironment.close`."""
        self.close_many([episode_id])

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """See `DrivingEnvironment.close_many`; one request."""
        for episode_id in episode_ids:
            self._answers.pop(episode_id, None)
        if episode_ids:
            self._post("/v1/close", messages.pack_closes(episode_ids), self._deadline())

    def score(self, scene_id: str, trajectories: NDArray[np.float64], *, feedback: bool = False) -> list[Review]:
        """Reviews of trajectories [B, 8, 3] of one scene; `score_many` with one item.

        Raises:
            EnvironmentUnavailable: as `score_many`, or the scene is unknown or breaks scoring.
        """
        [reviews] = self.score_many([(scene_id, trajectories)], feedback=feedback)
        if isinstance(reviews, str):
            raise EnvironmentUnavailable(f"{self.url}: {reviews}")
        return reviews

    def score_many(self, items: Sequence[ScoreItem], *, feedback: bool = False) -> list[list[Review] | str]:
        """Score trajectories without episodes, spread over all servers; a scene goes to one server, whose cache knows it.

        Args:
            items: (scene_id, trajectories [B, 8, 3] in the ego frame) each.
            feedback: also send violations and feedback; without, they are [] and "".

        Returns:
            For each item its reviews, or why it has none ("UnknownScene: ...", "ScoringFailed: ...").

        Raises:
            EnvironmentUnavailable, EnvironmentRefused: see there.
        """
        deadline = self._deadline()
        results: list[list[Review] | str] = [[] for _ in items]

        def send(server: int, rows: Sequence[int]) -> None:
            body = messages.pack_scores([items[row] for row in rows], feedback)
            reply = self._connection.post("/v1/score", body, deadline, request_id=secrets.token_hex(16), first=server)
            for row, reviews in zip(rows, messages.unpack_reviews(reply), strict=True):
                results[row] = reviews

        with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="score") as threads:
            for done in [threads.submit(send, *request) for request in self._requests(items)]:
                done.result()
        return results

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a server answers /ready; that one is then in use.

        Raises:
            EnvironmentUnavailable: none did within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not self._connection.use_ready():
            if time.monotonic() > deadline:
                raise EnvironmentUnavailable(f"{self.url}: not ready after {timeout_s:g} s; see the server's log")
            time.sleep(FIRST_PAUSE_S)

    def disconnect(self) -> None:
        """Close the connections; the episodes on the server stay."""
        self._connection.close()

    def __enter__(self) -> EnvironmentClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.disconnect()

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _post(self, path: str, body: bytes, deadline: float) -> bytes:
        return self._connection.post(path, body, deadline)

    def _step(self, items: Sequence[StepItem]) -> bytes:
        """Send a step; where the server in use has not our episodes as we have them, open them there and try again.

        It knows none of them after a restart, and too few turns of them when another server stood in meanwhile.
        """
        deadline = self._deadline()
        body = messages.pack_steps(items)
        ours = [self._answers.get(episode_id) for episode_id, _, _ in items]
        ahead = any(known is None or turn > len(known[1]) for known, (_, turn, _) in zip(ours, items, strict=True))
        for left in reversed(range(REOPENINGS)):
            try:
                return self._post("/v1/step", body, deadline)
            except (UnknownEpisode, OutOfOrder):
                if ahead or not left:
                    raise
            self._reopen([episode_id for episode_id, _, _ in items], deadline)
        raise AssertionError("the loop above returns or raises")

    def _reopen(self, episode_ids: Sequence[str], deadline: float) -> None:
        """Open episodes on the server in use and repeat their answers turn by turn."""
        known = {episode_id: self._answers[episode_id] for episode_id in episode_ids}
        self._post("/v1/reset", messages.pack_resets([(e, scene_id, False) for e, (scene_id, _) in known.items()]), deadline)
        for turn in range(max(len(answers) for _, answers in known.values())):
            again = [(e, turn, answers[turn]) for e, (_, answers) in known.items() if turn < len(answers)]
            try:
                self._post("/v1/step", messages.pack_steps(again), deadline)
            except (UnknownEpisode, OutOfOrder):  # it went away meanwhile, and the next one is asked from the start
                return

    def _requests(self, items: Sequence[ScoreItem]) -> Iterator[tuple[int, list[int]]]:
        """(server, rows of `items`) of each score request."""
        servers: list[list[int]] = [[] for _ in self._connection.urls]
        for row, (scene_id, _) in enumerate(items):
            servers[zlib.crc32(scene_id.encode()) % len(servers)].append(row)
        for server, rows in enumerate(servers):
            request: list[int] = []
            size = 0
            for row in rows:
                if request and size + len(items[row][1]) > SCORES_A_REQUEST:
                    yield server, request
                    request, size = [], 0
                request.append(row)
                size += len(items[row][1])
            if request:
                yield server, request
