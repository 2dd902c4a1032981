"""Lightning's `Callback`, imported in the one order that works on a machine without a GPU."""

from __future__ import annotations

import nemo_mtdrive.models  # noqa: F401  isort: skip  declares torchvision's operators, which Lightning's imports need
from lightning.pytorch.callbacks import Callback  # isort: skip

__all__ = ["Callback"]
