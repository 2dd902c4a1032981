"""Let `import torchvision` work where its own operators cannot load: a CUDA build beside a CPU build of torch.

transformers imports torchvision wherever it is installed, and torchvision asks for its operators at import. They are
declared here without an implementation; nothing in this project calls them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, and `declare_on_import` runs at the start of every interpreter of an environment
    import torch

_library: torch.library.Library | None = None  # the declarations live as long as this object


def declare_torchvision_operators() -> None:
    """Declare `torchvision::nms` and `qnms` unless torchvision's own can be loaded. Safe to call again."""
    global _library
    package = importlib.util.find_spec("torchvision")
    if _library is not None or package is None or package.origin is None:
        return
    import torch

    for extension in Path(package.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
            return
        except OSError:
            continue
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing itself; declares the operators when torchvision is about to be imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # first: declaring looks for torchvision too
            declare_torchvision_operators()


def declare_on_import() -> None:
    """Call `declare_torchvision_operators` when torchvision is first imported; until then this costs nothing.

    For environments whose processes others start, as vLLM starts its own: a line in a .pth file calls it.
    """
    if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())
