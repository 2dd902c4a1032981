"""`reproduce check`: the gates on what is there in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.data.single_turn import question
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.driving.sources import open_scenes
from nemo_mtdrive.driving.sources.address import Address
from nemo_mtdrive.evaluation.baselines import pdm_closed
from nemo_mtdrive.evaluation.row_files import episode_of
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.reproduce import gates
from nemo_mtdrive.reproduce.curves import FORMAT, training_curve
from nemo_mtdrive.reproduce.gates import Gate
from nemo_mtdrive.reproduce.graph import HELD_OUT, TRAIN, whole_graph
from nemo_mtdrive.reproduce.leaks import episode_leaks, poses_in, question_leaks, unlike
from nemo_mtdrive.reproduce.recipe import MODEL, MODEL_ESTIMATOR, RL_MODEL, SINGLE, Recipe
from nemo_mtdrive.reproduce.rows import read_episodes, read_row
from nemo_mtdrive.reproduce.stages import named, places
from nemo_mtdrive.reproduce.tables import ORACLE
from nemo_mtdrive.telemetry.recorder import ROLLOUTS, read_rollouts
from nemo_mtdrive.types import Episode

LOOKED_AT = 200
"""Scenes of each split whose questions are built anew and searched."""
SFT_MODEL = f"sft_{MODEL}"
Part = Callable[[Path, Recipe, Sequence[int]], Iterable[Gate]]


def check(root: Path, recipe: Recipe, seeds: Sequence[int]) -> list[Gate]:
    """Every gate, in order; one whose measurements are not there has not passed and says so."""
    return [gate for name, part in PARTS.items() for gate in _found(name, part, root, recipe, seeds)]


def _found(name: str, part: Part, root: Path, recipe: Recipe, seeds: Sequence[int]) -> list[Gate]:
    try:
        return list(part(root, recipe, seeds))
    except (ConfigError, SceneError) as error:
        return [Gate(name, "measured", str(error), False)]


def _scores(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    single = read_row(root, f"eval_sft_{SINGLE}", ORACLE, seeds)
    sft = read_row(root, f"eval_{SFT_MODEL}", ORACLE, seeds)
    yield gates.sft_gain(single, sft, recipe.rl.turns)
    yield gates.rl_gain(sft, read_row(root, f"eval_{RL_MODEL}", ORACLE, seeds), recipe.rl.turns)


def _turns(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    rl = read_row(root, f"eval_{RL_MODEL}", ORACLE, seeds)
    yield gates.later_turns(rl, recipe.rl.turns)
    yield gates.violations_left(rl, "collision", "collisions", recipe.rl.turns)
    yield gates.violations_left(rl, "off_road", "off-road", recipe.rl.turns)


def _pictures(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    own, other = (read_row(root, f"pictures_{RL_MODEL}", row, seeds) for row in (ORACLE, f"{ORACLE}_shuffled"))
    yield gates.pictures_matter(own, other)
    yield gates.pictures_decide(own, other, recipe.pictures.kinds)


def _read(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    played = [episode.turns[:recipe.rl.turns] for seed in seeds
              for episode in read_episodes(root, named(f"eval_{RL_MODEL}", seed), ORACLE)[0] if episode.valid]
    answers = [turn for turns in played for turn in turns]
    yield gates.answers_read(sum(turn.trajectory is not None for turn in answers), len(answers))
    yield gates.format_scored([float(np.mean([turn.format_score for turn in turns])) for turns in played])


def _format(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    """Of both runs that the model comes from, of every seed."""
    names = [named(model, seed) for seed in seeds for model in (f"rl_{MODEL_ESTIMATOR}", RL_MODEL)]
    yield gates.format_stays({name: training_curve(folder, FORMAT) for name, folder in places(root, names).items()})


def _disjoint(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    """The scenes themselves, and what each run that was made learned from by its own record."""
    held_out = scene_ids(root, HELD_OUT)
    yield gates.disjoint("as generated", scene_ids(root, TRAIN), held_out)
    for name, folder in places(root, whole_graph(recipe, seeds)).items():
        path = folder / "splits.json"
        if path.is_file() and name != HELD_OUT:
            splits = json.loads(path.read_text())
            measured = {*held_out, *splits["held_out"]}
            gate = gates.disjoint(name, splits["train"], measured)
            if not gate.passed or name == named(RL_MODEL, seeds[0]):
                yield gate


def _questions(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    agent = PDMAgent("oracle", 1)
    for name in (TRAIN, HELD_OUT):
        source = open_scenes(Address("files", str(places(root, [name])[name])))
        leaks: list[str] = []
        ids = list(source.ids())[:LOOKED_AT]
        for scene_id in ids:
            scene = source.load(scene_id)
            leaks += [f"{scene_id}: {left}" for left in leaks_of_question(scene, question(scene), agent)]
        yield gates.nothing_leaks(f"questions of {name}", len(ids), leaks)


def leaks_of_question(scene: Scene, text: str, agent: PDMAgent) -> list[str]:
    """What a question holds beside the past: words, poses of the human's future, poses of PDM-Closed's plan."""
    assert scene.history is not None
    futures = [] if scene.future is None else [scene.future]
    futures.append(pdm_closed(agent, scene))
    told = [pose for future in futures for pose in poses_in(text, unlike(future, [scene.history]))]
    return [*question_leaks(text, scene), *told]


def _feedback(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Gate]:
    """Of every evaluated episode of the models of the tables, and of the recorded rollouts of RL."""
    for model in (SFT_MODEL, RL_MODEL):
        episodes = [episode for seed in seeds for episode in read_episodes(root, named(f"eval_{model}", seed), ORACLE)[0]]
        yield _of_episodes(f"feedback of the evaluation of {model}", episodes)
    folder = places(root, [named(RL_MODEL, seeds[0])])[named(RL_MODEL, seeds[0])] / ROLLOUTS
    yield _of_episodes("feedback of RL's rollouts", [episode_of(record) for path in sorted(folder.glob("train-*.jsonl"))
                                                     for record in read_rollouts(path)])


def _of_episodes(name: str, episodes: Sequence[Episode]) -> Gate:
    told = sum(bool(turn.feedback) for episode in episodes for turn in episode.turns)
    return gates.nothing_leaks(name, told, [leak for episode in episodes for leak in episode_leaks(episode)])


PARTS: dict[str, Part] = {"gains": _scores, "turns": _turns, "pictures": _pictures, "answers": _read, "format": _format,
                          "splits": _disjoint, "questions": _questions, "feedback": _feedback}


def scene_ids(root: Path, name: str) -> list[str]:
    """The ids of the scenes that a stage made (SceneError where it has not)."""
    return list(open_scenes(Address("files", str(places(root, [name])[name]))).ids())
