"""Files that are written whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there; a reader sees the old one or the new one. Text is UTF-8; what
    UTF-8 cannot hold (a model may write anything) is escaped."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    temporary.replace(path)
