"""Figures of recorded episodes, by name or by choice, and of trajectories that are given for a scene."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import FULL_HEIGHT, FULL_WIDTH, front_camera, render
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.figures import FORMATS, Row, save_figure
from nemo_mtdrive.evaluation.run_files import RecordedEpisode, RunError, latest_dumps, read_episodes, read_run
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.telemetry.excerpt import excerpt_of
from nemo_mtdrive.telemetry.recorder import RolloutFile

README_TURNS = 3
NAMED = 5
"""Episodes that an error names."""


def write_episode_figure(run_dir: str | os.PathLike[str], wanted: Sequence[str], count: int, stage: str | None,
                         out: Sequence[Path]) -> list[Path]:
    """Draw episodes of a run, a row each.

    Args:
        run_dir: with `rollouts/`.
        wanted: episode ids, or ids of scenes that were recorded once; none: the `count` episodes that show best what
            turns are for (`pick`).
        count: see `wanted`.
        stage: look only at the dumps of this purpose ("after_rl", "train", ...); None: all.
        out: files to write, each by its suffix.

    Raises:
        RunError: no such run, stage or episode, or a file name without a known suffix.
    """
    _check_names(out)
    run = read_run(run_dir)
    stages = list(dict.fromkeys(dump.purpose for dump in run.dumps))
    if stage is not None and stage not in stages:
        raise RunError(f"{run_dir}: no recorded episodes of stage {stage!r}; set --stage to one of {', '.join(stages)}")
    dumps = [dump for dump in run.dumps if stage in (None, dump.purpose)]
    if wanted:
        episodes = [episode for dump in dumps for episode in read_episodes(dump)]
        chosen = [find(episodes, name) for name in wanted]
    else:
        chosen = pick(dumps, count)
    drawable = [episode for episode in chosen if episode.turns]
    if len(drawable) < max(1, len(wanted)):
        raise RunError(f"{run_dir}: no recorded episode with a turn to draw")
    rows = [Row(episode.excerpt, episode.image, episode.turns, title_of(episode)) for episode in drawable]
    return [save_figure(path, rows) for path in out]


def write_scene_figure(scene: Scene, picture: NDArray[np.uint8] | None, trajectories: Sequence[NDArray[np.float64]],
                       reviewer: Reviewer, out: Sequence[Path]) -> list[Path]:
    """Draw trajectories [8, 3] of a scene as turns 1, 2, ... with what the reviewer says of each.

    Args:
        scene: where they are driven.
        picture: its front picture [H, W, 3], that of `scene.camera`; drawn anew when None.
        trajectories: ego frame of t = 0, at least one.
        reviewer: gives scores and violations.
        out: files to write, each by its suffix.

    Raises:
        RunError: a file name without a known suffix.
    """
    _check_names(out)
    if picture is None or scene.camera is None:
        picture = render(scene, FULL_WIDTH // 2, FULL_HEIGHT // 2)
        scene = replace(scene, camera=front_camera(FULL_WIDTH // 2, FULL_HEIGHT // 2, ""))
    turns = [{"index": number, "trajectory": trajectory.tolist(), "scores": review.scores, "violations": review.violations}
             for number, (trajectory, review)
             in enumerate(zip(trajectories, reviewer.review(scene, np.stack(list(trajectories))), strict=True))]
    title = f"{scene.scene_id}: {_what(scene.kind, scene.command)}: PDMS {_path_of(turns)}"
    return [save_figure(path, [Row(excerpt_of(scene), picture, turns, title)]) for path in out]


def write_readme_picture(run_dir: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> Path | None:
    """A strip of the last dumps' most telling episode with at most `README_TURNS` turns: first, middle and last.

    None, and no picture, when no recorded episode has image, scene and trajectories.

    Raises:
        RunError: no such run, an empty one, or a file in it that cannot be understood.
    """
    best = pick(latest_dumps(read_run(run_dir).dumps), 1)
    if not best:
        return None
    turns = best[0].turns
    if len(turns) > README_TURNS:
        turns = [turns[0], turns[len(turns) // 2], turns[-1]]
    return save_figure(out_png, [Row(best[0].excerpt, best[0].image, turns, title_of(best[0], turns))])


def find(episodes: Sequence[RecordedEpisode], name: str) -> RecordedEpisode:
    """The episode of this id, or the only one of this scene.

    Raises:
        RunError: none, or several of the scene; the message names some.
    """
    found = [episode for episode in episodes if episode.record["episode_id"] == name]
    found = found or [episode for episode in episodes if episode.record["scene_id"] == name]
    if len(found) == 1:
        return found[0]
    known = [episode.record["episode_id"] for episode in found or episodes]
    shown = ", ".join(known[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
    raise RunError(f"episode {name!r}: " + (f"recorded {len(found)} times; name one of {shown}" if found
                                            else f"not recorded; there are {shown or 'none'}"))


def pick(dumps: Sequence[RolloutFile], count: int) -> list[RecordedEpisode]:
    """At most `count` episodes that show what turns are for, each of another scene, kinds in turn.

    Those with picture, scene and trajectories count; several turns and no violation at the end come first, then the
    largest gain of PDMS, then the fewest turns.
    """
    fit = [episode for dump in dumps for episode in read_episodes(dump)
           if episode.excerpt is not None and episode.image_file is not None and episode.turns
           and all(turn["trajectory"] is not None for turn in episode.turns)]
    fit.sort(key=lambda e: (len(e.turns) > 1, not e.turns[-1]["violations"], _gain(e), -len(e.turns)), reverse=True)
    chosen: list[RecordedEpisode] = []
    seen: dict[str, int] = {}
    scenes: set[str] = set()
    for turn_taken in range(len(fit)):
        for episode in fit:
            kind = "" if episode.excerpt is None else episode.excerpt.kind
            if len(chosen) < count and episode.record["scene_id"] not in scenes and seen.get(kind, 0) <= turn_taken:
                chosen.append(episode)
                scenes.add(episode.record["scene_id"])
                seen[kind] = seen.get(kind, 0) + 1
    return chosen


def title_of(episode: RecordedEpisode, turns: Sequence[Mapping[str, Any]] | None = None) -> str:
    """`crossing/lead, TURN LEFT: PDMS 27 → 100`."""
    excerpt = episode.excerpt
    what = episode.record["scene_id"] if excerpt is None else _what(excerpt.kind, excerpt.command)
    return f"{what}: PDMS {_path_of(episode.turns if turns is None else turns)}"


def _what(kind: str, command: str | None) -> str:
    return f"{kind.replace('_', ' ')}, {command or 'no command'}"


def _path_of(turns: Sequence[Mapping[str, Any]]) -> str:
    return " → ".join("none" if turn["scores"] is None else f"{100 * turn['scores']['PDMS']:.0f}" for turn in turns)


def _gain(episode: RecordedEpisode) -> float:
    first, last = (turn["scores"]["PDMS"] for turn in (episode.turns[0], episode.turns[-1]))
    return float(last - first)


def _check_names(out: Sequence[Path]) -> None:
    for path in out:
        if path.suffix.lower() not in FORMATS:
            raise RunError(f"{path}: set --out to a name that ends in {', '.join(FORMATS)}")
