"""How a command of `nemo-mtdrive` is declared: summary, example, and the checks of its numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def command(commands: argparse._SubParsersAction, name: str, summary: str, run: Callable, example: str,
            ) -> argparse.ArgumentParser:
    """Add a command that calls `run(options)`; `--help` shows the summary and the example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, epilog=f"example: {example}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    return parser


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The check of a whole number within bounds."""
    wanted = f"to {least} or more" if most is None else f"from {least} to {most}"

    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"got {value}, set it {wanted}")
        return value

    return number


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, set it to 1 or more")
    return value
