"""Convert a Hugging Face directory of Qwen2.5-VL into a NeMo 2 checkpoint directory."""

from __future__ import annotations

import sys
from pathlib import Path

import command


def main() -> int:
    """Read the options and convert; returns the exit code."""
    example = "example: python converters/hf_to_nemo.py --hf Qwen2.5-VL-7B-Instruct --out nemo/7b --tp 4"
    parser = command.options(__doc__ or "", example)
    parser.add_argument("--hf", type=Path, required=True, metavar="DIR", help="config.json and safetensors")
    parser.add_argument("--tp", type=command.count, default=1, metavar="T",
                        help="tensor-parallel ranks whose layout the files take; others read them too (default: 1)")
    parser.add_argument("--pp", type=command.count, default=1, metavar="P", help="pipeline stages, alike (default: 1)")
    options = parser.parse_args()

    def convert(start: command.Start) -> Path:
        import torch

        from nemo_mtdrive.models.convert import hf_to_nemo

        return hf_to_nemo(options.hf, options.out, tensor_size=options.tp, pipeline_size=options.pp,
                          dtype=getattr(torch, options.dtype) if options.dtype else None, overwrite=options.overwrite,
                          start=start)

    return command.run(convert, (options.hf, options.out) if options.check else None)


if __name__ == "__main__":
    sys.exit(main())
