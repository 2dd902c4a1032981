"""Text <-> token ids: a thin, typed layer over one `tokenizer.json` (Qwen2.5-VL's own, or the tiny one shipped here).

The tiny tokenizer is a byte-level BPE of about 2k entries with Qwen's special tokens. Its grammar of numbers is what a
small model learns from: a sign with its integer is one token (`-99`..`+199`, `0`..`199`), two decimals are one token
(`.00`..`.99`), and zero, written `0.0`, is one token. Anything else falls back to shorter tokens and finally to bytes,
so every text can be written. Build it again, byte for byte, with::

    python -m nemo_mtdrive.dialogue.tokenizer OUT_DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

TINY_TOKENIZER = Path(__file__).parent / "tiny_tokenizer"
"""The folder of the shipped tiny tokenizer; `Tokenizer.load(TINY_TOKENIZER)`."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)
"""Qwen2.5-VL's special tokens, in the order of their ids."""

VOCABULARY_MULTIPLE = 64
"""Embedding tables are padded to a multiple of this (Megatron's `make_vocab_size_divisible_by` and fast kernels)."""

_NUMBER = r"(?<![0-9])0\.0(?![0-9])|[+-]?[0-9]{1,3}|\.[0-9]{1,2}"
_TEXT_RUN = r"(?:(?![+-]?[0-9]|\.[0-9])[^0-9])+"
_WORD = r" ?\p{L}+| ?[^\s\p{L}]+(?: [^\s\p{L}]*)?[\r\n]*|[\r\n]+|\s+"  # a comma takes the space after it along
_LONGEST_PHRASE = 24  # bytes; a longer token would hide whole sentences of the templates from the model


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used; the message names the file and what is missing."""


class Tokenizer:
    """Token ids of one vocabulary.

    Attributes:
        im_start, im_end, image_pad, vision_start, vision_end, end_of_text, video_pad: ids of the tokens that the
            conversation is laid out with.
        size: ids 0..size-1 exist.
        vocab_size: `size` padded up to a multiple of `VOCABULARY_MULTIPLE`: the rows of a model made for it.
    """

    def __init__(self, backend: tokenizers.Tokenizer, name: str = "tokenizer") -> None:
        self.backend = backend
        self.name = name
        self.im_start = self._id("<|im_start|>")
        self.im_end = self._id("<|im_end|>")
        self.image_pad = self._id("<|image_pad|>")
        self.video_pad = self._id("<|video_pad|>")
        self.vision_start = self._id("<|vision_start|>")
        self.vision_end = self._id("<|vision_end|>")
        self.end_of_text = self._id("<|endoftext|>")
        self.size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.vocab_size = -(-self.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.json`, or the one inside a folder (a Hugging Face checkpoint, `TINY_TOKENIZER`).

        Raises:
            TokenizerError: no such file, not a tokenizer, or one without Qwen's special tokens.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(f"{file}: no such file; give a tokenizer.json or the folder that holds it")
        try:
            backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare `Exception` for every malformed file
            raise TokenizerError(f"{file}: not a tokenizer.json: {str(error).splitlines()[0]}") from error
        return cls(backend, str(file))

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"{self.name}: token {token} is missing; use the tokenizer of a Qwen2.5-VL model")
        return int(found)

    def encode(self, text: str) -> NDArray[np.int32]:
        """[n] ids of a text. Special tokens written in the text become their ids: never pass foreign text unchecked
        (`contains_special`)."""
        return np.asarray(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of ids; special tokens are skipped, bytes that are not UTF-8 become U+FFFD."""
        return str(self.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=True))

    def contains_special(self, text: str) -> bool:
        """Whether `encode` would see a special token inside the text."""
        return "<" in text and any(token in text for token in self._added_texts)

    @cached_property
    def _added_texts(self) -> tuple[str, ...]:
        return tuple(token.content for token in self.backend.get_added_tokens_decoder().values())

    @cached_property
    def forbidden(self) -> NDArray[np.int32]:
        """Ids that an engine must never sample, out of 0..vocab_size-1; see `forbidden_below`."""
        return self.forbidden_below(self.vocab_size)

    def forbidden_below(self, model_vocab_size: int) -> NDArray[np.int32]:
        """[k] sorted ids that must not be sampled by a model with this many rows.

        These are all added tokens (image, video and vision marks, `<|im_start|>`, tool marks, ...) except `<|im_end|>`
        and `<|endoftext|>`, and the padding rows that no token belongs to: Qwen2.5-VL-7B has 152,064 rows for 151,665
        tokens, and a sampled padding row cannot be decoded.
        """
        if model_vocab_size < self.size:
            raise TokenizerError(f"{self.name}: {self.size} tokens do not fit a model with {model_vocab_size} rows")
        added = set(self.backend.get_added_tokens_decoder()) - {self.im_end, self.end_of_text}
        return np.asarray(sorted(added | set(range(self.size, model_vocab_size))), dtype=np.int32)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and the tokenizer_config.json that Hugging Face and vLLM read beside it."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                  "bos_token": None, "unk_token": None, "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
                  "add_bos_token": False, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
                  "split_special_tokens": False, "errors": "replace", "model_max_length": 131072}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def number_tokens() -> list[str]:
    """The numbers that are one token each: signed and plain integers, `.d`, `.dd`, and `0.0`."""
    plain = [str(value) for value in range(200)]
    signed = [f"+{value}" for value in range(200)] + [f"-{value}" for value in range(100)]
    decimals = [f".{value}" for value in range(10)] + [f".{value:02d}" for value in range(100)]
    return [*plain, *signed, *decimals, "0.0"]


def _splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train_tiny(corpus: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """Train the tiny tokenizer: bytes, numbers, words, then phrases of words, at most `size` entries in all.

    Words are learned first (merges stay inside a word), phrases after them from the words (merges cross words), so
    the fixed sentences of the templates cost few tokens while any other sentence still costs about one token a word.
    Whole numbers are found by look-up (`ignore_merges`), which needs no merges. The result depends on the corpus only.

    Raises:
        TokenizerError: `size` does not hold the bytes, numbers and special tokens.
    """
    texts = list(corpus)
    numbers = number_tokens()
    budget = size - len(SPECIAL_TOKENS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = sorted(set(alphabet) | set(numbers))
    if budget < len(fixed):
        raise TokenizerError(f"size={size}: set it to {len(fixed) + len(SPECIAL_TOKENS)} or more")

    words = tokenizers.Tokenizer(models.BPE())
    words.normalizer = normalizers.NFC()
    words.pre_tokenizer = pre_tokenizers.Sequence([_splitter(_NUMBER), _splitter(_WORD), _byte_level()])
    words.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=budget - len(numbers), initial_alphabet=alphabet, min_frequency=2, show_progress=False))
    learned = json.loads(words.to_str())["model"]["merges"]

    taken = set(fixed)
    merges: list[tuple[str, str]] = []
    for left, right in learned:
        if any(character.isdigit() for character in left + right):
            continue  # numbers come from the list, not from the corpus
        merges.append((left, right))
        taken.add(left + right)
    merges += _phrase_merges(words, texts, taken, budget)

    vocabulary = {token: index for index, token in enumerate(fixed)}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [_splitter(f"{_NUMBER}|{_TEXT_RUN}"), _byte_level()])
    backend.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


def _phrase_merges(words: tokenizers.Tokenizer, texts: list[str], taken: set[str],
                   budget: int) -> list[tuple[str, str]]:
    """BPE once more, from word tokens to phrases of at most `_LONGEST_PHRASE` bytes; adds to `taken`."""
    runs: Counter[tuple[str, ...]] = Counter()
    splitter = _splitter(f"{_NUMBER}|{_TEXT_RUN}")
    for text in texts:
        for run, _ in splitter.pre_tokenize_str(text):
            if not any(character.isdigit() for character in run):
                runs[tuple(words.encode(run).tokens)] += 1
    merges: list[tuple[str, str]] = []
    while len(taken) < budget:
        pairs: Counter[tuple[str, str]] = Counter()
        for run, count in runs.items():
            for pair in pairwise(run):
                if len(pair[0]) + len(pair[1]) <= _LONGEST_PHRASE:
                    pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        taken.add(best[0] + best[1])
        merged: Counter[tuple[str, ...]] = Counter()
        for run, count in runs.items():
            merged[_merge(run, best)] += count
        runs = merged
    return merges


def _merge(run: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    position = 0
    while position < len(run):
        if run[position : position + 2] == pair:
            result.append(pair[0] + pair[1])
            position += 2
        else:
            result.append(run[position])
            position += 1
    return tuple(result)


def main(arguments: Sequence[str]) -> int:
    """Build the tiny tokenizer into a folder; the same bytes every time."""
    from nemo_mtdrive.dialogue.corpus import generate_corpus

    if len(arguments) != 1:
        print("usage: python -m nemo_mtdrive.dialogue.tokenizer OUT_DIRECTORY", file=sys.stderr)
        return 2
    tokenizer = Tokenizer(train_tiny(generate_corpus(seed=0, count=400), size=2048))
    tokenizer.save(arguments[0])
    print(f"{arguments[0]}: {tokenizer.size} tokens, vocab_size {tokenizer.vocab_size}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
