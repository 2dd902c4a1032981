"""One command of a stage, in a process that ends in order when the reproduction is killed.

    python -m nemo_mtdrive.reproduce.child PARENT_PID nemo-mtdrive evaluate ...
    python -m nemo_mtdrive.reproduce.child PARENT_PID python converters/nemo_to_hf.py ...
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

from nemo_mtdrive.process import die_with_parent


def main() -> int:
    """Run the command; returns its exit code."""
    parent, program, *words = sys.argv[1:]
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the kernel was asked
        return 1
    if program == "nemo-mtdrive":
        from nemo_mtdrive import cli

        return cli.main(words)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
