"""The files of an evaluation's folder that people and other programs read: tables, and trajectories to hand in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.evaluation.grids import SCORE_HEADINGS, Cell, Grid, score_cells
from nemo_mtdrive.evaluation.shuffled import by_picture
from nemo_mtdrive.evaluation.tables import MISSING, csv_table, latex_table, markdown_table, parts_of, rows_of
from nemo_mtdrive.types import Episode
from nemo_mtdrive.whole_file import write_whole

TRAJECTORIES = "trajectories"


def write_tables(out: Path, summary: Mapping[str, Any]) -> None:
    """table.*, by_kind.* and, where a model is in it, by_turn.*, verdicts.* and pictures.*: each as .md, .csv and .tex."""
    for suffix, text in (("md", markdown_table(summary)), ("csv", csv_table(summary)), ("tex", latex_table(summary))):
        write_whole(out / f"table.{suffix}", text)
    for name, grid in (("by_kind", by_kind(summary)), ("by_turn", by_turn(summary)), ("verdicts", by_verdict(summary)),
                       ("pictures", with_pictures(summary))):
        if grid.rows:
            write_grid(out, name, grid)


def write_grid(out: Path, name: str, grid: Grid) -> None:
    """NAME.md, NAME.csv and NAME.tex."""
    for suffix, text in (("md", grid.markdown()), ("csv", grid.csv()), ("tex", grid.latex())):
        write_whole(out / f"{name}.{suffix}", text)


def by_kind(summary: Mapping[str, Any]) -> Grid:
    """Table 1 for each kind of scene, after the last turn."""
    rows = [((_label(summary, name), kind), [*score_cells(values["last_turn"]), Cell(values["scenes"])])
            for name, part in parts_of(summary).items() for kind, values in part["kinds"].items()]
    return Grid("By kind of scene, last turn", ("Method", "Kind"), (*SCORE_HEADINGS, "Scenes"), rows)


def by_turn(summary: Mapping[str, Any]) -> Grid:
    """Table 1 after at most 1, 2, ... turns; best and knee are marked."""
    rows = []
    for name, part in parts_of(summary).items():
        if not (found := part.get("sweep")):
            continue
        for turn, values in found["turns"].items():
            marks = [mark.replace("_", " ") for mark in ("best", "knee", "paired_knee") if found[mark] == int(turn)]
            behind = values["behind_best"]
            rows.append(((_label(summary, name), turn, ", ".join(marks) or MISSING),
                         [*score_cells(values), Cell(behind["PDMS"], behind["ci95"]), Cell(values["mean_turns"])]))
    return Grid("By turns allowed", ("Method", "Turns", ""), (*SCORE_HEADINGS, "Behind best", "Turns taken"), rows)


def by_verdict(summary: Mapping[str, Any]) -> Grid:
    """Precision and recall of the feedback of each row, metric by metric."""
    rows = [((_label(summary, name), metric),
             [Cell(found["precision"]), Cell(found["recall"]), Cell(found["accused"]), Cell(found["failing"]),
              Cell(found["trajectories"])])
            for name, part in parts_of(summary).items() for metric, found in part.get("verdicts", {}).items()]
    return Grid("Feedback against the scorer's verdicts", ("Method", "Metric"),
                ("Precision %", "Recall %", "Accused", "Failing", "Trajectories"), rows)


def with_pictures(summary: Mapping[str, Any]) -> Grid:
    """What another scene's picture does to the first answers, where that was asked for."""
    return by_picture({_label(summary, name): part["picture_effect"] for name, part in parts_of(summary).items()
                       if "picture_effect" in part})


def knees(summary: Mapping[str, Any]) -> list[str]:
    """A line for each row with a sweep: how many turns are enough."""
    lines = []
    for name, part in parts_of(summary).items():
        if not (found := part.get("sweep")) or len(found["turns"]) < 2:
            continue
        best = found["turns"][str(found["best"])]
        interval = best["PDMS_ci95"]
        within = "" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]"
        enough = found["turns"][str(found["knee"])]["PDMS"]
        lines.append(f"{_label(summary, name)}: at most {found['best']} turns are best, PDMS {best['PDMS']:.1f}{within}; "
                     f"{found['knee']} are within that interval (PDMS {enough:.1f}), {found['paired_knee']} by the paired "
                     "difference")
    return lines


def write_trajectories(out: Path, episodes: Mapping[str, Sequence[Episode]]) -> None:
    """trajectories/ROW.jsonl, what NAVSIM's submissions hold: of each scene its token and the 8 poses of the last turn, in
    the rear-axle frame at t = 0, every 0.5 s; and their scores. Answers without a trajectory have null."""
    (out / TRAJECTORIES).mkdir(parents=True, exist_ok=True)
    for name, played in episodes.items():
        lines = [json.dumps(_prediction(episode)) for episode in played if episode.valid and episode.index == 0]
        write_whole(out / TRAJECTORIES / f"{name}.jsonl", "".join(line + "\n" for line in lines))


def _prediction(episode: Episode) -> dict[str, Any]:
    last = episode.turns[-1] if episode.turns else None
    plan = None if last is None or last.trajectory is None else np.round(last.trajectory, 4).tolist()
    return {"token": episode.scene_id, "trajectory": plan, "scores": None if last is None else last.scores,
            "turns": len(episode.turns)}


def _label(summary: Mapping[str, Any], name: str) -> str:
    """As the table has it."""
    rows = rows_of({name: summary[name]})
    return rows[0].method
