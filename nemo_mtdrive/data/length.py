"""How long a conversation is in a model's tokens, so that none is made which a trainer would have to leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.data.datasets import PATCH
from nemo_mtdrive.data.lines import IMAGE_PLACEHOLDER
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import Tokenizer


class ConversationLength:
    """Counts with one tokenizer.

    Args:
        tokenizer: its folder; not read where there is no limit.
        max_tokens: of a conversation, image and answers included; 0: no limit.
    """

    def __init__(self, tokenizer: str, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokenizer = Tokenizer.load(Path(tokenizer)) if max_tokens else None

    def limit_for(self, image: NDArray[np.uint8]) -> Callable[[Sequence[str]], bool]:
        """Whether the conversation of these texts (user and assistant in turn) about an image [H, W, 3] is short enough."""
        tokenizer, grid = self._tokenizer, (1, image.shape[0] // PATCH, image.shape[1] // PATCH)
        if tokenizer is None:
            return lambda texts: True

        def fits(texts: Sequence[str]) -> bool:
            turns = list(zip(texts[1::2], [*texts[2::2], None], strict=True))
            return len(encode_dialogue(tokenizer, texts[0].removeprefix(IMAGE_PLACEHOLDER), grid, turns)) <= self._max_tokens

        return fits
