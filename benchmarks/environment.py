"""The environment server under one RL step of the paper: 256 scenes x 8 episodes x 6 turns = 12,288 scores.

    python benchmarks/environment.py [--json] [--workers N] [--scenes DIR]

Two ways to as many scores, both through the client over loopback, on scenes that no worker has seen: `score`, one
`score_many` of 48 trajectories a scene; `step`, episodes as rollouts play them (reset with the image, then one wave a turn,
2,048 answers a request, of plans that leave the road, so that hardly any episode is done before its last turn).
Preparing each scene for scoring, once, is part of the time; `warm` is the score request again. Wall time on a machine with
other work is an upper bound, so CPU seconds of client, server and workers are given too. Scenes are generated first (not
measured).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.driving.command import generate_scenes
from nemo_mtdrive.driving.scene import load_scene
from nemo_mtdrive.environment.arguments import TOKEN_VARIABLE
from nemo_mtdrive.environment.client import EnvironmentClient
from nemo_mtdrive.environment.episodes import StepFailed
from nemo_mtdrive.process import available_cpus, free_port

SCENES, GROUP, TURNS = 256, 8, 6
TOKEN = "benchmark"
NAVSIM_ONE_AT_A_TIME, NAVSIM_BATCHED = 49.0, 268.0
"""Trajectories a second a core of NAVSIM v1's own code, alone and at its best batching."""


@contextmanager
def served(scenes: Path, workers: int) -> Iterator[tuple[EnvironmentClient, psutil.Process]]:
    """A server as a user starts it, warm, and a client of it."""
    port = free_port()
    command = [sys.executable, "-m", "nemo_mtdrive.cli", "serve-env", "--scenes", str(scenes), "--port", str(port),
               "--workers", str(workers)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    server = subprocess.Popen(command, env={**os.environ, **threads, TOKEN_VARIABLE: TOKEN})
    try:
        with EnvironmentClient(f"http://127.0.0.1:{port}", TOKEN, timeout_s=600.0, retries=0) as client:
            client.wait_ready(300.0)
            yield client, psutil.Process(server.pid)
    finally:
        server.terminate()
        if server.wait(30):
            raise RuntimeError(f"the server ended with code {server.returncode}")


def cpu_seconds(server: psutil.Process) -> dict[str, float]:
    """CPU time so far: this process, the server's front, all its workers."""
    def spent(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return {"client": spent(psutil.Process()), "server": spent(server),
            "workers": sum(spent(worker) for worker in server.children())}


def measured(server: psutil.Process, work: Callable[[], int]) -> dict[str, float]:
    """Wall and CPU seconds of some work that returns how many scores it had."""
    before, began = cpu_seconds(server), time.perf_counter()
    scores = work()
    wall = time.perf_counter() - began
    spent = {f"{name}_cpu_s": after - before[name] for name, after in cpu_seconds(server).items()}
    return {"wall_s": wall, "scores": float(scores), "scores_per_s": scores / wall, **spent,
            "cpu_s": sum(spent.values())}


def plans(scenes: Path, ids: list[str]) -> dict[str, NDArray[np.float64]]:
    """Scene id -> [48, 8, 3]: what was driven there, pushed aside and stretched by up to a third."""
    draw = np.random.default_rng(0)
    found = {}
    for name in ids:
        driven = load_scene(scenes / f"{name}.json").future
        assert driven is not None, "generated scenes have a future"
        plan = np.repeat(driven[None], GROUP * TURNS, axis=0) * draw.uniform(0.67, 1.33, (GROUP * TURNS, 1, 1))
        plan[:, :, 1] += draw.normal(0.0, 1.0, (GROUP * TURNS, 1)) * np.linspace(0.1, 1.0, 8)
        found[name] = np.round(plan, 2)  # what an answer can say
    return found


def off_the_road(plan: NDArray[np.float64]) -> NDArray[np.float64]:
    """Plans [B, 8, 3] that end 20 m further to the left."""
    pushed = plan.copy()
    pushed[:, :, 1] += np.linspace(2.5, 20.0, 8)
    return pushed


def score(client: EnvironmentClient, trajectories: dict[str, NDArray[np.float64]]) -> int:
    """One `score_many` of everything."""
    reviews = client.score_many(list(trajectories.items()))
    failed = [found for found in reviews if isinstance(found, str)]
    if failed:
        raise RuntimeError(f"{len(failed)} scenes failed, the first: {failed[0]}")
    return sum(len(found) for found in reviews)


def step(client: EnvironmentClient, trajectories: dict[str, NDArray[np.float64]]) -> int:
    """Episodes until they are done; returns how many answers were scored."""
    episodes = {f"{name}/{index}": (name, index) for name in trajectories for index in range(GROUP)}
    for name in trajectories:
        client.reset_many([(f"{name}/{index}", name, index == 0) for index in range(GROUP)])
    scored, running = 0, list(episodes)
    for turn in range(TURNS):
        answers = [(e, turn, answer_text(trajectories[episodes[e][0]][GROUP * turn + episodes[e][1]])) for e in running]
        results = client.step_many(answers)
        for result in results:
            if isinstance(result, StepFailed) or result.scores is None:
                raise RuntimeError(f"no score: {result}")
        scored += len(results)
        running = [result.episode_id for result in results if not getattr(result, "done", True)]
    client.close_many(list(episodes))
    return scored


def measure(scenes: Path, workers: int) -> dict[str, Any]:
    """All figures."""
    ids = sorted(file.stem for file in scenes.glob("p*.json"))[:SCENES]
    trajectories = plans(scenes, ids)
    figures: dict[str, float] = {"workers": float(workers), "scenes": float(len(ids))}
    runs: list[tuple[str, Callable[[EnvironmentClient, dict[str, NDArray[np.float64]]], int]]]
    for runs in ([("score", score), ("score_warm", score)], [("step", step)]):
        with served(scenes, workers) as (client, server):
            for name, work in runs:
                print(f"{name}: {len(ids)} scenes, {workers} workers", file=sys.stderr)
                given = {scene: off_the_road(plan) if name == "step" else plan for scene, plan in trajectories.items()}
                found = measured(server, lambda w=work, g=given: w(client, g))  # type: ignore[misc]
                print(", ".join(f"{key} {value:.4g}" for key, value in found.items()), file=sys.stderr)
                figures |= {f"{name}_{key}": value for key, value in found.items()}
    peers = {"navsim_one_at_a_time_per_s_core": NAVSIM_ONE_AT_A_TIME, "navsim_batched_per_s_core": NAVSIM_BATCHED}
    rate = figures["score_scores_per_s"] / min(workers, available_cpus())
    ratios = {"score_per_core_to_navsim_batched": rate / NAVSIM_BATCHED,
              "score_per_core_to_navsim_one_at_a_time": rate / NAVSIM_ONE_AT_A_TIME}
    machine = {"cpu": platform.processor() or platform.machine(), "cpus": available_cpus(), "load": os.getloadavg()[0]}
    return {"benchmark": "environment", "command": " ".join(["python", *sys.argv]), "machine": machine,
            "figures": figures, "peers": peers, "ratios": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--workers", type=int, default=available_cpus(), help="scoring processes (default: the CPUs)")
    parser.add_argument("--scenes", type=Path, help="of generated scenes; filled if empty (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scenes = arguments.scenes or Path(temporary)
        if next(scenes.glob("p*.json"), None) is None:
            print(f"generating {SCENES} scenes", file=sys.stderr)
            generate_scenes(SCENES, 7, scenes, 224, 112, {}, available_cpus(), lambda count: None)
        result = measure(scenes, arguments.workers)
    if arguments.json:
        print(json.dumps(result))
    else:
        for group in ("figures", "peers", "ratios"):
            for name, value in result[group].items():
                print(f"{group:8} {name:50} {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
