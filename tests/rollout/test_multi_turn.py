"""Episodes of several turns against a scripted engine and environment, and once with the real engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nemo_mtdrive.dialogue.conversation import encode_dialogue, next_user_turn
from nemo_mtdrive.environment.client import EnvironmentRefused
from nemo_mtdrive.rollout.engine import EngineError
from nemo_mtdrive.rollout.multi_turn import CUT, RolloutSettings, episode_seed, run_tasks, turn_seed
from nemo_mtdrive.types import NOT_OURS, Episode, RolloutTask

from .conftest import teacher_forced
from .fakes import ScriptedEngine, ScriptedEnvironment, scene_image

SETTINGS = RolloutSettings(max_turns=4, max_answer_tokens=16, max_running=100, pdm_weight=0.8, format_weight=0.2)


def task(scene_id: str, group_size: int = 2, **changes) -> RolloutTask:
    fields = {"seed": 3, "policy_version": 0, "step": 5, "temperature": 1.0} | changes
    return RolloutTask(scene_id=scene_id, group_size=group_size, **fields)


def play(tasks, engine, environment, tokenizer, settings=SETTINGS) -> dict[str, Episode]:
    episodes: dict[str, Episode] = {}

    def on_episode(episode, images):
        assert episode.episode_id not in episodes
        assert tuple(images) == episode.image_keys
        assert all(np.array_equal(image, scene_image(episode.scene_id)) for image in images.values())
        episodes[episode.episode_id] = episode

    run_tasks(tasks, engine, environment, tokenizer, settings, on_episode)
    assert len(episodes) == sum(t.group_size for t in tasks)
    return episodes


def test_episodes_end_clean_or_at_the_last_turn(tokenizer):
    engine = ScriptedEngine(tokenizer)
    environment = ScriptedEnvironment({"a": 1, "b": 3, "c": 9}, max_turns=4)
    episodes = play([task("a"), task("b"), task("c", 3)], engine, environment, tokenizer)
    assert {e.episode_id: (len(e.turns), e.reason) for e in episodes.values()} == {
        "train/5/0/a/0": (1, "clean"),
        "train/5/0/a/1": (1, "clean"),
        "train/5/0/b/0": (3, "clean"),
        "train/5/0/b/1": (3, "clean"),
        "train/5/0/c/0": (4, "max_turns"),
        "train/5/0/c/1": (4, "max_turns"),
        "train/5/0/c/2": (4, "max_turns"),
    }
    assert all(e.valid and e.policy_version == 0 for e in episodes.values())
    assert engine.sequences == {}
    assert sorted(environment.closed) == sorted(episodes)
    # one prompt and one image a scene, one request and one batch a wave
    assert [names for names, _ in engine.prompts] == [
        ("train/5/0/a/0", "train/5/0/a/1"),
        ("train/5/0/b/0", "train/5/0/b/1"),
        ("train/5/0/c/0", "train/5/0/c/1", "train/5/0/c/2"),
    ]
    assert environment.images_sent == ["train/5/0/a/0", "train/5/0/b/0", "train/5/0/c/0"]
    assert [len(call) for call in environment.steps] == [7, 5, 5, 3]
    assert [len(names) for names, _, _ in engine.batches] == [7, 5, 5, 3]


def test_the_record_is_the_conversation_token_by_token(tokenizer):
    engine = ScriptedEngine(tokenizer)
    engine.say = lambda name, seed: "first" if seed == turn_seed(episode_seed(task("b"), 0), 0) else "second"
    environment = ScriptedEnvironment({"b": 2}, max_turns=4, feedback="mind the kerb")
    (episode,) = play([task("b", 1)], engine, environment, tokenizer).values()
    written = encode_dialogue(
        tokenizer, "scene b?", (1, 4, 6), [("first", "mind the kerb"), ("second", None)]
    )
    assert episode.tokens.tolist() == written.tokens.tolist()
    assert episode.turn_of_token.tolist() == written.turn_of_token.tolist()
    assert episode.logprobs.tolist() == [-0.5 if turn != NOT_OURS else 0.0 for turn in episode.turn_of_token]
    assert [(t.start, t.stop) for t in episode.turns] == written.spans
    assert [t.answer for t in episode.turns] == ["first", "second"]
    assert [t.feedback for t in episode.turns] == ["mind the kerb", ""]
    assert episode.turns[0].violations == [{"metric": "NC", "point": 0, "object": None}]
    assert episode.image_grids == ((1, 4, 6),)
    assert episode.seed == episode_seed(task("b"), 0)
    np.testing.assert_array_equal(episode.turns[1].trajectory, np.ones((8, 3)))


def test_an_episode_of_two_policy_versions_is_refused(tokenizer):
    """Weights that change between two of its turns."""
    engine = ScriptedEngine(tokenizer, version=4)
    environment = ScriptedEnvironment({"a": 3}, max_turns=4)
    said = engine.say

    def say(sequence_id, seed):
        if len(environment.steps) == 1:
            engine.version = 5
        return said(sequence_id, seed)

    engine.say = say
    with pytest.raises(EngineError, match="a/0: began with policy version 4, its turn 2 was written with 5"):
        play([task("a", policy_version=4)], engine, environment, tokenizer)


def test_rewards_follow_equation_2(tokenizer):
    """r = 0.8 * PDMS + 0.2 * format, by hand; an unreadable answer has neither."""
    engine = ScriptedEngine(tokenizer)
    engine.say = lambda name, seed: "bad" if seed == turn_seed(episode_seed(task("a"), 0), 1) else "fine"
    environment = ScriptedEnvironment({"a": 3}, max_turns=4)
    (episode,) = play([task("a", 1)], engine, environment, tokenizer).values()
    assert episode.rewards == pytest.approx([0.8 * 0.1 + 0.2, 0.0, 0.8 * 0.3 + 0.2], abs=1e-12)
    assert episode.turns[1].scores is None and episode.turns[1].trajectory is None


def test_an_answer_cut_at_the_limit_is_closed_before_the_feedback(tokenizer):
    engine = ScriptedEngine(tokenizer)
    engine.say = lambda name, seed: "one two three four five six seven"
    environment = ScriptedEnvironment({"a": 2}, max_turns=4)
    settings = dataclasses.replace(SETTINGS, max_answer_tokens=3)
    (episode,) = play([task("a", 1)], engine, environment, tokenizer, settings).values()
    first = episode.turns[0]
    assert first.stop - first.start == 3 and tokenizer.im_end not in episode.tokens[first.start : first.stop]
    assert episode.tokens[first.stop] == tokenizer.im_end and episode.turn_of_token[first.stop] == NOT_OURS


def test_an_episode_whose_next_turn_would_not_fit_ends_with_context(tokenizer):
    environment = ScriptedEnvironment({"a": 9}, max_turns=4, feedback="many words " * 10)
    engine = ScriptedEngine(tokenizer)
    engine.say = lambda name, seed: "yes"
    (whole,) = play([task("a", 1)], engine, environment, tokenizer).values()
    # room for exactly two turns: the third would need its user turn and a whole answer
    stop = whole.turns[1].stop
    engine.max_context = stop + len(next_user_turn(tokenizer, environment.feedback)) + SETTINGS.max_answer_tokens - 1
    (episode,) = play([task("a", 1)], engine, environment, tokenizer).values()
    assert (episode.reason, episode.valid, len(episode.turns)) == ("context", True, 2)
    assert episode.tokens.tolist() == whole.tokens[:stop].tolist()  # feedback that nobody answers is left out
    engine.max_context += 1
    (episode,) = play([task("a", 1)], engine, environment, tokenizer).values()
    assert len(episode.turns) >= 3


def test_a_prompt_that_does_not_fit_says_what_to_raise(tokenizer):
    engine = ScriptedEngine(tokenizer, max_context=20)
    episodes = play([task("a")], engine, ScriptedEnvironment({"a": 1}, max_turns=4), tokenizer)
    for episode in episodes.values():
        assert not episode.valid and episode.turns == ()
        assert "exceed rollout.max_context=20: raise it" in episode.reason


def test_an_environment_that_goes_away_makes_episodes_invalid_and_the_rest_goes_on(tokenizer):
    """Two scenes run, the environment dies in the second wave and is back for the third scene, which waited."""
    environment = ScriptedEnvironment({"a": 1, "b": 3, "c": 1}, max_turns=4)
    environment.down_at = 1
    real_step = environment.step_many

    def step_many(items):
        if len(environment.steps) == 2:
            environment.down_at = None
        return real_step(items)

    environment.step_many = step_many
    engine = ScriptedEngine(tokenizer)
    settings = dataclasses.replace(SETTINGS, max_running=4)
    episodes = play([task("a"), task("b"), task("c", 4)], engine, environment, tokenizer, settings)
    outcome = {name.split("/", 3)[3]: (e.valid, e.reason, len(e.turns)) for name, e in episodes.items()}
    down = (False, "error: http://env: no answer in 1.0 s", 1)
    assert outcome == {
        "a/0": (True, "clean", 1), "a/1": (True, "clean", 1), "b/0": down, "b/1": down,
        **{f"c/{i}": (True, "clean", 1) for i in range(4)},
    }
    lost = episodes["train/5/0/b/0"]
    assert len(lost.tokens) == lost.turns[0].stop and lost.turn_of_token.max() == 0  # the unscored answer is left out
    assert engine.sequences == {}


def test_a_scene_that_breaks_takes_no_other_with_it(tokenizer):
    environment = ScriptedEnvironment({"a": 2, "b": 2}, max_turns=4)
    environment.broken_scenes = {"b"}
    episodes = play([task("a"), task("b"), task("gone")], ScriptedEngine(tokenizer), environment, tokenizer)
    assert [(e.valid, e.reason) for name, e in sorted(episodes.items())] == [
        (True, "clean"),
        (True, "clean"),
        (False, "error: train/5/0/b/0: this scene breaks"),
        (False, "error: train/5/0/b/1: this scene breaks"),
        (False, "error: scene 'gone': the source has no such scene"),
        (False, "error: scene 'gone': the source has no such scene"),
    ]
    assert len(episodes["train/5/0/gone/0"].tokens) == 0


def test_a_scene_whose_scoring_fails_is_invalid_alone_and_asked_once(tokenizer):
    environment = ScriptedEnvironment({"a": 2, "b": 2}, max_turns=4)
    environment.failing_scenes = {"b"}
    episodes = play([task("a"), task("b")], ScriptedEngine(tokenizer), environment, tokenizer)
    failed = (False, "error: RuntimeError: the map has a hole", 0)
    ended = [(e.valid, e.reason, len(e.turns)) for _, e in sorted(episodes.items())]
    assert ended == [(True, "clean", 2)] * 2 + [failed] * 2
    assert [len(call) for call in environment.steps] == [4, 2]


def test_a_refused_token_is_no_episode_error(tokenizer):
    environment = ScriptedEnvironment({"a": 2}, max_turns=4)

    def refuse(items):
        raise EnvironmentRefused("http://env: 401 wrong token")

    environment.reset_many = refuse
    with pytest.raises(EnvironmentRefused, match="401"):
        play([task("a")], ScriptedEngine(tokenizer), environment, tokenizer)


def test_waiting_tasks_start_as_episodes_end(tokenizer):
    """At most five run, groups start whole, a batch mixes turns; a group above the limit runs alone."""
    environment = ScriptedEnvironment({"a": 1, "b": 4, "c": 2, "d": 1}, max_turns=4)
    engine = ScriptedEngine(tokenizer)
    settings = dataclasses.replace(SETTINGS, max_running=5)
    waves = []
    run_tasks(
        [task("a"), task("b"), task("c"), task("d", 7)], engine, environment, tokenizer, settings,
        lambda episode, images: None, lambda *wave: waves.append(wave),
    )
    scenes = [[name.split("/")[3] + name.split("/")[4] for name in names] for names, _, _ in engine.batches]
    assert scenes == [
        ["a0", "a1", "b0", "b1"],
        ["b0", "b1", "c0", "c1"],
        ["b0", "b1", "c0", "c1"],
        ["b0", "b1"],
        [f"d{i}" for i in range(7)],
    ]
    assert waves == [(1, 2, 2), (2, 4, 2), (3, 2, 4), (4, 0, 6), (5, 0, 13)]


def test_temperatures_do_not_mix_and_seeds_are_each_episodes_own(tokenizer):
    engine = ScriptedEngine(tokenizer)
    environment = ScriptedEnvironment({"a": 2}, max_turns=4)
    play([task("a"), task("a", 2, temperature=0.0, seed=4, slot=1)], engine, environment, tokenizer)
    assert [(len(names), temperature) for names, temperature, _ in engine.batches] == [(2, 0.0), (2, 1.0)] * 2
    seeds = [seed for _, _, batch in engine.batches for seed in batch]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_the_real_engine_plays_and_its_logprobs_are_huggingfaces(engine, tokenizer, reference):
    """Whole episodes with the native engine: same tasks, same episodes; log-probs of every turn equal HF's."""
    settings = dataclasses.replace(SETTINGS, max_turns=3)
    tasks = [task("a", 3), task("b", 2, seed=8), task("c", 2, seed=9)]
    runs = []
    for _ in range(2):
        environment = ScriptedEnvironment({"a": 3, "b": 2, "c": 1}, max_turns=3)
        runs.append(play(tasks, engine, environment, tokenizer, settings))
    for name, episode in runs[0].items():
        assert episode.tokens.tolist() == runs[1][name].tokens.tolist()
        assert episode.logprobs.tolist() == runs[1][name].logprobs.tolist()
        own = episode.turn_of_token != NOT_OURS
        scored = teacher_forced(reference, episode.tokens, scene_image(episode.scene_id))
        np.testing.assert_allclose(episode.logprobs[own], scored[own], atol=1e-4)
        assert (episode.logprobs[~own] == 0).all()


def test_an_episode_beyond_its_deadline_is_cut_and_its_group_goes_on(tokenizer):
    """Every turn is beyond a deadline of 0 s: what is not over after its first turn is cut, with that turn."""
    engine = ScriptedEngine(tokenizer)
    environment = ScriptedEnvironment({"a": 1, "b": 3}, max_turns=4)
    hasty = dataclasses.replace(SETTINGS, episode_timeout_s=0.0)
    episodes = play([task("a"), task("b")], engine, environment, tokenizer, hasty)
    assert [(e.valid, e.reason) for e in episodes.values() if e.scene_id == "a"] == [(True, "clean")] * 2
    cut = [e for e in episodes.values() if e.scene_id == "b"]
    assert all(not e.valid and len(e.turns) == 1 and len(e.tokens) == e.turns[0].stop for e in cut) and len(cut) == 2
    assert all(e.reason.startswith(f"{CUT} after 1 turns in ") and e.reason.endswith("episode_timeout_s=0") for e in cut)
    assert engine.sequences == {}
