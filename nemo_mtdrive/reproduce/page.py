"""docs/results.md: its tables and figures from the results that are there, between marks; its other words are people's.

    <!-- reproduce:table2 -->        what stands up to the closing mark is written anew
    <!-- /reproduce:table2 -->
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.reproduce.gates import Gate
from nemo_mtdrive.reproduce.results import RESULTS, Result, read_result
from nemo_mtdrive.whole_file import write_whole

_BLOCK = re.compile(r"(<!-- reproduce:(\w+) -->\n).*?(<!-- /reproduce:\2 -->)", re.DOTALL)
CHECK = "check"
CHECK_FILE = "check.md"
MADE_BY = {"pictures": "table1", "learning": "table1", "estimators": "table3"}
"""Results that come with another's command."""


def write_page(root: Path, page: Path, own: Mapping[str, str]) -> list[str]:
    """Fill every block of the page from ROOT/results, figures beside it; returns the names of blocks without a result.

    `own` has the words of blocks that are no results, by name.

    Raises:
        ConfigError: no such page, one without blocks, or a damaged result.
    """
    if not page.is_file():
        raise ConfigError(f"--page {page}: no such file")
    text = page.read_text()
    names = [found[2] for found in _BLOCK.finditer(text)]
    if not names:
        raise ConfigError(f"--page {page}: no block <!-- reproduce:NAME --> ... <!-- /reproduce:NAME --> in it")
    figures = page.with_suffix("")
    blocks = {name: own[name] if name in own else block(root, name, figures) for name in names}
    write_whole(page, _BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]] or absent(found[2])}{found[3]}", text))
    return [name for name, body in blocks.items() if body is None]


def block(root: Path, name: str, figures: Path) -> str | None:
    """The words of a block; None where there is no result. Figures are copied to the folder `figures`."""
    if name == CHECK:
        kept = root / RESULTS / CHECK_FILE
        return kept.read_text() if kept.is_file() else None
    result = read_result(root, name)
    if result is None:
        return None
    figures.mkdir(parents=True, exist_ok=True)
    pictures = []
    for file, shown in ((f"{name}.svg", result.title), (f"{name}_episodes.png", f"{result.title}: episodes")):
        if (root / RESULTS / file).is_file():
            shutil.copyfile(root / RESULTS / file, figures / file)
            pictures.append(f"![{shown}]({figures.name}/{file})\n")
    note = f"{result.note}.\n\n" if result.note else ""
    return f"{result.grid(short=True).markdown()}\n{note}{provenance(result)}\n\n" + "\n".join(pictures)


def provenance(result: Result) -> str:
    """How a result was made, in a sentence or two."""
    seeds = f"{len(result.seeds)} seed{'s' if len(result.seeds) > 1 else ''}"
    spread = "scenes and seeds" if len(result.seeds) > 1 else "scenes alone"
    words = [f"{seeds}, {result.scenes:,} held-out scenes; 95% intervals of {spread}."]
    made = result.made_of
    if made:
        words.append(f"{made['recipe']['scenes']['train']:,} training scenes; {_steps(result.what, made['recipe'])}.")
        code = f" with the code of {', '.join(made['code'])}" if made["code"] else ""
        words.append(f"{made['cpu_seconds'] / 3600:.1f} CPU hours in {made['stages']} stages{code}.")
    return " ".join(words)


def _steps(what: str, recipe: Mapping[str, Any]) -> str:
    """Of the trainings that a result shows."""
    def of(stages: Sequence[Mapping[str, Any]]) -> str:
        return " + ".join(str(stage["steps"]) for stage in stages)

    if what == "mock":
        return f"SFT steps: {of(recipe['mock']['stages'])}"
    if what == "size":
        return f"RL steps: {recipe['size']['steps']}"
    sft = ", ".join(f"{name} {of(row['stages'])}" for name, row in recipe["sft"].items())
    return f"SFT steps: {sft}; RL steps: {recipe['rl']['steps']}, of the model {recipe['rl']['more']} more"


def absent(name: str) -> str:
    """What stands in place of a result that is not there."""
    return f"Not measured yet: `nemo-mtdrive reproduce {MADE_BY.get(name, name)}`, then `nemo-mtdrive reproduce page`.\n"


def budget_markdown(rows: Sequence[tuple[str, int, float, int]]) -> str:
    """(what, stages, CPU seconds, stages of them that were measured) as a table."""
    lines = ["| `nemo-mtdrive reproduce` | Stages | CPU hours | of them measured |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {what} | {stages} | {seconds / 3600:.1f} | {measured} |" for what, stages, seconds, measured in rows]
    return "\n".join(lines) + "\n"


def gates_markdown(gates: Sequence[Gate]) -> str:
    """The gates as a table."""
    lines = ["| | What | Wanted | Found |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(["pass" if gate.passed else "**fail**",
                                 *(text.replace("|", r"\|") for text in (gate.name, gate.wanted, gate.found))]) + " |"
              for gate in gates]
    return "\n".join(lines) + "\n"
