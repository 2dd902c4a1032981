"""`nemo-mtdrive score`, `import-caches` and `train-reviewer`: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_mtdrive.commands import command, positive

DONE, WRONG_REQUEST = 0, 2
PLAIN_EVERY_S = 10.0


def add_scoring(commands: argparse._SubParsersAction) -> None:
    """Declare the three commands."""
    _add_score(commands)
    _add_import_caches(commands)
    _add_train_reviewer(commands)


def _add_score(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands, "score", "score trajectories by NAVSIM v1: a JSON line a case with scene_id, case, NC, DAC, TTC, EP, C, "
        "DDC, PDMS", _score, "nemo-mtdrive score tests/golden/pdm --perception kinematic > scores.jsonl")
    parser.description = f"{parser.description}" + (
        ".\nWhat cannot be scored is said in a line on stderr; the others are scored, and the exit code is then 2.")
    parser.add_argument("scenes", nargs="+", metavar="SCENE",
                        help="scene file (.json), imported cache (.npz, see import-caches), folder of them, or address as "
                        "av2://DIR")
    parser.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle",
                        help="recorded future, or constant velocity from t = 0 (default: %(default)s)")
    parser.add_argument("--trajectory", metavar="FILE",
                        help="JSON 8 x [x, y, heading], ego frame, 0.5 s apart: scored in each scene in place of its cases; "
                        "scenes without cases need it")
    parser.add_argument("--caches", type=Path, metavar="DIR",
                        help="imported caches: scenes of the same ids are scored on NAVSIM's own preparation")


def _score(options: argparse.Namespace) -> int:
    from nemo_mtdrive.pdm.command import find_scenes, score

    complaints = Complaints()
    wanted = find_scenes(options.scenes)
    with _progress(len(wanted), "score", "scenes") as advance:
        for line in score(wanted, options.perception, options.trajectory, options.caches, complaints.add, advance):
            print(json.dumps(line), flush=True)
    return complaints.show(len(wanted))


def _add_import_caches(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands, "import-caches", "turn metric caches that NAVSIM v1.1 wrote into files that are safe to read", _import,
        "nemo-mtdrive import-caches $NAVSIM_EXP_ROOT/metric_cache --out caches --trust-pickle")
    parser.description = f"{parser.description}" + (
        ".\nNAVSIM keeps its caches as pickles, and a pickle can hold a program. They are read without running them: only "
        "the names\nthat such a cache holds are known, any other ends the reading. Still, name your trust in their maker: "
        "--trust-pickle.\nRun it again to go on where it was stopped; what is imported already is kept.")
    parser.add_argument("path", type=Path, metavar="DIR", help="NAVSIM's cache.cache_path, or one metric_cache.pkl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for TOKEN.npz")
    parser.add_argument("--trust-pickle", action="store_true", help="I know who wrote these pickles")


def _import(options: argparse.Namespace) -> int:
    from nemo_mtdrive.config import ConfigError
    from nemo_mtdrive.pdm.command import import_caches
    from nemo_mtdrive.pdm.navsim_cache import find_metric_caches

    if not options.trust_pickle:
        raise ConfigError(f"{options.path}: metric caches are pickles; if you know who wrote them, set --trust-pickle")
    complaints = Complaints()
    files = find_metric_caches(options.path)
    with _progress(len(files), "metric caches", "caches") as advance:
        done = import_caches(files, options.out, complaints.add, advance)
    print(json.dumps({"imported": done, "refused": len(complaints.lines), "out": str(options.out)}))
    return complaints.show(len(files))


def _add_train_reviewer(commands: argparse._SubParsersAction) -> None:
    parser = command(commands, "train-reviewer", "train a reward model on PDM labels, for agent.kind=learned; prints its "
                     "accuracy on held-out scenes as JSON", _train_reviewer,
                     "nemo-mtdrive train-reviewer --scenes 'procedural://?count=500&seed=7' --out reviewer")
    parser.add_argument("--scenes", required=True, metavar="ADDRESS",
                        help="to learn from and to measure on: folder of scenes, or SCHEME://PATH?name=value")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for reward_model.safetensors, report.json")
    parser.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle")
    parser.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="only measured on (default: 0.2)")
    parser.add_argument("--epochs", type=positive, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the split, the plans and the training")
    parser.add_argument("--workers", type=positive, default=2, help="processes that label (default: %(default)s)")


def _train_reviewer(options: argparse.Namespace) -> None:
    from nemo_mtdrive.algorithms.reward_model import RewardTraining
    from nemo_mtdrive.algorithms.train_reviewer import train_reviewer
    from nemo_mtdrive.data.curate import SceneArguments
    from nemo_mtdrive.telemetry.progress import open_progress

    generated = options.scenes.startswith("procedural://")
    side = 28 if generated else 0  # pictures are never asked for, but generated scenes want their size
    uri = options.scenes if "://" in options.scenes else f"files://{options.scenes}"
    arguments = SceneArguments("", "", 0, 0, side, side, uri)
    training = RewardTraining(epochs=options.epochs, seed=options.seed)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        print(json.dumps(train_reviewer(arguments, options.out, options.perception, training, options.held_out,
                                        options.workers, progress)))


class Complaints:
    """What is said of files that were left out: after the progress, a line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line)

    def show(self, files: int) -> int:
        """Write the lines to stderr; the exit code."""
        for line in self.lines:
            print(f"nemo-mtdrive: {line}", file=sys.stderr)
        if self.lines and files > 1:
            print(f"nemo-mtdrive: {len(self.lines)} of {files} were left out", file=sys.stderr)
        return WRONG_REQUEST if self.lines else DONE


@contextmanager
def _progress(total: int, name: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar over files, none for a single one."""
    from nemo_mtdrive.telemetry.progress import open_progress

    if total < 2:
        yield lambda _: None
        return
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress, \
            progress.phase(name, total=total, unit=unit) as bar:
        yield bar.advance
