"""`nemo-mtdrive COMMAND`: results to stdout, progress to stderr; exit 0 done, 1 the work failed, 2 the request was wrong."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_mtdrive import __version__
from nemo_mtdrive.cli_cluster import add_cluster
from nemo_mtdrive.cli_data import add_data
from nemo_mtdrive.cli_evaluation import add_evaluation
from nemo_mtdrive.cli_pages import add_pages
from nemo_mtdrive.cli_reproduce import add_reproduce
from nemo_mtdrive.cli_scenes import add_scenes
from nemo_mtdrive.cli_scoring import add_scoring
from nemo_mtdrive.commands import command as _command
from nemo_mtdrive.commands import positive as _positive
from nemo_mtdrive.config import CONF_DIR, Config, ConfigError, load_config

DONE, FAILED, WRONG_REQUEST = 0, 1, 2
INTERRUPTED = 130
PLAIN_EVERY_S = 10.0
"""Least time between two progress lines where stderr is no terminal [s]."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int | None = options.run(options)
        return DONE if code is None else code
    except KeyboardInterrupt:
        print("nemo-mtdrive: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout went away, as `| head` does
        sys.stderr.close()
        return DONE
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One line for what a user can mend; a traceback for what is our fault."""
    from nemo_mtdrive.data.datasets import DataError
    from nemo_mtdrive.driving.scene import SceneError
    from nemo_mtdrive.evaluation.run_files import RunError
    from nemo_mtdrive.launch import JobFailed, JobInterrupted
    from nemo_mtdrive.stations import ProcessDied

    if isinstance(error, JobInterrupted):
        print(f"nemo-mtdrive: {error}; run it again with resume=true to go on", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, (JobFailed, ProcessDied)):
        print(f"nemo-mtdrive: {error}", file=sys.stderr)
        return FAILED
    if isinstance(error, (ConfigError, SceneError, DataError, RunError, FileNotFoundError, NotADirectoryError,
                          IsADirectoryError, PermissionError)):
        print(f"nemo-mtdrive: {error}", file=sys.stderr)
        return WRONG_REQUEST
    raise error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nemo-mtdrive", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_scoring, add_scenes, add_data, add_evaluation, _add_pretraining, _add_rl, add_pages, add_reproduce,
                _add_plan, _add_processes, add_cluster):
        add(commands)
    return parser


def _add_config(parser: argparse.ArgumentParser, name: str = "demo_cpu") -> None:
    parser.add_argument("--config-name", default=name, metavar="NAME", help="conf/NAME.yaml (default: %(default)s)")
    parser.add_argument("--config-dir", type=Path, default=CONF_DIR, metavar="DIR", help="folder of configs")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                        help="any key of nemo_mtdrive/config.py, e.g. mtgrpo.steps=10, scenes=av2, run_dir=runs/a")


def _config(options: argparse.Namespace) -> Config:
    return load_config(options.config_name, options.overrides, options.config_dir)


def _add_rl(commands: argparse._SubParsersAction) -> None:
    for name, summary in (("rl", "the whole main job: scenes, SFT cold start, mtGRPO, evaluation, report"),
                          ("sft", "the main job up to the SFT checkpoint and its evaluation (mtgrpo.steps=0)")):
        parser = _command(commands, name, summary, _rl,
                          f"nemo-mtdrive {name} --config-name demo_cpu run_dir=runs/mine mtgrpo.estimator=per_turn")
        _add_config(parser)
        parser.set_defaults(only_sft=name == "sft")


def _rl(options: argparse.Namespace) -> None:
    config = _config(options)
    if options.only_sft:
        config.mtgrpo.steps = 0
    from nemo_mtdrive.jobs import run_rl  # after the check of the config: it imports for seconds

    run_rl(config)


def _add_pretraining(commands: argparse._SubParsersAction) -> None:
    goes_on = "Killed, it goes on where it was when the same command is given again."
    parser = _command(commands, "pretrain-vision", "a tiny model whose vision tower knows what roads look like, to start "
                      "from (model.init_from=OUT); prints what its pictures tell as JSON", _pretrain_vision,
                      "nemo-mtdrive pretrain-vision --out seen scenes.source=files scenes.path=scenes")
    parser.description = f"""{parser.description}.

The tower learns from the training scenes by regression: the human's trajectory from picture, history and command, and the
ground ahead. The language model has random weights. {goes_on}"""
    _add_pretraining_options(parser)
    parser = _command(commands, "pretrain-language", "the same model, whose language knows how plans are written too, to "
                      "start SFT from; prints its cross entropy as JSON", _pretrain_language,
                      "nemo-mtdrive pretrain-language --out start model.init_from=seen language.steps=600")
    parser.description = f"""{parser.description}.

It reads conversations without a picture about vehicles that nobody has seen: questions, plans, feedback, other plans.
No scene is read, and the vision tower stays as it is. {goes_on}"""
    _add_pretraining_options(parser)


def _add_pretraining_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="Hugging Face directory that is written")
    _add_config(parser, "scratch_cpu")


def _pretrain_vision(options: argparse.Namespace) -> None:
    config = _config(options)
    from nemo_mtdrive.pretraining import pretrain_vision
    from nemo_mtdrive.telemetry.progress import open_progress

    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        print(json.dumps(pretrain_vision(config, options.out, progress)))


def _pretrain_language(options: argparse.Namespace) -> None:
    config = _config(options)
    from nemo_mtdrive.pretraining import pretrain_language
    from nemo_mtdrive.telemetry.progress import open_progress

    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        print(json.dumps(pretrain_language(config, options.out, progress)))


def _add_plan(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "plan", "what a GPU's memory goes to in training, and what fits",
                      _plan, "nemo-mtdrive plan --model 7b --tp 4 --pp 2 --gpus 32 --recompute selective")
    parser.add_argument("--model", required=True, metavar="SIZE|DIR", help="3b, 7b, 32b, 72b or a model directory")
    for name, default, text in (
        ("tp", 1, "tensor-parallel ranks"), ("pp", 1, "pipeline stages"), ("gpus", 1, "GPUs in all: tp x pp x data"),
        ("sequence", 11500, "tokens of a sequence, images included"), ("micro-batch", 1, "sequences of a micro-batch"),
        ("images", 1, "different images of a micro-batch"), ("memory", 80, "of a GPU [GiB]"),
    ):
        parser.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    parser.add_argument("--image", type=_image_size, default="1932x1092", metavar="WxH", help="[px] (default: %(default)s)")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none",
                        help="what the backward pass computes again: nothing, MLPs, whole layers (default: %(default)s)")
    parser.add_argument("--sequence-parallel", action="store_true", help="split norms and residuals along the sequence")
    parser.add_argument("--no-distributed-optimizer", action="store_true", help="each data-parallel rank has all of Adam")
    parser.add_argument("--json", action="store_true", help="one JSON object, in bytes, instead of a table")


def _plan(options: argparse.Namespace) -> int:
    from nemo_mtdrive.models.plan_command import run

    return run(options)


def _image_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _positive(width), _positive(height)


def _add_processes(commands: argparse._SubParsersAction) -> None:
    """The processes of a job; `rl` starts them on one machine, srun on a cluster."""
    from nemo_mtdrive.environment.arguments import EXAMPLE, add_arguments

    serve = _command(commands, "serve-env", "the environment server of a run, or of a folder of scenes", _serve_env, EXAMPLE)
    add_arguments(serve)
    worker = _command(commands, "rollout-worker", "one rollout worker of a run", _rollout_worker,
                      "nemo-mtdrive rollout-worker --run-dir runs/demo --index 0")
    worker.add_argument("--index", type=int, default=0)
    rank = _command(commands, "train-rank", "one training rank of a run (RANK, WORLD_SIZE, ... in the environment)",
                    _train_rank, "nemo-mtdrive train-rank --run-dir runs/demo")
    rank.add_argument("--resume", action="store_true", help="go on from the last checkpoint, as with resume=true")
    for parser in (worker, rank):
        parser.add_argument("--run-dir", type=Path, required=True, metavar="RUN")


def _serve_env(options: argparse.Namespace) -> int:
    if options.scenes:
        from nemo_mtdrive.environment.command import serve_scenes

        return serve_scenes(options)
    from nemo_mtdrive.ranks import serve_environment

    return serve_environment(options.run_dir, options.index)


def _rollout_worker(options: argparse.Namespace) -> int:
    from nemo_mtdrive.ranks import run_rollout_worker

    return run_rollout_worker(options.run_dir, options.index)


def _train_rank(options: argparse.Namespace) -> int:
    from nemo_mtdrive.ranks import run_training_rank

    return run_training_rank(options.run_dir, options.resume)


if __name__ == "__main__":
    sys.exit(main())
