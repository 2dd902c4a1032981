"""Pictures of episodes that a result speaks of: a row an episode, the camera and a bird's-eye view a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from nemo_mtdrive.driving.sources.address import Address
from nemo_mtdrive.evaluation.figures import Row as FigureRow
from nemo_mtdrive.evaluation.figures import save_figure
from nemo_mtdrive.reproduce.graph import HELD_OUT
from nemo_mtdrive.reproduce.results import RESULTS
from nemo_mtdrive.reproduce.stages import places
from nemo_mtdrive.telemetry.excerpt import excerpt_of
from nemo_mtdrive.telemetry.recorder import episode_record
from nemo_mtdrive.types import Episode


@dataclass(frozen=True)
class Shown:
    """An episode to draw."""

    seed: int
    episode: Episode
    turns: Sequence[int]
    """Which of its turns, from 0."""
    remark: str


def draw_episodes(root: Path, what: str, shown: Sequence[Shown]) -> list[Path]:
    """ROOT/results/WHAT_episodes.png, of held-out scenes; nothing where there is no episode."""
    if not shown:
        return []
    source = open_scenes(Address("files", str(places(root, [HELD_OUT])[HELD_OUT])))
    return [save_figure(root / RESULTS / f"{what}_episodes.png", [_row(one, source) for one in shown])]


def _row(shown: Shown, source: SceneSource) -> FigureRow:
    scene = source.load(shown.episode.scene_id)
    turns = episode_record(shown.episode, with_tokens=False)["turns"]
    title = f"{scene.kind.replace('_', ' ')}, {scene.command}, seed {shown.seed}: {shown.remark}"
    return FigureRow(excerpt_of(scene), source.image(scene.scene_id), [turns[number] for number in shown.turns], title)
