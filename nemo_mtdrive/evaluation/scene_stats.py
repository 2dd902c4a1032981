"""What a set of scenes is made of, and how hard it is: counts by kind, command and speed, and the PDM scores of the
recorded driver (human or expert) and of constant velocity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nemo_mtdrive.driving.scene import SceneError
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.stations import work_at_stations
from nemo_mtdrive.telemetry.progress import Progress

METRICS = ("PDMS", "NC", "DAC", "TTC", "EP", "C")
DRIVERS = ("recorded", "constant_velocity")
SPEED_EDGES_MPS = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0)
CHUNK = 20
_PICTURE = (28, 28)
"""Pictures are not looked at."""


@dataclass(frozen=True)
class SceneRow:
    """One scene: its labels, its tracks by type, and driver -> metric -> score in 0..1."""

    kind: str
    command: str
    speed_mps: float
    tracks: Mapping[str, int]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def count_scenes(address: str, scored: bool, workers: int, progress: Progress) -> dict[str, Any]:
    """Statistics of a source.

    Args:
        address: as `open_scenes` takes it.
        scored: whether drivers are scored, which takes most of the time.
        workers: processes.
        progress: shows how far it is.

    Returns:
        scenes, skipped (scene -> why), kinds and commands (name -> count), speed_mps (mean, quantiles, histogram),
        tracks_per_scene (type -> mean); if `scored`, drivers (name -> metric -> mean; `failing`: metric -> share below 1)
        and by_kind (kind -> driver -> PDMS).

    Raises:
        SceneError: the source cannot be opened.
    """
    source = open_scenes(address, *_size(address))
    ids = list(source.ids())
    skipped = dict(source.skipped)
    rows: list[SceneRow] = []
    with progress.phase("scenes", total=len(ids), unit="scenes") as bar:
        chunks = [ids[k : k + CHUNK] for k in range(0, len(ids), CHUNK)]
        for place, (found, problems) in work_at_stations(partial(_open, address), partial(_rows, scored), chunks, workers):
            rows += found
            skipped |= problems
            bar.advance(len(chunks[place]))
    return summarise(rows, skipped)


def _size(address: str) -> tuple[int, int]:
    """Sources that draw on demand get a small size; files keep theirs."""
    return (0, 0) if address.startswith("files://") else _PICTURE


@contextmanager
def _open(address: str, _: int) -> Iterator[tuple[SceneSource, PDMAgent]]:
    yield open_scenes(address, *_size(address)), PDMAgent("oracle", 1)


def _rows(scored: bool, opened: tuple[SceneSource, PDMAgent], ids: Sequence[str]) -> tuple[list[SceneRow], dict[str, str]]:
    """Rows of scenes, and those that cannot be loaded -> why."""
    source, agent = opened
    rows: list[SceneRow] = []
    problems: dict[str, str] = {}
    for name in ids:
        try:
            scene = source.load(name)
        except SceneError as error:
            problems[name] = str(error)
            continue
        scores: dict[str, Mapping[str, float]] = {}
        if scored:
            driven = {"constant_velocity": constant_velocity(scene)}
            if scene.future is not None:
                driven["recorded"] = scene.future
            reviews = agent.review(scene, np.stack(list(driven.values())))
            scores = {driver: review.scores for driver, review in zip(driven, reviews, strict=True)}
        rows.append(SceneRow(scene.kind, scene.command or "none", float(scene.ego.velocity[0]),
                             Counter(track.type for track in scene.tracks), scores))
    return rows, problems


def summarise(rows: Sequence[SceneRow], skipped: Mapping[str, str]) -> dict[str, Any]:
    """The statistics of rows; see `count_scenes`."""
    speeds = np.array([row.speed_mps for row in rows])
    tracks: Counter[str] = Counter()
    for row in rows:
        tracks.update(row.tracks)
    counts, _ = np.histogram(speeds, [*SPEED_EDGES_MPS, np.inf])
    found: dict[str, Any] = {
        "scenes": len(rows),
        "skipped": dict(skipped),
        "kinds": dict(sorted(Counter(row.kind for row in rows).items())),
        "commands": dict(sorted(Counter(row.command for row in rows).items())),
        "speed_mps": {
            "mean": round(float(speeds.mean()), 3) if len(rows) else None,
            "quantiles": {f"{q:g}": round(float(np.quantile(speeds, q)), 3) for q in (0.05, 0.5, 0.95)} if len(rows) else {},
            "histogram": {f"{low:g}": int(count) for low, count in zip(SPEED_EDGES_MPS, counts, strict=True)},
        },
        "tracks_per_scene": {name: round(count / len(rows), 3) for name, count in sorted(tracks.items())},
    }
    if any(row.scores for row in rows):
        found["drivers"] = {driver: _driver([row.scores[driver] for row in rows if driver in row.scores])
                            for driver in DRIVERS}
        found["by_kind"] = _by_kind(rows)
    return found


def _driver(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means = {metric: round(float(np.mean([row[metric] for row in scores])), 4) for metric in METRICS} if scores else {}
    failing = {metric: round(float(np.mean([row[metric] < 1 for row in scores])), 4) for metric in ("NC", "DAC", "TTC", "C")
               } if scores else {}
    clean = round(float(np.mean([row["NC"] == row["DAC"] == 1 for row in scores])), 4) if scores else None
    return {"scenes": len(scores), **means, "failing": failing, "NC_and_DAC": clean}


def _by_kind(rows: Sequence[SceneRow]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for driver, scores in row.scores.items():
            found[row.kind][driver].append(scores["PDMS"])
    return {kind: {driver: round(float(np.mean(found[kind][driver])), 4) for driver in DRIVERS if driver in found[kind]}
            for kind in sorted(found)}


def stats_table(stats: Mapping[str, Any]) -> str:
    """The statistics as tables of text."""
    out = StringIO()
    console = Console(file=out, width=100)
    total = max(stats["scenes"], 1)
    kinds = Table(title=f"{stats['scenes']} scenes, {len(stats['skipped'])} skipped", title_justify="left")
    for name in ("kind", "scenes", "%", *(f"PDMS {driver.replace('_', ' ')}" for driver in DRIVERS if "by_kind" in stats)):
        kinds.add_column(name, justify="left" if name == "kind" else "right")
    for kind, count in stats["kinds"].items():
        scores = stats.get("by_kind", {}).get(kind, {})
        kinds.add_row(kind, str(count), f"{100 * count / total:.1f}",
                      *(f"{100 * scores[driver]:.1f}" for driver in DRIVERS if driver in scores))
    console.print(kinds)
    commands = Table("command", "scenes", "%")
    for command, count in stats["commands"].items():
        commands.add_row(command, str(count), f"{100 * count / total:.1f}")
    console.print(commands)
    if "drivers" in stats:
        drivers = Table("driver", *METRICS, "NC = DAC = 1")
        for name, row in stats["drivers"].items():
            if row["scenes"]:
                drivers.add_row(name.replace("_", " "), *(f"{100 * row[metric]:.1f}" for metric in (*METRICS, "NC_and_DAC")))
        console.print(drivers)
    return out.getvalue().rstrip()
