"""`nemo-mtdrive label`: auto-labelling (Section 6). Each scene is refined under oracle feedback, and its best turn kept.

    OUT/labels.jsonl             a label a line: scene, trajectory, scores, where it comes from
    OUT/labels/SCENE.json        its trajectory alone, 8 x [x, y, heading], as `nemo-mtdrive score --trajectory` reads it
    OUT/rejected.jsonl           scenes without a label, and why
    OUT/labels_summary.json      counts, and the labels' scores beside the first turn's and the human's
    OUT/episodes/label/          every episode, which is what is gone on with
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.evaluation.evaluate import BOOTSTRAP, Answer, SceneFacts, row_of
from nemo_mtdrive.evaluation.players import ModelPlay, play_drivers, play_model
from nemo_mtdrive.evaluation.row_files import RowFiles
from nemo_mtdrive.evaluation.scene_sets import SceneSet
from nemo_mtdrive.evaluation.settings import row_settings, scene_settings
from nemo_mtdrive.telemetry.progress import Progress
from nemo_mtdrive.types import Episode, Turn
from nemo_mtdrive.whole_file import write_whole

LABELS = "labels"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class Labelling:
    """What `nemo-mtdrive label` was asked for."""

    out: Path
    scenes: SceneSet
    play: ModelPlay
    threshold: float
    """Least PDMS of a label, 0..1."""
    engines: int


@dataclass(frozen=True)
class Label:
    """The best turn of a scene's episodes."""

    episode: Episode
    turn: Turn


def label(asked: Labelling, progress: Progress) -> dict[str, Any]:
    """Play what is not there yet, then write labels and the reject list; returns summary.json.

    Raises:
        ConfigError: the folder holds labels of other settings, or a model that cannot be opened.
        ProcessDied: see `stations`.
    """
    played, human = RowFiles(asked.out, "label"), RowFiles(asked.out, "human")
    settings = row_settings(asked.play, asked.scenes)
    played.open(settings)
    human.open({"kind": "driver", "driver": "human", "batch": asked.play.batch, **scene_settings(asked.scenes)})
    _play(asked, played, human, progress)
    episodes, facts = played.read()
    drivers, _ = human.read()
    labels: list[Label] = []
    rejected: list[dict[str, Any]] = []
    for scene_id, group in _groups(asked.scenes.ids, episodes):
        best = best_turn(group)
        reasons = why_not(group, best, asked.threshold)
        if best is not None and not reasons:
            labels.append(best)
        else:
            rejected.append({"scene_id": scene_id, "reasons": reasons,
                             "best": None if best is None else _described(best)})
    _write(asked, labels, rejected, settings)
    summary = summarise_labels(labels, rejected, episodes, drivers, facts) | {"threshold": asked.threshold,
                                                                              "settings": settings}
    write_whole(asked.out / "labels_summary.json", json.dumps(summary, indent=1))
    return summary


def best_turn(group: Sequence[Episode]) -> Label | None:
    """The turn with the highest PDMS of a scene's valid episodes, the earliest of equals; None without a trajectory."""
    found: Label | None = None
    for episode in group:
        for turn in episode.turns if episode.valid else ():
            if turn.scores is not None and (found is None or turn.pdm_score > found.turn.pdm_score):
                found = Label(episode, turn)
    return found


def why_not(group: Sequence[Episode], best: Label | None, threshold: float) -> list[str]:
    """Why a scene gets no label; empty where it does."""
    if best is None:
        lost = [episode.reason for episode in group if not episode.valid]
        return lost[:1] or ["no answer held a trajectory that could be read"]
    if best.turn.pdm_score >= threshold:
        return []
    scores = best.turn.scores or {}
    reasons = [f"PDMS {best.turn.pdm_score:.3f} is below {threshold:g}"]
    for metric in ("NC", "DAC", "TTC"):
        if scores[metric] < 1.0:
            points = sorted({violation["point"] + 1 for violation in best.turn.violations if violation["metric"] == metric})
            where = f" at points {', '.join(map(str, points))}" if points else ""
            reasons.append(f"{metric} {scores[metric]:g}{where}")
    if scores["C"] < 1.0:
        reasons.append("not comfortable")
    if scores["EP"] < threshold:
        reasons.append(f"EP {scores['EP']:.3f}")
    return reasons


def _play(asked: Labelling, played: RowFiles, human: RowFiles, progress: Progress) -> None:
    batches = asked.scenes.batches(asked.play.batch)
    total = len(asked.scenes.ids)
    open_batches = {number: (batch, ["human"]) for number, batch in batches.items() if number not in human.done()}
    if open_batches:
        with progress.phase("recorded drives", total=total, unit="scenes") as bar:
            for number, (drives, known) in play_drivers(asked.scenes.arguments, open_batches, asked.engines):
                human.write(number, drives["human"], known)
                bar.advance(len(batches[number]))
    done = played.done()
    missing = {number: batch for number, batch in batches.items() if number not in done}
    if not missing:
        return
    with progress.phase("labels", total=total, unit="scenes") as bar:
        bar.advance(total - sum(map(len, missing.values())))
        for number, (episodes, facts) in play_model(asked.play, missing, asked.engines):
            played.write(number, episodes, facts)
            bar.advance(len(batches[number]))


def _groups(ids: Iterable[str], episodes: Sequence[Episode]) -> Iterable[tuple[str, list[Episode]]]:
    by_scene: dict[str, list[Episode]] = {name: [] for name in ids}
    for episode in episodes:
        by_scene[episode.scene_id].append(episode)
    return by_scene.items()


def _write(asked: Labelling, labels: Sequence[Label], rejected: Sequence[Mapping[str, Any]],
           settings: Mapping[str, Any]) -> None:
    folder = asked.out / LABELS
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {key: settings[key] for key in ("model", "weights", "feedback", "scenes", "seed", "rollout")}
    lines = []
    names = set()
    for found in labels:
        name = f"{_UNSAFE.sub('_', found.episode.scene_id)}.json"
        names.add(name)
        described = _described(found)
        write_whole(folder / name, json.dumps(described["trajectory"]))
        lines.append(json.dumps({"scene_id": found.episode.scene_id, **described,
                                 "provenance": provenance | {"scored_by": "pdm, recorded future"}}))
    for old in folder.glob("*.json"):
        if old.name not in names:  # of another threshold
            old.unlink()
    write_whole(asked.out / "labels.jsonl", "".join(line + "\n" for line in lines))
    write_whole(asked.out / "rejected.jsonl", "".join(json.dumps(line) + "\n" for line in rejected))


def _described(found: Label) -> dict[str, Any]:
    assert found.turn.trajectory is not None
    return {"trajectory": np.round(found.turn.trajectory, 4).tolist(), "scores": found.turn.scores,
            "turn": found.turn.index + 1, "turns": len(found.episode.turns), "episode_id": found.episode.episode_id,
            "first_turn_PDMS": found.episode.turns[0].pdm_score}


def summarise_labels(labels: Sequence[Label], rejected: Sequence[Mapping[str, Any]], episodes: Sequence[Episode],
                     drives: Sequence[Episode], facts: Mapping[str, SceneFacts]) -> dict[str, Any]:
    """Counts, by turn and by reason; and on the labelled scenes the scores of the labels, of first turns and of the human.

    `beats_human` counts the labels whose PDMS is above the human's, of those scenes where there is one.
    """
    kept = {found.episode.scene_id: found for found in labels}
    human = {drive.scene_id: drive.turns[0] for drive in drives if drive.valid and drive.scene_id in kept}
    rows = {
        "label": [Answer(name, found.turn.scores, found.turn.trajectory) for name, found in kept.items()],
        "first_turn": [Answer(name, found.episode.turns[0].scores, found.episode.turns[0].trajectory)
                       for name, found in kept.items()],
        "human": [Answer(name, turn.scores, turn.trajectory) for name, turn in human.items()],
    }
    return {
        "labels": len(labels), "rejected": len(rejected), "episodes": len(episodes),
        "turn_of_label": dict(sorted(Counter(str(found.turn.index + 1) for found in labels).items())),
        "reasons": dict(Counter(reason.split(" ")[0] for line in rejected for reason in line["reasons"][:1])),
        "beats_human": sum(kept[name].turn.pdm_score > turn.pdm_score for name, turn in human.items()),
        "rows": {name: row_of(answers, facts, BOOTSTRAP) for name, answers in rows.items()},
    }
