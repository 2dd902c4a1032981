"""The scenes that RL is worth on (Section 3.2): those whose first answer is rejected or scores low, and as many others.

    judged.jsonl   every scene with its category, in order: rejected (the paper's 2-turn data), low_score, other, or lost
    rl_set.jsonl   those that are taken
    scenes.txt     their ids, for scenes.rl_set of a run
    stats.json
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.data.curate import CHUNK
from nemo_mtdrive.data.folder import JUDGED, SetOfLines, digest_of, tidy, working_in
from nemo_mtdrive.data.lines import Line
from nemo_mtdrive.data.model_answers import ModelPlay, play_chunks
from nemo_mtdrive.types import Episode
from nemo_mtdrive.whole_file import write_whole

HARD = ("rejected", "low_score")
"""Categories that are taken whole."""
LOST = "lost"
"""Category of scenes that could not be driven or scored."""


@dataclass(frozen=True)
class RLSetSettings:
    """What is taken."""

    threshold: float
    """PDMS of the first answer below which a scene is hard; 0.8 in the paper."""
    others: float
    """Scenes of the third category for each hard one; about 1 in the paper (7,000 hard of 13,000)."""


def make_rl_set(play: ModelPlay, scene_ids: Sequence[str], out: Path, settings: RLSetSettings, engines: int,
                advance: Callable[[int], None]) -> dict[str, Any]:
    """Let the model answer every scene once and write the set; returns its statistics.

    Raises:
        ConfigError: the folder holds something else, or the model cannot be used.
    """
    with working_in(out):
        judged = SetOfLines(out, JUDGED)
        judged.claim({"scenes": asdict(play.scenes), "count": len(scene_ids), "scene_ids": digest_of(scene_ids),
                      "seed": play.seed, "threshold": settings.threshold, "play": play.request()})
        count = math.ceil(len(scene_ids) / CHUNK)
        chunks = {number: list(scene_ids[number * CHUNK:(number + 1) * CHUNK]) for number in range(count)}
        missing = {number: ids for number, ids in chunks.items() if not judged.done and not judged.part(number).exists()}
        advance(sum(len(ids) for number, ids in chunks.items() if number not in missing))
        if missing:
            for number, episodes in play_chunks(play, missing, engines):
                judged.write_part(number, [judgement(episode, play, settings.threshold) for episode in episodes])
                advance(len(missing[number]))
        judged.join(count)
        tidy(out)
        return _choose(out, judged, settings, play.seed)


def judgement(episode: Episode, play: ModelPlay, threshold: float) -> Line:
    """What a scene's first answer says of it."""
    turn = episode.turns[0] if episode.valid and episode.turns else None
    if turn is None:
        category = LOST
    elif turn.feedback:
        category = "rejected"
    else:
        category = "low_score" if turn.pdm_score < threshold else "other"
    return {
        "scene_id": episode.scene_id,
        "category": category,
        "PDMS": None if turn is None else turn.pdm_score,
        "metrics": sorted({violation["metric"] for violation in turn.violations}) if turn else [],
        "readable": turn is not None and turn.trajectory is not None,
        "reason": "" if episode.valid else episode.reason,
        "provenance": {"scene": episode.scene_id, "model": str(play.model), "seed": play.seed,
                       "perception": play.perception},
    }


def choose(lines: Sequence[Line], others: float, seed: int) -> list[Line]:
    """All hard scenes and, drawn at random, `others` times as many of the rest; in the order of the scenes."""
    hard = [place for place, line in enumerate(lines) if line["category"] in HARD]
    rest = [place for place, line in enumerate(lines) if line["category"] == "other"]
    wanted = min(len(rest), round(others * len(hard)))
    drawn = np.random.default_rng(seed).permutation(len(rest))[:wanted]
    return [lines[place] for place in sorted([*hard, *(rest[number] for number in drawn)])]


def _choose(out: Path, judged: SetOfLines, settings: RLSetSettings, seed: int) -> dict[str, Any]:
    lines = [json.loads(text) for text in judged.path.read_text().splitlines()]
    chosen = choose(lines, settings.others, seed)
    write_whole(out / "rl_set.jsonl", "".join(json.dumps(line) + "\n" for line in chosen))
    write_whole(out / "scenes.txt", "".join(f"{line['scene_id']}\n" for line in chosen))
    statistics = {
        "scenes": len(lines), "chosen": len(chosen), "threshold": settings.threshold, "others": settings.others,
        "judged": dict(sorted(Counter(line["category"] for line in lines).items())),
        "taken": dict(sorted(Counter(line["category"] for line in chosen).items())),
        "metrics": dict(sorted(Counter(metric for line in chosen for metric in line["metrics"]).items())),
    }
    write_whole(out / "stats.json", json.dumps(statistics, indent=1) + "\n")
    return statistics


def rl_set_table(statistics: dict[str, Any]) -> str:
    """The counts as a table for the terminal."""
    rows = [("", "scenes", "taken")]
    rows += [(category, str(count), str(statistics["taken"].get(category, 0)))
             for category, count in statistics["judged"].items()]
    rows.append(("all", str(statistics["scenes"]), str(statistics["chosen"])))
    return "\n".join(f"{name:<10}{scenes:>8}{taken:>8}" for name, scenes, taken in rows)
