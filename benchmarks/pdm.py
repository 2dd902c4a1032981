"""Trajectories a second that one core scores: one scene and many, few agents and many, and what a fresh process costs.

    python benchmarks/pdm.py [--json] [--scores 50000 | --million]

Scenes are generated (three roads), emptied and filled with 0 to 60 agents that drive along lanes near the ego; plans are
the expert's with noise, so that many fail and get feedback. Measured, in processor time of one thread (other load on the
machine does not count), the best of several repeats:

    score       poses -> simulation -> NC, DAC, TTC, EP, C, DDC, PDMS of a prepared scene
    review      the same through PDMAgent.review, with violations and feedback as text
    prepare_ms  a scene's map, observation, route, PDM-Closed's plan and its score
    rl_step_s   256 scenes x 48 trajectories through PDMAgent.review_many, preparing the scenes included
    cold        a fresh process, after its imports, to its first review; functions compiled there must be none
    memory      resident size after the first tenth of many reviews, and after all

Peers are not installed here; their figures are as recorded on another, quiet machine with one thread and one scene.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.generator import generate
from nemo_mtdrive.driving.scene import Scene, Track
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import prepare
from nemo_mtdrive.pdm.score import scores

Array = NDArray[np.float64]

BATCHES = (1, 8, 48, 256)
AGENTS = (0, 5, 15, 30, 60)
ROADS = ("straight/lead", "curve/lead", "crossing/lead")
PEERS = {
    "navsim_v1.1_one_at_a_time_per_s": 49.0,
    "navsim_v1.1_own_classes_batched_8_per_s": 191.0,
    "navsim_v1.1_own_classes_batched_64_per_s": 266.0,
    "navsim_v1.1_metric_cache_ms": 150.0,
}
STEP_SCENES, STEP_PLANS = 256, 48
"""An RL step of the paper: 256 scenes x 8 rollouts x 6 turns."""

COLD_START = """
import json, sys, time
import numpy as np
from nemo_mtdrive.driving.scene import load_scene
from nemo_mtdrive.pdm.agent import PDMAgent
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, event): compiled.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event): pass
event.register("numba:compile", Listener())
scene = load_scene(sys.argv[1])
wall, processor = time.perf_counter(), time.process_time()
PDMAgent("oracle", 1).review(scene, np.stack([case.trajectory for case in scene.cases]))
print(json.dumps({"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor,
                  "compiled": len(compiled)}))
"""


def main() -> int:
    """Run the benchmark; JSON or a table on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    parser.add_argument("--scores", type=int, default=50_000, help="reviews for the memory figure")
    parser.add_argument("--million", action="store_true", help="the memory figure over a million reviews")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name, measure in (("cold", cold_start), ("prepare_ms", prepare_ms), ("rl_step_s", rl_step_s)):
        print(f"{name} ...", file=sys.stderr)
        figures[name] = measure()
    figures |= {"score_per_s": {}, "review_per_s": {}}
    for agents in AGENTS:
        print(f"{agents} agents ...", file=sys.stderr)
        worlds = [crowd(scene, agents, seed) for seed, scene in enumerate(roads())]
        for batch in BATCHES:
            figures["score_per_s"][f"agents={agents} B={batch}"] = rate(score_all, worlds, batch, options.repeats)
            figures["review_per_s"][f"agents={agents} B={batch}"] = rate(review_all, worlds, batch, options.repeats)
    print("memory ...", file=sys.stderr)
    figures["memory"] = memory(1_000_000 if options.million else options.scores)
    report(figures, as_json=options.json)
    return 0


def roads() -> list[Scene]:
    """A scene of each road."""
    return [generate(seed, {road: 1.0}) for seed, road in enumerate(ROADS)]


def crowd(scene: Scene, agents: int, seed: int) -> Scene:
    """The scene with so many agents, none on the ego, in the place of its own."""
    random, tracks = np.random.default_rng(seed), []
    x, y, _ = scene.ego.rear_axle_pose
    times = 0.5 * np.arange(11)
    while len(tracks) < agents:
        lane = scene.map.lanes[random.integers(len(scene.map.lanes))].centerline
        at = random.integers(len(lane) - 1)
        way = lane[at + 1] - lane[at]
        offset = lane[at] - [x, y]
        if not 8.0 < np.hypot(*offset) < 60.0:
            continue
        along, speed = float(np.arctan2(way[1], way[0])), random.choice([0.0, 4.0, 8.0])
        velocity = speed * np.array([np.cos(along), np.sin(along)])
        centers = lane[at] + random.normal(0.0, 0.5, 2) + times[:, None] * velocity
        rows = np.column_stack([times, centers, np.full(11, along), np.tile(velocity, (11, 1))])
        tracks.append(Track(f"agent{len(tracks)}", "vehicle", np.array([4.6, 1.9, 1.5]), rows))
    return replace(scene, scene_id=f"{scene.scene_id}/{agents}", tracks=tuple(tracks))


def plans_of(scene: Scene, count: int) -> Array:
    """Plans [count, 8, 3]: the expert's, faster or slower and to the side."""
    assert scene.future is not None
    random = np.random.default_rng(count)
    plans = np.tile(scene.future, (count, 1, 1))
    plans[:, :, :2] *= random.uniform(0.6, 1.3, (count, 1, 1))
    plans[:, :, 1] += random.normal(0.0, 1.0, (count, 1)) * np.linspace(0.1, 1.0, 8)
    return plans


def score_all(scene: Scene, plans: Array) -> Callable[[], object]:
    """Scores alone, of a prepared scene."""
    prepared = prepare(scene, "oracle")
    return lambda: scores(prepared.measure(prepared.simulate(plans)), prepared.reference_progress_m)


def review_all(scene: Scene, plans: Array) -> Callable[[], object]:
    """What a trainer calls."""
    agent = PDMAgent("oracle", 1)
    return lambda: agent.review(scene, plans)


def rate(make: Callable[[Scene, Array], Callable[[], object]], worlds: Sequence[Scene], batch: int, repeats: int) -> float:
    """Trajectories a second over the scenes, the best repeat of each."""
    seconds, calls = 0.0, max(1, 48 // batch)
    for scene in worlds:
        work = make(scene, plans_of(scene, batch))
        work()
        seconds += min(timed(lambda work=work: [work() for _ in range(calls)]) for _ in range(repeats)) / calls
    return len(worlds) * batch / seconds


def timed(work: Callable[[], object]) -> float:
    """Processor seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def prepare_ms() -> dict[str, float]:
    """Median over scenes of each road, and the slowest."""
    taken = []
    for seed in range(5):
        for road in ROADS:
            scene = generate(seed, {road: 1.0})
            taken.append(1e3 * min(timed(lambda scene=scene: prepare_whole(scene)) for _ in range(3)))
    return {"median": float(np.median(taken)), "slowest": max(taken)}


def prepare_whole(scene: Scene) -> float:
    """The reference's progress stands at the end of all preparation."""
    return prepare(scene, "oracle").reference_progress_m


def rl_step_s() -> dict[str, float]:
    """One RL step: 12,288 trajectories of 256 scenes that are new to the agent."""
    known = [generate(seed, {road: 1.0}) for seed in range(8) for road in ROADS]
    scenes = [replace(known[i % len(known)], scene_id=str(i)) for i in range(STEP_SCENES)]
    requests = [(scene, plans_of(scene, STEP_PLANS)) for scene in scenes]
    agent = PDMAgent("oracle", STEP_SCENES)
    first = timed(lambda: agent.review_many(requests))
    return {"scenes_unknown": first, "scenes_known": timed(lambda: agent.review_many(requests))}


def cold_start() -> dict[str, float]:
    """A second process, so that the first one has compiled what was not kept."""
    golden = Path(__file__).resolve().parent.parent / "tests" / "golden" / "pdm" / "g041_cone_and_car.json"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", COLD_START, str(golden)], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def resident_mb() -> float:
    """Resident memory of this process [MB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(count: int) -> dict[str, float]:
    """Resident size over so many reviews of 60 agents in batches of 256."""
    agent = PDMAgent("oracle", len(ROADS))
    worlds = [crowd(scene, AGENTS[-1], seed) for seed, scene in enumerate(roads())]
    work = [(scene, plans_of(scene, BATCHES[-1])) for scene in worlds]
    done, early = 0, 0.0
    while done < count:
        for scene, plans in work:
            done += len(agent.review(scene, plans))
        if not early and done >= count / 10:
            gc.collect()
            early = resident_mb()
    gc.collect()
    return {"reviews": done, "after_a_tenth_mb": early, "after_all_mb": resident_mb()}


def report(figures: dict[str, Any], as_json: bool) -> None:
    """On stdout."""
    slowest = min(value for name, value in figures["score_per_s"].items() if name.endswith("B=48"))
    ratios = {
        "slowest_score_at_48_to_navsim_one_at_a_time": slowest / PEERS["navsim_v1.1_one_at_a_time_per_s"],
        "slowest_score_at_48_to_navsim_batched_64": slowest / PEERS["navsim_v1.1_own_classes_batched_64_per_s"],
        "prepare_to_navsim_metric_cache": PEERS["navsim_v1.1_metric_cache_ms"] / figures["prepare_ms"]["median"],
    }
    if as_json:
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        print(json.dumps({"machine": machine, "command": " ".join(["benchmarks/pdm.py", *sys.argv[1:]]), "figures": figures,
                          "peers": PEERS | {"machine": "another, quiet one; as recorded"}, "ratios": ratios}))
        return
    for table in ("score_per_s", "review_per_s"):
        print(f"{table:>14}" + "".join(f"{f'B={batch}':>10}" for batch in BATCHES))
        for agents in AGENTS:
            row = [figures[table][f"agents={agents} B={batch}"] for batch in BATCHES]
            print(f"{agents:7} agents" + "".join(f"{value:10.0f}" for value in row))
    for name in ("prepare_ms", "rl_step_s", "cold", "memory"):
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items()))
    print(", ".join(f"{name} {value:.1f}x" for name, value in ratios.items()))


if __name__ == "__main__":
    raise SystemExit(main())
