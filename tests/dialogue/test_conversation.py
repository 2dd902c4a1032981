"""The conversation as tokens: layout by hand, spans, masks, refusals, and mRoPE positions equal to Hugging Face's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nemo_mtdrive.dialogue.conversation import (
    Conversation,
    ConversationError,
    encode_dialogue,
    image_tokens,
    mrope_positions,
    next_user_turn,
    open_conversation,
)
from nemo_mtdrive.types import NOT_OURS

GRID = (1, 8, 16)


def _text(tokenizer, ids):
    return tokenizer.backend.decode(list(ids), skip_special_tokens=False)


def test_the_whole_layout_is_the_appendix(tokenizer, appendix):
    conversation = encode_dialogue(tokenizer, appendix.question, GRID, [
        (appendix.first_answer, appendix.feedback), (appendix.second_answer, None)])
    assert _text(tokenizer, conversation.tokens) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 32 + f"<|vision_end|>\n{appendix.question}<|im_end|>\n<|im_start|>assistant\n"
        f"{appendix.first_answer}<|im_end|><|im_start|>user\n{appendix.feedback}<|im_end|>\n<|im_start|>assistant\n"
        f"{appendix.second_answer}<|im_end|>"
    )
    assert [conversation.answer(turn) for turn in (0, 1)] == [appendix.first_answer, appendix.second_answer]


def test_lengths_of_the_parts(tokenizer, appendix):
    assert len(open_conversation(tokenizer, appendix.question, GRID)) == 32 + 72 + 15
    assert len(next_user_turn(tokenizer, appendix.feedback)) == 70 + 6


def test_spans_and_masks_by_hand(tokenizer):
    conversation = Conversation(tokenizer, "Q", (1, 2, 2))
    opening = len(conversation)
    first = [*tokenizer.encode("+1.25").tolist(), tokenizer.im_end]
    conversation.add_answer(first, [-0.5, -0.25, -0.125])
    conversation.add_feedback("No")
    between = len(next_user_turn(tokenizer, "No"))
    second = tokenizer.encode("0.0").tolist()
    conversation.add_answer(second, [-1.0])

    assert conversation.spans == [(opening, opening + 3), (opening + 3 + between, opening + 4 + between)]
    assert conversation.tokens[opening:opening + 3].tolist() == first
    assert conversation.turn_of_token.tolist() == (
        [NOT_OURS] * opening + [0, 0, 0] + [NOT_OURS] * between + [1])
    assert conversation.logprobs.tolist() == [0.0] * opening + [-0.5, -0.25, -0.125] + [0.0] * between + [-1.0]
    assert (conversation.tokens.dtype, conversation.turn_of_token.dtype, conversation.logprobs.dtype) == (
        np.int32, np.int16, np.float32)


def test_sampled_ids_are_kept_even_if_they_are_not_what_encoding_gives(tokenizer):
    bytewise = [tokenizer.backend.token_to_id(character) for character in "Here"]
    assert tokenizer.encode("Here").tolist() != bytewise
    conversation = Conversation(tokenizer, "Q", GRID)
    conversation.add_answer(bytewise, [-1.0] * 4)
    start, stop = conversation.spans[0]
    assert conversation.tokens[start:stop].tolist() == bytewise and conversation.answer(0) == "Here"


def test_a_cut_answer_is_closed_by_us(tokenizer):
    conversation = Conversation(tokenizer, "Q", GRID)
    conversation.add_answer(tokenizer.encode("0.0"), [-1.0])
    stop = conversation.spans[0][1]
    conversation.add_feedback("F")
    assert conversation.tokens[stop] == tokenizer.im_end and conversation.turn_of_token[stop] == NOT_OURS
    following = "<|im_end|><|im_start|>user\nF<|im_end|>\n<|im_start|>assistant\n"
    assert _text(tokenizer, conversation.tokens[stop:]) == following


def test_turns_alternate(tokenizer):
    conversation = Conversation(tokenizer, "Q", GRID)
    with pytest.raises(ConversationError, match="want answer 0 first"):
        conversation.add_feedback("F")
    conversation.add_answer([5], [-1.0])
    with pytest.raises(ConversationError, match="want the feedback to answer 0"):
        conversation.add_answer([5], [-1.0])


@pytest.mark.parametrize(("ids", "logprobs", "message"), [
    ([], [], "one length above 0"),
    ([5, 6], [-1.0], "one length above 0"),
    ([-1], [-1.0], "must not be sampled"),
    ([10**6], [-1.0], "must not be sampled"),
    (["image_pad"], [-1.0], "must not be sampled"),
    (["im_start"], [-1.0], "must not be sampled"),
    (["im_end", 5], [-1.0, -1.0], r"tokens after <\|im_end\|>"),
    ([5], [np.nan], "finite"),
    ([5], [0.5], "not above 0"),
])
def test_bad_answers_are_refused_and_change_nothing(tokenizer, ids, logprobs, message):
    conversation = Conversation(tokenizer, "Q", GRID)
    before = conversation.tokens.copy()
    ids = [getattr(tokenizer, i) if isinstance(i, str) else i for i in ids]
    with pytest.raises(ConversationError, match=message):
        conversation.add_answer(ids, logprobs)
    assert np.array_equal(conversation.tokens, before) and conversation.wants_answer and conversation.spans == []


def test_special_tokens_in_our_texts_are_refused(tokenizer):
    with pytest.raises(ConversationError, match="question: it holds a special token"):
        Conversation(tokenizer, "Q<|im_end|>", GRID)
    with pytest.raises(ConversationError, match="feedback: it holds a special token"):
        next_user_turn(tokenizer, "<|image_pad|>")
    with pytest.raises(ConversationError, match="answer 0: it holds a special token"):
        encode_dialogue(tokenizer, "Q", GRID, [("<|im_end|>", None)])


@pytest.mark.parametrize("turns", [[], [("A", "F")], [("A", None), ("B", None)]])
def test_dialogues_end_with_an_answer(tokenizer, turns):
    with pytest.raises(ConversationError, match="turns"):
        encode_dialogue(tokenizer, "Q", GRID, turns)


def test_image_tokens():
    assert [image_tokens(grid) for grid in (GRID, (1, 2, 2), (2, 4, 6))] == [32, 1, 12]
    for grid in ((1, 7, 16), (1, 8, 15), (0, 8, 16)):
        with pytest.raises(ConversationError, match="image_grid"):
            image_tokens(grid)


def _hugging_face(tokenizer, tokens, grids):
    """`get_rope_index` of transformers 4.51.3 on a bare object with the config that it reads."""
    import torch

    from nemo_mtdrive.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()  # before transformers, which imports torchvision
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Model

    config = SimpleNamespace(image_token_id=tokenizer.image_pad, video_token_id=tokenizer.video_pad,
                             vision_start_token_id=tokenizer.vision_start,
                             vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2))
    grid = torch.tensor(grids) if grids else None
    positions, _ = Model.get_rope_index(SimpleNamespace(config=config), torch.tensor(tokens)[None].long(), grid)
    return positions[:, 0].numpy()


def _with_images(tokenizer, grids):
    parts = [tokenizer.encode("before")]
    for grid in grids:
        parts += [[tokenizer.vision_start], [tokenizer.image_pad] * image_tokens(grid), [tokenizer.vision_end],
                  tokenizer.encode("and some words (1, 2)")]
    return np.concatenate(parts).astype(np.int32)


@pytest.mark.parametrize("grids", [
    [], [(1, 8, 16)], [(1, 16, 8)], [(1, 2, 2)], [(1, 8, 16), (1, 4, 4)], [(1, 4, 6), (1, 10, 2)], [(2, 4, 6)],
])
def test_mrope_positions_are_hugging_faces(tokenizer, grids):
    tokens = _with_images(tokenizer, grids)
    ours = mrope_positions(tokens, grids, tokenizer.image_pad, tokenizer.vision_start)
    assert ours.dtype == np.int64
    np.testing.assert_array_equal(ours, _hugging_face(tokenizer, tokens, grids))


def test_mrope_positions_of_a_real_conversation(tokenizer, appendix):
    conversation = encode_dialogue(tokenizer, appendix.question, GRID, [
        (appendix.first_answer, appendix.feedback), (appendix.second_answer, None)])
    ours = mrope_positions(conversation.tokens, conversation.image_grids, tokenizer.image_pad, tokenizer.vision_start)
    np.testing.assert_array_equal(ours, _hugging_face(tokenizer, conversation.tokens, [GRID]))


def test_mrope_positions_by_hand(tokenizer):
    tokens = [5, tokenizer.vision_start, *[tokenizer.image_pad] * 6, tokenizer.vision_end, 5]
    assert mrope_positions(np.array(tokens), [(1, 4, 6)], tokenizer.image_pad, tokenizer.vision_start).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_mrope_positions_refuse_what_does_not_fit(tokenizer):
    tokens = _with_images(tokenizer, [GRID])
    for grids in ([], [GRID, GRID], [(1, 8, 18)]):
        with pytest.raises(ConversationError):
            mrope_positions(tokens, grids, tokenizer.image_pad, tokenizer.vision_start)
