"""Rows are played here: a model over engines, or drivers without a model over processes; batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from nemo_mtdrive.config import AgentConfig, Config
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.environment.env import DrivingEnvironment, Environment
from nemo_mtdrive.evaluation.baselines import Driver, drive, driver_episode, drivers_with, lost_episode
from nemo_mtdrive.evaluation.evaluate import SceneFacts, facts_of
from nemo_mtdrive.evaluation.feedback import SelfFeedback, SeparateFeedback
from nemo_mtdrive.evaluation.shuffled import OtherPictures
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.rollout.driver_pool import Station, play_batches
from nemo_mtdrive.rollout.model_driver import ModelDriver
from nemo_mtdrive.stations import work_at_stations
from nemo_mtdrive.types import Episode, RolloutTask

Played = tuple[list[Episode], dict[str, SceneFacts]]
"""Episodes, and what is known of their scenes."""

FEEDBACKS = ("oracle", "kinematic", "self")
PURPOSE = "evaluation"
Batch = Sequence[tuple[int, str]]
"""(place in the whole set, scene id) each; the place decides the seed."""


@dataclass(frozen=True)
class ModelPlay:
    """A model's row: what each engine's process is told."""

    model: Path
    scenes: SceneArguments
    feedback: str
    """One of `FEEDBACKS`; the scores are always of the recorded future."""
    config: Config
    """`rollout`, `reward` and `agent` of it."""
    engine: str
    seed: int
    group_size: int
    """Episodes of a scene."""
    batch: int
    """Scenes of a batch."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Scene -> the scene whose picture it is driven with (`shuffled.other_pictures`); its own where none is set."""

    @property
    def scorer_speaks(self) -> bool:
        """Whether feedback and scores are of one agent, so that they agree."""
        return self.feedback == "oracle" and self.config.agent == AgentConfig()


class KnownScenes:
    """A source of scenes that remembers the facts of those that were loaded."""

    def __init__(self, source: SceneSource) -> None:
        self._source = source
        self.facts: dict[str, SceneFacts] = {}
        self.ids = source.ids
        self.image = source.image

    def load(self, scene_id: str) -> Scene:
        """See `SceneSource.load`."""
        scene = self._source.load(scene_id)
        self.facts[scene_id] = facts_of(scene)
        return scene

    def take(self, episodes: Sequence[Episode]) -> dict[str, SceneFacts]:
        """The facts of the episodes' scenes; they are forgotten here."""
        return {name: self.facts.pop(name) for name in {episode.scene_id for episode in episodes} if name in self.facts}


def play_model(play: ModelPlay, batches: Mapping[int, Batch], engines: int) -> Iterator[tuple[int, Played]]:
    """Play each batch; yields (its number, its episodes in the order of scenes and the scenes' facts) as it is done.

    Raises:
        ConfigError: the model, the scenes or the agent cannot be opened.
        ProcessDied: an engine's process was killed.
    """
    station = Station(partial(_open_driver, play), partial(_open_environment, play), _with_facts,
                      play.config.rollout.threads)
    tasks = {number: [_task(play, place, scene_id) for place, scene_id in batch] for number, batch in batches.items()}
    yield from play_batches(station, tasks, engines)


def _task(play: ModelPlay, place: int, scene_id: str) -> RolloutTask:
    # the seeds that an evaluation inside a run draws with, so that it and this one answer alike
    seed = int(np.random.SeedSequence((play.seed, 0, place)).generate_state(1)[0])
    return RolloutTask(scene_id=scene_id, group_size=play.group_size, seed=seed, policy_version=0, step=0,
                       temperature=play.config.rollout.temperature, purpose=PURPOSE, slot=place)


def _open_driver(play: ModelPlay, device: str) -> ModelDriver:
    return ModelDriver.open(play.model, rollout=play.config.rollout, reward=play.config.reward, engine=play.engine,
                            device=device)


def _open_environment(play: ModelPlay, driver: ModelDriver) -> DrivingEnvironment:
    source = play.scenes.open()
    scenes = KnownScenes(OtherPictures(source, play.pictures) if play.pictures else source)
    return DrivingEnvironment(scenes, reviewer_of(play, scenes, driver), driver.max_turns)


def _with_facts(environment: Environment, episodes: list[Episode]) -> Played:
    assert isinstance(environment, DrivingEnvironment) and isinstance(environment.scenes, KnownScenes)
    return episodes, environment.scenes.take(episodes)


def reviewer_of(play: ModelPlay, scenes: KnownScenes, driver: ModelDriver) -> Reviewer:
    """Who scores and who gives feedback."""
    scorer = PDMAgent("oracle", play.batch)
    if play.feedback == "self":
        return SelfFeedback(scorer, driver, scenes.image)
    if play.scorer_speaks:
        return scorer
    return SeparateFeedback(scorer, open_reviewer(play.config.agent, play.feedback, play.batch))


DriversPlayed = tuple[dict[str, list[Episode]], dict[str, SceneFacts]]


def play_drivers(scenes: SceneArguments, batches: Mapping[int, tuple[Batch, Sequence[str]]],
                 processes: int) -> Iterator[tuple[int, DriversPlayed]]:
    """Score the plans of drivers (`baselines.DRIVER_NAMES`) under oracle perception.

    Args:
        batches: number -> its scenes, and the drivers that are wanted.

    Yields:
        (number of the batch, (driver -> its episodes in the order of scenes, the scenes' facts)); a scene for which a
        driver has no plan has no episode, one that cannot be loaded has an invalid one.

    Raises:
        ProcessDied: a process was killed.
    """
    numbers = list(batches)
    for place, played in work_at_stations(partial(_open_scenes, scenes), _drive_batch,
                                          [batches[number] for number in numbers], processes):
        yield numbers[place], played


@contextmanager
def _open_scenes(scenes: SceneArguments, _: int) -> Iterator[tuple[SceneSource, PDMAgent]]:
    yield scenes.open(), PDMAgent("oracle", 1)


def _drive_batch(opened: tuple[SceneSource, PDMAgent], wanted: tuple[Batch, Sequence[str]]) -> DriversPlayed:
    source, agent = opened
    batch, names = wanted
    known = drivers_with(agent)
    drivers: dict[str, Driver] = {name: known[name] for name in names}
    episodes: dict[str, list[Episode]] = {name: [] for name in names}
    facts: dict[str, SceneFacts] = {}
    for _, scene_id in batch:
        try:
            scene = source.load(scene_id)
        except SceneError as error:
            for name in names:
                episodes[name].append(lost_episode(scene_id, str(error)))
            continue
        facts[scene_id] = facts_of(scene)
        for name, (trajectory, review) in drive(scene, agent, drivers).items():
            episodes[name].append(driver_episode(scene_id, trajectory, review))
    return episodes, facts
