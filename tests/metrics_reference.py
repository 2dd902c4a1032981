"""docs/metrics.md as data: which names it promises for a phase, and how a run's lines differ from that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
OF_THE_LINE = {"phase", "step", "time"}
PLACEHOLDERS = {"N": "[0-9]+", "PHASE": "[a-z_]+"}


@dataclass(frozen=True)
class Row:
    """A documented metric."""

    name: str
    phases: frozenset[str]
    always: bool
    """Whether each run logs it whatever its settings."""

    def fits(self, name: str) -> bool:
        parts = re.split(r"(PHASE|(?<![A-Za-z])N(?![A-Za-z]))", self.name)
        pattern = "".join(PLACEHOLDERS.get(part, re.escape(part)) for part in parts)
        return re.fullmatch(pattern, name) is not None


def rows(text: str) -> list[Row]:
    """The rows of all tables: a section's title says the phase, or the column "when" does."""
    found, section = [], frozenset[str]()
    for line in text.splitlines():
        if line.startswith("## "):
            section = frozenset({"## SFT": ["sft"]}.get(line, ["rl"] if line.startswith("## RL") else ["sft", "rl"]))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            assert len(cells) == 5 and all(cells), f"want name, unit, when, what, healthy: {line}"
            when = {part.strip() for part in cells[2].split(",")}
            found.append(Row(cells[0].strip("`"), when & {"sft", "rl"} or section, when <= {"sft", "rl", "always"}))
    return found


def differences(documented: Iterable[Row], lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a run logs and the page lacks, and what the page promises and the run does not log; empty where they agree."""
    documented = list(documented)
    logged: dict[str, set[str]] = {}
    for line in lines:
        logged.setdefault(line["phase"], set()).update(set(line) - OF_THE_LINE)
    found = []
    for phase, names in logged.items():
        known = [row for row in documented if phase in row.phases]
        found += [f"{phase}: {name} is logged, add its row" for name in sorted(names)
                  if not any(row.fits(name) for row in known)]
        found += [f"{phase}: {row.name} is not logged, remove its row or say when" for row in known
                  if row.always and not any(row.fits(name) for name in names)]
    return found
