"""A table of an evaluation as CSV, Markdown, LaTeX and on the terminal; each number may have a 95% interval."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from nemo_mtdrive.evaluation.tables import COLUMNS, MISSING, format_value, heading, latex_text


@dataclass(frozen=True)
class Cell:
    """A number, None where there is none, and its 95% interval."""

    value: float | int | None
    interval: Sequence[float] | None = None

    def text(self, digits: int) -> str:
        """`96.2` or `96.2 [95.0, 97.1]`; a count has no decimals."""
        shown = self.number(digits)
        if self.interval is None:
            return shown
        return f"{shown} [{self.interval[0]:.{digits}f}, {self.interval[1]:.{digits}f}]"

    def number(self, digits: int) -> str:
        """Without the interval."""
        return str(self.value) if isinstance(self.value, int) else format_value(self.value, digits)


@dataclass(frozen=True)
class Grid:
    """Rows of names and numbers."""

    title: str
    names: Sequence[str]
    """Headings of the names that a row starts with."""
    columns: Sequence[str]
    """Headings of the numbers."""
    rows: Sequence[tuple[Sequence[str], Sequence[Cell]]]
    digits: int = 1

    def csv(self) -> str:
        """All digits; an interval takes two columns more; unknown values are empty."""
        spans = [any(cells[at].interval is not None for _, cells in self.rows) for at in range(len(self.columns))]
        head = list(self.names)
        for column, wide in zip(self.columns, spans, strict=True):
            head += [column, f"{column}_low", f"{column}_high"] if wide else [column]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        for names, cells in self.rows:
            line: list[Any] = list(names)
            for cell, wide in zip(cells, spans, strict=True):
                line.append("" if cell.value is None else cell.value)
                line += list(cell.interval or ("", "")) if wide else []
            writer.writerow(line)
        return text.getvalue()

    def markdown(self) -> str:
        """GitHub Markdown."""
        lines = ["| " + " | ".join([*self.names, *self.columns]) + " |",
                 "| " + " | ".join(["---"] * len(self.names) + ["---:"] * len(self.columns)) + " |"]
        for names, cells in self.rows:
            lines.append("| " + " | ".join([*(name.replace("|", r"\|") for name in names),
                                            *(cell.text(self.digits) for cell in cells)]) + " |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A booktabs tabular; intervals in small print."""
        lines = [r"\begin{tabular}{" + "l" * len(self.names) + "r" * len(self.columns) + "}", r"\toprule",
                 " & ".join(latex_text(name) for name in [*self.names, *self.columns]) + r" \\", r"\midrule"]
        for names, cells in self.rows:
            shown = [*(latex_text(name) for name in names), *(self._latex(cell) for cell in cells)]
            lines.append(" & ".join(shown) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def _latex(self, cell: Cell) -> str:
        shown = cell.number(self.digits)
        if shown == MISSING:
            return "--"
        if cell.interval is None:
            return shown
        low, high = (f"{end:.{self.digits}f}" for end in cell.interval)
        return rf"{shown} {{\scriptsize [{low}, {high}]}}"

    def terminal(self, spread: Sequence[str] = ("PDMS",)) -> Table:
        """A rich table with the intervals of the columns `spread` alone, as all would not fit."""
        table = Table(title=self.title, title_justify="left", header_style="bold")
        for name in self.names:
            table.add_column(name)
        for name in self.columns:
            table.add_column(name, justify="right", style="bold" if name == "PDMS" else None, no_wrap=True)
        for names, cells in self.rows:
            table.add_row(*names, *(cell.text(self.digits) if name in spread else cell.number(self.digits)
                                    for name, cell in zip(self.columns, cells, strict=True)))
        return table


def score_cells(row: Mapping[str, Any]) -> list[Cell]:
    """The columns of Table 1 of a row that `evaluate.row_of` made, each with its interval."""
    intervals = row.get("ci95") or {}
    return [Cell(row.get(name), intervals.get(name)) for name in COLUMNS]


SCORE_HEADINGS = tuple(heading(name) for name in COLUMNS)
