"""From `sbatch` to the first optimizer step, and what the preflight takes of it, on the private Slurm of the tests.

    python benchmarks/cluster.py [--json] [--repeats 2]

As root, with Slurm's Debian packages (requirements/install_debian.sh). slurm/rl_32gpu.sh runs unchanged on virtual nodes of
this machine: once at 4 nodes x 8 ranks up to the end of the preflight, then on 2 nodes x 1 rank with the tiny model on CPU.
All nodes share this machine's cores, and each rank imports NeMo: a cluster has the same stages, other seconds. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.slurm.jobs import Job, submit
from tests.slurm.private_slurm import PrivateSlurm

TINY = (
    "scenes.count=6", "scenes.held_out=1", "scenes.image_width=56", "scenes.image_height=28", "validation.scenes=1",
    "model.layers=1", "model.vision_layers=1", "parallel.tensor=1", "parallel.data=2", "rollout.workers=2",
    "rollout.max_turns=2", "rollout.max_answer_tokens=16", "sft.stages=[]", "mtgrpo.steps=1", "mtgrpo.prompts_per_step=2",
    "mtgrpo.mini_batch_prompts=2", "mtgrpo.group_size=2",
)
LAYOUT_32 = ("scenes=procedural", "model.init_from=", "model.hidden_size=512")
ROOM = {"MIN_FREE_GB": "0.01"}
PREFLIGHT = ("preflight", "all-reduce")


def main() -> int:
    """Run it; JSON or lines on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--repeats", type=int, default=2, help="of each job (default %(default)s)")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {"ranks_32": [], "nodes_2": []}
    with PrivateSlurm() as slurm, TemporaryDirectory(prefix="mtdrive-cluster-") as folder:
        for number in range(options.repeats):
            wide = submit(slurm, Path(folder) / f"wide-{number}", "--time=60", overrides=LAYOUT_32,
                          environment=ROOM | {"PREFLIGHT": "only"})
            rows["ranks_32"].append(stages(wide))
            small = submit(slurm, Path(folder) / f"small-{number}", "--time=60", "--nodes=2", "--ntasks-per-node=1",
                           "--gpus-per-node=0", overrides=TINY, environment=ROOM | {"CONFIG_NAME": "scratch_cpu"})
            rows["nodes_2"].append(stages(small) | {"first_step": first_step(small)})
    figures = {job: {key: round(statistics.median(row[key] for row in found), 2) for key in found[0]}
               for job, found in rows.items()}
    for found in figures.values():
        found["preflight_in_all"] = round(sum(found[name] for name in PREFLIGHT), 2)
        if "first_step" in found:
            found["preflight_share"] = round(found["preflight_in_all"] / found["first_step"], 3)
    if options.json:
        machine = {"cpus": os.cpu_count(), "architecture": platform.machine(), "load_average": os.getloadavg()[0]}
        print(json.dumps({"benchmark": "cluster", "command": " ".join(["python", *sys.argv]), "machine": machine,
                          "figures": figures, "unit": "s"}))
        return 0
    for job, found in figures.items():
        print(f"{job}: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return 0


def stages(job: Job) -> dict[str, float]:
    """Seconds from submission to the job's begin, and of each stage up to the start of the ranks.

    Raises:
        SystemExit: the job did not end well.
    """
    said = job.wait_over()
    if said["JobState"] != "COMPLETED":
        raise SystemExit(f"{job.reason()}\n{job.tale()}")
    begun = [(float(moment), name) for moment, _, name in
             (line.split("\t") for line in (job.run / "slurm" / "steps.tsv").read_text().splitlines())]
    end = (job.run / "reason.json").stat().st_mtime
    found = {"queue": begun[0][0] - job.submitted}
    for (moment, name), (following, _) in pairwise([*begun, (end, "")]):
        found[name] = following - moment
        if name == "meet":
            break
    return found


def first_step(job: Job) -> float:
    """Seconds from submission to the end of the first optimizer step."""
    rows = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    return float(next(row["time"] for row in rows if row["phase"] == "rl")) - job.submitted


if __name__ == "__main__":
    sys.exit(main())
