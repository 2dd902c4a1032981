"""Image features that several micro-batches of a phase share, and how often the vision tower ran.

Rollouts of a scene show the same image. Inside a micro-batch it is encoded once anyway; where a scene's rollouts fill
several micro-batches, a phase without gradients keeps the features for them. A phase has one set of weights, so the
memory lives as long as the phase and no longer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[Tensor, Tensor], Tensor]
"""(pixel_values of some images, their grids [n, 3]) -> features [cells, hidden], image after image."""


class FeatureMemory:
    """Features by image id, for micro-batches that follow one another; the oldest go first beyond the byte budget.

    Args:
        budget_bytes: most that is kept between micro-batches; 0 keeps nothing.
        merge: patches that the tower merges into one cell.
    """

    def __init__(self, budget_bytes: int, merge: int) -> None:
        self._budget_bytes = budget_bytes
        self._merge = merge
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._bytes = 0

    def features(self, microbatch: Mapping[str, Any], encode: Encode) -> Tensor | None:
        """[cells, hidden] of the micro-batch's images in order; those that are not known are encoded together.

        None where the micro-batch does not say which images it has (`image_ids`), or has none.
        """
        if not self._budget_bytes or "image_ids" not in microbatch or "pixel_values" not in microbatch:
            return None
        ids, grid = microbatch["image_ids"].tolist(), microbatch["image_grid_thw"]
        new = [place for place, name in enumerate(ids) if name not in self._kept]
        found = {name: self._kept[name] for name in ids if name in self._kept}
        if new:
            patches = grid.prod(dim=1).tolist()
            rows = microbatch["pixel_values"]
            if len(new) < len(ids):
                parts = rows.split(patches)
                rows = torch.cat([parts[place] for place in new])
            encoded = encode(rows, grid[new]).split([patches[place] // self._merge for place in new])
            found |= {ids[place]: features for place, features in zip(new, encoded, strict=True)}
            self._keep({ids[place]: found[ids[place]] for place in new})
        return torch.cat([found[name] for name in ids]) if ids else None

    def _keep(self, found: Mapping[int, Tensor]) -> None:
        for name, features in found.items():
            own = features.clone()  # not a view of all that were encoded together
            self._kept[name] = own
            self._bytes += own.numel() * own.element_size()
        while self._bytes > self._budget_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.numel() * dropped.element_size()
