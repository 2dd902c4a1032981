"""A result: a table with intervals, what it stands on, and lines to draw; as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.evaluation.grids import Cell, Grid
from nemo_mtdrive.evaluation.tables import heading
from nemo_mtdrive.reproduce.intervals import Estimate, estimate
from nemo_mtdrive.reproduce.rows import Array, Played
from nemo_mtdrive.whole_file import write_whole

RESULTS = "results"
METRICS = ("NC", "DAC", "TTC", "C", "EP", "PDMS")
WITHOUT_INTERVAL = ("NC", "DAC", "TTC", "CF", "EP", "Read %", "ADE m", "ADE, other", "PDMS, other", "Turns taken")
"""Columns whose intervals stand in the CSV and JSON alone."""


@dataclass(frozen=True)
class Line:
    """A curve: (x, mean, low, high) a point; low and high None where there is no interval."""

    label: str
    points: list[tuple[float, float, float | None, float | None]]


@dataclass(frozen=True)
class Panel:
    """Curves over one axis."""

    title: str
    x: str
    y: str
    lines: list[Line]


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    names: list[str]
    cells: dict[str, Estimate | int | None]
    """Column -> value; columns that are absent are empty."""


@dataclass(frozen=True)
class Result:
    """What a table of the paper became."""

    what: str
    title: str
    names: list[str]
    """Headings of the names that rows begin with."""
    columns: list[str]
    rows: list[Row]
    seeds: list[int]
    scenes: int
    """Held-out scenes that all rows have results of."""
    note: str = ""
    drawn: str = "PDMS"
    """The column of the picture, where there are no panels."""
    panels: list[Panel] = field(default_factory=list)
    made_of: dict[str, Any] = field(default_factory=dict)
    """What says how it was made: sizes of the recipe, CPU hours, code."""

    def grid(self, *, short: bool = False) -> Grid:
        """The table; `short` leaves out the intervals of the parts of PDMS, as a page is too narrow for all."""
        bare = WITHOUT_INTERVAL if short else ()
        return Grid(self.title, self.names, self.columns, [
            (row.names, [_cell(row.cells.get(column), column not in bare) for column in self.columns]) for row in self.rows])


def _cell(value: Estimate | int | None, with_interval: bool) -> Cell:
    if isinstance(value, Estimate):
        return Cell(value.value, value.ci95 if with_interval else None)
    return Cell(value)


def write_result(root: Path, result: Result) -> list[Path]:
    """ROOT/results/WHAT.json, .md, .csv and .svg."""
    from nemo_mtdrive.reproduce.charts import draw_result

    folder = root / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{result.what}.{suffix}" for suffix in ("json", "md", "csv", "svg")]
    write_whole(files[0], json.dumps(asdict(result), indent=1) + "\n")
    write_whole(files[1], result.grid(short=True).markdown())
    write_whole(files[2], result.grid().csv())
    draw_result(files[3], result)
    return files


def read_result(root: Path, what: str) -> Result | None:
    """What `write_result` wrote; None where it is not there.

    Raises:
        ConfigError: the file is damaged.
    """
    path = root / RESULTS / f"{what}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        rows = [Row(row["names"], {name: _value(cell) for name, cell in row["cells"].items()}) for row in found["rows"]]
        panels = [Panel(panel["title"], panel["x"], panel["y"],
                        [Line(line["label"], [(x, mean, low, high) for x, mean, low, high in line["points"]])
                         for line in panel["lines"]]) for panel in found["panels"]]
        return Result(**(found | {"rows": rows, "panels": panels}))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a result of this version ({error}); make it again") from error


def _value(cell: Any) -> Estimate | int | None:
    if isinstance(cell, dict):
        return Estimate(cell["value"], None if cell["ci95"] is None else tuple(cell["ci95"]))
    return None if cell is None else int(cell)


def score_cells(row: Played, turns: int) -> dict[str, Estimate | int | None]:
    """Table 1's columns of a row after at most so many turns."""
    return {heading(metric): estimate(row.after(metric, turns)) for metric in METRICS}


def line_of(label: str, xs: Sequence[float], values: Sequence[Array]) -> Line:
    """A curve of values [seeds, scenes] at each x."""
    points: list[tuple[float, float, float | None, float | None]] = []
    for x, at_x in zip(xs, values, strict=True):
        found = estimate(at_x)
        if found.value is not None:
            low, high = found.ci95 or (None, None)
            points.append((x, found.value, low, high))
    return Line(label, points)


def seed_means(made: Mapping[int, Mapping[float, float]]) -> Line:
    """The mean over seeds of seed -> x -> value, where all have it; low and high are the least and the greatest seed."""
    common = sorted(set.intersection(*(set(values) for values in made.values()))) if made else []
    points: list[tuple[float, float, float | None, float | None]] = []
    for x in common:
        values = [found[x] for found in made.values()]
        points.append((x, sum(values) / len(values), min(values), max(values)))
    return Line("", points)
