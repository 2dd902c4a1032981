"""What both scripts share: options, a progress bar on stderr, exit codes (0 done, 1 failed, 2 the request was wrong)."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

Start = Callable[[int], Callable[[int], None]]
"""Told the number of parameters, gives what is told of each that is done."""


def options(description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with the options that both directions have."""
    parser = argparse.ArgumentParser(description=description, epilog=epilog, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="is written whole or not at all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the output (default: that of the weights)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument("--check", action="store_true",
                        help="then compare the logits of both sides on an image prompt (exit code 1 if they differ)")
    return parser


def run(convert: Callable[[Start], Path], sides: tuple[Path, Path] | None) -> int:
    """Convert with a progress bar, then compare the two sides (Hugging Face, NeMo) if there are; returns the exit code."""
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("NEMO_REDIRECT_LOGS_TO_STDERR", "1")):
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    from nemo_mtdrive.models.whole_directory import ConversionError, OutputError

    name = Path(sys.argv[0]).name
    try:
        out = _converted(convert)
        if sides is not None and not _same(*sides):
            return FAILED
    except (ConversionError, OutputError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_REQUEST if isinstance(error, ConversionError) else FAILED
    except KeyboardInterrupt:
        print(f"{name}: interrupted, nothing was kept", file=sys.stderr)
        return INTERRUPTED
    print(out)
    return DONE


def _converted(convert: Callable[[Start], Path]) -> Path:
    from nemo_mtdrive.telemetry.progress import open_progress

    with open_progress(sys.stderr, plain_every_s=10.0) as progress, ExitStack() as bars:
        return convert(lambda total: bars.enter_context(progress.phase("convert", total, "parameters")).advance)


def _same(hf: Path, nemo: Path) -> bool:
    from nemo_mtdrive.models.compare import compare_logits

    found = compare_logits(hf, nemo)
    print(f"check: {found}{'' if found.equal else ': they are NOT the same model'}", file=sys.stderr)
    return found.equal


def size(text: str) -> int:
    """`5GB`, `500MB`, `123456` as bytes."""
    number, unit = (text[:-2], _UNITS[text[-2:].upper()]) if text[-2:].upper() in _UNITS else (text, 1)
    if not number.replace(".", "", 1).isdecimal() or float(number) * unit < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, set it to a size such as 5GB or 500MB")
    return int(float(number) * unit)


def count(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, set it to 1 or more")
    return int(text)
