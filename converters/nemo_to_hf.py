"""Convert a NeMo 2 checkpoint directory, or a checkpoint of a run, into a Hugging Face directory of Qwen2.5-VL."""

from __future__ import annotations

import sys
from pathlib import Path

import command


def main() -> int:
    """Read the options and convert; returns the exit code."""
    example = "example: python converters/nemo_to_hf.py --nemo runs/demo/checkpoints/latest --out hf"
    parser = command.options(__doc__ or "", example)
    parser.add_argument("--nemo", type=Path, required=True, metavar="DIR", help="context/ and weights/, of any tp and pp")
    parser.add_argument("--hf", type=Path, metavar="DIR",
                        help="folder of config.json, tokenizer and processor (default: those that the checkpoint carries)")
    parser.add_argument("--shard-size", type=command.size, default="5GB", metavar="SIZE",
                        help="most bytes of a safetensors file (default: %(default)s)")
    options = parser.parse_args()

    def convert(start: command.Start) -> Path:
        import torch

        from nemo_mtdrive.models.convert import nemo_to_hf

        return nemo_to_hf(options.nemo, options.out, files=options.hf,
                          dtype=getattr(torch, options.dtype) if options.dtype else None, shard_bytes=options.shard_size,
                          overwrite=options.overwrite, start=start)

    return command.run(convert, (options.out, options.nemo) if options.check else None)


if __name__ == "__main__":
    sys.exit(main())
