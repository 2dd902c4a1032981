"""What a run needs on disk before its processes start: scenes, their split, SFT data, and the baseline drivers' scores.

Everything is written whole and found again, so a run that was stopped here goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nemo_mtdrive.config import Config, ConfigError
from nemo_mtdrive.data.curate import CurationTask, SceneArguments, curate
from nemo_mtdrive.data.sampler import split_ids
from nemo_mtdrive.driving.command import generate_scenes
from nemo_mtdrive.process import available_cpus
from nemo_mtdrive.telemetry.progress import Progress
from nemo_mtdrive.whole_file import write_whole


@dataclass(frozen=True)
class Splits:
    """Scene ids to train on and scene ids to evaluate on; no log is in both."""

    train: list[str]
    held_out: list[str]


def scene_arguments(config: Config, run_dir: Path) -> SceneArguments:
    """Where the processes of a run open its scenes: generated ones lie as files in the run directory."""
    scenes = config.scenes
    generated = scenes.source == "procedural" and not scenes.uri
    return SceneArguments(
        source="files" if generated else scenes.source,
        path=str(run_dir / "scenes") if generated else scenes.path,
        count=0,  # all there are: whole logs are held out first, then `scenes.count` of the rest are kept
        seed=scenes.seed,
        width=scenes.image_width,
        height=scenes.image_height,
        uri=scenes.uri,
    )


def prepare(config: Config, run_dir: Path, tokenizer: Path, progress: Progress) -> Splits:
    """Make what is missing of scenes, split and SFT data; see the module's docstring.

    Args:
        config: of the run.
        run_dir: where everything goes.
        tokenizer: the folder of the model's, with which the lengths of conversations are counted.
        progress: shows the phases.

    Raises:
        ConfigError: the scenes do not suffice for the held-out part.
    """
    workers = available_cpus()
    arguments = scene_arguments(config, run_dir)
    if config.scenes.source == "procedural" and not config.scenes.uri:
        _generate(config, run_dir / "scenes", workers, progress)
    splits = _split(config, arguments, run_dir / "splits.json")
    if config.scenes.rl_set:
        progress.note(f"RL set: {len(rl_scenes(config, splits.train))} of {len(splits.train)} training scenes")
    if config.sft.stages and not config.sft.data:
        task = CurationTask(arguments, run_dir / "sft_data", config.environment.perception, config.sft_data, config.agent,
                            tokenizer=str(tokenizer), max_tokens=config.rollout.max_context)
        with progress.phase("SFT data", total=len(splits.train), unit="scenes") as bar:
            statistics = curate(task, splits.train, workers, bar.advance)
        progress.note("SFT data: " + ", ".join(f"{count} {kind.replace('_', '-')} samples"
                                               for kind, count in statistics["lines"].items()))
    return splits


def _generate(config: Config, out: Path, workers: int, progress: Progress) -> None:
    scenes = config.scenes
    count = scenes.count + scenes.held_out
    with progress.phase("scenes", total=count, unit="scenes") as bar:
        generate_scenes(count, scenes.seed, out, scenes.image_width, scenes.image_height, dict(scenes.kinds), workers,
                        bar.advance, difficulty=scenes.difficulty, commands=dict(scenes.commands))


def _split(config: Config, arguments: SceneArguments, path: Path) -> Splits:
    ids = list(arguments.open().ids())
    try:
        train, held_out = split_ids(ids, config.scenes.held_out, config.scenes.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    splits = Splits(train[:config.scenes.count], held_out)
    write_whole(path, json.dumps({"train": splits.train, "held_out": splits.held_out}))
    return splits


def rl_scenes(config: Config, train: list[str]) -> list[str]:
    """The training scenes that RL takes: those of `scenes.rl_set`, or all.

    Raises:
        ConfigError: none of them is a training scene of this run.
    """
    if not config.scenes.rl_set:
        return train
    wanted = set(Path(config.scenes.rl_set).read_text().split())
    taken = [scene_id for scene_id in train if scene_id in wanted]
    if not taken:
        raise ConfigError(f"scenes.rl_set={config.scenes.rl_set}: none of its {len(wanted)} scenes is among the "
                          f"{len(train)} training scenes; make it from the same scenes")
    return taken


def read_splits(run_dir: Path) -> Splits:
    """What `prepare` decided."""
    return Splits(**json.loads((run_dir / "splits.json").read_text()))

