"""`nemo-mtdrive curate ACTION`: SFT and RL data; counts to stdout as JSON, progress, tables and complaints to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_mtdrive.commands import command, positive, whole_number
from nemo_mtdrive.config import ConfigError, SFTDataConfig

if TYPE_CHECKING:
    from nemo_mtdrive.data.curate import CurationTask, SceneArguments
    from nemo_mtdrive.data.model_answers import ModelPlay

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
    _add_rl_set(actions)
    _add_check(actions)


def _add_single_turn(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "single-turn", "questions with the human's trajectory as the answer", _curate,
                     "nemo-mtdrive curate single-turn --scenes scenes --out sft_data --held-out 100")
    parser.description = f"{parser.description}.\n{GO_ON}"
    _add_common(parser)
    parser.set_defaults(kind="single_turn")


def _add_multi_turn(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "multi-turn", "rejected trajectories with the PDM agent's feedback, then the human's",
                     _multi_turn, "nemo-mtdrive curate multi-turn --scenes scenes --out sft_data --mock-share 0.3")
    parser.description = f"""{parser.description}.

Without a model: the constant-velocity driver's trajectory where it is rejected (2 turns), and for a share of the scenes
several rejected trajectories stacked (mock data, 3 to 6 turns). With one: one round of the paper's bootstrap. Nothing is
trained here; the loop is
  curate single-turn, curate multi-turn        then sft sft.data=DIR run_dir=runs/sft_1
  curate multi-turn --model runs/sft_1 --turns 1    then sft sft.data=DIR run_dir=runs/sft_2
  curate multi-turn --model runs/sft_2 --turns 2    and so on, all into the same DIR.
{GO_ON}"""
    _add_common(parser)
    _add_feedback(parser)
    _add_model(parser, required=False)
    parser.add_argument("--turns", type=whole_number(1, 5), default=1, metavar="K",
                        help="turns that the model has learned; its samples have up to K + 1 (default: %(default)s)")
    parser.add_argument("--samples", type=positive, default=1, metavar="N",
                        help="episodes of a scene; with several, mock conversations stack them (default: %(default)s)")
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


def _add_rl_set(actions: argparse._SubParsersAction) -> None:
    parser = command(actions, "rl-set", "scenes for RL: those whose first answer is rejected or scores low, and as many "
                     "others", _rl_set, "nemo-mtdrive curate rl-set --scenes scenes --model runs/sft_3 --out rl_set")
    parser.description = f"""{parser.description}.

A run takes the set by scenes.rl_set=DIR/scenes.txt.
{GO_ON}"""
    _add_common(parser)
    _add_model(parser, required=True)
    parser.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle", help="default: %(default)s")
    parser.add_argument("--threshold", type=_share, default=0.8, metavar="PDMS",
                        help="of the first answer, below which a scene is hard (default: %(default)s)")
    parser.add_argument("--others", type=float, default=1.0, metavar="RATIO",
                        help="of the remaining scenes, for each hard one (default: %(default)s)")
    parser.set_defaults(kind="rl_set")


def _add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--model", type=Path, required=required, metavar="DIR",
                        help="Hugging Face directory, NeMo 2 directory, a run or one of its checkpoints")
    parser.add_argument("--engine", default="native", help="inference engine (default: %(default)s)")
    parser.add_argument("--engines", type=positive, default=1, metavar="N",
                        help="processes, each with an engine, on GPUs in turn (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                        help="other keys of rollout and agent than those of the model's run, e.g. rollout.temperature=0.7")


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
    parser.add_argument("--held-out", type=whole_number(0), metavar="N",
                        help="keep N scenes (whole logs) out of the data; splits.json says which (default: those that the "
                        "folder's splits.json holds out already, else none)")
    parser.add_argument("--seed", type=whole_number(0), default=DEFAULTS.seed,
                        help="of every random choice (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="processes (default: %(default)s)")


def _add_feedback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--perception", choices=("oracle", "kinematic"), default="oracle",
                        help="what the agent sees: the recorded future, or constant velocity (default: %(default)s)")
    parser.add_argument("--mock-share", type=_share, default=DEFAULTS.mock_share, metavar="SHARE",
                        help="of the scenes that get a mock conversation (default: %(default)s)")
    parser.add_argument("--max-turns", type=whole_number(2, 6), default=DEFAULTS.max_turns, metavar="N",
                        help="most answers of a conversation, 2 to 6 (default: %(default)s)")
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="that --max-tokens counts with")
    parser.add_argument("--max-tokens", type=whole_number(0), default=0, metavar="N",
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


def _multi_turn(options: argparse.Namespace) -> None:
    from nemo_mtdrive.data.bootstrap import curate_with_model
    from nemo_mtdrive.data.statistics import statistics_table
    from nemo_mtdrive.telemetry.progress import open_progress

    if options.model is None:
        if options.overrides:
            raise ConfigError(f"{options.overrides[0]}: without --model nothing is sampled; remove it or set --model")
        _curate(options)
        return
    if options.max_turns <= options.turns:
        raise ConfigError(f"--turns {options.turns}: set --max-turns above it")
    task, scene_ids = _task(options)
    play = _play(options, task.scenes, options.turns)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        with progress.phase(f"multi-turn after {options.turns}", total=len(scene_ids), unit="scenes") as bar:
            statistics = curate_with_model(task, play, scene_ids, options.engines, bar.advance)
        progress.note(statistics_table(statistics))
    print(json.dumps(statistics))


def _rl_set(options: argparse.Namespace) -> None:
    from nemo_mtdrive.data.folder import training_ids
    from nemo_mtdrive.data.rl_set import RLSetSettings, make_rl_set, rl_set_table
    from nemo_mtdrive.telemetry.progress import open_progress

    scenes = scenes_at(options.scenes)
    scene_ids = training_ids(options.out, scenes.open().ids(), options.held_out, options.seed)
    play = _play(options, scenes, 1)
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        with progress.phase("RL set", total=len(scene_ids), unit="scenes") as bar:
            statistics = make_rl_set(play, scene_ids, options.out, RLSetSettings(options.threshold, options.others),
                                     options.engines, bar.advance)
        progress.note(rl_set_table(statistics))
    print(json.dumps(statistics))


def _play(options: argparse.Namespace, scenes: SceneArguments, turns: int) -> ModelPlay:
    from nemo_mtdrive.data.model_answers import ModelPlay
    from nemo_mtdrive.evaluation.settings import sampling_config, weights_mark

    config = sampling_config(options.model, [*options.overrides, f"rollout.max_turns={turns}"])
    return ModelPlay(options.model, weights_mark(options.model), scenes, options.perception, config, options.engine,
                     vars(options).get("samples", 1), options.seed)


def _check(options: argparse.Namespace) -> int:
    from nemo_mtdrive.data.check import check_folder, task_of
    from nemo_mtdrive.data.folder import read_lines
    from nemo_mtdrive.telemetry.progress import open_progress

    task = task_of(options.folder, scenes_at(options.scenes) if options.scenes else None)
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
    from nemo_mtdrive.data.folder import training_ids

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
    return task, training_ids(options.out, scenes.open().ids(), options.held_out, options.seed)


def scenes_at(address: str) -> SceneArguments:
    """The scenes of a folder or an address."""
    from nemo_mtdrive.data.curate import SceneArguments

    return SceneArguments("", "", 0, 0, 0, 0, address if "://" in address else f"files://{address}")


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"got {value}, set it from 0 to 1")
    return value
