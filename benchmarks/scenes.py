"""How fast scenes are made, how small a set is, and what opening 100,000 scenes costs.

    python benchmarks/scenes.py --json
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
from pathlib import Path

from nemo_mtdrive.driving.camera import render
from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.driving.packed import unpack
from nemo_mtdrive.driving.scene import scene_from_valid, scene_to_json
from nemo_mtdrive.driving.schema import validate
from nemo_mtdrive.driving.sources.shards import pack_scene, shard_file, write_index, write_shard

SCENES_A_SHARD = 1000


def cpu_ms(work: list) -> float:
    """Mean CPU milliseconds of the calls."""
    start = time.process_time()
    for call in work:
        call()
    return round(1e3 * (time.process_time() - start) / len(work), 3)


def one_scene(count: int, width: int, height: int) -> dict[str, float]:
    """CPU ms and bytes of one scene, on average over `count`."""
    generate(0, MIXTURE)
    scenes = []
    figures = {"generate_cpu_ms": cpu_ms([lambda k=k: scenes.append(generate(k, MIXTURE)) for k in range(count)])}
    render(scenes[0], width, height)
    figures["render_cpu_ms"] = cpu_ms([lambda s=s: render(s, width, height) for s in scenes])
    plain = [scene_to_json(scene) for scene in scenes]
    texts = [json.dumps(data, separators=(",", ":")) for data in plain]
    validate(plain[0])
    figures["validate_cpu_ms"] = cpu_ms([lambda d=d: validate(d) for d in plain])
    rows = [pack_scene(scene, None) for scene in scenes]
    figures["load_packed_cpu_ms"] = cpu_ms([lambda r=r: scene_from_valid(unpack(r.scene)) for r in rows])
    figures["load_json_cpu_ms"] = cpu_ms([lambda t=t: scene_from_valid(json.loads(t)) for t in texts])
    figures["json_bytes"] = sum(map(len, texts)) / count
    figures["packed_bytes"] = sum(len(row.scene) for row in rows) / count
    return figures


def written(count: int, workers: int, images: bool, width: int, height: int) -> float:
    """Scenes a second of wall time that `scenes generate --format shards` writes, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nemo_mtdrive.cli", "scenes", "generate", "--count", str(count), "--out", folder,
                   "--format", "shards", "--shard-size", "20", "--workers", str(workers), "--width", str(width),
                   "--height", str(height)]
        start = time.monotonic()
        subprocess.run(command if images else [*command, "--no-images"], check=True, capture_output=True)
        return round(count / (time.monotonic() - start), 2)


def opening(folder: Path, count: int) -> dict[str, float]:
    """Open a set of `count` scenes (renamed copies of one) and read one of them; time and memory of this process."""
    row = pack_scene(generate(1, MIXTURE), None)
    for number in range(count // SCENES_A_SHARD):
        first = number * SCENES_A_SHARD
        write_shard(folder / shard_file(number), [row._replace(scene_id=f"c{first + k:07d}") for k in range(SCENES_A_SHARD)])
    write_index(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    probe = ("import sys, time\nfrom pathlib import Path\nfrom nemo_mtdrive.driving.sources import open_scenes\n"
             "rss = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20\n"
             "before = rss()\nt = time.perf_counter()\n"
             "s = open_scenes(sys.argv[1]); n = len(s.ids()); a = time.perf_counter() - t\n"
             "t = time.perf_counter(); s.load(s.ids()[n // 2]); b = time.perf_counter() - t\n"
             "print(n, a, b, rss() - before)")
    answer = subprocess.run([sys.executable, "-c", probe, f"files://{folder}"], check=True, capture_output=True, text=True)
    scenes, open_s, one_s, memory = answer.stdout.split()
    return {"scenes": int(scenes), "set_mb": round(size / 2**20, 1), "open_s": round(float(open_s), 3),
            "one_scene_s": round(float(one_s), 4), "memory_mb": round(float(memory), 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (it is always that)")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--set", type=int, default=100_000, help="scenes of the set that is opened")
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="skip the wall-clock speed of writing")
    options = parser.parse_args()
    figures: dict[str, object] = {"one_scene": one_scene(options.scenes, options.width, options.height)}
    if not options.no_write:
        figures["written_per_s"] = {name: written(4 * options.scenes, options.workers, images, options.width, options.height)
                                    for name, images in (("without_camera", False), ("with_camera", True))}
    with tempfile.TemporaryDirectory() as folder:
        figures["opening"] = opening(Path(folder), options.set)
    one = figures["one_scene"]
    print(json.dumps({
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "command": " ".join(["python", *sys.argv]), "figures": figures,
        "peers": {"one JSON file a scene": {"bytes": one["json_bytes"], "load_cpu_ms": one["load_json_cpu_ms"]}},
        "ratios": {"bytes": round(one["json_bytes"] / one["packed_bytes"], 2),
                   "load_cpu": round(one["load_json_cpu_ms"] / one["load_packed_cpu_ms"], 2)}}))


if __name__ == "__main__":
    main()
