"""The vision tower: NeMo's Qwen2.5-VL encoder, attention per window or per image, geometry computed once a size.

Patches of an image come in the order of HF's processor: merged cells row by row, the patches of a cell (2 x 2 in the
published models) together. Inside the tower the cells are reordered window by window; `forward` undoes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from nemo.collections.vlm.qwen2vl.model.vision import Qwen25VisionModel
from torch import Tensor

from nemo_mtdrive.models.layers import rotary_table
from nemo_mtdrive.models.packing import packed_params

Grid = tuple[int, int, int]
"""(frames, height, width) of an image in patches."""


@dataclass(frozen=True)
class Geometry:
    """Where the patches of a batch of images are; all derived from the grids alone."""

    order: Tensor
    """[cells] merged cells in window order."""
    inverse: Tensor
    """[cells] the inverse of `order`."""
    rotary: Tensor
    """`rotary_table` of the patches, in window order."""
    windows: PackedSeqParams
    images: PackedSeqParams


class VisionTower(Qwen25VisionModel):
    """[patches, pixels of a patch] -> [cells, hidden * merge^2] features before the patch merger, in image order."""

    def forward(self, pixel_values: Tensor, grids: tuple[Grid, ...]) -> tuple[Tensor, Tensor]:
        """Encode several images at once.

        Args:
            pixel_values: [patches, channels * frames * patch * patch] of all images.
            grids: of each image, in patches.

        Returns:
            features [cells, merge^2 * hidden] in window order, and the index that puts them back in image order (apply it
            after the patch merger, which works cell by cell).
        """
        geometry = self.geometry(grids, pixel_values.device)
        # The convolution's kernel is one whole patch: a matrix product.
        hidden = F.linear(pixel_values.to(self.conv1.weight.dtype), self.conv1.weight.flatten(1))
        cells = hidden.view(-1, self.spatial_merge_unit, self.visual_hidden_size)
        hidden = cells.index_select(0, geometry.order).view(-1, 1, self.visual_hidden_size)
        hidden = self.decoder(
            hidden,
            None,
            rotary_pos_emb=geometry.rotary,
            packed_seq_params=geometry.windows,
            packed_seq_params_full=geometry.images,
        )
        return hidden.reshape(-1, self.merge_hidden_size), geometry.inverse

    @lru_cache(maxsize=256)  # noqa: B019  # one tower lives as long as the process
    def geometry(self, grids: tuple[Grid, ...], device: torch.device) -> Geometry:
        """Window order, rotary angles and segment bounds of a batch of images."""
        merge = self.spatial_merge_size
        window = self.window_size // merge // self.patch_dim
        orders, positions, window_lengths, frame_lengths, cells = [], [], [], [], 0
        for frames, height, width in grids:
            order, lengths = _window_order(height // merge, width // merge, window)
            position = _patch_positions(height, width, merge).view(-1, self.spatial_merge_unit, 2)[order]
            for _ in range(frames):
                orders.append(order + cells)
                positions.append(position)
                window_lengths.append(lengths * self.spatial_merge_unit)
                frame_lengths.append(height * width)
                cells += order.numel()
        order = torch.cat(orders)
        inverse = torch.argsort(order)
        return Geometry(
            order=order.to(device),
            inverse=inverse.to(device),
            rotary=self._rotary(torch.cat(positions).view(-1, 2)).to(device),
            windows=_packed(torch.cat(window_lengths), device),
            images=_packed(torch.tensor(frame_lengths), device),
        )

    def _rotary(self, positions: Tensor) -> Tensor:
        """[patches, 2] rows and columns -> their rotary table: half of the angles turn with the row, half with the
        column."""
        frequencies = self.rotary_pos_emb.inv_freq.float().cpu()
        angles = (positions[:, :, None].float() * frequencies).flatten(1)
        return rotary_table(torch.cat((angles, angles), dim=-1)[:, None, None, :])


def _patch_positions(height: int, width: int, merge: int) -> Tensor:
    """[height * width, 2] row and column of each patch, in the processor's order."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack((rows, columns), dim=-1)
    return grid.view(height // merge, merge, width // merge, merge, 2).transpose(1, 2).reshape(-1, 2)


def _window_order(height: int, width: int, window: int) -> tuple[Tensor, Tensor]:
    """The order of an image's [height x width] merged cells window by window, and the cells in each window."""
    rows, columns = torch.arange(height) // window, torch.arange(width) // window
    index = (rows[:, None] * (width // window + 1) + columns).flatten()
    lengths = torch.unique_consecutive(index.sort(stable=True).values, return_counts=True)[1]
    return torch.argsort(index, stable=True), lengths


def _packed(lengths: Tensor, device: torch.device) -> PackedSeqParams:
    bounds = F.pad(lengths.cumsum(0), (1, 0)).to(device)
    return packed_params(bounds, int(lengths.sum()))
