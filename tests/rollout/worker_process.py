"""`worker_process.py ENDPOINT NAME LOG MODE`: a worker, real but for its engine and environment."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fakes import EpisodeLog, ScriptedEngine, ScriptedEnvironment  # this file runs as a script

from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.rollout.multi_turn import RolloutSettings
from nemo_mtdrive.rollout.worker import WorkerConfig, WorkerParts, run_worker


def fail(name: str, seed: int) -> str:
    raise RuntimeError("out of memory")


def open_parts(log: Path, mode: str) -> WorkerParts:
    if mode == "fails-to-start":
        raise FileNotFoundError("no config.json")
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    engine = ScriptedEngine(tokenizer, version=None)
    environment = ScriptedEnvironment({f"s{i}": 1 + i % 3 for i in range(20)}, max_turns=4)
    if mode == "starts-slowly":
        time.sleep(1.0)  # connected by then
        log.with_suffix(".connected").touch()
        time.sleep(2.0)
    if mode == "slow":
        engine.say = lambda name, seed: time.sleep(0.2) or "slow"
    elif mode == "hangs":
        engine.say = lambda name, seed: time.sleep(600.0) or "never"
    elif mode == "breaks":
        engine.say = fail
    return WorkerParts(
        engine=engine,
        environment=environment,
        tokenizer=tokenizer,
        settings=RolloutSettings(4, 16, 64, 0.8, 0.2),
        on_episode=EpisodeLog(log),
        flush=lambda: {"flushed": 1.0},
        read_weights=lambda manifest: manifest.items(),
        close=lambda: log.with_suffix(".closed").touch(),
    )


if __name__ == "__main__":
    endpoint, name, log, mode = sys.argv[1:]
    config = WorkerConfig(name, endpoint, heartbeat_s=0.2, trainer_timeout_s=2.0)
    sys.exit(run_worker(config, lambda: open_parts(Path(log), mode)))
