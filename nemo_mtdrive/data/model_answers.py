"""A model drives scenes for curation: its answers and the agent's feedback, chunk by chunk, over one or several engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemo_mtdrive.config import Config
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.lines import random_of
from nemo_mtdrive.environment.env import DrivingEnvironment
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.rollout.driver_pool import Station, only_episodes, play_batches
from nemo_mtdrive.rollout.model_driver import ModelDriver
from nemo_mtdrive.types import Episode, RolloutTask

PURPOSE = "curation"
_CACHED_SCENES = 64


@dataclass(frozen=True)
class ModelPlay:
    """Which model drives, and how."""

    model: Path
    """Hugging Face's, NeMo 2's, a run or one of its checkpoints."""
    mark: str
    """Tells weights apart that lie at the same place one after another."""
    scenes: SceneArguments
    perception: str
    """What the agent sees: oracle or kinematic."""
    config: Config
    """`rollout`, `reward` and `agent` of it; `rollout.max_turns` is how often the model may answer."""
    engine: str
    samples: int
    """Episodes of a scene."""
    seed: int

    def request(self) -> dict[str, Any]:
        """All that decides the model's answers."""
        rollout = self.config.rollout
        return {"model": str(self.model), "weights": self.mark, "engine": self.engine, "samples": self.samples,
                "perception": self.perception, "agent": asdict(self.config.agent), "max_turns": rollout.max_turns,
                "max_answer_tokens": rollout.max_answer_tokens, "max_context": rollout.max_context,
                "temperature": rollout.temperature, "dtype": rollout.dtype}


def play_chunks(play: ModelPlay, chunks: Mapping[int, Sequence[str]], engines: int) -> Iterator[tuple[int, list[Episode]]]:
    """Drive the scenes of each chunk; yields (its number, its episodes by scene and sample) as it is done.

    A chunk is played whole by one engine and from seeds of its scenes, so it holds the same episodes whenever and wherever
    it is played.

    Raises:
        ConfigError: the model, the scenes or the agent cannot be opened.
        ProcessDied: an engine's process was killed.
    """
    station = Station(partial(_open_driver, play), partial(_open_environment, play), only_episodes,
                      play.config.rollout.threads)
    tasks = {number: [_task(play, scene_id) for scene_id in ids] for number, ids in chunks.items()}
    yield from play_batches(station, tasks, engines)


def _task(play: ModelPlay, scene_id: str) -> RolloutTask:
    seed = int(random_of(play.seed, scene_id, PURPOSE).integers(2**31))
    return RolloutTask(scene_id=scene_id, group_size=play.samples, seed=seed, policy_version=0, step=0,
                       temperature=play.config.rollout.temperature, purpose=PURPOSE)


def _open_driver(play: ModelPlay, device: str) -> ModelDriver:
    return ModelDriver.open(play.model, rollout=play.config.rollout, reward=play.config.reward, engine=play.engine,
                            device=device)


def _open_environment(play: ModelPlay, driver: ModelDriver) -> DrivingEnvironment:
    reviewer = open_reviewer(play.config.agent, play.perception, _CACHED_SCENES)
    return DrivingEnvironment(play.scenes.open(), reviewer, driver.max_turns)
