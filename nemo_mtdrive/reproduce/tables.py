"""The paper's tables in small, from evaluations that are there: a function a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.evaluation.tables import heading
from nemo_mtdrive.reproduce.curves import size_panels
from nemo_mtdrive.reproduce.graph import DRIVERS, graph_for, mock_name, size_name, size_scenes
from nemo_mtdrive.reproduce.intervals import Estimate, estimate, ratio
from nemo_mtdrive.reproduce.marks import read_mark
from nemo_mtdrive.reproduce.recipe import MODEL, RL_MODEL, SINGLE, Recipe
from nemo_mtdrive.reproduce.results import METRICS, Panel, Result, Row, line_of, score_cells
from nemo_mtdrive.reproduce.rows import Played, paired, read_driver, read_row, same_scenes

HEADINGS = [heading(metric) for metric in METRICS]
DRIVER_LABELS = {"constant_velocity": "Constant velocity", "pdm_closed": "PDM-Closed", "human": "Human (the expert)"}
PAPER_SFT = {"single": 83.7, "two_stage": 84.9, "one_stage": 87.3, "understanding": 87.7, "multi": 88.1}
"""PDMS of Table 2 by row."""
PAPER_RL = {"sequence": 94.2, "per_turn": 95.2, "cross_turn": 96.2}
"""PDMS of Table 3."""
PAPER_1 = {f"sft_{SINGLE}": 83.7, "human": 94.8, f"sft_{MODEL}, oracle": 88.1, f"{RL_MODEL}, kinematic": 91.1,
           f"{RL_MODEL}, oracle": 96.2}
"""PDMS of Table 1 by row; of its SFT row the paper does not say what feedback it had."""
ESTIMATORS = {"sequence": "GRPO, reward of the sequence", "per_turn": "mtGRPO, normalised in each turn",
              "cross_turn": "mtGRPO, normalised over turns", "unbiased": "unbiased (ours)"}
ORACLE, KINEMATIC = "model_oracle", "model_kinematic"


def table1(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """Drivers; SFT and RL with kinematic and with oracle feedback, each RL row beside the SFT row that was told the same."""
    turns = recipe.rl.turns
    chosen: list[tuple[str, str, int, Played, float | None]] = [
        (label, "-", 1, read_driver(root, DRIVERS, name), PAPER_1.get(name)) for name, label in DRIVER_LABELS.items()]
    chosen.append(("SFT, single-turn", "1", 1, read_row(root, f"eval_sft_{SINGLE}", ORACLE, seeds),
                   PAPER_1[f"sft_{SINGLE}"]))
    for label, model in (("SFT", f"sft_{MODEL}"), ("RL", RL_MODEL)):
        for feedback, row in (("kinematic", KINEMATIC), ("oracle", ORACLE)):
            chosen.append((f"{label}, {feedback} feedback", str(turns), turns, read_row(root, f"eval_{model}", row, seeds),
                           PAPER_1.get(f"{model}, {feedback}")))
    played = same_scenes([row for *_, row, _ in chosen])
    starts = {label.replace("SFT", "RL"): row.after("PDMS", turns)
              for (label, *_), row in zip(chosen, played, strict=True) if label.startswith("SFT")}
    rows = [Row([label, shown], score_cells(row, most) | {
        "Over SFT": estimate(paired(starts[label], row.after("PDMS", most))) if label in starts else None,
        "ADE m": estimate(row.after("ADE", most)), "Read %": estimate(row.after("parsed", most)), "Paper": _plain(paper)})
        for (label, shown, most, _, paper), row in zip(chosen, played, strict=True)]
    return Result("table1", "Table 1: drivers and models", ["Method", "Turns"],
                  [*HEADINGS, "Over SFT", "ADE m", "Read %", "Paper"], rows, list(seeds), len(played[0].scenes),
                  made_of=made_of(root, recipe, seeds, "table1"))


def table2(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """SFT: what each kind of data adds; differences to the single-turn row on the same scenes and seeds."""
    names = list(recipe.sft)
    played = same_scenes([read_row(root, f"eval_sft_{name}", ORACLE, seeds) for name in names])
    baseline = played[names.index(SINGLE)].after("PDMS", 1)
    rows = []
    for number, (name, row) in enumerate(zip(names, played, strict=True), start=1):
        most = recipe.sft[name].turns
        against = None if name == SINGLE else estimate(paired(baseline, row.after("PDMS", most)))
        rows.append(Row([str(number), recipe.sft[name].label, str(most)], score_cells(row, most) | {
            "Turn 1": estimate(row.after("PDMS", 1)), "Over single-turn": against, "Paper": _plain(PAPER_SFT.get(name))}))
    return Result("table2", "Table 2: SFT", ["ID", "Training", "Turns"],
                  [*HEADINGS, "Turn 1", "Over single-turn", "Paper"], rows, list(seeds), len(played[0].scenes),
                  made_of=made_of(root, recipe, seeds, "table2"))


def table3(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """RL from one SFT model: what each estimator adds to where it started, and to the first estimator."""
    turns = recipe.rl.turns
    names = [f"sft_{MODEL}", *(f"rl_{name}" for name in recipe.rl.estimators)]
    played = same_scenes([read_row(root, f"eval_{name}", ORACLE, seeds) for name in names])
    start, first = (row.after("PDMS", turns) for row in played[:2])
    rows = [Row(["-", "SFT, where RL starts"], _last_and_first(played[0], turns) | {"Paper": _plain(PAPER_SFT[MODEL])})]
    for number, (name, row) in enumerate(zip(recipe.rl.estimators, played[1:], strict=True), start=1):
        last = row.after("PDMS", turns)
        rows.append(Row([str(number), ESTIMATORS[name]], _last_and_first(row, turns) | {
            "Over SFT": estimate(paired(start, last)), "Over ID 1": estimate(paired(first, last)) if number > 1 else None,
            "Paper": _plain(PAPER_RL.get(name))}))
    return Result("table3", "Table 3: RL", ["ID", "Advantages"],
                  [*HEADINGS, "Turn 1", "Over SFT", "Over ID 1", "Paper"], rows, list(seeds), len(played[0].scenes),
                  made_of=made_of(root, recipe, seeds, "table3"))


def turns(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """The RL model with at most 1, 2, ... turns; the smallest number that is as good as the best."""
    most = recipe.rl.sweep
    played = same_scenes([read_row(root, f"eval_{RL_MODEL}", row, seeds) for row in (ORACLE, KINEMATIC)])
    rows, notes = [], []
    for feedback, row in zip(("oracle", "kinematic"), played, strict=True):
        at = {turn: row.after("PDMS", turn) for turn in range(1, most + 1)}
        best = max(at, key=lambda turn: (round(float(at[turn].mean()), 6), -turn))
        behind = {turn: estimate(paired(values, at[best])) for turn, values in at.items()}
        knee = min(turn for turn, found in behind.items() if _reaches_zero(found))
        notes.append(f"{feedback} feedback: at most {best} turns are best, {knee} are as good within the paired interval")
        for turn in at:
            marks = ", ".join(mark for mark, own in (("best", best), ("knee", knee)) if own == turn)
            rows.append(Row([feedback, str(turn), marks], score_cells(row, turn) | {
                "Behind best": behind[turn], "Turns taken": estimate(row.after("turns", turn))}))
    panel = Panel("PDMS by turns allowed", "at most so many turns", "PDMS", [
        line_of(f"{feedback} feedback", range(1, most + 1), [row.after("PDMS", turn) for turn in range(1, most + 1)])
        for feedback, row in zip(("oracle", "kinematic"), played, strict=True)])
    return Result("turns", "Turns allowed, RL model", ["Feedback", "Turns", ""], [*HEADINGS, "Behind best", "Turns taken"],
                  rows, list(seeds), len(played[0].scenes), "; ".join(notes), panels=[panel],
                  made_of=made_of(root, recipe, seeds, "turns"))


def mock(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """SFT with mock conversations for more and more of the scenes (the paper's open question 2)."""
    last = recipe.rl.turns
    shares = recipe.mock.shares
    played = same_scenes([read_row(root, f"eval_{mock_name(share)}", ORACLE, seeds) for share in shares])
    none = played[0].after("PDMS", last)
    rows = [Row([f"{100 * share:g}%"], _last_and_first(row, last) | {
        "Over the first": None if number == 0 else estimate(paired(none, row.after("PDMS", last))),
        "Turns taken": estimate(row.after("turns", last))}) for number, (share, row) in enumerate(zip(shares, played,
                                                                                                     strict=True))]
    panel = Panel("SFT by share of scenes with a mock conversation", "share of scenes [%]", "PDMS", [
        line_of(label, [100 * share for share in shares], [row.after("PDMS", most) for row in played])
        for label, most in (("turn 1", 1), ("at most 2 turns", 2), (f"at most {last} turns", last))])
    return Result("mock", "Mock conversations in SFT data", ["Scenes with one"],
                  [*HEADINGS, "Turn 1", "Over the first", "Turns taken"], rows, list(seeds), len(played[0].scenes),
                  panels=[panel], made_of=made_of(root, recipe, seeds, "mock"))


def size(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """RL on few, some and many scenes (Appendix C), with training and held-out scores over steps."""
    last = recipe.rl.turns
    counts = size_scenes(recipe)
    played = same_scenes([read_row(root, f"eval_{size_name(part)}", ORACLE, seeds) for part in counts])
    first = played[0].after("PDMS", last)
    panels, ends = size_panels(root, recipe, seeds)
    rows = [Row([f"{part}", str(counts[part])], _last_and_first(row, last) | {
        "Training, last steps": Estimate(ends[part], None) if part in ends else None,
        "Over the fewest": None if number == 0 else estimate(paired(first, row.after("PDMS", last)))})
        for number, (part, row) in enumerate(zip(counts, played, strict=True))]
    return Result("size", "Scenes of the RL set", ["Parts", "Scenes"],
                  [*HEADINGS, "Turn 1", "Training, last steps", "Over the fewest"], rows, list(seeds), len(played[0].scenes),
                  panels=panels, made_of=made_of(root, recipe, seeds, "size"))


def pictures(root: Path, recipe: Recipe, seeds: Sequence[int]) -> Result:
    """First answers with the own and with another scene's picture; by kind for the RL model, what loses most first."""
    rows, scenes = [], 0
    for label, model in (("SFT", f"sft_{MODEL}"), ("RL", RL_MODEL)):
        own, other = same_scenes([read_row(root, f"pictures_{model}", row, seeds) for row in (ORACLE, f"{ORACLE}_shuffled")])
        scenes = len(own.scenes)
        rows += [Row([label, kind], picture_cells(own, other, kind, recipe.pictures.kinds)) for kind in ("all", ALONE)]
    kinds = [Row(["RL", kind], picture_cells(own, other, kind, ())) for kind in sorted(set(own.kinds))]
    rows += sorted(kinds, key=lambda row: -_value(row.cells["PDMS lost"]))
    return Result("pictures", "First answers with another scene's picture", ["Model", "Kind"],
                  ["Scenes", "ADE m", "ADE, other", "Worse %", "PDMS", "PDMS, other", "PDMS lost"], rows, list(seeds),
                  scenes, drawn="PDMS lost", made_of=made_of(root, recipe, seeds, "table1"))


ALONE = "of the picture alone"


def _value(cell: Estimate | int | None) -> float:
    return cell.value if isinstance(cell, Estimate) and cell.value is not None else 0.0


def picture_cells(own: Played, other: Played, kind: str, alone: Sequence[str]) -> dict[str, Estimate | int | None]:
    """What other pictures do to the scenes of a kind; `all`, or those of the kinds `alone`."""
    wanted = [at for at, name in enumerate(own.kinds)
              if kind in ("all", name) or (kind == ALONE and {name, *name.split("/")} & set(alone))]
    error, errors, score, scores = (row.after(metric, 1)[:, wanted] for metric in ("ADE", "PDMS") for row in (own, other))
    both = np.isfinite(error) & np.isfinite(errors)
    error, errors = np.where(both, error, np.nan), np.where(both, errors, np.nan)
    times = ratio(errors, error)
    worse = Estimate(None if times.value is None else 100.0 * (times.value - 1.0),
                     None if times.ci95 is None else (100.0 * (times.ci95[0] - 1.0), 100.0 * (times.ci95[1] - 1.0)))
    return {"Scenes": len(wanted), "ADE m": estimate(error), "ADE, other": estimate(errors), "Worse %": worse,
            "PDMS": estimate(score), "PDMS, other": estimate(scores), "PDMS lost": estimate(paired(scores, score))}


def _last_and_first(row: Played, last: int) -> dict[str, Estimate | int | None]:
    return score_cells(row, last) | {"Turn 1": estimate(row.after("PDMS", 1))}


def _plain(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value, None)


def _reaches_zero(behind: Estimate) -> bool:
    assert behind.value is not None
    return behind.value <= 0.0 if behind.ci95 is None else behind.ci95[0] <= 0.0


def made_of(root: Path, recipe: Recipe, seeds: Sequence[int], what: str) -> dict[str, Any]:
    """Sizes, and what the stages took: CPU seconds of all that the table stands on, and the code that made it."""
    marks = {name: mark for name in graph_for(recipe, seeds, [what]) if (mark := read_mark(root, name)) is not None}
    return {"recipe": asdict(recipe), "cpu_seconds": round(sum(mark.cpu_seconds for mark in marks.values())),
            "stages": len(marks), "code": sorted({mark.commit for mark in marks.values() if mark.commit})}
