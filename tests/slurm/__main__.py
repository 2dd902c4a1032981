"""A private Slurm to try things on: `python -m tests.slurm [COMMAND...]` runs a command (default: a shell) there.

    python -m tests.slurm sinfo
    python -m tests.slurm bash -c 'sbatch --wait --wrap hostname; cat slurm-*.out'

It is gone when the command has ended. `python -m tests.slurm --up` keeps it until standard input ends or Ctrl-C, and says
with which process id others reach it: `python -m tests.slurm --in ID [COMMAND...]`.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.slurm.private_slurm import NotPossible, PrivateSlurm, clean_environment, inside


def main(arguments: list[str]) -> int:
    """Returns the command's exit code."""
    if arguments[:1] == ["--help"]:
        print(__doc__)
        return 0
    if arguments[:1] == ["--in"]:
        os.execvpe("nsenter", inside(int(arguments[1]), arguments[2:] or ["bash"]), clean_environment())
    try:
        with PrivateSlurm() as slurm:
            if arguments[:1] == ["--up"]:
                print(f"python -m tests.slurm --in {slurm.head} sinfo", flush=True)
                sys.stdin.read()
                return 0
            return subprocess.run(slurm.command(arguments or ["bash"]), env=clean_environment(), check=False).returncode
    except NotPossible as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
