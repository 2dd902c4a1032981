"""The files that let other trainers read a folder of SFT data as it is (docs/data.md).

The lines are the messages format: `messages` with `role` and `content`, `images` with paths, `<image>` where the image
goes. Hugging Face `datasets` and TRL read them as JSON lines, ms-swift takes the file's path, LLaMA-Factory wants
`dataset_info.json` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_mtdrive.whole_file import write_whole

DATASET_INFO = "dataset_info.json"
PREFIX = "mtdrive_"
"""LLaMA-Factory calls the sets `mtdrive_single_turn`, ..."""


def dataset_info(folder: Path) -> dict[str, Any]:
    """LLaMA-Factory's description of every set of a folder."""
    description = {
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    return {f"{PREFIX}{path.stem}": {"file_name": path.name, **description} for path in sorted(folder.glob("*.jsonl"))}


def write_dataset_info(folder: Path) -> None:
    """Write dataset_info.json."""
    write_whole(folder / DATASET_INFO, json.dumps(dataset_info(folder), indent=1) + "\n")
