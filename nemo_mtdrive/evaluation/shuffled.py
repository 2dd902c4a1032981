"""Does the picture matter? Each scene is driven with another scene's picture, and the first answers are held against those
with its own: later turns are told by the feedback what a picture would show.

Which picture a scene gets is one random cycle through all scenes, so none keeps its own; texts, feedback, scores and the
seeds of sampling stay the scene's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.driving.trajectory import ade
from nemo_mtdrive.evaluation.evaluate import Bootstrap, SceneFacts, answers_of, confidence_interval
from nemo_mtdrive.evaluation.grids import Cell, Grid
from nemo_mtdrive.types import Episode

Array = NDArray[np.float64]
SUFFIX = "_shuffled"
"""Of the row that is played with other pictures."""


def other_pictures(scene_ids: Sequence[str], seed: int) -> dict[str, str]:
    """Scene -> the scene whose picture it gets, never its own.

    Raises:
        ConfigError: fewer than two scenes.
    """
    if len(scene_ids) < 2:
        raise ConfigError(f"--shuffle-images: got {len(scene_ids)} scene, set of 2 or more with --scenes and --count")
    cycle = [scene_ids[place] for place in np.random.default_rng(seed).permutation(len(scene_ids))]
    return dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


class OtherPictures:
    """A source of scenes that shows other scenes' pictures."""

    def __init__(self, source: SceneSource, pictures: Mapping[str, str]) -> None:
        self._source = source
        self._pictures = pictures
        self.ids = source.ids
        self.skipped = source.skipped

    def load(self, scene_id: str) -> Scene:
        """The scene itself; see `SceneSource.load`."""
        return self._source.load(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """The front picture of another scene; of its own where none is set."""
        return self._source.image(self._pictures.get(scene_id, scene_id))


def picture_effect(own: Sequence[Episode], other: Sequence[Episode], facts: Mapping[str, SceneFacts],
                   bootstrap: Bootstrap) -> dict[str, Any]:
    """What other pictures do to the first answers, on the scenes that both rows have::

        {"all": {"scenes": n, "ADE": .., "ADE_other": .., "worse_percent": .., "worse_ci95": [low, high],
                 "PDMS": .., "PDMS_other": .., "PDMS_lost": .., "PDMS_lost_ci95": [low, high]}, "kinds": {kind: {...}}}

    ADE [m] is of the scenes whose answers could be read with both pictures and whose human trajectory is known;
    `worse_percent` is how much larger its mean is with other pictures, in percent. PDMS is in 0..100, an answer that cannot
    be read counting 0. Intervals draw whole scenes anew. What cannot be said is None.
    """
    first, second = _by_scene(own, facts), _by_scene(other, facts)
    names = sorted(first.keys() & second.keys())
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(facts[name].kind if name in facts else "unknown", []).append(name)
    return {"all": _effect(first, second, names, bootstrap),
            "kinds": {kind: _effect(first, second, kinds[kind], bootstrap) for kind in sorted(kinds)}}


def _by_scene(episodes: Sequence[Episode], facts: Mapping[str, SceneFacts]) -> dict[str, Array]:
    """Scene -> [2]: PDMS of the first answer in 0..100, its ADE [m] or NaN; of several episodes their mean."""
    found: dict[str, list[tuple[float, float]]] = {}
    for episode in episodes:
        if episode.valid:
            answer = answers_of(episode)[0]
            human = facts[episode.scene_id].future if episode.scene_id in facts else None
            known = answer.trajectory is not None and human is not None
            error = ade(answer.trajectory, human) if known else float("nan")  # type: ignore[arg-type]
            pdms = 0.0 if answer.scores is None else 100.0 * answer.scores["PDMS"]
            found.setdefault(episode.scene_id, []).append((pdms, error))
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def _effect(first: Mapping[str, Array], second: Mapping[str, Array], names: Sequence[str],
            bootstrap: Bootstrap) -> dict[str, Any]:
    one, two = (np.array([row[name] for name in names]).reshape(-1, 2) for row in (first, second))
    lost = one[:, 0] - two[:, 0]
    known = np.isfinite(one[:, 1]) & np.isfinite(two[:, 1])
    errors = np.stack([one[known, 1], two[known, 1]], axis=1)
    return {
        "scenes": len(names),
        "ADE": _mean(errors[:, 0]), "ADE_other": _mean(errors[:, 1]),
        "worse_percent": _worse(errors.sum(axis=0)), "worse_ci95": _worse_interval(errors, bootstrap),
        "PDMS": _mean(one[:, 0]), "PDMS_other": _mean(two[:, 0]), "PDMS_lost": _mean(lost),
        "PDMS_lost_ci95": confidence_interval(lost, names, bootstrap),
    }


def _worse(sums: Array) -> float | None:
    """By how many percent the second of two sums is larger."""
    return round(100.0 * float(sums[1] / sums[0] - 1.0), 4) if sums[0] > 0.0 else None


def _worse_interval(errors: Array, bootstrap: Bootstrap) -> list[float] | None:
    """95% interval of `_worse` of errors [n, 2] when scenes are drawn anew."""
    if len(errors) < 2 or not bootstrap.resamples:
        return None
    draws = np.random.default_rng(bootstrap.seed).integers(len(errors), size=(bootstrap.resamples, len(errors)))
    sums = errors[draws].sum(axis=1)
    if not (sums[:, 0] > 0.0).all():
        return None
    low, high = np.percentile(100.0 * (sums[:, 1] / sums[:, 0] - 1.0), [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def _mean(values: Array) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def by_picture(effects: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Row label -> `picture_effect` as a table by kind of scene."""
    rows = []
    for label, found in effects.items():
        for kind, row in [("all", found["all"]), *found["kinds"].items()]:
            rows.append(((label, kind), [
                Cell(row["ADE"]), Cell(row["ADE_other"]), Cell(row["worse_percent"], row["worse_ci95"]), Cell(row["PDMS"]),
                Cell(row["PDMS_other"]), Cell(row["PDMS_lost"], row["PDMS_lost_ci95"]), Cell(row["scenes"])]))
    return Grid("First answers with another scene's picture", ("Method", "Kind"),
                ("ADE m", "ADE, other", "Worse %", "PDMS", "PDMS, other", "PDMS lost", "Scenes"), rows, digits=2)
