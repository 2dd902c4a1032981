"""`nemo-mtdrive report` and `figure`: paths of what was written to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nemo_mtdrive.commands import command, positive


def add_pages(commands: argparse._SubParsersAction) -> None:
    """Declare the two commands."""
    report = command(commands, "report", "write RUN/report.html: curves, tables, where time goes, and a browser of the "
                     "recorded episodes, in one file that opens from disk", _report, "nemo-mtdrive report runs/demo")
    report.add_argument("run_dir", type=Path, metavar="RUN", help="run directory, or the folder of an evaluation")
    figure = command(
        commands, "figure", "draw episodes as in the paper's Fig. 4: front camera with the trajectory, a bird's-eye view a "
        "turn, violations marked", _figure, "nemo-mtdrive figure runs/demo --count 4 --out figure.pdf")
    figure.description = f"{figure.description}" + (
        ".\nRed crosses leave the drivable area (DAC), blue dots are obstacles of TTC, yellow ones of NC.\n"
        "With --trajectory, PLACE is a scene, and the trajectories are its turns:\n"
        "  nemo-mtdrive figure scenes/p0000007.json --trajectory first.json --trajectory second.json --out figure.svg")
    figure.add_argument("place", metavar="PLACE", help="run directory; with --trajectory a scene file or a source's address")
    figure.add_argument("episodes", nargs="*", metavar="EPISODE",
                        help="episode id (as the report shows it), or the id of a scene; default: what shows best")
    figure.add_argument("--out", type=Path, action="append", required=True, metavar="FILE",
                        help=".png, .svg or .pdf; may be given several times")
    figure.add_argument("--count", type=positive, default=1, help="episodes to choose where none is named (default: 1)")
    figure.add_argument("--stage", metavar="NAME", help="only episodes of after_rl, after_sft, train, ...")
    figure.add_argument("--trajectory", action="append", default=[], metavar="FILE",
                        help="JSON 8 x [x, y, heading], ego frame, 0.5 s apart; one a turn")
    figure.add_argument("--id", metavar="ID", help="of the scene in a source")
    figure.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle",
                        help="of the review of --trajectory (default: %(default)s)")


def _report(options: argparse.Namespace) -> None:
    from nemo_mtdrive.evaluation.report import MAX_EPISODES, write_report
    from nemo_mtdrive.evaluation.run_files import count_episodes
    from nemo_mtdrive.telemetry.progress import open_progress

    count = min(count_episodes(options.run_dir), MAX_EPISODES)
    if not count:
        print(write_report(options.run_dir))
        return
    with open_progress(sys.stderr, plain_every_s=10.0) as progress, \
            progress.phase("report", total=count, unit="episodes") as bar:
        path = write_report(options.run_dir, bar.advance)
    print(path)


def _figure(options: argparse.Namespace) -> None:
    from nemo_mtdrive.evaluation.episode_figures import write_episode_figure

    written = _scene_figure(options) if options.trajectory else write_episode_figure(
        options.place, options.episodes, options.count, options.stage, options.out)
    for path in written:
        print(path)


def _scene_figure(options: argparse.Namespace) -> list[Path]:
    from nemo_mtdrive.driving.command import load_one
    from nemo_mtdrive.evaluation.episode_figures import write_scene_figure
    from nemo_mtdrive.pdm.agent import PDMAgent
    from nemo_mtdrive.pdm.command import read_trajectory

    trajectories = [read_trajectory(file) for file in options.trajectory]
    scene, picture = load_one(options.place, options.id)
    return write_scene_figure(scene, picture, trajectories, PDMAgent(options.perception, 1), options.out)
