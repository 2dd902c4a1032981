"""The tiny tokenizer: numbers, counts, bytes, the build; and that other Qwen tokenizers load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from nemo_mtdrive.dialogue.corpus import generate_corpus
from nemo_mtdrive.dialogue.tokenizer import SPECIAL_TOKENS, TINY_TOKENIZER, Tokenizer, TokenizerError, main, train_tiny


def test_numbers_are_integer_and_decimals(tokenizer):
    for value in range(-99, 200):
        for hundredths in (0, 1, 10, 57, 99):
            assert len(tokenizer.encode(f"{value:+d}.{hundredths:02d}")) == 2
            if value >= 0:
                assert len(tokenizer.encode(f"{value}.{hundredths:02d}")) == 2
    assert all(len(tokenizer.encode(f".{hundredths:02d}")) == 1 for hundredths in range(100))
    assert len(tokenizer.encode("0.0")) == len(tokenizer.encode("+5")) == len(tokenizer.encode("-0")) == 1
    assert len(tokenizer.encode("+3.1")) == 2  # as the paper's own model writes


def test_numbers_keep_their_tokens_inside_text(tokenizer):
    point = [tokenizer.backend.id_to_token(int(i)) for i in tokenizer.encode("(+21.73, 0.0, -0.02)")]
    assert point == ["(", "+21", ".73", ",Ġ", "0.0", ",Ġ", "-0", ".02", ")"]


def test_counts_on_the_appendix(tokenizer, appendix):
    counts = [len(tokenizer.encode(text)) for text in
              (appendix.question, appendix.first_answer, appendix.feedback, appendix.second_answer)]
    assert counts == [72, 58, 70, 71]
    assert tokenizer.size == 1750 and tokenizer.vocab_size == 1792


def test_special_ids(tokenizer):
    first = tokenizer.size - len(SPECIAL_TOKENS)
    assert [tokenizer.backend.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(first, tokenizer.size))
    forbidden = set(tokenizer.forbidden.tolist())
    assert tokenizer.im_end not in forbidden and tokenizer.end_of_text not in forbidden
    assert {tokenizer.im_start, tokenizer.image_pad, tokenizer.video_pad, tokenizer.vision_start,
            tokenizer.vision_end} < forbidden
    assert forbidden == (set(range(first, tokenizer.vocab_size)) - {tokenizer.im_end, tokenizer.end_of_text})
    assert tokenizer.forbidden_below(2048)[-1] == 2047
    with pytest.raises(TokenizerError, match="do not fit a model with 100 rows"):
        tokenizer.forbidden_below(100)


def test_contains_special(tokenizer):
    assert tokenizer.contains_special("a<|im_end|>b")
    assert not tokenizer.contains_special("a < b |im_end|")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(codec="ascii"), max_size=120))
def test_every_ascii_text_comes_back(tokenizer, text):
    assert tokenizer.contains_special(text) or tokenizer.decode(tokenizer.encode(text)) == text


def test_other_scripts_come_back(tokenizer):
    text = "Fußgänger 漢字 ٣٤ 12345.678 🚦\r\n\ttab"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_skips_special_tokens_and_bad_bytes(tokenizer, appendix):
    ids = np.concatenate([tokenizer.encode(appendix.first_answer), [tokenizer.im_end]])
    assert tokenizer.decode(ids) == appendix.first_answer
    assert tokenizer.decode([tokenizer.backend.token_to_id("æ")]) == "\N{REPLACEMENT CHARACTER}"


def test_build_gives_the_shipped_bytes(tmp_path):
    assert main([str(tmp_path)]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (TINY_TOKENIZER / name).read_bytes()


def test_hugging_face_reads_it_alike(tokenizer, appendix):
    from transformers import Qwen2TokenizerFast

    theirs = Qwen2TokenizerFast.from_pretrained(str(TINY_TOKENIZER))
    text = f"<|im_start|>user\n<|vision_start|><|image_pad|>{appendix.question}<|im_end|>"
    assert theirs(text).input_ids == tokenizer.encode(text).tolist()
    assert theirs.eos_token_id == tokenizer.im_end and theirs.pad_token_id == tokenizer.end_of_text


def test_size_is_checked_and_kept():
    corpus = list(generate_corpus(seed=1, count=20))
    assert train_tiny(corpus, size=1000).get_vocab_size() == 1000
    with pytest.raises(TokenizerError, match="size=500: set it to"):
        train_tiny(corpus, size=500)


def _qwen_like(special: tuple[str, ...]) -> tokenizers.Tokenizer:
    """Bytes, with Qwen2.5-VL's added tokens: 14 special ones and then tool marks that are not `special`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken(token, special=False) for token in ("<tool_call>", "</tool_call>")])
    return backend


def test_a_checkpoint_folder_loads(tmp_path):
    _qwen_like(SPECIAL_TOKENS).save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.end_of_text, loaded.im_start, loaded.im_end) == (256, 257, 258)
    assert (loaded.size, loaded.vocab_size) == (272, 320)
    assert {270, 271, 319} < set(loaded.forbidden.tolist())
    assert loaded.decode(loaded.encode("a<|im_end|>b")) == "ab"


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match="no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    _qwen_like(SPECIAL_TOKENS[:2]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"token <\|im_end\|> is missing"):
        Tokenizer.load(tmp_path)
