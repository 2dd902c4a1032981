"""What generated scenes are worth: how the expert and the constant-velocity driver score, kinds, commands, speed.

    python benchmarks/generator.py [--json] [--count 1000 --seed 0 --difficulty 0.5 --each 0 --seconds 0]

Scores are the PDM score with the recorded future (oracle). `--each N` draws N scenes of each kind instead of the mixture;
`--seconds S` stops after about S seconds and reports the scenes up to there (`count` says how many).
Generation is timed in CPU seconds, rejected attempts included, without pictures; compiling is not counted. The exit code is
1 where a line of `REQUIREMENTS` does not hold (with `--each`: never).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from nemo_mtdrive.driving.generator import COMMAND_SHARES, MIXTURE, generate
from nemo_mtdrive.driving.scene import Scene, scene_to_json
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.pdm.agent import PDMAgent

PARTS = ("NC", "DAC", "TTC", "EP", "C", "PDMS")
REQUIREMENTS = {
    "expert PDMS >= 0.93": lambda r: r["expert"]["PDMS"] >= 0.93,
    "expert NC = DAC = 1 in >= 99%": lambda r: r["expert_clean"] >= 0.99,
    "constant velocity PDMS <= 0.65": lambda r: r["constant_velocity"]["PDMS"] <= 0.65,
    "constant velocity fails NC, DAC, TTC in >= 8% each": lambda r: min(r["constant_velocity_fails"].values()) >= 0.08,
    "each kind >= 2%": lambda r: len(r["kinds"]) == len(MIXTURE) and min(r["kinds"].values()) >= 0.02,
    "commands within 2% of the shares": lambda r: all(
        abs(r["commands"].get(name, 0.0) - share) <= 0.02 for name, share in COMMAND_SHARES.items()),
    "no two scenes equal": lambda r: r["different_scenes"] == r["count"],
    "<= 100 ms CPU a scene": lambda r: r["cpu_ms_a_scene"] <= 100.0,
}


def drawn(count: int, seed: int, difficulty: float, each: int) -> Iterator[tuple[Scene, float]]:
    """Scenes with the CPU seconds that each took."""
    kinds = [{kind: 1.0} for kind in MIXTURE for _ in range(each)] if each else [dict(MIXTURE)] * count
    for number, mixture in enumerate(kinds):
        began = time.process_time()
        scene = generate(seed + number, mixture, difficulty)
        yield scene, time.process_time() - began


def measure(count: int, seed: int, difficulty: float, each: int, limit_s: float) -> dict[str, Any]:
    """The figures that `REQUIREMENTS` speak of, and scores by kind; no new scene is begun after `limit_s` (0: no limit)."""
    began = time.monotonic()
    generate(seed, MIXTURE, difficulty)
    agent = PDMAgent("oracle", 1)
    expert: dict[str, list[list[float]]] = defaultdict(list)
    constant: dict[str, list[list[float]]] = defaultdict(list)
    commands: Counter[str] = Counter()
    prints, seconds, speeds, bodies, attempts = set(), [], [], [], []
    for scene, took in drawn(count, seed, difficulty, each):
        assert scene.future is not None and scene.command is not None
        reviews = agent.review(scene, np.stack([scene.future, constant_velocity(scene)]))
        expert[scene.kind].append([reviews[0].scores[name] for name in PARTS])
        constant[scene.kind].append([reviews[1].scores[name] for name in PARTS])
        commands[scene.command] += 1
        data = scene_to_json(scene)
        text = json.dumps({name: value for name, value in data.items() if name not in ("scene_id", "generator")})
        prints.add(hashlib.blake2b(text.encode(), digest_size=16).digest())
        seconds.append(took)
        speeds.append(float(scene.ego.velocity[0]))
        bodies.append(len(scene.tracks))
        attempts.append(scene.extra["generator"]["attempt"])
        if len(seconds) % 100 == 0:
            print(f"\r{len(seconds)} scenes", end="", file=sys.stderr, flush=True)
        if limit_s and time.monotonic() - began > limit_s:
            break
    print(file=sys.stderr)
    best, plain = np.concatenate(list(expert.values())), np.concatenate(list(constant.values()))
    total = len(best)
    return {
        "count": total,
        "expert": dict(zip(PARTS, best.mean(0).round(4).tolist(), strict=True)),
        "expert_clean": float((best[:, :2] == 1.0).all(1).mean()),
        "constant_velocity": dict(zip(PARTS, plain.mean(0).round(4).tolist(), strict=True)),
        "constant_velocity_fails": {name: float((plain[:, k] < 1.0).mean()) for k, name in enumerate(PARTS[:3])},
        "kinds": {kind: len(rows) / total for kind, rows in sorted(expert.items())},
        "commands": {name: number / total for name, number in sorted(commands.items())},
        "different_scenes": len(prints),
        "cpu_ms_a_scene": 1000.0 * float(np.mean(seconds)),
        "attempts_a_scene": float(np.mean(attempts)),
        "speed_mps": np.percentile(speeds, [0, 10, 50, 90, 100]).round(1).tolist(),
        "tracks": np.percentile(bodies, [0, 10, 50, 90, 100]).tolist(),
        "by_kind": {kind: {"expert": np.mean(rows, axis=0).round(3).tolist(),
                           "constant_velocity": np.mean(constant[kind], axis=0).round(3).tolist()}
                    for kind, rows in sorted(expert.items())},
    }


def main() -> int:
    """Measure and print; 1 where a requirement does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--count", type=int, default=1000, help="scenes of the mixture")
    parser.add_argument("--each", type=int, default=0, help="so many scenes of each kind instead")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene")
    parser.add_argument("--difficulty", type=float, default=0.5, help="0 to 1")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0 for no limit")
    options = parser.parse_args()
    figures = measure(options.count, options.seed, options.difficulty, options.each, options.seconds)
    held = {name: bool(test(figures)) for name, test in REQUIREMENTS.items()}
    report = {"benchmark": "generator", "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
              "command": " ".join(["python", "benchmarks/generator.py", *sys.argv[1:]]), "figures": figures, "held": held}
    if options.json:
        print(json.dumps(report))
    else:
        for kind, scores in figures.pop("by_kind").items():
            print(f"{kind:28s} {figures['kinds'][kind]:6.3f}  expert " + " ".join(f"{v:.2f}" for v in scores["expert"])
                  + "   constant velocity " + " ".join(f"{v:.2f}" for v in scores["constant_velocity"]))
        for name, value in figures.items():
            if name != "kinds":
                print(f"{name}: {value}")
        for name, ok in held.items():
            print(f"{'held    ' if ok else 'NOT HELD'} {name}")
    return 0 if options.each or all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
