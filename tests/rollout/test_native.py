"""The native engine against HF's own model, and what it promises about caches, batches, weights and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_mtdrive.dialogue.conversation import Conversation, open_conversation
from nemo_mtdrive.rollout.engine import EngineError, WeightsError
from nemo_mtdrive.transfer.images import grid_of
from nemo_mtdrive.types import NOT_OURS

from .conftest import build_engine, build_reference, noise_image, play, small_config, teacher_forced

QUESTIONS = ["a question", "As an autonomous driving system, go to (+3.1, 0.0, 0.0) and on", "x"]
FEEDBACK = [["fix it", "again, the point (+3.1, 0.0, 0.0)"], ["once only"], ["a", "bb", "c +1.1 -2.2 and so much more"]]


def images():
    return [noise_image(0), noise_image(1, 56, 140), noise_image(2)]


def open_one(engine, tokenizer, name="s", seed=0, question="a question"):
    image = noise_image(seed)
    prompt = open_conversation(tokenizer, question, grid_of(image))
    engine.add([name], prompt, image)
    return prompt, image


def test_logprobs_equal_huggingface_over_turns_images_and_lengths(engine, tokenizer, reference):
    """Token by token, three conversations of different lengths, images and turns in one batch."""
    talks = play(engine, tokenizer, QUESTIONS, images(), FEEDBACK)
    for talk, image in zip(talks, images(), strict=True):
        own = talk.turn_of_token != NOT_OURS
        gap = np.abs(teacher_forced(reference, talk.tokens, image) - talk.logprobs)[own]
        assert gap.max() < 1e-5
        assert own.sum() >= 12 * talk.turns * 0.5  # a random model seldom stops early: there is something to compare


def test_greedy_answers_equal_huggingface_generate(engine, tokenizer, reference):
    from nemo_mtdrive.transfer.images import patchify

    prompt, image = open_one(engine, tokenizer)
    ours = engine.generate(["s"], 20, 0.0, [0])["s"].tokens
    pixels, grid = patchify([image])
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    theirs = reference.generate(
        input_ids=ids,
        pixel_values=pixels,
        image_grid_thw=grid,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=tokenizer.im_end,
        pad_token_id=tokenizer.end_of_text,
        suppress_tokens=tokenizer.forbidden.tolist(),
    )[0, len(prompt) :]
    assert ours.tolist() == theirs.tolist()


def test_a_kept_cache_equals_a_fresh_prefill(engine, tokenizer):
    """The second answer after extend() is that of an engine that is given the whole conversation at once."""
    _, image = open_one(engine, tokenizer)
    talk = Conversation(tokenizer, "a question", grid_of(image))
    talk.add_answer(*engine.generate(["s"], 9, 1.0, [1])["s"])
    known = len(talk)
    talk.add_feedback("a feedback of some length")
    engine.extend("s", talk.tokens[known:])
    kept = engine.generate(["s"], 15, 1.0, [2])["s"]
    engine.add(["fresh"], talk.tokens, image)
    fresh = engine.generate(["fresh"], 15, 1.0, [2])["fresh"]
    assert kept.tokens.tolist() == fresh.tokens.tolist()
    np.testing.assert_allclose(kept.logprobs, fresh.logprobs, atol=1e-5)


def test_siblings_share_the_prompt_and_sample_their_own_way(engine, tokenizer):
    image = noise_image(0)
    prompt = open_conversation(tokenizer, "a question", grid_of(image))
    names = [f"s{i}" for i in range(5)]
    engine.add(names, prompt, image)
    answers = engine.generate(names, 10, 1.0, [7, 8, 9, 10, 7])
    assert answers["s0"].tokens.tolist() == answers["s4"].tokens.tolist()  # the same seed
    assert len({tuple(a.tokens.tolist()) for a in answers.values()}) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_an_answer_does_not_depend_on_the_batch_it_is_in(tokenizer, temperature):
    """Alone, or with mates of other lengths that come, stop and go: same seed, same tokens."""
    config = small_config(tokenizer)
    engine = build_engine(config, tokenizer, build_reference(config, scale=0.4).state_dict())
    prompt, image = open_one(engine, tokenizer, "alone")
    alone = [engine.generate(["alone"], 20, temperature, [5])["alone"]]
    engine.extend("alone", tokenizer.encode("now again"))
    alone.append(engine.generate(["alone"], 20, temperature, [6])["alone"])
    engine.remove(["alone"])

    for mate in range(6):
        open_one(engine, tokenizer, f"m{mate}", seed=10 + mate, question="more words " * mate)
    engine.add(["s"], prompt, image)
    mates = [f"m{mate}" for mate in range(6)]
    first = engine.generate([*mates[:3], "s", *mates[3:]], 20, temperature, [90, 91, 92, 5, 93, 94, 95])["s"]
    engine.remove([mates[0], mates[4]])
    for name in ("s", *mates[1:4]):
        engine.extend(name, tokenizer.encode("now again" if name == "s" else "and something else for the others"))
    second = engine.generate(["s", *mates[1:4]], 20, temperature, [6, 80, 81, 82])["s"]
    for single, batched in zip(alone, (first, second), strict=True):
        assert single.tokens.tolist() == batched.tokens.tolist()
        np.testing.assert_allclose(single.logprobs, batched.logprobs, atol=1e-4)


def test_rows_that_stop_early_leave_and_the_rest_stays_exact(tokenizer):
    """A model that stops often: rows end at many lengths, the batch is compacted, every log-prob still equals HF's."""
    model = build_reference(small_config(tokenizer), scale=0.15)
    model.lm_head.weight.data[tokenizer.im_end] *= 6
    engine = build_engine(small_config(tokenizer), tokenizer, model.state_dict())
    image = noise_image(3)
    prompt = open_conversation(tokenizer, "a question", grid_of(image))
    names = [f"s{i}" for i in range(16)]
    engine.add(names, prompt, image)
    texts = dict.fromkeys(names, prompt)
    lengths = set()
    for turn in range(3):
        answers = engine.generate(names, 30, 1.0, [100 * turn + i for i in range(16)])
        lengths |= {len(answer.tokens) for answer in answers.values()}
        for name in names:
            start = len(texts[name])
            texts[name] = np.concatenate((texts[name], answers[name].tokens))
            scored = teacher_forced(model, texts[name], image)[start:]
            np.testing.assert_allclose(answers[name].logprobs, scored, atol=1e-4)
            more = tokenizer.encode("go on " * (1 + len(name)))
            texts[name] = np.concatenate((texts[name], more))
            engine.extend(name, more)
    assert len(lengths) > 8 and max(lengths) == 30


def test_an_answer_ends_with_the_stop_token_or_at_the_limit(engine, tokenizer, reference):
    open_one(engine, tokenizer)
    cut = engine.generate(["s"], 6, 0.0, [0])["s"]
    assert len(cut.tokens) == 6 and tokenizer.im_end not in cut.tokens
    engine.remove(["s"])

    weights = dict(reference.state_dict())
    weights["model.norm.weight"] = torch.zeros_like(weights["model.norm.weight"])  # every token as likely as any other
    engine.load_weights(weights.items(), version=1)
    prompt, image = open_one(engine, tokenizer)
    names = [f"u{i}" for i in range(32)]
    engine.add(names, prompt, image)
    answers = engine.generate(names, 500, 1.0, list(range(32)))
    stopped = [a.tokens for a in answers.values() if a.tokens[-1] == tokenizer.im_end]
    assert 2 < len(stopped) < 30
    assert all((tokens == tokenizer.im_end).sum() == 1 for tokens in stopped)
    assert all(len(a.tokens) == 500 for a in answers.values() if a.tokens[-1] != tokenizer.im_end)


def test_forbidden_tokens_are_never_sampled_and_logprobs_stay_raw(tokenizer):
    """A model that wants little but image marks: they never come, and log p is that of the unmasked model."""
    model = build_reference(small_config(tokenizer), scale=0.15)
    model.lm_head.weight.data[tokenizer.forbidden] *= 10
    engine = build_engine(small_config(tokenizer), tokenizer, model.state_dict())
    prompt, image = open_one(engine, tokenizer)
    names = [f"s{i}" for i in range(8)]
    for temperature in (0.0, 1.0):
        engine.add(names, prompt, image)
        answers = engine.generate(names, 30, temperature, list(range(8)))
        engine.remove(names)
        for answer in answers.values():
            assert not np.isin(answer.tokens, tokenizer.forbidden).any()
            scored = teacher_forced(model, np.concatenate((prompt, answer.tokens)), image)[len(prompt) :]
            np.testing.assert_allclose(answer.logprobs, scored, atol=1e-4)
            assert answer.logprobs.mean() < -12  # raw: most of the probability lies on the masked tokens


def test_a_small_prefill_budget_changes_nothing(tokenizer, reference):
    """Waiting tokens are computed in as many passes as `prefill_tokens` asks for."""
    talks = []
    for budget in (1, 40, 4096):
        engine = build_engine(small_config(tokenizer), tokenizer, reference.state_dict(), prefill_tokens=budget)
        talks.append(play(engine, tokenizer, QUESTIONS, images(), FEEDBACK))
    for other in talks[1:]:
        for a, b in zip(talks[0], other, strict=True):
            assert a.tokens.tolist() == b.tokens.tolist()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_bfloat16_stays_near_float32(tokenizer, reference):
    engine = build_engine(small_config(tokenizer), tokenizer, reference.state_dict(), dtype=torch.bfloat16)
    talks = play(engine, tokenizer, QUESTIONS, images(), FEEDBACK)
    for talk, image in zip(talks, images(), strict=True):
        own = talk.turn_of_token != NOT_OURS
        gap = np.abs(teacher_forced(reference, talk.tokens, image) - talk.logprobs)[own]
        assert talk.logprobs.dtype == np.float32 and 0 < gap.mean() < 0.05


def test_tied_head(tokenizer):
    config = small_config(tokenizer, tied=True)
    reference = build_reference(config, scale=0.15)
    weights = {name: tensor for name, tensor in reference.state_dict().items() if name != "lm_head.weight"}
    engine = build_engine(config, tokenizer, weights)
    prompt, image = open_one(engine, tokenizer)
    answer = engine.generate(["s"], 5, 0.0, [0])["s"]
    engine.remove(["s"])
    engine.load_weights(reference.state_dict().items(), version=1)  # with the head named as well
    engine.add(["s"], prompt, image)
    assert engine.generate(["s"], 5, 0.0, [0])["s"].tokens.tolist() == answer.tokens.tolist()
    with pytest.raises(WeightsError, match="tie_word_embeddings"):
        engine.remove(["s"])
        engine.load_weights([*weights.items(), ("lm_head.weight", torch.ones_like(engine._model.head))], version=2)


def test_new_weights_answer_anew(engine, tokenizer, reference):
    """After load_weights the engine is as one built with them: nothing of the old cache is left."""
    prompt, image = open_one(engine, tokenizer)
    engine.generate(["s"], 8, 0.0, [0])
    engine.remove(["s"])
    other = build_reference(small_config(tokenizer), scale=0.15, seed=1).state_dict()
    engine.load_weights(other.items(), version=3)
    assert engine.version == 3
    fresh = build_engine(small_config(tokenizer), tokenizer, other)
    answers = []
    for each in (engine, fresh):
        each.add(["s"], prompt, image)
        answers.append(each.generate(["s"], 8, 0.0, [0])["s"])
    assert answers[0].tokens.tolist() == answers[1].tokens.tolist()
    assert answers[0].logprobs.tolist() == answers[1].logprobs.tolist()


def _without(weights, name):
    return [(n, t) for n, t in weights.items() if n != name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: _without(w, "model.norm.weight"), "1 weights are missing, the first: model.norm.weight"),
        (lambda w: [*w.items(), ("model.extra", torch.zeros(1))], "model.extra is not a weight"),
        (lambda w: [*w.items(), ("model.norm.weight", torch.zeros(64))], "model.norm.weight came twice"),
        (
            lambda w: [*_without(w, "model.norm.weight"), ("model.norm.weight", torch.zeros(1))],
            r"model.norm.weight: got shape \[1\], the model has \[64\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(engine, tokenizer, reference, change, message):
    with pytest.raises(WeightsError, match=message):
        engine.load_weights(change(dict(reference.state_dict())), version=1)
    assert engine.version is None
    with pytest.raises(EngineError, match="call load_weights first"):
        open_one(engine, tokenizer)
    engine.load_weights(reference.state_dict().items(), version=2)
    open_one(engine, tokenizer)


def test_weights_wait_until_no_sequence_is_alive(engine, tokenizer, reference):
    open_one(engine, tokenizer)
    with pytest.raises(EngineError, match="1 sequences are alive"):
        engine.load_weights(reference.state_dict().items(), version=1)
    assert engine.version == 0


def test_requests_that_cannot_be_served_say_why(engine, tokenizer):
    image = noise_image(0)
    prompt = open_conversation(tokenizer, "a question", grid_of(image))
    with pytest.raises(EngineError, match="no image was given"):
        engine.add(["s"], prompt, None)
    with pytest.raises(EngineError, match="32 image placeholders, its image needs 8"):
        engine.add(["s"], prompt, noise_image(0, 56, 112))
    engine.add(["s"], prompt, image)
    with pytest.raises(EngineError, match="ids must be new"):
        engine.add(["s"], prompt, image)
    with pytest.raises(EngineError, match="no sequence 't'"):
        engine.generate(["t"], 5, 1.0, [0])
    with pytest.raises(EngineError, match="an image can only be in the prompt"):
        engine.extend("s", np.array([tokenizer.image_pad]))
    with pytest.raises(EngineError, match="exceed max_context=1024"):
        engine.generate(["s"], 1024, 1.0, [0])
    with pytest.raises(EngineError, match="exceed max_context=1024"):
        engine.extend("s", np.ones(1000, dtype=np.int32))
    with pytest.raises(EngineError, match="need >= 1 and >= 0"):
        engine.generate(["s"], 5, -1.0, [0])
    assert engine.generate([], 5, 1.0, []) == {}


def test_configs_that_the_decoder_does_not_cover_are_refused(tokenizer):
    for change, message in (
        ({"rope_scaling": {"rope_type": "dynamic", "mrope_section": [2, 3, 3], "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "must sum to half of the head size 16"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ):
        with pytest.raises(EngineError, match=message):
            build_engine(small_config(tokenizer) | change, tokenizer, None)


def test_a_short_wait_near_the_context_limit_beside_a_long_wait(tokenizer, reference):
    """Rows are padded to the longest wait; padding of a row that is nearly full must not point behind its end."""
    image = noise_image(0)
    prompt = open_conversation(tokenizer, "a question", grid_of(image))
    limit = len(prompt) + 60
    engine = build_engine(small_config(tokenizer), tokenizer, reference.state_dict(), max_context=limit)
    engine.add(["full", "free"], prompt, image)
    talk = tokenizer.encode(" a" * 50)[:45]
    engine.extend("full", talk)
    engine.generate(["full"], 5, 1.0, [1])
    engine.extend("full", talk[:3])
    engine.extend("free", talk)
    together = engine.generate(["full", "free"], 5, 1.0, [2, 3])
    engine.remove(["full", "free"])
    engine.add(["alone"], prompt, image)
    engine.extend("alone", talk)
    alone = engine.generate(["alone"], 5, 1.0, [3])["alone"]
    assert together["free"].tokens.tolist() == alone.tokens.tolist()
    np.testing.assert_allclose(together["free"].logprobs, alone.logprobs, atol=1e-5)
