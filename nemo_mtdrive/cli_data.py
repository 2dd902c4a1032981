"""`nemo-mtdrive curate ACTION`: SFT and RL data; counts to stdout as JSON, progress, tables and complaints to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_mtdrive.commands import command, positive
from nemo_mtdrive.config import ConfigError, SFTDataConfig

if TYPE_CHECKING:
    from nemo_mtdrive.data.curate import CurationTask, SceneArguments

DONE, FAILED = 0, 1
PLAIN_EVERY_S = 10.0
DEFAULTS = SFTDataConfig()
GO_ON = "Killed, it goes on where it was when the same command is given again; the files get the same bytes."


def add_data(commands: argparse._SubParsersAction) -> None:
    """Declare `curate` and its actions."""
    group = commands.add_parser("curate", help="make and check SFT data: single-turn, multi-turn, understanding; RL sets",
                                allow_abbrev=False)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add_single_turn(actions)
    _add_multi_turn(actions)
    _add_understanding(actions)
    _add_check(actions)


def _add_single_turn(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "single-turn", "questions with the human's trajectory as the answer", _curate,
                     "nemo-mtdrive curate single-turn --scenes scenes --out sft_data --held-out 100")
    parser.description = f"{parser.description}.\n{GO_ON}"
    _add_common(parser)
    parser.set_defaults(kind="single_turn")


def _add_multi_turn(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "multi-turn", "rejected trajectories with the PDM agent's feedback, then the human's", _curate,
                     "nemo-mtdrive curate multi-turn --scenes scenes --out sft_data --mock-share 0.3")
    parser.description = f"""{parser.description}.

Without a model: the constant-velocity driver's trajectory where it is rejected (2 turns), and for a share of the scenes
several rejected trajectories stacked (mock data, 3 to 6 turns).
{GO_ON}"""
    _add_common(parser)
    _add_feedback(parser)
    parser.set_defaults(kind="multi_turn")


def _add_understanding(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "understanding", "yes-or-no questions on NC, DAC, TTC and EP, answered by the scorer", _curate,
                     "nemo-mtdrive curate understanding --scenes scenes --out sft_data --pairs 2")
    parser.description = f"""{parser.description}.

Of points, trajectories and their points, and of objects: were it not there, would the score change? Each pair has one
question that is answered yes and one that is answered no.
{GO_ON}"""
    _add_common(parser)
    parser.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle", help="default: %(default)s")
    parser.add_argument("--pairs", type=positive, default=DEFAULTS.pairs, metavar="N",
                        help="pairs of questions a scene (default: %(default)s)")
    parser.set_defaults(kind="understanding")


def _add_check(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "check", "judge every line of a folder anew from its scene; a JSON line for each that is "
                     "wrong, then the counts; exit code 1 if any is", _check, "nemo-mtdrive curate check sft_data")
    parser.description = f"""{parser.description}.

Feedback is what the agent says of the trajectory, a yes or no is the scorer's, images have the content that they are named
after, yes and no are balanced to 1%, and no scene of a held-out log is learned from."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="that `curate` or a run (RUN/sft_data) made")
    parser.add_argument("--scenes", metavar="ADDRESS", help="where its scenes are now (default: where they were)")
    parser.add_argument("--workers", type=positive, default=2, help="processes (default: %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", required=True, metavar="ADDRESS", help="folder of scenes, or SCHEME://PATH?name=value")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="the folder of the data; one folder takes all kinds")
    parser.add_argument("--held-out", type=_count, metavar="N",
                        help="keep N scenes (whole logs) out of the data; splits.json says which (default: those that the "
                        "folder's splits.json holds out already, else none)")
    parser.add_argument("--seed", type=_count, default=DEFAULTS.seed, help="of every random choice (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="processes (default: %(default)s)")


def _add_feedback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle",
                        help="what the agent sees: the recorded future, or constant velocity (default: %(default)s)")
    parser.add_argument("--mock-share", type=_share, default=DEFAULTS.mock_share, metavar="SHARE",
                        help="of the scenes that get a mock conversation (default: %(default)s)")
    parser.add_argument("--max-turns", type=_turns, default=DEFAULTS.max_turns, metavar="N",
                        help="most answers of a conversation, 2 to 6 (default: %(default)s)")
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="that --max-tokens counts with")
    parser.add_argument("--max-tokens", type=_count, default=0, metavar="N",
                        help="most tokens of a conversation, image included (default: no limit)")


def _curate(options: argparse.Namespace) -> None:
    from nemo_mtdrive.data.curate import curate
    from nemo_mtdrive.data.statistics import statistics_table
    from nemo_mtdrive.telemetry.progress import open_progress

    task, scene_ids = _task(options)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        with progress.phase(options.kind.replace("_", "-"), total=len(scene_ids), unit="scenes") as bar:
            statistics = curate(task, scene_ids, options.workers, bar.advance)
        progress.note(statistics_table(statistics))
    print(json.dumps(statistics))


def _check(options: argparse.Namespace) -> int:
    from nemo_mtdrive.config import AgentConfig
    from nemo_mtdrive.data.check import CheckTask, check_folder
    from nemo_mtdrive.data.curate import SceneArguments
    from nemo_mtdrive.data.folder import read_lines, read_requests, read_split
    from nemo_mtdrive.telemetry.progress import open_progress

    requests = list(read_requests(options.folder).values())
    if not requests:
        raise ConfigError(f"{options.folder}: no curation.json there; set it to a folder that `nemo-mtdrive curate` wrote")
    split = read_split(options.folder)
    agents = [request["agent"] for request in requests if "agent" in request]
    scenes = scenes_at(options.scenes) if options.scenes else SceneArguments(**requests[0]["scenes"])
    task = CheckTask(options.folder, scenes, AgentConfig(**agents[0]) if agents else AgentConfig(),
                     tuple(split[1]) if split else ())
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        total = sum(1 for _ in read_lines(options.folder))
        with progress.phase("check", total=total, unit="lines") as bar:
            count, problems = check_folder(task, options.workers, bar.advance)
        for problem in problems:
            progress.note(f"{options.folder}/{problem}")
            print(json.dumps({"file": problem.file, "line": problem.number, "problem": problem.reason}))
    print(json.dumps({"lines": count, "problems": len(problems), "held_out": len(task.held_out)}))
    return FAILED if problems else DONE


def _task(options: argparse.Namespace) -> tuple[CurationTask, list[str]]:
    """What is asked for, and the ids of the scenes to learn from."""
    from nemo_mtdrive.data.curate import CurationTask

    given = vars(options)
    settings = SFTDataConfig(kinds=[options.kind], seed=options.seed, pairs=given.get("pairs", DEFAULTS.pairs),
                             mock_share=given.get("mock_share", DEFAULTS.mock_share),
                             max_turns=given.get("max_turns", DEFAULTS.max_turns))
    max_tokens = given.get("max_tokens", 0)
    if max_tokens and not options.tokenizer:
        raise ConfigError(f"--max-tokens {max_tokens}: set --tokenizer to the folder of the tokenizer to count with")
    scenes = scenes_at(options.scenes)
    task = CurationTask(scenes, options.out, given.get("perception", "oracle"), settings,
                        tokenizer=given.get("tokenizer", ""), max_tokens=max_tokens)
    return task, _training_ids(options, scenes.open().ids())


def scenes_at(address: str) -> SceneArguments:
    """The scenes of a folder or an address."""
    from nemo_mtdrive.data.curate import SceneArguments

    return SceneArguments("", "", 0, 0, 0, 0, address if "://" in address else f"files://{address}")


def _training_ids(options: argparse.Namespace, scene_ids: Sequence[str]) -> list[str]:
    """The scenes that are not held out; the folder keeps the split."""
    from nemo_mtdrive.data.folder import keep_split, read_split
    from nemo_mtdrive.data.sampler import split_ids

    if options.held_out is None:
        kept = read_split(options.out)
        if kept is None:
            return list(scene_ids)
        train, held_out = kept
        keep_split(options.out, [name for name in train if name in set(scene_ids)], held_out)
        return train
    try:
        train, held_out = split_ids(scene_ids, options.held_out, options.seed)
    except ValueError as error:
        raise ConfigError(str(error).replace("scenes.held_out=", "--held-out ")) from error
    keep_split(options.out, train, held_out)
    return train


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {value}, set it to 0 or more")
    return value


def _turns(text: str) -> int:
    value = int(text)
    if not 2 <= value <= 6:
        raise argparse.ArgumentTypeError(f"got {value}, set it from 2 to 6")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"got {value}, set it from 0 to 1")
    return value
