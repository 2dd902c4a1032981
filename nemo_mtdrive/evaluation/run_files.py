"""What a finished or running run left in its directory, read for the report; nothing else is needed to show it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from yaml import YAMLError

from nemo_mtdrive.evaluation.tables import WITHOUT_TURNS, in_order
from nemo_mtdrive.telemetry.excerpt import SceneExcerpt, excerpt_from_json
from nemo_mtdrive.telemetry.metrics import METRICS_FILE, read_metrics
from nemo_mtdrive.telemetry.recorder import ROLLOUTS, RolloutFile, read_rollouts, rollout_files


class RunError(ValueError):
    """A run directory that cannot be shown; one line that says what was found and what is wanted."""


@dataclass(frozen=True)
class RecordedEpisode:
    """One line of a dump with what it refers to (`telemetry.recorder`)."""

    record: Mapping[str, Any]
    excerpt: SceneExcerpt | None
    image_file: Path | None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The recorded turns in order."""
        turns: list[dict[str, Any]] = self.record["turns"]
        return turns

    @cached_property
    def image(self) -> NDArray[np.uint8] | None:
        """The front image, uint8 RGB [H, W, 3]."""
        if self.image_file is None:
            return None
        picture = cv2.imread(str(self.image_file), cv2.IMREAD_COLOR)
        if picture is None:
            raise RunError(f"{self.image_file}: not a picture; delete it and make the report again")
        return np.ascontiguousarray(picture[..., ::-1]).astype(np.uint8)


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory; what is absent is empty."""

    directory: Path
    config_text: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    dumps: list[RolloutFile]


def read_run(run_dir: str | os.PathLike[str]) -> RunFiles:
    """Read a run directory; rollout dumps are only listed (`read_episodes` reads one).

    Raises:
        RunError: no such directory, nothing to show in it, or a file that cannot be understood.
    """
    directory = Path(run_dir)
    if not directory.is_dir():
        raise RunError(f"{directory}: no such run directory; give the run_dir of a run")
    config_text = _text(directory / "config.yaml")
    summary_text = _text(directory / "summary.json")
    metrics_file = directory / METRICS_FILE
    try:
        metrics = read_metrics(metrics_file) if metrics_file.exists() else []
    except ValueError as error:
        raise RunError(str(error)) from error
    dumps = rollout_files(directory)
    if not (summary_text or metrics or dumps):
        raise RunError(f"{directory}: no {METRICS_FILE}, summary.json or {ROLLOUTS}/ with content; give the run_dir "
                       "of a run that has made a step")
    try:
        config = OmegaConf.to_container(OmegaConf.create(config_text or "{}"), resolve=False)
        summary = json.loads(summary_text or "{}")
    except (YAMLError, json.JSONDecodeError) as error:
        name = "config.yaml" if isinstance(error, YAMLError) else "summary.json"
        raise RunError(f"{directory / name}: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or not isinstance(summary, dict):
        raise RunError(f"{directory}: config.yaml and summary.json must hold a mapping")
    return RunFiles(directory, config_text, config, summary, metrics, dumps)


def read_episodes(dump: RolloutFile) -> list[RecordedEpisode]:
    """The episodes of a dump with their scenes; a scene or image file that is gone is shown as absent.

    Raises:
        RunError: a record, scene or reference that cannot be understood.
    """
    folder = dump.path.parent
    excerpts: dict[str, SceneExcerpt] = {}
    episodes = []
    try:
        for record in read_rollouts(dump.path):
            name = record["scene"]
            file = _inside(folder, name)
            if file is not None and name not in excerpts:
                excerpts[name] = excerpt_from_json(json.loads(file.read_text(encoding="utf-8")))
            image = _inside(folder, record["images"][0]) if record["images"] else None
            episodes.append(RecordedEpisode(record, excerpts.get(name), image))
    except (ValueError, KeyError) as error:
        raise RunError(f"{dump.path}: {error}") from error
    return episodes


def count_episodes(run_dir: str | os.PathLike[str]) -> int:
    """How many episodes are recorded in a run; 0 where there is none."""
    return sum(row.startswith("{") for dump in rollout_files(run_dir)
               for row in dump.path.read_text(encoding="utf-8").split("\n"))


def latest_dumps(dumps: list[RolloutFile]) -> list[RolloutFile]:
    """The last dump of each purpose: the final results first, then training, drivers without a model last."""
    latest = {dump.purpose: dump for dump in sorted(dumps, key=lambda dump: dump.step)}
    results = [*reversed(in_order(name for name in latest if name != "train"))]
    names = [*(name for name in results if name not in WITHOUT_TURNS), "train",
             *(name for name in results if name in WITHOUT_TURNS)]
    return [latest[name] for name in names if name in latest]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _inside(folder: Path, name: str | None) -> Path | None:
    """The file of a record's reference, None when it is absent; a reference out of the folder is refused."""
    if name is None:
        return None
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise RunError(f"reference {name!r} leads out of {folder}")
    return file if file.is_file() else None
