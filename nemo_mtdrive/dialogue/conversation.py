r"""The conversation as tokens: layout, growth turn by turn, spans of the answers, and mRoPE positions.

Layout, byte for byte that of Appendix A.1 (no newline between `<|im_end|>` of an answer and the next user turn)::

    <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n
    <|im_start|>user\n<|vision_start|><|image_pad|>*n<|vision_end|>\nAs an autonomous ...<|im_end|>\n
    <|im_start|>assistant\n ANSWER 0 <|im_end|><|im_start|>user\n FEEDBACK 0 <|im_end|>\n
    <|im_start|>assistant\n ANSWER 1 <|im_end|> ...

Token-in, token-out: an answer enters as the ids that were sampled and is never decoded and encoded again, because the
round trip may change the ids and then the trainer would score other tokens than the engine drew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.dialogue.prompt import SYSTEM
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.types import NOT_OURS

MERGE = 2
"""Qwen2.5-VL merges 2 x 2 patches into one token (`spatial_merge_size`)."""

ImageGrid = tuple[int, int, int]
"""(t, h, w) of an image in 14-pixel patches."""

_LARGEST_LOGPROB = 1e-4  # engines round log-probabilities of near-certain tokens a little above zero


class ConversationError(ValueError):
    """Tokens that do not fit the conversation; the message says what was got and what is wanted."""


def image_tokens(image_grid: ImageGrid) -> int:
    """Number of image placeholders of a grid: t * h/2 * w/2.

    Raises:
        ConversationError: the grid does not divide by the merge.
    """
    t, h, w = image_grid
    if min(t, h, w) < 1 or h % MERGE or w % MERGE:
        raise ConversationError(f"image_grid={tuple(image_grid)}: want t >= 1 and h, w positive multiples of {MERGE}")
    return t * h * w // MERGE**2


def open_conversation(tokenizer: Tokenizer, question: str, image_grid: ImageGrid | None) -> NDArray[np.int32]:
    """[n] tokens from the start up to and including `<|im_start|>assistant\\n`: what the first answer continues; with
    `image_grid` None nothing is shown."""
    _refuse_special(tokenizer, question, "question")
    if image_grid is None:
        return tokenizer.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
                                "<|im_start|>assistant\n")
    pads = image_tokens(image_grid)
    head = tokenizer.encode(
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    tail = tokenizer.encode(f"<|vision_end|>\n{question}<|im_end|>\n<|im_start|>assistant\n")
    return np.concatenate([head, np.full(pads, tokenizer.image_pad, dtype=np.int32), tail])


def next_user_turn(tokenizer: Tokenizer, feedback: str) -> NDArray[np.int32]:
    """[n] tokens between the `<|im_end|>` of an answer and the first token of the next answer."""
    _refuse_special(tokenizer, feedback, "feedback")
    return tokenizer.encode(f"<|im_start|>user\n{feedback}<|im_end|>\n<|im_start|>assistant\n")


def closing(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """[1] the `<|im_end|>` that we put after an answer which the model did not close (cut by the token limit)."""
    return np.asarray([tokenizer.im_end], dtype=np.int32)


def _refuse_special(tokenizer: Tokenizer, text: str, name: str) -> None:
    if tokenizer.contains_special(text):
        raise ConversationError(f"{name}: it holds a special token as text; remove it")


class Conversation:
    """A conversation that grows: question, answer 0, feedback 0, answer 1, ...

    Answers and feedback must alternate; `ConversationError` otherwise. `prompt` is `tokens` at the moment an answer is
    wanted, which is what the engine continues.
    """

    def __init__(self, tokenizer: Tokenizer, question: str, image_grid: ImageGrid | None) -> None:
        self.tokenizer = tokenizer
        self.image_grids: tuple[ImageGrid, ...] = () if image_grid is None else (tuple(image_grid),)  # type: ignore[assignment]
        self.spans: list[tuple[int, int]] = []
        """(start, stop) of each answer in `tokens`, the model's own `<|im_end|>` included."""
        self._tokens = open_conversation(tokenizer, question, image_grid)
        self._turns = np.full(len(self._tokens), NOT_OURS, dtype=np.int16)
        self._logprobs = np.zeros(len(self._tokens), dtype=np.float32)
        self._wants_answer = True
        self._forbidden = frozenset(tokenizer.forbidden.tolist())

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """[T] all token ids so far."""
        return self._tokens

    @property
    def turn_of_token(self) -> NDArray[np.int16]:
        """[T] the turn whose answer this token belongs to, or `NOT_OURS`."""
        return self._turns

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """[T] the engine's log-probability of each answer token, 0 elsewhere."""
        return self._logprobs

    @property
    def turns(self) -> int:
        """Number of answers so far."""
        return len(self.spans)

    @property
    def wants_answer(self) -> bool:
        """Whether the model is to speak next."""
        return self._wants_answer

    def answer(self, turn: int) -> str:
        """The text of an answer, for the environment and for people; it never becomes tokens again."""
        start, stop = self.spans[turn]
        return self.tokenizer.decode(self._tokens[start:stop])

    def add_answer(self, ids: Sequence[int] | NDArray[np.integer],
                   logprobs: Sequence[float] | NDArray[np.floating]) -> None:
        """Append the ids that the engine sampled, its `<|im_end|>` included where it wrote one.

        Raises:
            ConversationError: it is not the model's turn, nothing was sampled, ids that may not be sampled (image
                marks, `<|im_start|>`, padding rows), tokens after `<|im_end|>`, or log-probabilities of another length,
                not finite or above 0.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        values = np.asarray(logprobs, dtype=np.float32)
        if not self._wants_answer:
            raise ConversationError(f"answer {self.turns}: got an answer, want the feedback to answer {self.turns - 1}")
        if tokens.ndim != 1 or len(tokens) == 0 or values.shape != tokens.shape:
            raise ConversationError(f"answer {self.turns}: got {tokens.shape} ids and {values.shape} log-probabilities,"
                                    " want two vectors of one length above 0")
        if tokens.min() < 0 or tokens.max() >= self.tokenizer.size or not self._forbidden.isdisjoint(tokens.tolist()):
            raise ConversationError(f"answer {self.turns}: it holds an id that must not be sampled; "
                                    "mask Tokenizer.forbidden in the engine")
        if (tokens[:-1] == self.tokenizer.im_end).any():
            raise ConversationError(f"answer {self.turns}: got tokens after <|im_end|>; stop the engine there")
        if not np.isfinite(values).all() or values.max() > _LARGEST_LOGPROB:
            raise ConversationError(f"answer {self.turns}: log-probabilities must be finite and not above 0")
        start = len(self._tokens)
        self._append(tokens.astype(np.int32), self.turns, values)
        self.spans.append((start, len(self._tokens)))
        self._wants_answer = False

    def add_feedback(self, text: str) -> None:
        """Append the next user message, closing the answer first where the model did not.

        Raises:
            ConversationError: no answer stands before it, or the text holds a special token.
        """
        if self._wants_answer:
            raise ConversationError(f"feedback: got feedback, want answer {self.turns} first")
        added = next_user_turn(self.tokenizer, text)
        if self._tokens[-1] != self.tokenizer.im_end:
            added = np.concatenate([closing(self.tokenizer), added])
        self._append(added, NOT_OURS, np.zeros(len(added), dtype=np.float32))
        self._wants_answer = True

    def _append(self, tokens: NDArray[np.int32], turn: int, logprobs: NDArray[np.float32]) -> None:
        self._tokens = np.concatenate([self._tokens, tokens])
        self._turns = np.concatenate([self._turns, np.full(len(tokens), turn, dtype=np.int16)])
        self._logprobs = np.concatenate([self._logprobs, logprobs])


def encode_dialogue(tokenizer: Tokenizer, question: str, image_grid: ImageGrid | None,
                    turns: Sequence[tuple[str, str | None]]) -> Conversation:
    """A written dialogue for SFT: (answer, feedback) pairs, the last feedback None; each answer gets its `<|im_end|>`.

    This is the one place where answers are encoded from text, because no engine has sampled them; log-probabilities
    are zeros.

    Raises:
        ConversationError: no turns, a feedback missing between two answers, one left over, or special tokens in a text.
    """
    if not turns or turns[-1][1] is not None:
        raise ConversationError("turns: want at least one (answer, feedback), and None as the last feedback")
    conversation = Conversation(tokenizer, question, image_grid)
    for index, (answer, feedback) in enumerate(turns):
        _refuse_special(tokenizer, answer, f"answer {index}")
        ids = np.concatenate([tokenizer.encode(answer), closing(tokenizer)])
        conversation.add_answer(ids, np.zeros(len(ids), dtype=np.float32))
        if feedback is not None:
            conversation.add_feedback(feedback)
        elif index + 1 < len(turns):
            raise ConversationError(f"turns[{index}]: feedback is None, but another answer follows; give its text")
    return conversation


def mrope_positions(tokens: NDArray[np.integer], image_grids: Sequence[ImageGrid], image_pad: int, vision_start: int,
                    merge: int = MERGE) -> NDArray[np.int64]:
    """[3, T] (time, height, width) positions of one unpadded conversation, as Hugging Face's `get_rope_index` has them.

    Text advances all three together; an image takes one step of time, its rows and columns; the text after it
    continues from the largest position so far plus one.

    Args:
        tokens: [T] ids with expanded placeholders.
        image_grids: (t, h, w) in patches of each image, in order.
        image_pad, vision_start: the ids of `<|image_pad|>` and `<|vision_start|>`.
        merge: patches merged along a side.

    Raises:
        ConversationError: the placeholders do not fit the grids.
    """
    tokens = np.asarray(tokens)
    length = len(tokens)
    starts = 1 + np.flatnonzero((tokens[:-1] == vision_start) & (tokens[1:] == image_pad))
    if len(starts) != len(image_grids):
        raise ConversationError(f"got {len(starts)} images in the tokens and {len(image_grids)} grids")
    positions = np.empty((3, length), dtype=np.int64)
    done, following = 0, 0
    for start, grid in zip(starts.tolist(), image_grids, strict=True):
        t, h, w = grid[0], grid[1] // merge, grid[2] // merge
        stop = start + t * h * w
        if start < done or stop > length or not (tokens[start:stop] == image_pad).all():
            raise ConversationError(f"image at token {start}: want {t * h * w} placeholders for grid {grid}")
        positions[:, done:start] = following + np.arange(start - done)
        origin = following + start - done
        # The time index of an image stands still: HF scales it by `second_per_grid_t`, which is 0 for images.
        positions[0, start:stop] = origin
        positions[1, start:stop] = origin + np.tile(np.repeat(np.arange(h), w), t)
        positions[2, start:stop] = origin + np.tile(np.arange(w), t * h)
        done, following = stop, origin + max(1, h, w)
    positions[:, done:] = following + np.arange(length - done)
    return positions
