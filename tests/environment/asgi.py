"""Requests to the service in this process, and a scoring that answers when the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_mtdrive.environment.scenes import load_scene, open_scene
from nemo_mtdrive.environment.service import EnvironmentService
from tests.environment.environment_fakes import FakeReviewer, FakeScenes

TOKEN = "a-secret-of-the-tests"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


async def ask(service: EnvironmentService, path: str, body: bytes = b"", *, method: str = "POST", token: str = TOKEN,
              chunk: int = 1 << 20, **headers: str) -> Reply:
    """One request; header names with _ for -."""
    named = {"authorization": f"Bearer {token}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
             "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
             "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()]}
    parts = [body[at:at + chunk] for at in range(0, len(body), chunk)] or [b""]
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await service.app(scope, receive, send)
    start = sent[0]
    return Reply(start["status"], {name.decode(): value.decode() for name, value in start["headers"]},
                 b"".join(message.get("body", b"") for message in sent[1:]))


class Held:
    """Scoring in this process that waits until `go` is set; as `ScoringPool` to the service."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.scenes = FakeScenes()
        self.agent = FakeReviewer()
        self.ready = self.size = 1
        self.restarts = 0
        self.dropped = 0

    async def open(self, scene_id, want_image, deadline):
        await self.go.wait()
        opened, image = open_scene(self.scenes, load_scene(self.scenes, scene_id))
        return opened.prompt, opened.image_key, image if want_image else None

    async def review(self, scene_id, trajectories, deadline):
        await self.go.wait()
        return self.agent.review(load_scene(self.scenes, scene_id), trajectories)

    def drop_expired(self):
        self.dropped += 1


def service(scoring: Any, *, queue_items: int = 1000, max_turns: int = 3) -> EnvironmentService:
    """A service that is ready."""
    made = EnvironmentService(TOKEN, queue_items)
    made.start(scoring, max_turns)
    return made
