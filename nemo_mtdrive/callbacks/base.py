"""Lightning's `Callback`; its import takes about 8 s, so processes that do not train leave this package alone."""

from __future__ import annotations

from nemo_mtdrive.torchvision_ops import declare_torchvision_operators

declare_torchvision_operators()  # Lightning imports torchmetrics, which imports torchvision

from lightning.pytorch.callbacks import Callback  # noqa: E402

__all__ = ["Callback"]
