"""What runs once in a cluster job, before and after its processes: plan, prepare, meet, finish."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_mtdrive.cluster import files
from nemo_mtdrive.cluster.layout import Layout, make_layout
from nemo_mtdrive.cluster.meeting import make_cluster_endpoints, resolve
from nemo_mtdrive.cluster.preflight import read_addresses
from nemo_mtdrive.config import Config, read_config, save_config
from nemo_mtdrive.launch import whole_checkpoints, write_endpoints
from nemo_mtdrive.transfer.segments import sweep
from nemo_mtdrive.whole_file import write_whole

BASELINES = "baselines.json"
PREPARED = "prepared.json"
MADE = ("splits.json", "scenes", "sft_data")
"""What `prepare` may leave in the run directory."""
PLAIN_EVERY_S = 10.0


def plan(config: Config) -> Layout:
    """Place the job's tasks on its nodes and write the layout to the run directory.

    Raises:
        ConfigError: they do not fit.
    """
    layout = make_layout(config, files.allocation_from(os.environ))
    files.write_layout(layout, Path(config.run_dir))
    return layout


def prepare(config: Config) -> None:
    """Scenes, splits, SFT data and baselines. Done once; a restarted job finds them again.

    Raises:
        ConfigError: see `jobs.prepare_run`.
    """
    run_dir = Path(config.run_dir)
    config.resume = (run_dir / "config.yaml").exists()
    if config.resume and _is_prepared(config, run_dir):
        save_config(config, run_dir / "config.yaml")  # which now says that it is a restart
        return  # all GPUs of the job wait: not to import for seconds what would find nothing to do
    from nemo_mtdrive.jobs import prepare_run, score_baselines
    from nemo_mtdrive.telemetry.progress import open_progress

    path = files.folder(run_dir) / BASELINES
    found = json.loads(path.read_text()) if path.exists() else {"began": time.time(), "of": None}
    asked = [config.validation.scenes, config.environment.perception]
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        prepare_run(config, progress)
        if found["of"] != asked:  # minutes for many scenes, while all of the job's GPUs wait
            rows = score_baselines(config, run_dir, progress)
            write_whole(path, json.dumps({"began": found["began"], "of": asked, "rows": rows}))
    write_whole(files.folder(run_dir) / PREPARED, json.dumps({
        "of": _request(config), "made": [name for name in MADE if (run_dir / name).exists()]}))


def _is_prepared(config: Config, run_dir: Path) -> bool:
    """Whether an earlier try made everything for this very config, and it is still there."""
    path = files.folder(run_dir) / PREPARED
    if not path.exists():
        return False
    prepared = json.loads(path.read_text())
    return bool(prepared["of"] == _request(config)) and all((run_dir / name).exists() for name in prepared["made"])


def _request(config: Config) -> dict[str, Any]:
    """The config as JSON, without whether it is a restart."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config) | {"resume": None}, default=str))
    return values


def meet(run_dir: Path, addresses: Path | None) -> None:
    """New endpoints for the try that begins; what the one before said of its end goes.

    Args:
        run_dir: of the run.
        addresses: what the nodes said in the preflight; None asks the name service.

    Raises:
        ConfigError: a node has no address.
    """
    layout, attempt = files.read_layout(run_dir), files.current_try()
    (run_dir / "status.json").unlink(missing_ok=True)
    files.try_folder(run_dir, attempt)
    found = read_addresses(addresses) if addresses is not None else resolve(layout.allocation.nodes)
    weights = files.folder(run_dir) / "weights"
    weights.mkdir(mode=0o700, exist_ok=True)
    remove_old_weights(weights)
    write_endpoints(make_cluster_endpoints(layout, found, attempt, weights), run_dir / "endpoints.json")


def remove_old_weights(weights: Path) -> None:
    """What tries before left in the shared folder; they have ended."""
    for path in weights.glob("mtdrive-*"):
        sweep(weights, path.name.removeprefix("mtdrive-"))


def finish(run_dir: Path) -> bool:
    """Tables, report and the completion marker; whether the run has done all its steps."""
    from nemo_mtdrive.jobs import finish_run

    found = json.loads((run_dir / files.FOLDER / BASELINES).read_text())
    remove_old_weights(run_dir / files.FOLDER / "weights")
    if not finish_run(run_dir, found["rows"], time.time() - found["began"]):
        return False
    checkpoints = [path.name for path in whole_checkpoints(run_dir / "checkpoints")]
    write_whole(run_dir / files.MARKER, json.dumps({
        "request": os.environ.get("MTDRIVE_REQUEST", ""), "job": os.environ.get("SLURM_JOB_ID", ""),
        "attempt": files.current_try(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "world_size": read_config(run_dir / "config.yaml").world_size, "checkpoints": checkpoints}) + "\n")
    return True
