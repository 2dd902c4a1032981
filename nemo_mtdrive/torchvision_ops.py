"""Let `import torchvision` work where its own operators cannot load: a CUDA build beside a CPU build of torch.

transformers imports torchvision wherever it is installed, and torchvision asks for its operators at import. They are
declared here without an implementation; nothing in this project calls them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_library: torch.library.Library | None = None  # the declarations live as long as this object


def declare_torchvision_operators() -> None:
    """Declare `torchvision::nms` and `qnms` unless torchvision's own can be loaded. Safe to call again."""
    global _library
    package = importlib.util.find_spec("torchvision")
    if _library is not None or package is None or package.origin is None:
        return
    for extension in Path(package.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
            return
        except OSError:
            continue
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
