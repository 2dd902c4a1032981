"""The jobs that a person starts: `nemo-mtdrive rl` from nothing to a report, one function to read in order."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_mtdrive.config import Config, ConfigError, MtGRPOConfig, read_config, save_config
from nemo_mtdrive.data.prepare import prepare, read_splits, scene_arguments
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.baselines import DRIVERS, summarise_drivers
from nemo_mtdrive.evaluation.episode_figures import write_readme_picture
from nemo_mtdrive.evaluation.evaluate import BOOTSTRAP
from nemo_mtdrive.evaluation.report import write_report
from nemo_mtdrive.evaluation.tables import terminal_table
from nemo_mtdrive.launch import refuse_busy_port, run_processes, whole_checkpoints
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.ranks import tokenizer_files
from nemo_mtdrive.telemetry.events import EventDisplay
from nemo_mtdrive.telemetry.progress import Progress, format_seconds, open_progress
from nemo_mtdrive.whole_file import write_whole

PLAIN_EVERY_S = 10.0
"""Least time between two progress lines where stderr is no terminal [s]."""


def run_rl(config: Config) -> Path:
    """The whole main job of a config: scenes, SFT data, SFT, mtGRPO, evaluation, report; returns the run directory.

    Raises:
        ConfigError: the run directory belongs to another job, or a value that only shows on use.
        JobFailed, JobInterrupted: see `launch`.
    """
    started = time.monotonic()
    refuse_busy_port(config)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        run_dir = prepare_run(config, progress)
        baselines = score_baselines(config, run_dir, progress)
        with EventDisplay(progress) as display:
            run_processes(config, run_dir, display.show)
    finish_run(run_dir, baselines, time.monotonic() - started)
    return run_dir


def prepare_run(config: Config, progress: Progress) -> Path:
    """All that a run needs before its processes start, where it is not there yet; returns its folder.

    Raises:
        ConfigError: the run directory belongs to another job, or a value that only shows on use.
    """
    refuse_start(config)
    run_dir = open_run_dir(config)
    prepare(config, run_dir, tokenizer_files(config), progress)
    return run_dir


def finish_run(run_dir: Path, baselines: dict[str, Any], seconds: float) -> bool:
    """Summary, report and the table on stdout, after the processes have ended; whether the run did all its steps."""
    summary = finish_summary(run_dir, baselines, seconds)
    report = write_report(run_dir)
    status = json.loads((run_dir / "status.json").read_text())
    if not status["finished"]:
        print(f"{status['reason']}; resume=true goes on")
        return False
    write_readme_picture(run_dir, run_dir / "demo.png")
    show_result(run_dir, report, summary)
    return True


def refuse_start(config: Config) -> None:
    """Look at `model.init_from`, if it is set, before anything is made.

    Raises:
        ConfigError: training cannot start from it.
    """
    if not config.model.init_from:
        return
    from nemo_mtdrive.models.start import check_start
    from nemo_mtdrive.models.whole_directory import ConversionError

    try:
        check_start(Path(config.model.init_from), config.parallel.tensor, config.parallel.pipeline)
    except ConversionError as error:
        raise ConfigError(f"model.init_from: {error}") from error


def open_run_dir(config: Config) -> Path:
    """Make the run directory and keep the config in it.

    Raises:
        ConfigError: it holds a run with another config, which resuming or mixing would spoil.
    """
    run_dir = Path(config.run_dir).resolve()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={config.run_dir}: {error.strerror}; set it to a folder that can be written") from error
    path = run_dir / "config.yaml"
    if path.exists():
        refuse_other_config(config, path)
    save_config(config, path)
    return run_dir


def refuse_other_config(config: Config, path: Path) -> None:
    """Scenes and data found in a run directory are used again, so they must be of the same config."""
    old = read_config(path)
    for section in ("scenes", "seed", "agent"):
        if getattr(old, section) != getattr(config, section):
            raise ConfigError(f"run_dir={config.run_dir}: it holds a run with other `{section}`; set another run_dir, or "
                              "remove this one")
    if config.resume:
        old = longer(old, config.mtgrpo)
        for section in ("model", "sft", "mtgrpo", "reward", "rollout"):  # `parallel` may differ: checkpoints fit any
            if getattr(old, section) != getattr(config, section):
                raise ConfigError(f"resume=true: {config.run_dir} was run with other `{section}`; resume with the same "
                                  "config (mtgrpo.steps may grow where mtgrpo.iterations=1 and mtgrpo.lr_end=1)")


def longer(config: Config, wanted: MtGRPOConfig) -> Config:
    """The same with as many steps as are wanted, if that only adds to the end: with several iterations, the steps of each
    decide when the reference becomes the policy, and a falling learning rate has ended."""
    mine = config.mtgrpo
    if mine.iterations == wanted.iterations == 1 and mine.lr_end == 1 and wanted.steps > mine.steps:
        return replace(config, mtgrpo=replace(mine, steps=wanted.steps))
    return config


def score_baselines(config: Config, run_dir: Path, progress: Progress) -> dict[str, Any]:
    """Rows of the constant-velocity driver and the human on the scenes that the model is evaluated on."""
    scenes = scene_arguments(config, run_dir).open()
    ids = read_splits(run_dir).held_out[:config.validation.scenes]
    agent = open_reviewer(config.agent, config.environment.perception, cache_size=1)
    with progress.phase("baseline drivers", total=len(ids), unit="scenes") as bar:
        def loaded() -> Iterator[Scene]:
            for scene_id in ids:
                yield scenes.load(scene_id)
                bar.advance()
        return summarise_drivers(loaded(), agent, drivers=DRIVERS, bootstrap=BOOTSTRAP)


def finish_summary(run_dir: Path, baselines: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Add baselines, the checkpoints (the last one last) and the time to summary.json."""
    path = run_dir / "summary.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    checkpoints = [found.name for found in whole_checkpoints(run_dir / "checkpoints")]
    summary = rows | baselines | {"seconds": round(seconds, 1), "checkpoints": checkpoints}
    write_whole(path, json.dumps(summary, indent=1))
    return summary


def show_result(run_dir: Path, report: Path, summary: dict[str, Any]) -> None:
    """The table and the paths, on stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(terminal_table(summary, title="Held-out scenes"))
    print(f"time        {format_seconds(summary['seconds'])}")
    print(f"report      {_short(report)}")
    for name in summary["checkpoints"][-1:]:
        print(f"checkpoint  {_short(run_dir / 'checkpoints' / name)}")


def _short(path: Path) -> str:
    """The path from here where it is below, else whole."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
