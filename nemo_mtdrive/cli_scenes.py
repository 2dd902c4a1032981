"""`nemo-mtdrive scenes ACTION`: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from urllib.parse import urlencode

from nemo_mtdrive.commands import command, positive

DONE, FAILED = 0, 1
SPLITS = ("train", "held_out", "test")
IMPORTED = ("av2", "navsim", "py123d", "files")


def add_scenes(commands: argparse._SubParsersAction) -> None:
    """Declare `scenes` and its actions."""
    group = commands.add_parser("scenes", help="generate, import, validate, show and count scenes", allow_abbrev=False)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add_generate(actions)
    _add_import(actions)
    validate = command(actions, "validate", "hold scenes against every rule of the scene file; a JSON line for each that is "
                       "broken, then the counts; exit code 1 if any is", _validate, "nemo-mtdrive scenes validate scenes")
    validate.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="scene file, folder of them, set of shards")
    show = command(actions, "show", "draw a scene: front image beside a bird's-eye view", _show,
                   "nemo-mtdrive scenes show scenes/p0000007.json")
    show.add_argument("scene", metavar="SCENE", help="scene file, or the address of a source with --id")
    show.add_argument("--id", metavar="ID", help="of the scene in a source, e.g. av2://logs --id 7fab2350-020")
    show.add_argument("--out", type=Path, metavar="PNG", help="default: beside the scene, or ID.show.png here")
    stats = command(actions, "stats", "count scenes by kind, command and speed, and score the expert and the "
                    "constant-velocity driver: a table on stderr, JSON on stdout", _stats,
                    "nemo-mtdrive scenes stats 'procedural://?count=500&seed=7' --plot stats.png")
    stats.add_argument("scenes", metavar="ADDRESS", help="folder of scenes, or SCHEME://PATH?name=value")
    stats.add_argument("--plot", type=Path, metavar="PNG", help="draw the counts and the scores")
    stats.add_argument("--no-scores", action="store_true", help="count only")
    stats.add_argument("--workers", type=positive, default=0, help="processes (default: one a CPU)")


def _add_generate(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "generate", "write generated scenes and their front images; run it again to go on where it "
                     "was stopped", _generate, "nemo-mtdrive scenes generate --count 20 --seed 7 --out scenes")
    parser.add_argument("--count", type=positive, required=True)
    parser.add_argument("--seed", type=int, default=7, help="of the first scene, the others follow (default: %(default)s); "
                        "sets whose ranges of seeds do not overlap share no scene")
    parser.add_argument("--split", choices=SPLITS, help="count seeds within a range of this split's own")
    parser.add_argument("--difficulty", type=float, default=0.5, help="0 to 1: more traffic, worse weather (default: 0.5)")
    parser.add_argument("--commands", default="", metavar="COMMAND:SHARE,...", help="e.g. 'TURN LEFT:1,GO STRAIGHT:2'")
    parser.add_argument("--kinds", default="", metavar="NAME:WEIGHT,...", help="another mixture than the generator's own")
    _add_layout(parser)


def _add_import(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "import", "turn logs of another source into scenes; run it again to go on where it was "
                     "stopped", _import, "nemo-mtdrive scenes import av2 LOGS --out scenes")
    parser.add_argument("source", choices=IMPORTED, help="files turns scene files into shards and back")
    parser.add_argument("path", metavar="DIR", help="its folder; parameters may follow, as in 'DIR?split=mini&count=100'")
    _add_layout(parser)


def _add_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--format", choices=("json", "shards"), default="json",
                        help="json: a file a scene; shards: packed, for large sets (default: %(default)s)")
    parser.add_argument("--shard-size", type=positive, default=100, help="scenes a shard (default: %(default)s)")
    parser.add_argument("--no-images", action="store_true", help="scenes that can be scored but not driven")
    parser.add_argument("--width", type=positive, default=1932, help="of the image [px] (default: %(default)s)")
    parser.add_argument("--height", type=positive, default=1092, help="of the image [px] (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=0, help="processes (default: one a CPU)")


def _generate(options: argparse.Namespace) -> int:
    given = {"count": options.count, "seed": options.seed, "difficulty": options.difficulty, "split": options.split,
             "kinds": options.kinds, "commands": options.commands}
    chosen = {name: value for name, value in given.items() if value not in ("", None)}
    return _write(options, f"procedural://?{urlencode(chosen)}")


def _import(options: argparse.Namespace) -> int:
    return _write(options, f"{options.source}://{options.path}")


def _write(options: argparse.Namespace, address: str) -> int:
    from nemo_mtdrive.driving.sources import open_scenes, parse_address
    from nemo_mtdrive.driving.writing import Layout, write_scenes
    from nemo_mtdrive.process import available_cpus
    from nemo_mtdrive.telemetry.progress import open_progress

    _report_to_stderr()
    at = parse_address(address)
    layout = Layout(options.format, not options.no_images, options.shard_size, options.width, options.height)
    source = open_scenes(at, options.width, options.height)
    with open_progress(sys.stderr, plain_every_s=10.0) as progress, \
            progress.phase("scenes", total=len(source.ids()), unit="scenes") as bar:
        skipped = write_scenes(at, options.out, layout, options.workers or available_cpus(), bar.advance, source)
    print(options.out)
    return FAILED if skipped else DONE


def _validate(options: argparse.Namespace) -> int:
    from nemo_mtdrive.driving.command import validate_scenes

    logging.disable()  # every complaint is a line of the result
    checked = validate_scenes(options.paths)
    for name, problem in checked.problems.items():
        print(json.dumps({"scene": name, "problem": problem}))
        print(f"nemo-mtdrive: {problem}", file=sys.stderr)
    print(json.dumps({"scenes": checked.scenes, "broken": len(checked.problems)}))
    return FAILED if checked.problems else DONE


def _show(options: argparse.Namespace) -> None:
    from nemo_mtdrive.driving.command import show_scene

    out = options.out or (Path(f"{options.id}.show.png") if options.id else Path(options.scene).with_suffix(".show.png"))
    show_scene(options.scene, options.id, out)
    print(out)


def _stats(options: argparse.Namespace) -> None:
    from nemo_mtdrive.evaluation.scene_charts import draw_stats
    from nemo_mtdrive.evaluation.scene_stats import count_scenes, stats_table
    from nemo_mtdrive.process import available_cpus
    from nemo_mtdrive.telemetry.progress import open_progress

    _report_to_stderr()
    address = options.scenes if "://" in options.scenes else f"files://{options.scenes}"
    with open_progress(sys.stderr, plain_every_s=10.0) as progress:
        stats = count_scenes(address, not options.no_scores, options.workers or available_cpus(), progress)
        progress.note(stats_table(stats))
    if options.plot:
        draw_stats(stats, options.plot)
    print(json.dumps(stats))


def _report_to_stderr() -> None:
    logging.basicConfig(format="nemo-mtdrive: %(message)s", stream=sys.stderr)
