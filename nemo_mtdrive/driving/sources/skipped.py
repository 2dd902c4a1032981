"""`skipped.jsonl` of a folder of scenes: what a writer left out because it breaks the rules, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nemo_mtdrive.driving.sources.pictures import write_bytes

SKIPPED = "skipped.jsonl"


def read_skipped(folder: Path) -> dict[str, str]:
    """Scene -> why it was left out."""
    file = folder / SKIPPED
    entries = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {entry["scene"]: entry["problem"] for entry in entries}


def write_skipped(folder: Path, skipped: Mapping[str, str]) -> None:
    """Write the file whole, or remove it if nothing was left out."""
    if skipped:
        lines = [json.dumps({"scene": name, "problem": problem}) + "\n" for name, problem in skipped.items()]
        write_bytes(folder / SKIPPED, "".join(lines).encode())
    else:
        (folder / SKIPPED).unlink(missing_ok=True)
