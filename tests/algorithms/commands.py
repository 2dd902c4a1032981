"""Commands of the project as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-m", "nemo_mtdrive.cli", *words], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600, check=False)
