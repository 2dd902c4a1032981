"""Commands of a cluster job's steps; slurm/job.sh calls them, and `preflight` helps on any machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nemo_mtdrive.commands import command as _command
from nemo_mtdrive.commands import positive
from nemo_mtdrive.config import CONF_DIR, Config, ConfigError, load_config

STAGES = {
    "plan": "place the job's tasks on its nodes: RUN/slurm/layout.json",
    "prepare": "scenes, splits, SFT data, baselines",
}


def add_cluster(commands: argparse._SubParsersAction) -> None:
    """Add `preflight` and `cluster`."""
    _add_preflight(commands)
    parser = commands.add_parser("cluster", help="steps of a job on several nodes (slurm/job.sh calls them)",
                                 description="Steps of a job on several nodes; slurm/job.sh calls them in order.")
    actions = parser.add_subparsers(metavar="STEP", required=True)
    for name, summary in STAGES.items():
        stage = _command(actions, name, summary, _stage, f"nemo-mtdrive cluster {name} --config-name demo_cpu run_dir=RUN")
        stage.add_argument("--config-name", required=True, metavar="NAME")
        stage.add_argument("--config-dir", type=Path, default=CONF_DIR, metavar="DIR")
        stage.add_argument("--only-sft", action="store_true", help="the job up to its SFT checkpoint (mtgrpo.steps=0)")
        stage.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
        stage.set_defaults(stage=name)
    meet = _command(actions, "meet", "new endpoints for a try: RUN/endpoints.json", _meet,
                    "nemo-mtdrive cluster meet --run-dir RUN --addresses RUN/slurm/preflight.txt")
    meet.add_argument("--addresses", type=Path, metavar="FILE", help="what the nodes said in the preflight")
    task = _command(actions, "task", "one task of a step, under its supervisor", _task,
                    "srun ... nemo-mtdrive cluster task training-rank --run-dir RUN")
    task.add_argument("role", metavar="ROLE", choices=("environment-server", "rollout-worker", "training-rank"))
    judge = _command(actions, "judge", "what became of a try: WORD <tab> REASON <tab> NODE", _judge,
                     "nemo-mtdrive cluster judge --run-dir RUN")
    finish = _command(actions, "finish", "tables, report, completion marker", _finish,
                      "nemo-mtdrive cluster finish --run-dir RUN")
    for each in (meet, task, judge, finish):
        each.add_argument("--run-dir", type=Path, required=True, metavar="RUN")


def _add_preflight(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "preflight", "is this node fit: GPUs, disks, shared files, ports; or can all tasks talk",
                      _preflight, "nemo-mtdrive preflight --run-dir runs/mine --gpus 8")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="RUN", help="on the shared file system")
    parser.add_argument("--gpus", type=int, metavar="N", help="that this node must have (default: the job's)")
    parser.add_argument("--canary", nargs=2, metavar=("FILE", "WORD"),
                        help="a shared file in which WORD must be seen; the answer goes beside it")
    parser.add_argument("--interface", default="", metavar="NAME", help="of the network between the nodes, as ib0")
    parser.add_argument("--least-free-gb", type=float, default=20.0, metavar="GB", help="below RUN (default: %(default)g)")
    parser.add_argument("--image-store-mb", type=positive, default=1024, metavar="MB",
                        help="shared memory for images (default: %(default)s)")
    parser.add_argument("--all-reduce", type=Path, metavar="FILE",
                        help="instead: all training ranks' tasks join in an all-reduce; FILE has the nodes' addresses")
    parser.add_argument("--timeout-s", type=positive, default=180, metavar="S",
                        help="of the all-reduce (default: %(default)s)")


def _stage(options: argparse.Namespace) -> None:
    from nemo_mtdrive.cluster import stages

    config = _config(options)
    if options.stage == "plan":
        layout = stages.plan(config)
        for row in layout.table():
            gpus = ",".join(map(str, row["gpus"])) or "-"
            print(f"{row['role']:20}{row['index']:4}  {row['node']:16} GPUs {gpus}", file=sys.stderr)
    else:
        stages.prepare(config)
    _done(Path(config.run_dir), options.stage)


def _done(run_dir: Path, stage: str) -> None:
    """What the batch script believes; an exit code may not arrive."""
    from nemo_mtdrive.cluster.files import current_try, try_folder

    (try_folder(run_dir, current_try()) / f"{stage}.done").touch()


def _config(options: argparse.Namespace) -> Config:
    config = load_config(options.config_name, options.overrides, options.config_dir)
    if options.only_sft:
        config.mtgrpo.steps = 0
    return config


def _meet(options: argparse.Namespace) -> None:
    from nemo_mtdrive.cluster.stages import meet

    run_dir = options.run_dir.resolve()
    meet(run_dir, options.addresses)
    _done(run_dir, "meet")


def _task(options: argparse.Namespace) -> int:
    from nemo_mtdrive.cluster.task import report_refusal, run_task

    run_dir = options.run_dir.resolve()
    try:
        return run_task(options.role, run_dir)
    except ConfigError as error:
        report_refusal(options.role, run_dir, error)
        raise


def _judge(options: argparse.Namespace) -> None:
    from nemo_mtdrive.cluster.files import current_try
    from nemo_mtdrive.cluster.judge import judge

    verdict = judge(options.run_dir.resolve(), current_try())
    print("\t".join([verdict.word, " ".join(verdict.reason.split()), verdict.node]))


def _finish(options: argparse.Namespace) -> int:
    from nemo_mtdrive.cluster.stages import finish

    run_dir = options.run_dir.resolve()
    if not finish(run_dir):
        return 1
    _done(run_dir, "finish")
    return 0


def _preflight(options: argparse.Namespace) -> int:
    from nemo_mtdrive.cluster.files import current_try, read_layout, this_node
    from nemo_mtdrive.cluster.preflight import check_node, read_addresses

    run_dir = options.run_dir.resolve()
    layout = read_layout(run_dir) if (run_dir / "slurm" / "layout.json").exists() else None
    if options.all_reduce is not None:
        return _all_reduce(options, run_dir, read_addresses(options.all_reduce))
    canary = (Path(options.canary[0]), options.canary[1]) if options.canary else None
    found, address = check_node(
        layout, run_dir, this_node(), current_try(), gpus=options.gpus, least_free=options.least_free_gb * (1 << 30),
        image_bytes=options.image_store_mb << 20, canary=canary, interface=options.interface)
    print("\n".join(found.lines(this_node(), address)), flush=True)
    return 0 if not found.node and not found.run else 1


def _all_reduce(options: argparse.Namespace, run_dir: Path, addresses: dict[str, str]) -> int:
    from nemo_mtdrive.cluster.files import current_try, read_layout
    from nemo_mtdrive.cluster.task import gpus_to_join, place

    layout = read_layout(run_dir)
    rank = place(layout, "training-rank", os.environ)
    nodes = [layout.node_of("training-rank", each) for each in range(layout.step("training-rank").tasks)]
    print(f"{nodes[rank]}\tplaced\t{rank}", flush=True)
    members = gpus_to_join(layout, rank, os.environ)
    if not members:
        return 0
    from nemo_mtdrive.cluster.smoke import run_smoke  # torch

    return run_smoke(nodes, members, (addresses[nodes[0]], layout.port("smoke", 0, current_try())), options.timeout_s)
