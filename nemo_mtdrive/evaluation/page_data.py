"""The episodes of a run as data of the page: a small index, and packs that the browser opens when they are needed.

    index            for every episode what the list shows and the filters need
    scenes-N         maps and pictures of `SCENES_A_PACK` scenes
    episodes-N       conversations and drawings of `EPISODES_A_PACK` episodes, in the order of the index

A pack is gzip of JSON in base64: texts and drawings shrink to a fifth, and a page of 1,000 episodes opens at once because
only what is looked at is unpacked. Pictures are WebP, small ones, as they are most of the page's bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.evaluation.drawing import AS_IT_IS, FORWARD_UP, svg_shapes, view_box
from nemo_mtdrive.evaluation.highlights import answer_segments, feedback_segments, metrics_of_points
from nemo_mtdrive.evaluation.marks import window_of
from nemo_mtdrive.evaluation.run_files import RecordedEpisode, latest_dumps, read_episodes
from nemo_mtdrive.evaluation.shapes import camera_shapes, scene_shapes, turn_shapes
from nemo_mtdrive.telemetry.recorder import RolloutFile

SCENES_A_PACK, EPISODES_A_PACK = 20, 40
PICTURE_WIDTH, PICTURE_QUALITY = 480, 70
UNPARSED = "parse"
"""What a turn without a trajectory failed; the other failures are metrics."""


@dataclass(frozen=True)
class PageData:
    """Name -> base64 of a pack ("index" is one), and what the page says beside them."""

    packs: dict[str, str]
    episodes: int
    left_out: int
    """Older recorded episodes beyond the page's limit."""


def page_data(dumps: Sequence[RolloutFile], most: int, advance: Callable[[int], None]) -> PageData:
    """The data of at most `most` episodes, the last dump of each purpose first; `advance` is told of each.

    Raises:
        RunError: a dump, scene or picture that cannot be understood.
    """
    chosen, left_out = _choose(dumps, most)
    scenes = _Scenes()
    rows: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    for dump, episode in chosen:
        number = scenes.add(episode)
        rows.append(_row(dump, episode, number))
        details.append(_detail(episode, scenes.picture_sizes[number]))
        advance(1)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    kinds = sorted({row["kind"] for row in rows})
    for row in rows:
        row["stage"], row["kind"] = stages.index(row["stage"]), kinds.index(row["kind"])
    index = {"stages": stages, "kinds": kinds, "scenesAPack": SCENES_A_PACK, "episodesAPack": EPISODES_A_PACK,
             "episodes": rows}
    packs = {"index": _pack(index), **_packs("scenes", scenes.made, SCENES_A_PACK),
             **_packs("episodes", details, EPISODES_A_PACK)}
    return PageData(packs if rows else {}, len(rows), left_out)


def _choose(dumps: Sequence[RolloutFile], most: int) -> tuple[list[tuple[RolloutFile, RecordedEpisode]], int]:
    """Episodes with their dumps in the page's order: by purpose (final results first), newest step first."""
    latest = latest_dumps(list(dumps))
    older = sorted((dump for dump in dumps if dump not in latest), key=lambda dump: -dump.step)
    purposes = [dump.purpose for dump in latest]
    room, left_out = most, 0
    read: list[tuple[RolloutFile, list[RecordedEpisode]]] = []
    for dump in (*latest, *older):
        episodes = read_episodes(dump)
        read.append((dump, episodes[:room]))
        left_out += max(0, len(episodes) - room)
        room = max(0, room - len(episodes))
    read.sort(key=lambda pair: (purposes.index(pair[0].purpose), -pair[0].step))
    return [(dump, episode) for dump, episodes in read for episode in episodes], left_out


class _Scenes:
    """Each scene with its picture once, however many episodes show it."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.picture_sizes: list[tuple[int, int] | None] = []
        self._numbers: dict[tuple[str | None, str | None], int] = {}

    def add(self, episode: RecordedEpisode) -> int:
        """The number of the episode's scene, made when it is new."""
        file = episode.image_file
        key = (episode.record["scene"], None if file is None else file.name)
        if key not in self._numbers:
            self._numbers[key] = len(self.made)
            image = None if episode.image is None else _shrink(episode.image)
            excerpt = episode.excerpt
            self.picture_sizes.append(None if image is None else (image.shape[1], image.shape[0]))
            self.made.append({
                "command": None if excerpt is None else excerpt.command,
                "speed": None if excerpt is None else excerpt.speed,
                "shapes": svg_shapes(scene_shapes(excerpt), FORWARD_UP, 2),
                "picture": None if image is None else {"src": _data_uri(image), "width": image.shape[1],
                                                       "height": image.shape[0]},
            })
        return self._numbers[key]


def _row(dump: RolloutFile, episode: RecordedEpisode, scene: int) -> dict[str, Any]:
    """What the list shows: PDMS (0..100, None without a trajectory) and failures of each turn."""
    record, turns = episode.record, episode.turns
    pdms = [None if turn["scores"] is None else round(100.0 * turn["scores"]["PDMS"], 1) for turn in turns]
    fails = [[UNPARSED] if turn["trajectory"] is None else
             list(dict.fromkeys(violation["metric"] for violation in turn["violations"])) for turn in turns]
    return {
        "id": record["episode_id"], "name": record["scene_id"], "scene": scene, "stage": dump.purpose, "step": dump.step,
        "kind": "unknown" if episode.excerpt is None else episode.excerpt.kind, "rollout": record["index"],
        "valid": record["valid"], "ended": record["reason"], "pdms": pdms, "fails": fails,
        "gain": round((pdms[-1] or 0.0) - (pdms[0] or 0.0), 1) if pdms else 0.0,
    }


def _detail(episode: RecordedEpisode, size: tuple[int, int] | None) -> dict[str, Any]:
    """What an opened episode shows; `size` is the width and height of its picture."""
    window = window_of(episode.excerpt, episode.turns)
    camera = None if episode.excerpt is None else episode.excerpt.camera
    turns = []
    for turn in episode.turns:
        path, violations = turn["trajectory"], turn["violations"]
        over = [] if size is None else camera_shapes(camera, turn, *size)
        turns.append({
            "answer": answer_segments(turn["answer"], path),
            "feedback": feedback_segments(turn["feedback"], path, violations),
            "points": metrics_of_points(violations), "scores": turn["scores"], "reward": turn["reward"],
            "tokens": turn["tokens"], "shapes": svg_shapes(turn_shapes(turn, window), FORWARD_UP, 2),
            "camera": svg_shapes(over, AS_IT_IS, 1),
        })
    return {"prompt": episode.record["prompt"], "box": view_box(window), "turns": turns}


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if width <= PICTURE_WIDTH:
        return image
    size = (PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _data_uri(image: NDArray[np.uint8]) -> str:
    _, webp = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, PICTURE_QUALITY])
    return "data:image/webp;base64," + base64.b64encode(webp.tobytes()).decode()


def _packs(name: str, items: Sequence[Any], size: int) -> dict[str, str]:
    return {f"{name}-{number}": _pack(items[start : start + size])
            for number, start in enumerate(range(0, len(items), size))}


def _pack(data: Any) -> str:
    """Surrogates that a model wrote into its text stay JSON escapes, so that they are valid UTF-8 here."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
