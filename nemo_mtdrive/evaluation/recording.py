"""Episodes of an evaluation with their scenes and pictures, as `nemo-mtdrive report` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import first_question
from nemo_mtdrive.driving.scene import Scene, SceneError
from nemo_mtdrive.driving.sources import SceneSource
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.telemetry.progress import Progress
from nemo_mtdrive.telemetry.recorder import ROLLOUTS, EpisodeRecorder
from nemo_mtdrive.types import Episode

STEP = 0


def record_rows(out: Path, source: SceneSource, rows: Mapping[str, Sequence[Episode]], count: int, progress: Progress,
                other_pictures: Mapping[str, Mapping[str, str]]) -> None:
    """Write OUT/rollouts: of each row the episodes of the same `count` scenes, so that rows can be held side by side.

    They are the scenes whose later turns changed the score the most in the first row, for better or worse, then those
    that it did worst in. A scene that cannot be loaded, or has no picture, is recorded without. `other_pictures` has, by
    row, the scenes whose pictures were shown in place of a scene's own.
    """
    for old in (out / ROLLOUTS).glob("*.jsonl"):
        old.unlink()
    first = next(iter(rows.values()), [])
    ordered = sorted((episode for episode in first if episode.valid and episode.index == 0), key=_interest)
    chosen = {episode.scene_id for episode in ordered[:count]}
    if not chosen:
        return
    scenes: dict[str, Scene] = {}
    pictures: dict[str, tuple[str, NDArray[np.uint8]]] = {}
    shown = {name: {scene_id: other_pictures.get(name, {}).get(scene_id, scene_id) for scene_id in chosen} for name in rows}
    wanted = sorted({scene_id for pairs in shown.values() for scene_id in pairs.values()} | chosen)
    with progress.phase("pictures", total=len(wanted), unit="scenes") as bar:
        for scene_id in wanted:
            try:
                if scene_id in chosen:
                    scenes[scene_id] = source.load(scene_id)
                image = source.image(scene_id)
                pictures[scene_id] = (image_key(image), image)
            except SceneError as error:
                progress.note(f"{scene_id}: recorded without its picture: {error}")
            bar.advance()
    recorder = EpisodeRecorder(out, max_episodes=count, with_tokens=False)
    prompts = {name: first_question(scene.history, scene.command) for name, scene in scenes.items()
               if scene.history is not None and scene.command is not None}
    for name, episodes in rows.items():
        played = [replace(episode, image_keys=(pictures[seen][0],) if (seen := shown[name][episode.scene_id]) in pictures
                          else ()) for episode in episodes if episode.scene_id in chosen]
        recorder.record(STEP, name, played, prompts=prompts, images=dict(pictures.values()), scenes=scenes)


def _interest(episode: Episode) -> tuple[float, float, str]:
    """Small for an episode that is worth a look."""
    scores = [turn.pdm_score for turn in episode.turns] or [0.0]
    return (-abs(scores[-1] - scores[0]), scores[-1], episode.scene_id)
