"""The network itself: NeMo's Megatron Qwen2.5-VL with HF token ids, and images that several sequences share."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from nemo.collections.vlm.qwen2vl.model.base import MCoreQwen2VLModel
from torch import Tensor

from nemo_mtdrive.models.layers import rotary_table


class Qwen25VLNetwork(MCoreQwen2VLModel):
    """One pipeline stage of the model. Causal, right-padded: a padded position never reaches a real one."""

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        image_index: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Logits, or the hidden state for the next stage.

        Args:
            tokens: int64 [B, T], HF's ids, image placeholders expanded.
            positions: int64 [3, B, T], M-RoPE positions (time, height, width).
            pixel_values: [N, 1176] patches of the unique images, or None.
            image_grid_thw: int64 [n, 3] their grids in patches.
            image_index: int64 [runs], for each run of placeholders in batch order the unique image that feeds it;
                None says that the runs take the images in order.
            scored: bool [B, T], the tokens whose logits are wanted (never t = 0), or None for the logits of all.

        Returns:
            On the last stage [B, T, vocabulary / tp], or with `scored` [tokens, vocabulary / tp]: a row for each token
            that is scored, in batch order, from the position before it. On other stages [T, B, hidden].

        Raises:
            ValueError: placeholders and images do not match.
        """
        if self.sequence_parallel_lm and tokens.shape[1] % parallel_state.get_tensor_model_parallel_world_size():
            raise ValueError(f"{tokens.shape[1]} tokens do not divide over the sequence-parallel ranks: pad to a multiple")
        embeddings = self._embed(tokens, pixel_values, image_grid_thw, image_index) if self.pre_process else None
        language = self.language_model
        rotary = rotary_table(language.rotary_pos_emb(positions, language.mrope_section))
        hidden = language.decoder(hidden_states=embeddings, attention_mask=None, rotary_pos_emb=rotary)
        return self._logits(hidden, scored) if self.post_process else hidden

    def _logits(self, hidden: Tensor, scored: Tensor | None) -> Tensor:
        language = self.language_model
        weight = language.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        if scored is None:
            logits, _ = language.output_layer(hidden, weight=weight)
            return logits.transpose(0, 1).contiguous()
        row, column = scored.nonzero(as_tuple=True)
        if self.sequence_parallel_lm:  # the output layer gathers the sequence: the rows are at hand only after it
            logits, _ = language.output_layer(hidden, weight=weight)
            return logits[column - 1, row]
        logits, _ = language.output_layer(hidden[column - 1, row].unsqueeze(1), weight=weight)
        return logits.squeeze(1)

    def _embed(self, tokens: Tensor, pixel_values: Tensor | None, grid: Tensor | None, image_index: Tensor | None) -> Tensor:
        """[T, B, hidden] with the images' features in place of their placeholders."""
        embeddings = self.language_model.embedding(input_ids=tokens, position_ids=None)
        row, column = (tokens == self.config.image_token_id).nonzero(as_tuple=True)
        if row.numel():
            if pixel_values is None or grid is None:
                raise ValueError(f"{row.numel()} image placeholders and no image: give pixel_values and image_grid_thw")
            features = self._image_features(pixel_values, grid, image_index, row.numel())
            embeddings = embeddings.index_put((column, row), features.to(embeddings.dtype))
        if self.sequence_parallel_lm:
            embeddings = scatter_to_sequence_parallel_region(embeddings)
        return embeddings

    def _image_features(self, pixel_values: Tensor, grid: Tensor, image_index: Tensor | None, placeholders: int) -> Tensor:
        """[placeholders, hidden]: each unique image is encoded once, then handed to every run that shows it."""
        grids = tuple((frames, height, width) for frames, height, width in grid.tolist())
        encoded, inverse = self.vision_model(pixel_values, grids)
        features = self.vision_projection(encoded).index_select(0, inverse)
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
