"""What a reward model learns from: plans of all sorts in each scene (`plans.sample_plans`), labelled by the PDM agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.plans import sample_plans
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.features import OBJECTS, Features, describe, join
from nemo_mtdrive.pdm.feedback import find_violations
from nemo_mtdrive.pdm.reward_model import HEADS
from nemo_mtdrive.pdm.score import scores
from nemo_mtdrive.stations import work_at_stations
from nemo_mtdrive.types import SCORE_NAMES, TRAJECTORY_POINTS

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class RewardSet:
    """B labelled plans; those of one scene lie together."""

    features: Features
    heads: Float32
    """[B, 6] by `HEADS`: 1 where clean, else 0; EP as it is."""
    scores: Array
    """[B, 7] PDM scores by `types.SCORE_NAMES`."""
    off_road: Float32
    """[B, 8] DAC names the point."""
    pairs: Float32
    """[B, 8, OBJECTS, 2] NC and TTC name the point with the object."""
    missed: int
    """Named objects that are not among the `OBJECTS` described ones."""


def label(scene: Scene, plans: Array, agent: PDMAgent) -> RewardSet:
    """Describe plans [B, 8, 3] of a scene and label them with what the PDM agent says."""
    prepared = agent.prepare(scene)
    measured = prepared.measure(prepared.simulate(plans))
    table = np.array([[row[name] for name in SCORE_NAMES] for row in scores(measured, prepared.reference_progress_m)])
    column = {name: table[:, place] for place, name in enumerate(SCORE_NAMES)}
    heads = np.stack([column["EP"] if name == "EP" else column[name] >= 1.0 for name in HEADS], axis=1)
    features = describe(prepared, plans)
    off_road = np.zeros((len(plans), TRAJECTORY_POINTS), dtype=np.float32)
    pairs = np.zeros((len(plans), TRAJECTORY_POINTS, OBJECTS, 2), dtype=np.float32)
    missed = 0
    for row in range(len(plans)):
        for found in find_violations(measured, row):
            if found.track is None:
                off_road[row, found.point] = 1.0
                continue
            places = np.flatnonzero(features.objects[row, found.point] == found.track)
            pairs[row, found.point, places, 0 if found.metric == "NC" else 1] = 1.0
            missed += not len(places)
    return RewardSet(features, heads.astype(np.float32), table, off_road, pairs, missed)


def concatenate(parts: Sequence[RewardSet]) -> RewardSet:
    """Several sets one after another."""
    def stacked(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(part, name) for part in parts])

    return RewardSet(join([part.features for part in parts]), stacked("heads").astype(np.float32), stacked("scores"),
                     stacked("off_road").astype(np.float32), stacked("pairs").astype(np.float32),
                     sum(part.missed for part in parts))


def split(scene_ids: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """Scene ids to learn from and to measure on, drawn with a seed; at least one each.

    Raises:
        ValueError: fewer than two scenes.
    """
    if len(scene_ids) < 2:
        raise ValueError(f"got {len(scene_ids)} scene(s), want 2 or more: one part is learned from, the other measured on")
    order = np.random.default_rng(seed).permutation(len(scene_ids))
    count = min(max(1, round(held_out * len(scene_ids))), len(scene_ids) - 1)
    names = [scene_ids[index] for index in order]
    return names[count:], names[:count]


@contextmanager
def _open(arguments: SceneArguments, perception: str, _: int) -> Iterator[tuple[SceneSource, PDMAgent]]:
    yield arguments.open(), PDMAgent(perception, cache_size=1)


def _label_scene(seed: int, opened: tuple[SceneSource, PDMAgent], item: tuple[int, str]) -> RewardSet:
    scenes, agent = opened
    place, scene_id = item
    scene = scenes.load(scene_id)
    return label(scene, sample_plans(scene, seed + place), agent)


def build(arguments: SceneArguments, scene_ids: Sequence[str], perception: str, seed: int, workers: int,
          advance: Callable[[int], None]) -> RewardSet:
    """Label the plans of scenes in several processes; the same arguments give the same set whatever their number.

    Raises:
        SceneError: a scene cannot be read.
    """
    parts: dict[int, RewardSet] = {}
    for place, part in work_at_stations(partial(_open, arguments, perception), partial(_label_scene, seed),
                                        list(enumerate(scene_ids)), workers):
        parts[place] = part
        advance(1)
    return concatenate([parts[place] for place in range(len(parts))])
