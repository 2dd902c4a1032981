"""`nemo-mtdrive evaluate`, `compare` and `label`: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_mtdrive.commands import command, positive

if TYPE_CHECKING:
    from nemo_mtdrive.data.curate import SceneArguments
    from nemo_mtdrive.evaluation.players import ModelPlay

DONE, FAILED = 0, 1
PLAIN_EVERY_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def add_evaluation(commands: argparse._SubParsersAction) -> None:
    """Declare the three commands."""
    _add_evaluate(commands)
    _add_compare(commands)
    _add_label(commands)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands, "evaluate", "rows of the paper's Table 1 for models and baseline drivers over a set of scenes", _evaluate,
        "nemo-mtdrive evaluate --model runs/demo --feedback oracle kinematic self --driver human constant_velocity "
        "--scenes 'procedural://?count=200&split=test&width=224&height=112' --out runs/evaluation")
    parser.description = f"{parser.description}" + (
        ".\nWrites tables (Markdown, CSV, LaTeX; by kind of scene, by turn), summary.json, each scene's trajectory, and\n"
        "what `nemo-mtdrive report OUT` shows. Run it again to go on where it was stopped, or with more rows for one table.")
    parser.add_argument("--model", action="append", default=[], metavar="[NAME=]DIR",
                        help="Hugging Face directory, NeMo 2 directory, a run or one of its checkpoints; may be repeated")
    parser.add_argument("--driver", nargs="+", default=[], choices=("constant_velocity", "human", "pdm_closed"),
                        help="drivers without a model")
    parser.add_argument("--feedback", nargs="+", default=["oracle"], choices=("oracle", "kinematic", "self"),
                        help="who tells the model what is wrong, a row each: the agent that sees the recorded future, or "
                        "constant velocity, or the model itself by its understanding (default: oracle); scores are always "
                        "of the recorded future")
    _add_scenes(parser)
    parser.add_argument("--turns", type=_turns, metavar="N|1..N",
                        help="most turns of an episode (default: that of the model's run, else 6); the table by turns has "
                        "every number up to it and the knee")
    _add_play(parser)
    parser.add_argument("--shuffle-images", type=_count, metavar="SEED",
                        help="play each row of a model a second time with another scene's picture for every scene, drawn by "
                        "this seed; pictures.md says by kind of scene what the picture was worth")
    parser.add_argument("--record", type=_count, default=24, metavar="N",
                        help="scenes whose episodes the report shows, with pictures (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print summary.json instead of tables")


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", required=True, metavar="ADDRESS",
                        help="folder of scenes, SCHEME://PATH?name=value, or a run (the scenes that it held out)")
    parser.add_argument("--count", type=positive, default=0, metavar="N", help="only the first N scenes")
    parser.add_argument("--width", type=positive, default=0, help="of pictures [px] (default: the source's)")
    parser.add_argument("--height", type=positive, default=0, help="of pictures [px] (default: the source's)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def _add_play(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, help="of sampling (default: %(default)s)")
    parser.add_argument("--engine", default="native", metavar="NAME",
                        help="inference engine: native, or vllm in its own environment (default: %(default)s)")
    parser.add_argument("--engines", type=positive, default=1, metavar="N",
                        help="processes, each with an engine, on GPUs in turn (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=32, metavar="N",
                        help="scenes that an engine plays together (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                        help="other keys of rollout, reward and agent than those of the model's run, e.g. "
                        "rollout.temperature=0")


def _evaluate(options: argparse.Namespace) -> int:
    from nemo_mtdrive.config import ConfigError
    from nemo_mtdrive.evaluation.command import Evaluation, ModelRow, evaluate
    from nemo_mtdrive.evaluation.scene_sets import open_set
    from nemo_mtdrive.evaluation.shuffled import SUFFIX, other_pictures
    from nemo_mtdrive.telemetry.progress import open_progress

    if not options.model and not options.driver:
        raise ConfigError("evaluate: nothing to evaluate; set --model DIR, --driver NAME, or both")
    scenes = open_set(options.scenes, options.count, options.width, options.height)
    models = [ModelRow(f"{name}_{feedback}", f"{name} ({feedback})", _play(options, directory, feedback, scenes.arguments))
              for name, directory in map(_named, options.model) for feedback in dict.fromkeys(options.feedback)]
    if options.shuffle_images is not None:
        pictures = other_pictures(scenes.ids, options.shuffle_images)
        models += [ModelRow(row.name + SUFFIX, f"{row.label}, other pictures", replace(row.play, pictures=pictures))
                   for row in models]
    asked = Evaluation(options.out, scenes, models, list(dict.fromkeys(options.driver)), options.batch, options.engines,
                       options.record)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        summary = evaluate(asked, progress)
    _show(options, summary)
    lost = {name: part["invalid"] for name, part in summary.items() if isinstance(part, dict) and part.get("invalid")}
    for name, count in lost.items():
        print(f"nemo-mtdrive: {name}: {count} episodes have no result; {options.out}/episodes/{name} says why",
              file=sys.stderr)
    return FAILED if lost else DONE


def _play(options: argparse.Namespace, directory: Path, feedback: str, arguments: SceneArguments) -> ModelPlay:
    from nemo_mtdrive.evaluation.players import ModelPlay
    from nemo_mtdrive.evaluation.settings import check_model, sampling_config

    check_model(directory, options.engine)
    overrides = [*options.overrides, *([f"rollout.max_turns={options.turns}"] if options.turns else [])]
    return ModelPlay(directory, arguments, feedback, sampling_config(directory, overrides), options.engine, options.seed, 1,
                     options.batch)


def _show(options: argparse.Namespace, summary: Mapping[str, Any]) -> None:
    from rich.console import Console

    from nemo_mtdrive.evaluation.outputs import by_turn, by_verdict, knees, with_pictures
    from nemo_mtdrive.evaluation.tables import terminal_table

    if options.json:
        print(json.dumps(summary))
        return
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    console.print(terminal_table(summary, title=f"{options.scenes}"))
    for grid in (by_turn(summary), by_verdict(summary), with_pictures(summary)):
        if grid.rows:
            console.print(grid.terminal(spread=("PDMS", "Worse %")))
    for line in knees(summary):
        print(line)
    print(f"tables  {options.out}/table.md, by_kind.md, by_turn.md (and .csv, .tex)")
    print(f"page    nemo-mtdrive report {options.out}")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands, "compare", "two rows of evaluations over the same scenes, held against each other scene by scene",
        _compare, "nemo-mtdrive compare runs/evaluation:before_oracle runs/evaluation:after_oracle --out runs/comparison")
    parser.description = f"{parser.description}" + (
        ".\nDifferences with paired bootstrap intervals, wins and losses with a sign test; of all scenes and by kind.")
    for name in ("first", "second"):
        parser.add_argument(name, metavar=name.upper(), help="folder that `evaluate` wrote, and :ROW where it has several")
    parser.add_argument("--turn", type=positive, default=0, metavar="N",
                        help="compare the answers after at most N turns (default: the last ones)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write compare.json and tables (.md, .csv, .tex) there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _compare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_mtdrive.evaluation.evaluate import BOOTSTRAP
    from nemo_mtdrive.evaluation.outputs import write_grid
    from nemo_mtdrive.evaluation.paired import by_kind, by_metric, compare, verdict
    from nemo_mtdrive.evaluation.row_files import open_side
    from nemo_mtdrive.whole_file import write_whole

    found = compare(open_side(options.first), open_side(options.second), BOOTSTRAP, options.turn)
    grids = {"compare": by_metric(found), "compare_by_kind": by_kind(found)}
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_whole(options.out / "compare.json", json.dumps(found, indent=1))
        for name, grid in grids.items():
            write_grid(options.out, name, grid)
    if options.json:
        print(json.dumps(found))
        return
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    for grid in grids.values():
        console.print(grid.terminal(spread=("Difference",)))
    if found["only_first"] or found["only_second"]:
        print(f"left out: {found['only_first']} scenes of {found['first']} and {found['only_second']} of {found['second']} "
              "that the other has not")
    print(verdict(found))


def _add_label(commands: argparse._SubParsersAction) -> None:
    parser = command(
        commands, "label", "auto-label scenes: refine each under oracle feedback and keep its best turn, with its scores",
        _label, "nemo-mtdrive label --model runs/demo --scenes 'procedural://?count=200&split=test&width=224&height=112' "
        "--out labels --threshold 0.9")
    parser.description = f"{parser.description}" + (
        ".\nWrites labels.jsonl, labels/SCENE.json (8 x [x, y, heading]) and rejected.jsonl with reasons. Run it again to "
        "go on\nwhere it was stopped, or with another threshold.")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR",
                        help="Hugging Face directory, NeMo 2 directory, a run or one of its checkpoints")
    parser.add_argument("--threshold", type=_share, default=0.8, metavar="PDMS",
                        help="least PDMS of a label, 0 to 1 (default: %(default)s)")
    _add_scenes(parser)
    parser.add_argument("--turns", type=positive, default=10, metavar="N", help="most turns (default: %(default)s)")
    parser.add_argument("--episodes", type=positive, default=1, metavar="N",
                        help="attempts at each scene, the best of which is kept (default: %(default)s)")
    _add_play(parser)


def _label(options: argparse.Namespace) -> None:
    from nemo_mtdrive.evaluation.label import Labelling, label
    from nemo_mtdrive.evaluation.scene_sets import open_set
    from nemo_mtdrive.telemetry.progress import open_progress

    scenes = open_set(options.scenes, options.count, options.width, options.height)
    play = replace(_play(options, options.model, "oracle", scenes.arguments), group_size=options.episodes)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        summary = label(Labelling(options.out, scenes, play, options.threshold, options.engines), progress)
    print(json.dumps({key: summary[key] for key in ("labels", "rejected", "reasons", "turn_of_label", "beats_human")}
                     | {"PDMS": {name: row["PDMS"] for name, row in summary["rows"].items()}, "out": str(options.out)}))


def _named(text: str) -> tuple[str, Path]:
    """`NAME=DIR`, or the folder's own name."""
    from nemo_mtdrive.config import ConfigError

    name, sign, directory = text.partition("=")
    if not sign or not _NAME.fullmatch(name):
        path = Path(text)
        return re.sub(r"[^A-Za-z0-9_.-]", "_", path.resolve().name) or "model", path
    if not directory:
        raise ConfigError(f"--model {text}: set it as NAME=DIR")
    return name, Path(directory)


def _turns(text: str) -> int:
    """`6` or `1..6`: the most turns."""
    low, dots, high = text.partition("..")
    if dots and low != "1":
        raise argparse.ArgumentTypeError(f"got {text}, set it to N or 1..N")
    return positive(high if dots else low)


def _share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"got {text}, set it to a number from 0 to 1")
    return value


def _count(text: str) -> int:
    """A whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {value}, set it to 0 or more")
    return value
