"""The episodes of one row of an evaluation, kept batch by batch, so that one that was stopped goes on where it was.

    OUT/episodes/ROW/row.json        what was asked for: other settings must not be mixed in
    OUT/episodes/ROW/00000.jsonl     the episodes of a batch (`telemetry.recorder.episode_record`) with their scene's
                                     `kind` and `human` trajectory, written whole
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.evaluation.evaluate import SceneFacts
from nemo_mtdrive.evaluation.paired import Side
from nemo_mtdrive.telemetry.recorder import RECORD_SCHEMA, episode_record
from nemo_mtdrive.types import Episode, Turn
from nemo_mtdrive.whole_file import write_whole

EPISODES = "episodes"
SETTINGS = "row.json"
_UNKNOWN = SceneFacts("unknown", None)


class RowFiles:
    """Finished batches of a row."""

    def __init__(self, out: Path, name: str) -> None:
        self.name = name
        self.folder = out / EPISODES / name

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or find it with the same settings.

        Raises:
            ConfigError: it holds episodes with others; the message names the first that differs.
        """
        path = self.folder / SETTINGS
        if not path.is_file() or not self.done():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(settings, indent=1))
            return
        wanted = json.loads(json.dumps(settings))
        known = self.settings()
        for key in sorted({*known, *wanted}):
            if known.get(key) != wanted.get(key):
                raise ConfigError(f"{self.folder}: it holds episodes with {key}={known.get(key)!r}, not {wanted.get(key)!r};"
                                  " set another --out, or remove that folder")

    def settings(self) -> dict[str, Any]:
        """What `open` was given.

        Raises:
            ConfigError: there is no such row, or its file is damaged.
        """
        path = self.folder / SETTINGS
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: no row of an evaluation there ({error}); remove its folder") from error

    def done(self) -> set[int]:
        """Numbers of the batches that are there."""
        return {int(path.stem) for path in self.folder.glob("*.jsonl") if path.stem.isdecimal()}

    def write(self, number: int, episodes: Sequence[Episode], facts: Mapping[str, SceneFacts]) -> None:
        """Keep a batch."""
        lines = []
        for episode in episodes:
            known = facts.get(episode.scene_id, _UNKNOWN)
            record = episode_record(episode, with_tokens=False) | {
                "kind": known.kind, "human": None if known.future is None else known.future.round(4).tolist()}
            lines.append(json.dumps(record, allow_nan=False))
        write_whole(self.folder / f"{number:05d}.jsonl", "".join(line + "\n" for line in lines))

    def read(self) -> tuple[list[Episode], dict[str, SceneFacts]]:
        """All episodes, in the order of batches, then as they were given; and what is known of their scenes.

        Raises:
            ConfigError: a file that does not hold episodes.
        """
        episodes, facts = [], {}
        for path in sorted(self.folder.glob("*.jsonl")):
            try:
                for line in path.read_text(encoding="utf-8").splitlines():
                    record = json.loads(line)
                    episodes.append(episode_of(record))
                    human = record["human"]
                    facts[record["scene_id"]] = SceneFacts(record["kind"], None if human is None else np.array(human))
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}: not episodes of an evaluation ({error}); remove it and run again") from error
        return episodes, facts


def open_side(address: str) -> Side:
    """A row of an evaluation to compare: `FOLDER`, where it has one row, or `FOLDER:ROW`.

    Raises:
        ConfigError: no such folder or row, or a folder of several rows.
    """
    folder, name = Path(address), ""
    if not folder.is_dir() and ":" in address:
        before, _, name = address.rpartition(":")
        folder = Path(before)
    rows = sorted(path.parent.name for path in (folder / EPISODES).glob(f"*/{SETTINGS}"))
    if not rows:
        raise ConfigError(f"{address}: no {EPISODES}/ROW/{SETTINGS} there; give a folder that `nemo-mtdrive evaluate` wrote")
    if (name or rows[0]) not in rows or (not name and len(rows) > 1):
        raise ConfigError(f"{address}: set one of its rows, as {folder}:{rows[0]}; it has {', '.join(rows)}")
    kept = RowFiles(folder, name or rows[0])
    episodes, facts = kept.read()
    return Side(kept.settings().get("label", kept.name), episodes, facts)


def episode_of(record: Mapping[str, Any]) -> Episode:
    """The episode of a record; its tokens are not kept, so they are empty.

    Raises:
        KeyError, TypeError, ValueError: not a record.
    """
    if record["schema"] != RECORD_SCHEMA:
        raise ValueError(f"schema {record['schema']!r}")
    return Episode(
        episode_id=record["episode_id"], scene_id=record["scene_id"], index=record["index"], seed=record["seed"],
        policy_version=record["policy_version"], tokens=np.zeros(0, np.int32), turn_of_token=np.zeros(0, np.int16),
        logprobs=np.zeros(0, np.float32), image_keys=tuple(record["image_keys"]), image_grids=(),
        turns=tuple(_turn_of(turn) for turn in record["turns"]), valid=record["valid"], reason=record["reason"])


def _turn_of(record: Mapping[str, Any]) -> Turn:
    trajectory = record["trajectory"]
    return Turn(index=record["index"], start=0, stop=record["tokens"], answer=record["answer"],
                trajectory=None if trajectory is None else np.array(trajectory, dtype=np.float64),
                scores=record["scores"], format_score=record["format_score"], reward=record["reward"],
                feedback=record["feedback"], violations=record["violations"])

