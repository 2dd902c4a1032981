"""HTTP to one environment server or to several that stand in for each other: attempts, pauses, deadlines.

What fails on the way (refused connections, lost replies, a server that warms up or drains) is tried again, on the next
server where there is one, with growing, jittered pauses. A server whose queue is full (503 with Retry-After) is not asked
before it said; that is no failure and counts against the deadline only.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence

import httpx

from nemo_mtdrive.environment.episodes import EpisodeError, OutOfOrder, UnknownEpisode, UnknownScene

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 3.0
IDLE_CONNECTION_S = 30.0
LONGEST_RETRY_AFTER_S = 60.0
CONNECTIONS = 64

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


class _Absent(_TryAgain):
    """No server is there, or not yet: it has not seen the request."""


class _Busy(Exception):
    """The server's queue is full."""

    def __init__(self, retry_after_s: float, line: str) -> None:
        super().__init__(line)
        self.retry_after_s = retry_after_s


class Connection:
    """A connection pool; safe for several threads.

    Args:
        urls: `http://host:port` of each server; the first is used until it fails.
        token: the servers' secret.
        retries: failures that are tried again, a request.
        waits: a server that is not there, or not ready, is waited for until the deadline and counts as no failure:
            somebody starts it again.
    """

    def __init__(self, urls: Sequence[str], token: str, retries: int, waits: bool = False) -> None:
        if not urls:
            raise ValueError("urls is empty: give at least one http://host:port")
        self.urls = [url.rstrip("/") for url in urls]
        self._retries = retries
        self._waits = waits
        self._server = 0
        self._not_before = [0.0] * len(self.urls)
        self._lock = threading.Lock()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"}, trust_env=False,
            limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=IDLE_CONNECTION_S))

    @property
    def url(self) -> str:
        """The server in use now."""
        return self.urls[self._server]

    def post(self, path: str, body: bytes, deadline: float, *, request_id: str = "", first: int | None = None) -> bytes:
        """The body of the reply with status 200.

        Args:
            path, body: the request.
            deadline: of all attempts together [monotonic s].
            request_id: for requests that the server keeps by id.
            first: for requests without episodes: the server to begin with; a busy one is left for the next.

        Raises:
            EpisodeError and its kinds: as the environment raises them.
            EnvironmentUnavailable, EnvironmentRefused: see there.
        """
        began = time.monotonic()
        headers = {"X-Request-Id": request_id} if request_id else {}
        server, failures, pause = self._server if first is None else first, 0, FIRST_PAUSE_S
        while True:
            rest = self._not_before[server] - time.monotonic()
            if rest <= 0:
                try:
                    return self._once(server, path, body, deadline, headers)
                except _Busy as busy:
                    said, rest = str(busy), busy.retry_after_s * random.uniform(1.0, 1.5)
                    self._not_before[server] = time.monotonic() + rest
                    if first is not None:
                        server = min(range(len(self.urls)), key=lambda other: self._not_before[other])
                        rest = self._not_before[server] - time.monotonic()
                    last = False
                except _TryAgain as error:
                    said = str(error)
                    failures += not (self._waits and isinstance(error, _Absent))
                    last = failures > self._retries
                    rest, pause = pause * random.uniform(0.5, 1.5), min(2 * pause, LONGEST_PAUSE_S)
                    server = self._leave(server) if first is None else (server + 1) % len(self.urls)
            else:
                said, last = "the queue is full", False
            if last or time.monotonic() + rest >= deadline:
                raise EnvironmentUnavailable(f"{self.urls[server]}: no answer in {time.monotonic() - began:.1f} s, "
                                             f"attempt {max(failures, 1)} was the last: {said}")
            time.sleep(max(0.0, rest))

    def is_ready(self, server: int) -> bool:
        """Whether a server answers /ready."""
        try:
            return self._http.get(f"{self.urls[server]}/ready", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    def use_ready(self) -> bool:
        """Whether any server is ready; the first that is becomes the one in use."""
        for step in range(len(self.urls)):
            server = (self._server + step) % len(self.urls)
            if self.is_ready(server):
                self._server = server
                return True
        return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _leave(self, server: int) -> int:
        """Use the next server, unless another thread has left this one already."""
        with self._lock:
            if self._server == server:
                self._server = (server + 1) % len(self.urls)
            return self._server

    def _once(self, server: int, path: str, body: bytes, deadline: float, headers: Mapping[str, str]) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _TryAgain("the deadline passed")
        url = self.urls[server]
        try:
            reply = self._http.post(f"{url}{path}", content=body, timeout=left,
                                    headers={"X-Deadline-S": f"{left:.3f}", **headers})
        except httpx.ConnectError as error:
            raise _Absent(f"{type(error).__name__}: {error}") from error
        except httpx.TransportError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if reply.status_code == 200:
            return reply.content
        line = reply.text.strip()
        if reply.status_code == 503 and "Retry-After" in reply.headers:
            raise _Busy(_seconds(reply.headers["Retry-After"]), f"503 {line}")
        if reply.status_code == 503:
            raise _Absent(f"503 {line}")
        if reply.status_code in (408, 502, 504):
            raise _TryAgain(f"{reply.status_code} {line}")
        raise _refusal(url, reply.status_code, line)


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds; a date (which our servers never send) counts as the longest."""
    return min(float(retry_after), LONGEST_RETRY_AFTER_S) if retry_after.isdecimal() else LONGEST_RETRY_AFTER_S


def _refusal(url: str, status: int, line: str) -> Exception:
    """What the environment raised over there, or what the status means."""
    kind, _, text = line.partition(": ")
    if kind in _REFUSALS:
        return _REFUSALS[kind](text)
    return (EnvironmentUnavailable if status >= 500 else EnvironmentRefused)(f"{url}: {status} {line}")
