"""SFT data on disk (JSON lines and images by content) and in memory as token sequences."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nemo_mtdrive.data.single_turn import IMAGE_PLACEHOLDER
from nemo_mtdrive.dialogue.conversation import encode_dialogue
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.image_key import DEFAULT_SETTINGS, resized
from nemo_mtdrive.types import NOT_OURS

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


def write_image(folder: Path, key: str, image: NDArray[np.uint8]) -> None:
    """Write an RGB image [H, W, 3] as FOLDER/key.png, once, whole or not at all."""
    path = folder / f"{key}.png"
    if path.exists():
        return
    temporary = folder / f".{key}.{os.getpid()}.png"
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
    """The lines of a folder's *.jsonl, tokenised when asked for; images are read by key, the last ones used are kept.

    Args:
        folder: with *.jsonl and images/.
        tokenizer: of the model.
        learn: of multi-turn lines, the `last` answer (earlier ones are rejected trajectories) or `all`; of understanding
            lines all are learned.
        images_kept: decoded images in memory; those of a batch and of the next one should fit.

    Raises:
        DataError: there is no line, or one is none.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, learn: str = "last", images_kept: int = 256) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._learn_all = learn == "all"
        self._lines = [line for path in sorted(folder.glob("*.jsonl")) for line in _read_lines(path)]
        if not self._lines:
            raise DataError(f"{folder}: no SFT data there; run `nemo-mtdrive curate` first")
        self.image = lru_cache(images_kept)(self._read)
        """RGB [H, W, 3] of an image key, at the size that the model sees."""
        self._ahead = ThreadPoolExecutor(2, thread_name_prefix="sft-images")
        self._grids: dict[str, tuple[int, int, int]] = {}

    def kinds(self) -> dict[str, list[int]]:
        """Indices of the lines of each kind."""
        found: dict[str, list[int]] = {}
        for index, line in enumerate(self._lines):
            found.setdefault(line["kind"], []).append(index)
        return found

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Read images in the background, so that the next batch finds them; what cannot be read fails when it is used."""
        for key in keys:
            self._ahead.submit(self.image, key)

    def __getitem__(self, index: int) -> TokenSequence:
        """The index-th line."""
        line = self._lines[index]
        keys = tuple(Path(name).stem for name in line["images"])
        if len(keys) != 1:
            raise DataError(f"{line['id']}: {len(keys)} images; a conversation has one")
        contents = [message["content"] for message in line["messages"]]
        answers, feedback = contents[1::2], [*contents[2::2], None]
        conversation = encode_dialogue(self._tokenizer, contents[0].removeprefix(IMAGE_PLACEHOLDER), self._grid(keys[0]),
                                       list(zip(answers, feedback, strict=True)))
        turns = np.asarray(conversation.turn_of_token, dtype=np.int16)
        if not self._learn_all and line["kind"] != "understanding":
            turns = np.where(turns == len(answers) - 1, turns, NOT_OURS).astype(np.int16)
        return TokenSequence(np.asarray(conversation.tokens, dtype=np.int32), turns, keys, (self._grid(keys[0]),))

    def _read(self, key: str) -> NDArray[np.uint8]:
        return resized(read_image(self._path(key)))

    def _path(self, key: str) -> Path:
        return self._folder / "images" / f"{key}.png"

    def _grid(self, key: str) -> tuple[int, int, int]:
        """(t, h, w) in patches; the file's header tells it, so that other ranks' images are not decoded."""
        if key not in self._grids:
            try:
                with Image.open(self._path(key)) as header:
                    width, height = header.size
            except OSError as error:
                raise DataError(f"{self._path(key)}: no such image; curate the data again") from error
            rows, columns = DEFAULT_SETTINGS.size(height, width)
            self._grids[key] = (1, rows // PATCH, columns // PATCH)
        return self._grids[key]


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
