"""A rollout worker: a process with one engine that plays the tasks which the trainer sends.

    main thread      takes messages in order: weights -> engine, tasks -> run_tasks -> episodes to the sender
    control thread   owns the DEALER socket to the trainer's WorkerPool; heartbeats also while the main thread computes

What the worker is made of (engine, environment, where episodes go, where weights come from) is given to it, so that
this module knows neither the transfer nor the callbacks.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.process import die_with_parent
from nemo_mtdrive.rollout import control
from nemo_mtdrive.rollout.control import Message
from nemo_mtdrive.rollout.control_link import ControlLink, TrainerGone
from nemo_mtdrive.rollout.engine import Engine, EngineError
from nemo_mtdrive.rollout.multi_turn import CUT, Environment, Image, RolloutSettings, run_tasks
from nemo_mtdrive.telemetry import spans
from nemo_mtdrive.telemetry.spans import span
from nemo_mtdrive.transfer.curve import CurveKeys
from nemo_mtdrive.types import Episode

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WorkerConfig:
    """Who this worker is and whom it answers to."""

    name: str
    """As the trainer's WorkerPool knows it."""
    control_endpoint: str
    """ZeroMQ endpoint of the trainer."""
    heartbeat_s: float
    trainer_timeout_s: float
    """How long the connection to the trainer may stay closed before the worker ends itself."""
    keys: CurveKeys | None = None
    """Encrypt with these; the trainer's own."""


@dataclass(frozen=True)
class WorkerParts:
    """What a worker is made of."""

    engine: Engine
    environment: Environment
    tokenizer: Tokenizer
    settings: RolloutSettings
    on_episode: Callable[[Episode, Mapping[str, Image]], None]
    """Gets each episode as it ends (`callbacks.ipss`)."""
    flush: Callable[[], Mapping[str, float]]
    """Called when a batch of tasks is played: waits until its episodes are with the trainer; returns metrics."""
    read_weights: Callable[[Mapping[str, Any]], Iterable[tuple[str, Tensor]]]
    """From the manifest of a weights message to (HF name, tensor) pairs."""
    close: Callable[[], None]


class Terminated(BaseException):
    """SIGTERM or SIGINT came; not an Exception, so that nothing on the way takes it for a failure of its own."""


def run_worker(config: WorkerConfig, open_parts: Callable[[], WorkerParts]) -> int:
    """The whole life of a worker process; returns its exit code.

    Connects first, so that the trainer hears of it (and of a failure) while `open_parts` builds the engine. Ends with 0
    on "stop", with 128 + n on SIGTERM or SIGINT (nobody told the trainer, so it is missed), and with 1 when something
    failed, after telling the trainer and stderr why. Call it in the main thread.
    """
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    link = ControlLink(config.control_endpoint, config.name, config.heartbeat_s, config.trainer_timeout_s, config.keys)
    try:
        _serve(link, open_parts)
    except Terminated as end:
        _say(config.name, f"ended by {end}")
        return 128 + signal.Signals[str(end)]
    except TrainerGone as error:
        _say(config.name, str(error))
        return 1
    except Exception as error:  # the boundary of the process: whatever it was, the trainer learns of it
        reason = f"{type(error).__name__}: {error}"
        link.send("failed", reason=reason, pid=os.getpid())
        _say(config.name, f"failed: {reason}")
        sys.excepthook(*sys.exc_info())  # the traceback, for the log
        return 1
    finally:
        link.close()
    return 0


def _serve(link: ControlLink, open_parts: Callable[[], WorkerParts]) -> None:
    parts = open_parts()
    try:
        link.doing = "idle"
        link.send("ready", pid=os.getpid(), host=socket.gethostname())
        while (message := link.receive()).type != "stop":
            link.doing = message.type
            if message.type == "weights":
                _load_weights(link, parts, message)
            elif message.type == "tasks":
                _play(link, parts, message)
            link.doing = "idle"
    finally:
        parts.close()


def _load_weights(link: ControlLink, parts: WorkerParts, message: Message) -> None:
    start = time.perf_counter()
    with span("sync"):
        parts.engine.load_weights(parts.read_weights(message["manifest"]), message["version"])
    spans.flush()
    link.send("weights_loaded", version=message["version"], seconds=time.perf_counter() - start)


def _play(link: ControlLink, parts: WorkerParts, message: Message) -> None:
    """Play a batch of tasks, stream its episodes, report it done."""
    batch, tasks = message["batch"], control.unpack_tasks(message["tasks"])
    for task in tasks:
        if task.policy_version != parts.engine.version:
            raise EngineError(
                f"{task.scene_id}: a task for policy version {task.policy_version}, the engine has "
                f"{parts.engine.version}: send the weights before the tasks"
            )
    episodes = answers = tokens = cut = 0

    def on_episode(episode: Episode, images: Mapping[str, Image]) -> None:
        nonlocal episodes, answers, tokens, cut
        episodes += 1
        answers += len(episode.turns)
        cut += episode.reason.startswith(CUT)
        tokens += sum(turn.stop - turn.start for turn in episode.turns)
        parts.on_episode(episode, images)

    def on_progress(wave: int, running: int, done: int) -> None:
        link.doing = f"wave {wave}, {running} episodes running, {done} done"
        link.send("progress", batch=batch, wave=wave, running=running, done=done)
        spans.flush()

    start = time.perf_counter()
    run_tasks(
        tasks, parts.engine, parts.environment, parts.tokenizer, parts.settings, on_episode, on_progress
    )
    played = time.perf_counter() - start
    link.doing = "waiting for the trainer to take the episodes"
    metrics = {"answers": answers, "tokens": tokens, "episodes_cut": cut, "play_s": played, **parts.flush()}
    spans.flush()  # before "done": then the trainer finds them
    link.send("done", batch=batch, episodes=episodes, metrics=metrics)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise Terminated(signal.Signals(number).name)


def _say(name: str, text: str) -> None:
    print(f"rollout worker {name} {text}", file=sys.stderr, flush=True)
