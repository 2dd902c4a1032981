"""The environment over HTTP, with the same methods as `DrivingEnvironment`.

What fails on the way (refused connections, lost replies, a server that is still warming up) is tried again with
growing, jittered pauses until the retries or the deadline are used up; then `EnvironmentUnavailable` is raised. Steps
are idempotent, so trying again never scores twice. Where a server has lost an episode (it was restarted, or another one
of `urls` took over), the client opens the episode there and repeats its earlier answers: scoring is deterministic.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import httpx

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.env import EpisodeError, OutOfOrder, ResetItem, StepItem, UnknownEpisode, UnknownScene
from nemo_mtdrive.types import Observation, StepResult

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 3.0
IDLE_CONNECTION_S = 30.0

_REFUSALS: dict[str, type[EpisodeError]] = {
    kind.__name__: kind for kind in (UnknownEpisode, UnknownScene, OutOfOrder, EpisodeError)}


class EnvironmentUnavailable(RuntimeError):
    """No result could be had: no server answered within the retries and the deadline, or scoring failed there.

    The episodes it concerns are invalid, never scored 0.
    """


class EnvironmentRefused(RuntimeError):
    """The server will not take the request, now or later: a wrong token, or a body that it refuses."""


class _TryAgain(Exception):
    """This attempt failed in a way that another may not."""


class EnvironmentClient:
    """A connection pool to one server, or to several that stand in for each other.

    Args:
        urls: one `http://host:port`, or several; the first is used until it fails.
        token: the server's secret.
        timeout_s: deadline of a call, all attempts together [s].
        retries: attempts after the first.
    """

    def __init__(self, urls: str | Sequence[str], token: str, timeout_s: float, retries: int) -> None:
        self._urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        if not self._urls:
            raise ValueError("urls is empty: give at least one http://host:port")
        self._timeout_s = timeout_s
        self._retries = retries
        self._server = 0
        self._answers: dict[str, tuple[str, list[str]]] = {}  # running episodes: scene id and answers so far
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"}, trust_env=False,
            limits=httpx.Limits(max_connections=16, keepalive_expiry=IDLE_CONNECTION_S))

    @property
    def url(self) -> str:
        """The server in use now."""
        return self._urls[self._server]

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
        observations = messages.unpack_observations(self._post("/v1/reset", messages.pack_resets(items)))
        self._answers.update((episode_id, (scene_id, [])) for episode_id, scene_id, _ in items)
        return observations

    def step(self, episode_id: str, turn: int, answer: str) -> StepResult:
        """See `DrivingEnvironment.step`."""
        return self.step_many([(episode_id, turn, answer)])[0]

    def step_many(self, items: Sequence[StepItem]) -> list[StepResult]:
        """See `DrivingEnvironment.step_many`; one request.

        Raises:
            UnknownEpisode, OutOfOrder: as the environment raises them.
            EnvironmentUnavailable, EnvironmentRefused: see there.
        """
        if not items:
            return []
        body = messages.pack_steps(items)
        try:
            reply = self._post("/v1/step", body)
        except UnknownEpisode:
            if not all(episode_id in self._answers for episode_id, _, _ in items):
                raise
            self._reopen([episode_id for episode_id, _, _ in items])
            reply = self._post("/v1/step", body)
        results = messages.unpack_results(reply)
        for (episode_id, turn, answer), result in zip(items, results, strict=True):
            _, answers = self._answers.get(episode_id, ("", []))
            if result.done:
                self._answers.pop(episode_id, None)
            elif turn == len(answers):
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
            self._post("/v1/close", messages.pack_closes(episode_ids))

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server in use answers /ready.

        Raises:
            EnvironmentUnavailable: it did not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise EnvironmentUnavailable(f"{self.url}: not ready after {timeout_s:g} s; see the server's log")
            time.sleep(FIRST_PAUSE_S)

    def _is_ready(self) -> bool:
        try:
            return self._http.get(f"{self.url}/ready", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    def disconnect(self) -> None:
        """Close the connections; the episodes on the server stay."""
        self._http.close()

    def __enter__(self) -> EnvironmentClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.disconnect()

    def _reopen(self, episode_ids: Sequence[str]) -> None:
        """Open episodes on a server that does not know them, and repeat their answers turn by turn."""
        known = {episode_id: self._answers[episode_id] for episode_id in episode_ids}
        self._post("/v1/reset", messages.pack_resets([(e, scene_id, False) for e, (scene_id, _) in known.items()]))
        for turn in range(max(len(answers) for _, answers in known.values())):
            again = [(e, turn, answers[turn]) for e, (_, answers) in known.items() if turn < len(answers)]
            self._post("/v1/step", messages.pack_steps(again))

    def _post(self, path: str, body: bytes) -> bytes:
        return self._attempt(lambda timeout_s: self._once(path, body, timeout_s))

    def _attempt(self, once: Callable[[float], bytes]) -> bytes:
        """Call `once(seconds left)` until it succeeds, with pauses that double and are jittered."""
        deadline = time.monotonic() + self._timeout_s
        pause = FIRST_PAUSE_S
        for attempt in range(self._retries + 1):
            left = deadline - time.monotonic()
            try:
                return once(left)
            except _TryAgain as error:
                rest = pause * random.uniform(0.5, 1.5)
                if attempt == self._retries or time.monotonic() + rest >= deadline:
                    spent = self._timeout_s - deadline + time.monotonic()
                    raise EnvironmentUnavailable(f"{self.url}: no answer in {spent:.1f} s, "
                                                 f"attempt {attempt + 1} was the last: {error}") from error
                self._server = (self._server + 1) % len(self._urls)
                time.sleep(rest)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError("the loop above returns or raises")

    def _once(self, path: str, body: bytes, timeout_s: float) -> bytes:
        try:
            reply = self._http.post(f"{self.url}{path}", content=body, timeout=timeout_s)
        except httpx.TransportError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if reply.status_code == 200:
            return reply.content
        line = reply.text.strip()
        if reply.status_code in (502, 503, 504):
            raise _TryAgain(f"{reply.status_code} {line}")
        raise self._refusal(reply.status_code, line)

    def _refusal(self, status: int, line: str) -> Exception:
        """What the environment raised over there, or what the status means."""
        kind, _, text = line.partition(": ")
        if kind in _REFUSALS:
            return _REFUSALS[kind](text)
        return (EnvironmentUnavailable if status >= 500 else EnvironmentRefused)(f"{self.url}: {status} {line}")
