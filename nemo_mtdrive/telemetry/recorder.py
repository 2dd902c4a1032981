"""Recorded episodes: the dumps that the report shows and that people read with `jq`.

    run_dir/rollouts/PURPOSE-STEP.jsonl   one episode a line (`RECORD_SCHEMA`)
    run_dir/rollouts/images/KEY.png       each front image once, by its content key; at most `PICTURE_WIDTH` wide
    run_dir/rollouts/scenes/KEY.json      each scene's excerpt once, by its content

A JSONL file is written whole or not at all, after the images and scenes that it names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.telemetry.excerpt import excerpt_of
from nemo_mtdrive.types import Episode, Turn
from nemo_mtdrive.whole_file import write_whole

RECORD_SCHEMA = "nemo-mtdrive-rollout/1"
ROLLOUTS = "rollouts"
PICTURE_WIDTH = 640
"""Wider images are shrunk: the dump is for looking, and 300 steps of full-size PNGs would be gigabytes."""
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_FILE = re.compile(r"(?P<purpose>.+)-(?P<step>\d{6,})\.jsonl")


@dataclass(frozen=True)
class RolloutFile:
    """One dump in a run directory."""

    path: Path
    purpose: str
    step: int


class EpisodeRecorder:
    """Writes a bounded number of episodes of each step; training rank 0 owns it.

    Args:
        run_dir: the run directory; `rollouts/` is made in it.
        max_episodes: of one dump; 0 records nothing. Scenes take turns, so that many scenes are seen before a second
            episode of a group.
        with_tokens: also keep token ids, turns of tokens and log-probs (about 20 times the size).
    """

    def __init__(self, run_dir: str | os.PathLike[str], *, max_episodes: int, with_tokens: bool) -> None:
        self.directory = Path(run_dir) / ROLLOUTS
        self._max_episodes = max_episodes
        self._with_tokens = with_tokens

    def record(self, step: int, purpose: str, episodes: Sequence[Episode], *, prompts: Mapping[str, str],
               images: Mapping[str, NDArray[np.uint8]], scenes: Mapping[str, Scene]) -> Path | None:
        """Write the dump of one step, replacing an earlier one of the same step and purpose.

        Args:
            step: trainer step, part of the file name.
            purpose: "train", "validation", "after_sft", ...
            episodes: what to choose from, in any order; the same set gives the same dump.
            prompts: scene id -> text of the first question; a scene that is not there is recorded without it.
            images: image key -> uint8 RGB [H, W, 3]; a key that is not there is recorded without its picture.
            scenes: scene id -> scene; a scene that is not there is recorded without its map.

        Returns:
            The file, or None when nothing was recorded.

        Raises:
            ValueError: a purpose or an image key that cannot be a file name.
            OSError: the run directory cannot be written.
        """
        chosen = choose(episodes, self._max_episodes)
        if not chosen:
            return None
        excerpts = {scene_id: self._save_scene(scenes[scene_id])
                    for scene_id in sorted({e.scene_id for e in chosen}) if scene_id in scenes}
        lines = []
        for episode in chosen:
            record = episode_record(episode, with_tokens=self._with_tokens)
            files = [self._save_image(key, images[key]) for key in episode.image_keys if key in images]
            record |= {"step": step, "purpose": purpose, "prompt": prompts.get(episode.scene_id), "images": files,
                       "scene": excerpts.get(episode.scene_id)}
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False))
        path = self.directory / f"{_file_name(purpose, 'purpose')}-{step:06d}.jsonl"
        _write(path, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))  # a lone surrogate stays valid JSON
        return path

    def drop_after(self, purpose: str, step: int) -> None:
        """On resume: delete the dumps of `purpose` beyond `step`, which will be made again."""
        for dump in rollout_files(self.directory.parent):
            if dump.purpose == purpose and dump.step > step:
                dump.path.unlink()

    def _save_scene(self, scene: Scene) -> str:
        text = json.dumps(excerpt_of(scene).to_json(), separators=(",", ":"), allow_nan=False).encode()
        name = f"scenes/{hashlib.blake2b(text, digest_size=12).hexdigest()}.json"
        if not (self.directory / name).exists():
            _write(self.directory / name, text)
        return name

    def _save_image(self, key: str, image: NDArray[np.uint8]) -> str:
        name = f"images/{_file_name(key, 'image key')}.png"
        if not (self.directory / name).exists():
            height, width = image.shape[:2]
            if width > PICTURE_WIDTH:
                size = (PICTURE_WIDTH, round(height * PICTURE_WIDTH / width))
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
            _, png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
            _write(self.directory / name, png.tobytes())
        return name


def choose(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """At most `count` episodes, sorted by index in the group, then scene: every scene once before any twice."""
    return sorted(episodes, key=lambda episode: (episode.index, episode.scene_id))[:count]


def episode_record(episode: Episode, *, with_tokens: bool) -> dict[str, Any]:
    """The JSON form of an episode; floats that are not finite become null."""
    record: dict[str, Any] = {
        "schema": RECORD_SCHEMA,
        "episode_id": episode.episode_id,
        "scene_id": episode.scene_id,
        "index": episode.index,
        "seed": episode.seed,
        "policy_version": episode.policy_version,
        "valid": episode.valid,
        "reason": episode.reason,
        "image_keys": list(episode.image_keys),
        "tokens": len(episode.tokens),
        "turns": [_turn_record(turn) for turn in episode.turns],
    }
    if with_tokens:
        record |= {"token_ids": episode.tokens.tolist(), "turn_of_token": episode.turn_of_token.tolist(),
                   "logprobs": plain(episode.logprobs)}
    return record


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "index": turn.index,
        "tokens": turn.stop - turn.start,
        "answer": turn.answer,
        "trajectory": None if turn.trajectory is None else plain(np.round(turn.trajectory, 4)),
        "scores": None if turn.scores is None else plain(turn.scores),
        "format_score": plain(turn.format_score),
        "reward": plain(turn.reward),
        "feedback": turn.feedback,
        "violations": plain(turn.violations),
    }


def plain(value: Any) -> Any:
    """NumPy arrays and scalars, tuples and mappings -> what JSON can hold; floats that are not finite -> None.

    Raises:
        TypeError: another type, named.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{type(value).__name__} in a recorded episode cannot be written as JSON")


def rollout_files(run_dir: str | os.PathLike[str]) -> list[RolloutFile]:
    """All dumps of a run, by purpose, then step; an absent folder has none."""
    found = []
    for path in (Path(run_dir) / ROLLOUTS).glob("*.jsonl"):
        match = _FILE.fullmatch(path.name)
        if match:
            found.append(RolloutFile(path, match["purpose"], int(match["step"])))
    return sorted(found, key=lambda dump: (dump.purpose, dump.step))


def read_rollouts(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a dump.

    Raises:
        ValueError: a line that is not a record of this schema; the message names file and line.
        OSError: the file cannot be read.
    """
    records = []
    for number, row in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not row:
            continue
        try:
            record = json.loads(row)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(record, dict) or record.get("schema") != RECORD_SCHEMA:
            raise ValueError(f"{path}:{number}: not a recorded episode, want schema {RECORD_SCHEMA!r}")
        records.append(record)
    return records


def _file_name(name: str, what: str) -> str:
    if not _SAFE.fullmatch(name):
        raise ValueError(f"{what} {name!r}: want letters, digits, '.', '_' and '-' only, at most 128")
    return name


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a temporary file beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
