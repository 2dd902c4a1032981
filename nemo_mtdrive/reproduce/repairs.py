"""What a turn of feedback repairs, and what it breaks: each answer beside the one before it, and episodes to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from nemo_mtdrive.reproduce.drawn import Shown, draw_episodes
from nemo_mtdrive.reproduce.intervals import Estimate, ratio
from nemo_mtdrive.reproduce.recipe import MODEL, RL_MODEL, Recipe
from nemo_mtdrive.reproduce.results import Result, Row, write_result
from nemo_mtdrive.reproduce.rows import Array, read_episodes
from nemo_mtdrive.reproduce.stages import named
from nemo_mtdrive.reproduce.tables import ORACLE
from nemo_mtdrive.types import Episode, Turn

FAULTS = {"NC": "at-fault collision", "DAC": "off the road", "TTC": "too close to a collision", "read": "cannot be read"}
COLUMNS = ("Turn 1 %", "Repaired %", "Made %", "Last turn %")
COUNTS = ("scenes", "first", "had", "repaired", "free", "made", "last")
"""Of a fault in an episode: 1; whether its first answer has it; followed answers that have it, and of them those whose next
has not; followed answers that have it not, and of them those whose next has; whether its last answer has it."""
DRAWN_UNREPAIRED = 2


def has(turn: Turn, fault: str) -> bool | None:
    """Whether an answer has a fault; None where it cannot be read, so that this is not known."""
    if fault == "read":
        return turn.scores is None
    return None if turn.scores is None else turn.scores[fault] < 1.0


def count(episode: Episode, fault: str, turns: int) -> Mapping[str, int]:
    """`COUNTS` of an episode of at most `turns` turns. An answer that cannot be read repairs nothing, makes nothing."""
    known = [has(turn, fault) for turn in episode.turns[:turns]]
    had, free = ([after for before, after in pairwise(known) if before is state] for state in (True, False))
    values = (1, known[0] is True, len(had), had.count(False), len(free), free.count(True), known[-1] is True)
    return {name: int(value) for name, value in zip(COUNTS, values, strict=True)}


def repairs(root: Path, recipe: Recipe, seeds: Sequence[int]) -> list[Path]:
    """Write results/repairs.* of both models with oracle feedback, and results/repairs_episodes.png; returns the files.

    Raises:
        ConfigError: an evaluation is not there.
    """
    turns = recipe.rl.turns
    rows, of_rl, scenes = [], list[tuple[int, Episode]](), 0
    for label, model in (("SFT", f"sft_{MODEL}"), ("RL", RL_MODEL)):
        played = [{episode.scene_id: episode for episode in read_episodes(root, named(f"eval_{model}", seed), ORACLE)[0]
                   if episode.valid and episode.turns} for seed in seeds]
        common = sorted(set.intersection(*map(set, played)))
        scenes = len(common)
        rows += [Row([label, words], cells([[count(known[name], fault, turns) for name in common] for known in played]))
                 for fault, words in FAULTS.items()]
        if label == "RL":
            of_rl = [(seed, known[name]) for name in common for seed, known in zip(seeds, played, strict=True)]
    result = Result("repairs", "What the next answer repairs, in % of the answers with the fault", ["Model", "Fault"],
                    list(COLUMNS), rows, list(seeds), scenes, drawn="Repaired %")
    return [*write_result(root, result), *draw_episodes(root, "repairs", choose(of_rl, turns))]


def cells(counted: Sequence[Sequence[Mapping[str, int]]]) -> dict[str, Estimate | int | None]:
    """The table's columns from the counts by seed and scene."""
    sums: dict[str, Array] = {name: np.array([[float(one[name]) for one in row] for row in counted]) for name in COUNTS}
    parts = (("first", "scenes"), ("repaired", "had"), ("made", "free"), ("last", "scenes"))
    return {column: ratio(100.0 * sums[part], sums[whole]).within(0.0, 100.0)
            for column, (part, whole) in zip(COLUMNS, parts, strict=True)}


def choose(played: Sequence[tuple[int, Episode]], turns: int) -> list[Shown]:
    """The first episode that begins with each fault and ends clean, and the first ones that keep it: none is the best."""
    found: dict[str, list[Shown]] = {"repaired": [], "not repaired": []}
    taken: set[str] = set()
    for fault in ("NC", "DAC", "TTC"):
        for end, chosen in found.items():
            first = next(((seed, episode) for seed, episode in played if episode.scene_id not in taken
                          and has(episode.turns[0], fault) and _end(episode, fault, turns) == end), None)
            if first is not None:
                taken.add(first[1].scene_id)
                chosen.append(_shown(*first, f"{FAULTS[fault]}, {end}", turns))
    return [*found["repaired"], *found["not repaired"][:DRAWN_UNREPAIRED]]


def _end(episode: Episode, fault: str, turns: int) -> str:
    """How it ends: without any fault, with this one, or otherwise."""
    last = episode.turns[:turns][-1]
    if not any(has(last, name) is not False for name in FAULTS):
        return "repaired"
    return "not repaired" if has(last, fault) else ""


def _shown(seed: int, episode: Episode, remark: str, turns: int) -> Shown:
    last = min(turns, len(episode.turns)) - 1
    score = 100.0 * episode.turns[last].pdm_score
    return Shown(seed, episode, sorted({0, min(1, last), last}), f"{remark}, PDMS {score:.0f}")
