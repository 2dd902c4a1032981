"""The camera: CPU time of a front picture, by size and by kind of scene.

    python benchmarks/camera.py [--json] [--scenes N] [--montage FILE.png]

CPU time of this process (`time.process_time`), OpenCV on one thread; the least of three repeats a picture, because other
work on the machine only ever slows one down. What a camera keeps between pictures (sky, light on the ground, forms of
cars) is made in a round before the clock starts. `--montage` draws nine scenes of different kinds into a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import render
from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.driving.scene import Scene

SIZES = ((1920, 1080), (224, 112))
REPEATS = 3
MONTAGE = (("straight/occluded", 2), ("crossing/red_light", 145), ("roundabout/cyclist", 174),
           ("straight/cut_in", 3), ("straight/work_zone", 132), ("crossing/green_light", 0),
           ("curve/cyclist", 130), ("narrow_street/parked", 101), ("t_junction/pedestrian", 144))
"""Kind and seed of each picture, row by row."""
TILE_PX = (480, 270)


def cpu_ms(scene: Scene, width: int, height: int) -> float:
    """CPU milliseconds of one picture."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        render(scene, width, height)
        best = min(best, time.process_time() - start)
    return 1000.0 * best


def spread(values: list[float]) -> dict[str, float]:
    return {"median_ms": float(np.median(values)), "p90_ms": float(np.percentile(values, 90)),
            "pictures": float(len(values))}


def measure(each: int) -> dict[str, Any]:
    """The figures over `each` scenes of every kind of the generator's mixture."""
    cv2.setNumThreads(1)
    scenes = {kind: [generate(seed, {kind: 1.0}) for seed in range(each)] for kind in MIXTURE}
    figures: dict[str, Any] = {}
    for width, height in SIZES:
        print(f"{width}x{height}: {each * len(scenes)} pictures", file=sys.stderr)
        times: dict[str, list[float]] = {}
        for members in scenes.values():
            for scene in members:
                render(scene, width, height)
                times.setdefault(scene.kind, []).append(cpu_ms(scene, width, height))
        everything = [value for values in times.values() for value in values]
        figures[f"{width}x{height}"] = spread(everything) | {"by_kind": {kind: spread(values) for kind, values
                                                                       in times.items()}}
    machine = {"cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "opencv": cv2.__version__}
    return {"benchmark": "camera", "command": " ".join(["python", *sys.argv]), "machine": machine, "figures": figures,
            "peers": {}, "ratios": {}}


def montage() -> NDArray[np.uint8]:
    """Three rows of three pictures, uint8 RGB."""
    width, height = TILE_PX
    tiles = [cv2.resize(render(generate(seed, MIXTURE), 1920, 1080), (width, height), interpolation=cv2.INTER_AREA)
             for _, seed in MONTAGE]
    gap = np.full((height, 4, 3), 255, dtype=np.uint8)
    rows = [np.hstack([tiles[i], gap, tiles[i + 1], gap, tiles[i + 2]]) for i in range(0, len(tiles), 3)]
    line = np.full((4, rows[0].shape[1], 3), 255, dtype=np.uint8)
    return np.vstack([rows[0], line, rows[1], line, rows[2]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--scenes", type=int, default=2, help="scenes of each kind (default 2)")
    parser.add_argument("--montage", type=Path, metavar="PNG", help="draw nine scenes into this picture instead")
    arguments = parser.parse_args()
    if arguments.montage is not None:
        cv2.imwrite(str(arguments.montage), montage()[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        return 0
    if arguments.scenes < 1:
        parser.error(f"--scenes {arguments.scenes}: set it to 1 or more")
    result = measure(arguments.scenes)
    if arguments.json:
        print(json.dumps(result))
        return 0
    for size, found in result["figures"].items():
        print(f"{size:10} median {found['median_ms']:.1f} ms   p90 {found['p90_ms']:.1f} ms   of {found['pictures']:.0f}")
        for kind, values in found["by_kind"].items():
            print(f"    {kind:32} {values['median_ms']:6.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
