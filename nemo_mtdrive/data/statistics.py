"""What is in a folder of SFT data, counted from its lines: the same however often its making was interrupted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from nemo_mtdrive.data.folder import read_lines, read_requests
from nemo_mtdrive.data.lines import Line, answers_of
from nemo_mtdrive.dialogue.questions import METRICS, YES
from nemo_mtdrive.whole_file import write_whole

STATISTICS = "stats.json"
_ISSUE = re.compile(r"^[1-3]\. The (NC|DAC|TTC) metric reveals", re.MULTILINE)
_UNREADABLE = "It could not be read:"


def count_lines(folder: Path) -> dict[str, Any]:
    """Counts of all sets that are done.

    Returns:
        scenes, images, lines by kind; `asked`: scenes that were asked for by set; `multi_turn`: conversations by turns,
        rejected answers by driver, feedback by metric; `understanding`: answers by metric and by form.
    """
    lines: Counter[str] = Counter()
    scenes, images = set[str](), set[str]()
    turns, drivers, metrics = Counter[int](), Counter[str](), Counter[str]()
    answers = {metric: {"yes": 0, "no": 0} for metric in METRICS}
    forms: Counter[str] = Counter()
    for _, _, text in read_lines(folder):
        line: Line = json.loads(text)
        lines[line["kind"]] += 1
        scenes.add(line["scene_id"])
        images.update(line["images"])
        provenance = line["provenance"]
        if line["kind"] == "multi_turn":
            turns[len(provenance["answers"])] += 1
            drivers.update(provenance["answers"][:-1])
            metrics.update(_metrics_of(line))
        elif line["kind"] == "understanding":
            answers[provenance["metric"]]["yes" if answers_of(line)[-1] == YES else "no"] += 1
            forms[provenance["form"]] += 1
    statistics: dict[str, Any] = {
        "scenes": len(scenes), "images": len(images), "lines": dict(sorted(lines.items())),
        "asked": {name: request["count"] for name, request in sorted(read_requests(folder).items())},
    }
    if "multi_turn" in lines:
        statistics["multi_turn"] = {"turns": {str(count): number for count, number in sorted(turns.items())},
                                    "rejected": dict(sorted(drivers.items())), "feedback": dict(sorted(metrics.items()))}
    if "understanding" in lines:
        statistics["understanding"] = {"answers": answers, "forms": dict(sorted(forms.items()))}
    return statistics


def _metrics_of(line: Line) -> list[str]:
    """Metrics that feedback in a line is about, once a turn."""
    found: list[str] = []
    for message in line["messages"][2::2]:
        found += ["unreadable"] if _UNREADABLE in message["content"] else _ISSUE.findall(message["content"])
    return found


def write_statistics(folder: Path, statistics: dict[str, Any]) -> None:
    """Write them as stats.json."""
    write_whole(folder / STATISTICS, json.dumps(statistics, indent=1) + "\n")


def read_statistics(folder: Path) -> dict[str, Any] | None:
    """What `write_statistics` wrote, or None."""
    path = folder / STATISTICS
    return json.loads(path.read_text()) if path.is_file() else None


def statistics_table(statistics: dict[str, Any]) -> str:
    """The counts as a table for the terminal."""
    rows = [("scenes", statistics["scenes"]), ("images", statistics["images"])]
    rows += [(f"{kind.replace('_', '-')} lines", count) for kind, count in statistics["lines"].items()]
    multi_turn = statistics.get("multi_turn", {})
    rows += [(f"  of {turns} turns", count) for turns, count in multi_turn.get("turns", {}).items()]
    rows += [(f"  rejected {driver.replace('_', ' ')}", count) for driver, count in multi_turn.get("rejected", {}).items()]
    rows += [(f"  feedback on {metric}", count) for metric, count in multi_turn.get("feedback", {}).items()]
    understanding = statistics.get("understanding", {})
    rows += [(f"  {metric} yes / no", f"{counts['yes']} / {counts['no']}")
             for metric, counts in understanding.get("answers", {}).items()]
    rows += [(f"  form {form.replace('_', ' ')}", count) for form, count in understanding.get("forms", {}).items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:>13}" for name, value in rows)
