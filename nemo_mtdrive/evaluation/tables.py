"""The result table of a run as terminal table, Markdown, CSV and LaTeX, with the columns of the paper's Table 1.

Input is summary.json: row name -> summary (`evaluate.summarise`), or one summary alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

COLUMNS = ("NC", "DAC", "TTC", "C", "EP", "PDMS")
HEADINGS = {"C": "CF"}
"""What Table 1 calls a score that it names otherwise."""
FIRST_ROWS = ("constant_velocity", "pdm_closed", "before_sft", "after_sft", "before_rl")
LAST_ROWS = ("after_rl", "human")
"""Other rows (`rl_step_25`, ...) stand between these, in the order in which they come."""

LABELS = {
    "constant_velocity": "Constant velocity",
    "pdm_closed": "PDM-Closed",
    "before_sft": "Before SFT",
    "after_sft": "After SFT",
    "before_rl": "Before RL",
    "after_rl": "After RL",
    "human": "Human",
}
WITHOUT_TURNS = ("constant_velocity", "human", "pdm_closed")
"""Rows that answer once by their nature; their turn is shown as a dash."""
MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One line of the table; values by column name, in 0..100 or metres, None when unknown."""

    method: str
    turn: str
    values: Mapping[str, float | None]
    interval: tuple[float, float] | None
    """95% interval of PDMS."""
    scenes: int


def is_summary(value: Any) -> bool:
    """Whether a value of summary.json is one summary."""
    return isinstance(value, Mapping) and "turn_1" in value and "last_turn" in value


def in_order(names: Iterable[str]) -> list[str]:
    """Row names in the order of the table."""
    given = list(names)
    return [*(name for name in FIRST_ROWS if name in given),
            *(name for name in given if name not in FIRST_ROWS + LAST_ROWS),
            *(name for name in LAST_ROWS if name in given)]


def parts_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The summaries in a summary.json by row name, in the order of the table; one alone is called "result"."""
    if is_summary(summary):
        return {"result": summary}
    return {name: summary[name] for name in in_order(name for name in summary if is_summary(summary[name]))}


def label_of(name: str) -> str:
    """A row name for people: `rl_step_25` -> `RL step 25`."""
    plain = name.replace("_", " ").removeprefix("rl ")
    return LABELS.get(name, f"RL {plain}" if name.startswith("rl_") else plain.capitalize())


def heading(column: str) -> str:
    """The heading of a column."""
    return HEADINGS.get(column, column)


def rows_of(summary: Mapping[str, Any]) -> list[Row]:
    """The rows of a summary.json: first and last turn of each row of the model, one row a driver without turns.

    Other keys (timings, seeds, ...) are passed over. A summary whose episodes all had one turn gives one row.
    """
    rows = []
    for name, part in parts_of(summary).items():
        label = part.get("label") or label_of(name)
        if name in WITHOUT_TURNS:
            rows.append(_row(label, MISSING, part["last_turn"], part["scenes"]))
            continue
        rows.append(_row(label, "1", part["turn_1"], part["scenes"]))
        if max((int(turns) for turns in part.get("turns", {}).get("counts", {"2": 1})), default=1) > 1:
            rows.append(_row(label, "last", part["last_turn"], part["scenes"]))
    return rows


def _row(label: str, turn: str, values: Mapping[str, Any], scenes: int) -> Row:
    interval = values.get("PDMS_ci95")
    names = (*COLUMNS, "ADE", "parse_rate", "collision_rate")
    return Row(label, turn, {name: values.get(name) for name in names},
               None if interval is None else (float(interval[0]), float(interval[1])), scenes)


def format_value(value: float | None, digits: int = 1) -> str:
    """`96.2`, or a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def _cells(row: Row) -> list[str]:
    return [row.method, row.turn, *(format_value(row.values[name]) for name in COLUMNS)]


def _best(rows: list[Row]) -> dict[str, str]:
    """Column -> its best formatted value among the model's rows (drivers without turns are references)."""
    best = {}
    for name in COLUMNS:
        values = [value for row in rows if row.turn != MISSING and (value := row.values[name]) is not None]
        if values:
            best[name] = format_value(max(values))
    return best


def terminal_table(summary: Mapping[str, Any], title: str) -> Table:
    """A rich table: the columns of Table 1 with the interval of PDMS, ADE and the parse rate."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("Method")
    table.add_column("Turn", justify="right")
    for name in COLUMNS:
        table.add_column(heading(name), justify="right", style="bold" if name == "PDMS" else None)
    for name in ("95% CI", "ADE m", "Parsed %", "Scenes"):
        table.add_column(name, justify="right")
    last_method = ""
    for row in rows_of(summary):
        if last_method and row.method != last_method:
            table.add_section()
        cells = _cells(row)
        cells[0] = "" if row.method == last_method else row.method
        last_method = row.method
        interval = MISSING if row.interval is None else f"{row.interval[0]:.1f}..{row.interval[1]:.1f}"
        table.add_row(*cells, interval, format_value(row.values["ADE"], 2), format_value(row.values["parse_rate"]),
                      str(row.scenes))
    return table


def markdown_table(summary: Mapping[str, Any]) -> str:
    """GitHub Markdown, the best value of the model's rows in bold."""
    rows = rows_of(summary)
    best = _best(rows)
    lines = ["| Method | Turn | " + " | ".join(f"{heading(name)} ↑" for name in COLUMNS) + " |",
             "| --- | ---: | " + " | ".join("---:" for _ in COLUMNS) + " |"]
    for row in rows:
        cells = _cells(row)
        shown = [f"**{cell}**" if row.turn != MISSING and cell == best.get(name) else cell
                 for name, cell in zip(COLUMNS, cells[2:], strict=True)]
        lines.append("| " + " | ".join([*cells[:2], *shown]) + " |")
    return "\n".join(lines) + "\n"


def csv_table(summary: Mapping[str, Any]) -> str:
    """Comma-separated values with all digits; unknown values are empty."""
    names = (*COLUMNS, "ADE", "parse_rate", "collision_rate")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "turn", *map(heading, names), "PDMS_low", "PDMS_high", "scenes"])
    for row in rows_of(summary):
        low, high = row.interval if row.interval is not None else ("", "")
        values = ["" if row.values[name] is None else row.values[name] for name in names]
        writer.writerow([row.method, row.turn, *values, low, high, row.scenes])
    return text.getvalue()


def latex_table(summary: Mapping[str, Any]) -> str:
    """A booktabs tabular in the form of Table 1, the best value of the model's rows in bold."""
    rows = rows_of(summary)
    best = _best(rows)
    lines = [r"\begin{tabular}{lr" + "r" * len(COLUMNS) + "}", r"\toprule",
             "Method & Turn & " + " & ".join(rf"{heading(name)}$\uparrow$" for name in COLUMNS) + r" \\", r"\midrule"]
    for row in rows:
        cells = _cells(row)
        shown = [rf"\textbf{{{cell}}}" if row.turn != MISSING and cell == best.get(name) else cell
                 for name, cell in zip(COLUMNS, cells[2:], strict=True)]
        lines.append(" & ".join([latex_text(cells[0]), cells[1].replace(MISSING, "--"),
                                 *("--" if cell == MISSING else cell for cell in shown)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex_text(text: str) -> str:
    """Text as LaTeX shows it."""
    for sign in "&%$#_{}":
        text = text.replace(sign, rf"\{sign}")
    return text
