"""SFT data on disk (JSON lines and images by content) and in memory as token sequences."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.data.single_turn import IMAGE_PLACEHOLDER
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import Tokenizer

PATCH = 14
"""Side of a vision patch [px]."""


class DataError(ValueError):
    """SFT data that cannot be used; the message names the file and line."""


@dataclass(frozen=True)
class TokenSequence:
    """A conversation as the trainers take it."""

    tokens: NDArray[np.int32]
    """[T] image placeholders expanded."""
    turn_of_token: NDArray[np.int16]
    """[T] turn j of tokens to learn from, -1 elsewhere."""
    image_keys: tuple[str, ...]
    image_grids: tuple[tuple[int, int, int], ...]


def image_grid(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    """(t, h, w) in patches of an image [H, W, 3]."""
    return 1, image.shape[0] // PATCH, image.shape[1] // PATCH


def write_image(folder: Path, key: str, image: NDArray[np.uint8]) -> None:
    """Write an RGB image [H, W, 3] as FOLDER/key.png, once, whole or not at all."""
    path = folder / f"{key}.png"
    if path.exists():
        return
    temporary = folder / f".{key}.{id(image)}.png"
    cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    temporary.replace(path)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB uint8 [H, W, 3].

    Raises:
        DataError: the file is missing or no image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: no such image; curate the data again")
    return np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


class SFTDataset:
    """The lines of a folder's *.jsonl, tokenised when asked for; images are read by key and kept."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._lines = [line for path in sorted(folder.glob("*.jsonl")) for line in _read_lines(path)]
        if not self._lines:
            raise DataError(f"{folder}: no SFT data there; run `nemo-mtdrive curate single-turn` first")
        self._sequences: dict[int, TokenSequence] = {}
        self._images: dict[str, NDArray[np.uint8]] = {}

    def indices(self, kind: str) -> list[int]:
        """Indices of the lines of one kind."""
        return [i for i, line in enumerate(self._lines) if line["kind"] == kind]

    def image(self, key: str) -> NDArray[np.uint8]:
        """RGB [H, W, 3] of an image key."""
        if key not in self._images:
            self._images[key] = read_image(self._folder / "images" / f"{key}.png")
        return self._images[key]

    def __getitem__(self, index: int) -> TokenSequence:
        """The index-th line; only the last answer is learned from (earlier ones are another driver's)."""
        if index not in self._sequences:
            self._sequences[index] = self._encode(self._lines[index])
        return self._sequences[index]

    def _encode(self, line: dict[str, Any]) -> TokenSequence:
        keys = tuple(Path(name).stem for name in line["images"])
        grids = tuple(image_grid(self.image(key)) for key in keys)
        contents = [message["content"] for message in line["messages"]]
        answers, feedback = contents[1::2], [*contents[2::2], None]
        conversation = encode_dialogue(self._tokenizer, contents[0].removeprefix(IMAGE_PLACEHOLDER), grids[0],
                                       list(zip(answers, feedback, strict=True)))
        turns = np.asarray(conversation.turn_of_token, dtype=np.int16)
        learned = np.where(turns == len(answers) - 1, turns, -1).astype(np.int16)
        return TokenSequence(np.asarray(conversation.tokens, dtype=np.int32), learned, keys, grids)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
            roles = [message["role"] for message in line["messages"]]
            if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
                raise DataError(f"{path}:{number}: roles {roles}, want user and assistant in turn")
            lines.append(line)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a line of SFT data ({type(error).__name__}: {error})") from error
    return lines
