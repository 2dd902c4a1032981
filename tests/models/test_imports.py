"""Importing the model neither builds anything nor waits for whoever died while building."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_lock_left_by_a_killed_process_stops_nobody(tmp_path: Path) -> None:
    """torch's lock for megatron's extension outlives a killed owner; a rank that waited for it would never start."""
    lock = tmp_path / "managed_alloc_runtime" / "lock"
    lock.parent.mkdir()
    lock.touch()
    program = """
import nemo_mtdrive.models.qwen25_vl
from megatron.core.inference.contexts import dynamic_context
assert not dynamic_context.has_unified_memory
try:
    dynamic_context.create_unified_mempool()
except RuntimeError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False,
                         env=os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    assert ran.returncode == 0, ran.stderr
    assert "unified_memory_level must be 0" in ran.stdout
    assert [path.name for path in lock.parent.iterdir()] == ["lock"], "something was built"
