"""The network itself: NeMo's Megatron Qwen2.5-VL with HF token ids, images that several sequences share, packing.

Sequences come padded on the right, [B, T], or packed, [1, T] with the bounds of the segments in it. Attention is causal
and stays inside a sequence or segment, so that padding needs no mask: it never reaches a real token.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from nemo.collections.vlm.qwen2vl.model.base import MCoreQwen2VLModel
from torch import Tensor

from nemo_mtdrive.models.layers import rotary_table
from nemo_mtdrive.models.logprobs import Scores, Scoring, project_and_score
from nemo_mtdrive.models.packing import packed_params


class Qwen25VLNetwork(MCoreQwen2VLModel):
    """One pipeline stage of the model."""

    images_encoded = 0
    """How many images have gone through the vision tower."""

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        image_index: Tensor | None = None,
        segments: Tensor | None = None,
        scoring: Scoring | None = None,
        image_features: Tensor | None = None,
    ) -> Tensor | Scores:
        """Scores or logits, or the hidden state for the next stage.

        Args:
            tokens: int64 [B, T], HF's ids, image placeholders expanded.
            positions: int64 [3, B, T], M-RoPE positions (time, height, width); in a packed row they begin again with
                each segment.
            pixel_values: [N, channels * frames * patch * patch] patches of the unique images, or None.
            image_grid_thw: int64 [n, 3] their grids in patches.
            image_index: int64 [runs], for each run of placeholders in batch order the unique image that feeds it;
                None says that the runs take the images in order.
            segments: int32 [S + 1], where the segments of a packed row begin, and the end: 0, ..., T. None: not packed.
            scoring: which tokens are scored and how, or None for the logits of all.
            image_features: what `encode_images` gave for the unique images: they are not encoded again, and no pixels
                are needed.

        Returns:
            On the last stage with `scoring` the `Scores`, without it logits [B, T, vocabulary / tp]. On other stages
            [T, B, hidden] (sequence parallel: this rank's part of T).

        Raises:
            ValueError: placeholders and images do not match.
        """
        length = tokens.shape[1]
        missing = -length % parallel_state.get_tensor_model_parallel_world_size() if self.sequence_parallel_lm else 0
        if missing:  # the ranks take equal parts of the sequence; any id will do that is no image
            filler = int(self.config.image_token_id == 0)
            tokens, positions = F.pad(tokens, (0, missing), value=filler), F.pad(positions, (0, missing))
        embeddings = None
        if self.pre_process:
            embeddings = self._embed(tokens, pixel_values, image_grid_thw, image_index, image_features)
        language = self.language_model
        hidden = language.decoder(
            hidden_states=embeddings,
            attention_mask=None,
            rotary_pos_emb=rotary_table(language.rotary_pos_emb(positions, language.mrope_section)),
            packed_seq_params=None if segments is None else packed_params(segments, tokens.shape[1]),
        )
        if not self.post_process:
            return hidden
        return self._logits(hidden)[:, :length] if scoring is None else self._scores(hidden, tokens[:, :length], scoring)

    def _output_weight(self) -> Tensor:
        if self.share_embeddings_and_output_weights:
            return self.language_model.shared_embedding_or_output_weight()
        return self.language_model.output_layer.weight

    def _logits(self, hidden: Tensor) -> Tensor:
        logits, _ = self.language_model.output_layer(hidden, weight=self._output_weight())
        return logits.transpose(0, 1).contiguous()

    def _scores(self, hidden: Tensor, tokens: Tensor, scoring: Scoring) -> Scores:
        """Only the rows before scored tokens are projected: a prompt costs nothing here."""
        row, column = scoring.scored.nonzero(as_tuple=True)
        if self.sequence_parallel_lm:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
            chosen = hidden[column - 1, row]
        else:
            chosen = copy_to_tensor_model_parallel_region(hidden[column - 1, row])
        targets = tokens[scoring.scored]
        return project_and_score(chosen, self._output_weight(), targets, scoring.temperature, scoring.want_entropy)

    def _embed(self, tokens: Tensor, pixel_values: Tensor | None, grid: Tensor | None, image_index: Tensor | None,
               features: Tensor | None) -> Tensor:
        """[T, B, hidden] with the images' features in place of their placeholders."""
        embeddings = self.language_model.embedding(input_ids=tokens, position_ids=None)
        row, column = (tokens == self.config.image_token_id).nonzero(as_tuple=True)
        if row.numel():
            if (pixel_values is None and features is None) or grid is None:
                raise ValueError(f"{row.numel()} image placeholders and no image: give pixel_values and image_grid_thw")
            if features is None:
                assert pixel_values is not None
                features = self.encode_images(pixel_values, grid)
            features = self._of_runs(features, grid, image_index, row.numel())
            embeddings = embeddings.index_put((column, row), features.to(embeddings.dtype))
        if self.sequence_parallel_lm:
            embeddings = scatter_to_sequence_parallel_region(embeddings)
        return embeddings

    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """Visual embeddings [cells, hidden] of images, one after the other, as the language model reads them."""
        grids = tuple((frames, height, width) for frames, height, width in grid.tolist())
        self.images_encoded += len(grids)
        with torch.no_grad() if self.config.freeze_vision_model else nullcontext():  # a frozen tower keeps no activations
            encoded, inverse = self.vision_model(pixel_values, grids)
        return self.vision_projection(encoded).index_select(0, inverse)

    def _of_runs(self, features: Tensor, grid: Tensor, image_index: Tensor | None, placeholders: int) -> Tensor:
        """[placeholders, hidden]: the features of each unique image are handed to every run that shows it."""
        grids = grid.tolist()
        unit = self.vision_model.spatial_merge_unit
        lengths = [frames * height * width // unit for frames, height, width in grids]
        runs = list(range(len(grids))) if image_index is None else image_index.tolist()
        if runs and not 0 <= min(runs) <= max(runs) < len(grids):
            raise ValueError(f"image_index names image {max(runs)} of {len(grids)}: it counts from 0")
        expected = sum(lengths[run] for run in runs)
        if expected != placeholders:
            raise ValueError(f"{placeholders} image placeholders, but the images of image_index fill {expected}")
        if runs == list(range(len(grids))):
            return features
        return torch.cat([features.split(lengths)[run] for run in runs])
