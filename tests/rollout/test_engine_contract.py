"""What both engines promise, on the real ones: native in this process, vLLM in the rollout environment's.

vLLM takes a while to start, so one process serves all tests of this file; each begins with weights of its own.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nemo_mtdrive.dialogue.conversation import Conversation, open_conversation
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config
from nemo_mtdrive.rollout.engine import Engine, EngineError, WeightsError
from nemo_mtdrive.rollout.vllm_weights import hf_weight_shapes
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators
from nemo_mtdrive.transfer.images import grid_of
from nemo_mtdrive.types import NOT_OURS
from tests.models.launch import run

from .conftest import build_engine, noise_image, play, small_config, teacher_forced
from .remote_engine import RemoteEngine, in_session

ENGINES = ("native", "vllm")
CONTEXT = 1024
AGREE = 1e-4
"""Largest distance of two log-probabilities that are the same but for rounding in float32."""
QUESTIONS = ["a question", "As an autonomous driving system, go to (+3.1, 0.0, 0.0) and on"]
FEEDBACK = [["fix it", "again, the point (+3.1, 0.0, 0.0)"], ["a", "bb and so much more +1.1 -2.2"]]


def images() -> list[np.ndarray]:
    return [noise_image(0), noise_image(1, 56, 140)]


@pytest.fixture(scope="module")
def hf(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tiny Qwen2.5-VL with grouped heads of 128, which vLLM's attention takes."""
    t = tokenizer
    return tiny_hf_config(
        vocab_size=t.vocab_size, image_pad=t.image_pad, video_pad=t.video_pad, vision_start=t.vision_start,
        vision_end=t.vision_end, im_start=t.im_start, im_end=t.im_end, layers=2, hidden=512, mlp=192,
        max_length=CONTEXT,
    ) | {"num_key_value_heads": 2}  # fmt: skip


@pytest.fixture(scope="module")
def weights(hf: dict[str, Any]) -> Callable[[int], dict[str, torch.Tensor]]:
    """HF-named weights of a seed, with nothing at its trivial value."""
    declare_torchvision_operators()

    def make(seed: int) -> dict[str, torch.Tensor]:
        state = random_hf_state(hf, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in state.items():
            if tensor.ndim == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif "embed" not in name:
                tensor.mul_(2.0)
        return state

    return make


@pytest.fixture(scope="module")
def reference(hf: dict[str, Any], weights: Callable[[int], dict[str, torch.Tensor]]) -> Callable[..., Any]:
    """Hugging Face's own model with given weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def make(state: dict[str, torch.Tensor]) -> Any:
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(hf))).float().eval()
        model.load_state_dict(state, strict=True)
        return model

    return make


@pytest.fixture(scope="module")
def engines(
    hf: dict[str, Any], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Engine]]:
    """An engine by name, started when it is first asked for."""
    started: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in started and name == "vllm":
            settings = {"dtype": "float32", "max_context": CONTEXT, "max_running": 16}
            started[name] = RemoteEngine(tmp_path_factory.mktemp("vllm"), hf, settings)
        elif name not in started:
            started[name] = build_engine(hf, tokenizer, None, max_context=CONTEXT)
        return started[name]

    yield get
    for engine in started.values():
        if isinstance(engine, RemoteEngine):
            engine.kill()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, engines: Callable[[str], Engine]) -> Engine:
    return engines(request.param)


def prompt_of(tokenizer: Tokenizer, seed: int = 0, question: str = "a question") -> tuple[np.ndarray, np.ndarray]:
    image = noise_image(seed)
    return open_conversation(tokenizer, question, grid_of(image)), image


def test_shapes_of_the_weights_are_hugging_faces(hf, weights, tokenizer):
    assert hf_weight_shapes(hf) == {name: tuple(tensor.shape) for name, tensor in weights(1).items()}
    tied = small_config(tokenizer, tied=True)
    assert hf_weight_shapes(tied) == {name: tuple(t.shape) for name, t in random_hf_state(tied, 0).items()}


@pytest.fixture(scope="module")
def played(engines, tokenizer, weights) -> dict[str, dict[float, list[Conversation]]]:
    """Two conversations of three turns with images of two sizes: by engine, by temperature."""
    found: dict[str, dict[float, list[Conversation]]] = {}
    for name in ENGINES:
        engine = engines(name)
        engine.load_weights(weights(1).items(), 1)
        found[name] = {
            temperature: play(engine, tokenizer, QUESTIONS, images(), FEEDBACK, 16, temperature)
            for temperature in (0.0, 1.0, 0.7)
        }
    return found


def test_logprobs_are_those_of_the_trainers_model(played, hf, weights, tmp_path):
    """In float32, over three turns and two temperatures: what a step's logprob_gap metric measures."""
    (tmp_path / "hf.json").write_text(json.dumps(hf))
    save_file(weights(1), tmp_path / "weights.safetensors")
    (tmp_path / "conversations").mkdir()
    for name, by_temperature in played.items():
        for temperature, talks in by_temperature.items():
            for number, talk in enumerate(talks):
                path = tmp_path / "conversations" / f"{name}-{temperature}-{number}.npz"
                np.savez(path, tokens=talk.tokens, logprobs=talk.logprobs, turn_of_token=talk.turn_of_token,
                         image=images()[number], temperature=temperature or 1.0)  # fmt: skip
                assert (talk.turn_of_token != NOT_OURS).sum() > 24 and talk.turns == 3
    gaps = run(Path(__file__).with_name("trainer_process.py"), 1, tmp_path)
    assert len(gaps) == len(ENGINES) * 3 * 2
    assert max(gaps.values()) < AGREE, gaps


def test_greedy_answers_of_both_engines_are_the_same(played):
    for native, vllm in zip(played["native"][0.0], played["vllm"][0.0], strict=True):
        assert native.tokens.tolist() == vllm.tokens.tolist()
        np.testing.assert_allclose(native.logprobs, vllm.logprobs, atol=AGREE)


def test_new_weights_are_the_ones_that_answer(engine, tokenizer, weights, reference):
    """The same conversation before and after: nothing that the old weights computed is used again."""
    prompt, image = prompt_of(tokenizer)
    for version in (1, 2, 3):
        state = weights(version)
        engine.load_weights(state.items(), version)
        assert engine.version == version
        engine.add(["s"], prompt, image)
        answer = engine.generate(["s"], 12, 1.0, [5])["s"]
        with pytest.raises(EngineError, match="1 sequences are alive"):
            engine.load_weights(state.items(), version + 1)
        engine.remove(["s"])
        expected = teacher_forced(reference(state), np.concatenate((prompt, answer.tokens)), image)[len(prompt) :]
        np.testing.assert_allclose(answer.logprobs, expected, atol=AGREE)


def test_forbidden_tokens_are_never_drawn_and_logprobs_stay_raw(engine, tokenizer, weights, reference):
    """A model that wants little but image marks."""
    state = weights(1)
    state["lm_head.weight"][tokenizer.forbidden] *= 12
    engine.load_weights(state.items(), 1)
    prompt, image = prompt_of(tokenizer)
    model = reference(state)
    names = [f"s{i}" for i in range(4)]
    for temperature in (0.0, 1.0):
        engine.add(names, prompt, image)
        answers = engine.generate(names, 20, temperature, list(range(4)))
        engine.remove(names)
        for answer in answers.values():
            assert not np.isin(answer.tokens, tokenizer.forbidden).any()
            scored = teacher_forced(model, np.concatenate((prompt, answer.tokens)), image)[len(prompt) :]
            np.testing.assert_allclose(answer.logprobs, scored, atol=AGREE)
            assert answer.logprobs.mean() < -10  # most of the probability lies on what is masked


@pytest.mark.parametrize("name", ENGINES)
def test_the_smallest_nucleus_is_greedy_and_logprobs_stay_those_of_the_whole_softmax(name, hf, tokenizer, weights, tmp_path):
    if name == "vllm":
        settings = {"dtype": "float32", "max_context": CONTEXT, "max_running": 16, "top_p": 1e-6}
        engine: Engine = RemoteEngine(tmp_path, hf, settings)
    else:
        engine = build_engine(hf, tokenizer, None, max_context=CONTEXT, top_p=1e-6)
    try:
        engine.load_weights(weights(1).items(), 1)
        prompt, image = prompt_of(tokenizer)
        engine.add(["greedy", "drawn"], prompt, image)
        greedy = engine.generate(["greedy"], 12, 0.0, [5])["greedy"]
        drawn = engine.generate(["drawn"], 12, 1.0, [5])["drawn"]
        engine.remove(["greedy", "drawn"])
        engine.close()
    finally:
        if isinstance(engine, RemoteEngine):
            engine.kill()
    assert drawn.tokens.tolist() == greedy.tokens.tolist()
    np.testing.assert_allclose(drawn.logprobs, greedy.logprobs, atol=AGREE)
    assert drawn.logprobs.mean() < -0.1  # a nucleus of one token has log-probability 0


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_an_answer_depends_on_its_seed_and_not_on_the_batch(engine, tokenizer, weights, temperature):
    engine.load_weights(weights(1).items(), 1)
    prompt, image = prompt_of(tokenizer)
    engine.add(["alone"], prompt, image)
    alone = engine.generate(["alone"], 12, temperature, [5])["alone"]
    engine.remove(["alone"])
    mates = [f"m{i}" for i in range(3)]
    for number, mate in enumerate(mates):
        engine.add([mate], *prompt_of(tokenizer, 10 + number, "more words " * number))
    engine.add(["s", "twin", "other"], prompt, image)
    answers = engine.generate([*mates, "s", "twin", "other"], 12, temperature, [90, 91, 92, 5, 5, 6])
    engine.remove([*mates, "s", "twin", "other"])
    for name in ("s", "twin"):
        assert answers[name].tokens.tolist() == alone.tokens.tolist()
        np.testing.assert_allclose(answers[name].logprobs, alone.logprobs, atol=AGREE)
    assert (answers["other"].tokens.tolist() == alone.tokens.tolist()) == (temperature == 0.0)


def test_an_answer_ends_with_the_stop_token_or_at_the_limit(engine, tokenizer, weights):
    state = weights(1)
    state["model.norm.weight"].zero_()  # every token as likely as any other
    engine.load_weights(state.items(), 1)
    names = [f"u{i}" for i in range(8)]
    engine.add(names, *prompt_of(tokenizer))
    answers = engine.generate(names, 500, 1.0, list(range(8)))
    engine.remove(names)
    stopped = [answer.tokens for answer in answers.values() if answer.tokens[-1] == tokenizer.im_end]
    assert stopped and all((tokens == tokenizer.im_end).sum() == 1 for tokens in stopped)
    assert all(len(answer.tokens) == 500 for answer in answers.values() if answer.tokens[-1] != tokenizer.im_end)
    uniform = -np.log(tokenizer.vocab_size)
    assert all(np.allclose(answer.logprobs, uniform, atol=1e-5) for answer in answers.values())


def test_the_image_counts(engine, tokenizer, weights):
    engine.load_weights(weights(1).items(), 1)
    scores = []
    for seed in (0, 1):
        engine.add(["s"], *prompt_of(tokenizer, seed))
        scores.append(engine.generate(["s"], 1, 0.0, [0])["s"].logprobs)
        engine.remove(["s"])
    assert abs(scores[0] - scores[1]) > 1e-3


def test_vllm_computes_a_prompt_once_for_its_group_and_a_turn_once_for_the_next(engines, tokenizer, weights):
    """vLLM's own counters: of what is asked, all but the last block is there; and an image is sent once."""
    engine = engines("vllm")
    engine.load_weights(weights(1).items(), 1)
    prompt, image = prompt_of(tokenizer, 5, "some words to fill more than a block, " * 8)
    names = [f"g{i}" for i in range(8)]
    before = engine.state
    engine.add(names, prompt, image)
    counted = [before]
    for turn in range(2):
        engine.generate(names, 10, 1.0, [10 * turn + i for i in range(8)])
        counted.append(engine.state)
        for name in names:
            engine.extend(name, tokenizer.encode("and again"))
    engine.remove(names)
    asked = [b["vllm:prefix_cache_queries"] - a["vllm:prefix_cache_queries"] for a, b in pairwise(counted)]
    hit = [b["vllm:prefix_cache_hits"] - a["vllm:prefix_cache_hits"] for a, b in pairwise(counted)]
    block = 32
    whole = (len(prompt) - 1) // block * block
    assert asked[0] == 8 * len(prompt) and hit[0] == 7 * whole and whole > 64
    assert hit[1] >= 8 * whole and asked[1] - hit[1] <= 8 * 2 * block
    assert counted[-1]["images_sent"] - before["images_sent"] == 1


def test_sleep_gives_memory_back_and_waking_up_changes_nothing(engine, tokenizer, weights):
    engine.load_weights(weights(1).items(), 1)
    prompt, image = prompt_of(tokenizer)
    names = [f"s{i}" for i in range(8)]
    engine.add(names, prompt, image)
    first = engine.generate(names, 200, 0.0, [0] * 8)["s0"]
    with pytest.raises(EngineError, match="remove them before sleep"):
        engine.sleep()
    engine.remove(names)
    held = cache_bytes(engine)
    engine.sleep()
    engine.sleep()  # a second one is no error
    cached = 2 * 2 * 2 * 128 * 4 * 8 * 200  # keys and values, layers, groups, head size, float32, answers' tokens
    assert held - cache_bytes(engine) > cached / 2
    engine.wake_up()
    engine.add(["s0"], prompt, image)
    again = engine.generate(["s0"], 200, 0.0, [0])["s0"]
    engine.remove(["s0"])
    assert again.tokens.tolist() == first.tokens.tolist()
    engine.sleep()
    engine.load_weights(weights(2).items(), 2)  # this and add() wake it too
    engine.sleep()
    engine.add(["s0"], prompt, image)
    assert len(engine.generate(["s0"], 5, 0.0, [0])["s0"].tokens) == 5
    engine.remove(["s0"])


def cache_bytes(engine: Engine) -> int:
    return engine.state["resident"] if isinstance(engine, RemoteEngine) else engine.cache_bytes


def test_requests_that_cannot_be_served_say_why(engine, tokenizer, weights):
    engine.load_weights(weights(1).items(), 1)
    prompt, image = prompt_of(tokenizer)
    refused = [
        ("no image was given", lambda: engine.add(["s"], prompt, None)),
        ("32 image placeholders, its image needs 8", lambda: engine.add(["s"], prompt, noise_image(0, 56, 112))),
        ("ids must be new", lambda: engine.add(["s", "s"], prompt, image)),
        ("no sequence 's'", lambda: engine.generate(["s"], 5, 1.0, [0])),
        ("2 to max_context=1024", lambda: engine.add(["s"], prompt[:1], None)),
    ]
    for message, call in refused:
        with pytest.raises(EngineError, match=message):
            call()
    engine.add(["s"], prompt, image)
    refused = [
        ("an image can only be in the prompt", lambda: engine.extend("s", np.array([tokenizer.image_pad], np.int32))),
        ("exceed max_context=1024", lambda: engine.extend("s", np.ones(1000, np.int32))),
        ("exceed max_context=1024", lambda: engine.generate(["s"], 1024, 1.0, [0])),
        ("need >= 1 and >= 0", lambda: engine.generate(["s"], 5, -1.0, [0])),
        ("got 0 seeds", lambda: engine.generate(["s"], 5, 1.0, [])),
    ]
    for message, call in refused:
        with pytest.raises(EngineError, match=message):
            call()
    assert engine.generate([], 5, 1.0, []) == {}
    assert len(engine.generate(["s"], 5, 1.0, [0])["s"].tokens) <= 5  # what was refused has changed nothing
    engine.remove(["s"])


def test_weights_that_do_not_fit_are_refused_until_a_set_fits(engine, tokenizer, weights):
    state = weights(1)
    others = [(name, tensor) for name, tensor in state.items() if name != "model.norm.weight"]
    for message, pairs in (
        ("1 weights are missing, the first: model.norm.weight", others),
        ("model.extra is not a weight", [*state.items(), ("model.extra", torch.zeros(1))]),
        ("model.norm.weight came twice", [*state.items(), ("model.norm.weight", torch.zeros(512))]),
        (r"got shape \[1\], the model has \[512\]", [*others, ("model.norm.weight", torch.zeros(1))]),
    ):
        with pytest.raises(WeightsError, match=message):
            engine.load_weights(pairs, 1)
        assert engine.version is None
        with pytest.raises(EngineError, match="call load_weights first"):
            engine.add(["s"], *prompt_of(tokenizer))
    engine.load_weights(state.items(), 2)
    assert engine.version == 2


def test_what_vllm_started_ends_with_the_engine(engines, tokenizer, weights):
    """Last in this file: the process that holds the engine is killed, and nothing of vLLM is left."""
    engine = engines("vllm")
    engine.load_weights(weights(1).items(), 1)
    others = {pid for pid in in_session(engine.process.pid) if pid != engine.process.pid}
    assert len(others) >= 2  # the engine core and its worker
    os.kill(engine.process.pid, signal.SIGKILL)
    engine.process.wait()
    deadline = time.monotonic() + 60.0
    while alive := others & in_session(engine.process.pid):
        assert time.monotonic() < deadline, f"{alive} live on"
        time.sleep(0.1)
