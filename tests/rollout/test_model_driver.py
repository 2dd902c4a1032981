"""A model directory drives: the same episodes from each kind of directory, from any number of engines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from nemo_mtdrive.config import ConfigError, RewardConfig, RolloutConfig
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.models.convert import hf_to_nemo
from nemo_mtdrive.models.hf_weights import hf_weights
from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config
from nemo_mtdrive.rollout.driver_pool import Station, only_episodes, play_batches
from nemo_mtdrive.rollout.model_driver import ModelDriver, shared_start
from nemo_mtdrive.stations import ProcessDied
from nemo_mtdrive.types import Episode, RolloutTask

from .driver_stations import die, environment, open_driver
from .fakes import ScriptedEnvironment

ROLLOUT = RolloutConfig(max_turns=2, max_answer_tokens=12, max_context=512, max_running=4, temperature=1.0,
                        dtype="float32", threads=1)


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model as Hugging Face's files."""
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    config = tiny_hf_config(
        vocab_size=tokenizer.vocab_size, image_pad=tokenizer.image_pad, video_pad=tokenizer.video_pad,
        vision_start=tokenizer.vision_start, vision_end=tokenizer.vision_end, im_start=tokenizer.im_start,
        im_end=tokenizer.im_end, layers=2, mlp=64, vision_hidden=64, vision_mlp=64)
    folder = tmp_path_factory.mktemp("model") / "hf"
    shutil.copytree(TINY_TOKENIZER, folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_hf_state(config, seed=5), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def nemo_dir(hf_dir: Path) -> Path:
    return hf_to_nemo(hf_dir, hf_dir.with_name("nemo"), tensor_size=2)


def tasks(*scene_ids: str) -> list[RolloutTask]:
    return [RolloutTask(scene_id=name, group_size=2, seed=11 + slot, policy_version=0, step=0, temperature=1.0,
                        purpose="mine", slot=slot) for slot, name in enumerate(scene_ids)]


def same(one: list[Episode], other: list[Episode]) -> bool:
    return len(one) == len(other) and all(
        first.episode_id == second.episode_id and first.reason == second.reason
        and np.array_equal(first.tokens, second.tokens) and np.array_equal(first.logprobs, second.logprobs)
        for first, second in zip(one, other, strict=True))


def play(directory: Path, **changes: object) -> list[Episode]:
    driver = ModelDriver.open(directory, rollout=replace(ROLLOUT, **changes), reward=RewardConfig(), device="cpu")
    episodes: list[Episode] = []
    driver.play(tasks("a", "b"), ScriptedEnvironment({"a": 1, "b": 9}, max_turns=2),
                lambda episode, images: episodes.append(episode))
    return sorted(episodes, key=lambda episode: episode.episode_id)


def test_every_kind_of_directory_of_one_model_plays_the_same_episodes(hf_dir: Path, nemo_dir: Path,
                                                                      tmp_path: Path) -> None:
    episodes = play(hf_dir)
    assert [(e.episode_id, len(e.turns), e.reason, e.policy_version) for e in episodes] == [
        ("mine/0/0/a/0", 1, "clean", 0), ("mine/0/0/a/1", 1, "clean", 0),
        ("mine/0/1/b/0", 2, "max_turns", 0), ("mine/0/1/b/1", 2, "max_turns", 0)]
    assert not np.array_equal(episodes[2].tokens, episodes[3].tokens), "each episode samples from its own seed"
    assert same(episodes, play(hf_dir))
    assert same(episodes, play(nemo_dir))
    checkpoint = tmp_path / "checkpoints" / "rl-000001"  # as a run writes it: the model is one of the things in it
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").symlink_to(nemo_dir)
    (tmp_path / "checkpoints" / "latest").symlink_to(checkpoint.name)
    assert same(episodes, play(checkpoint))
    assert same(episodes, play(tmp_path))


def test_the_context_is_at_most_the_models_own(hf_dir: Path) -> None:
    driver = ModelDriver.open(hf_dir, rollout=replace(ROLLOUT, max_context=99999), reward=RewardConfig(), device="cpu")
    assert driver.engine.max_context == 2048
    assert {episode.reason for episode in play(hf_dir, max_context=60)} == {"clean", "context"}


def test_answers_to_single_questions_are_those_to_each_alone(hf_dir: Path) -> None:
    driver = ModelDriver.open(hf_dir, rollout=replace(ROLLOUT, max_running=2), reward=RewardConfig(), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    questions = ["Is point 1 inside?", "Is point 2 inside, or where is it?", "Where to?"]
    answers = driver.ask(image, questions, 6)
    assert len(set(answers)) > 1, "the questions are told apart"
    assert answers == [driver.ask(image, [question], 6)[0] for question in questions]
    driver.engine.load_weights(hf_weights(hf_dir), 1)  # refused while any sequence is alive


def test_what_prompts_share_leaves_a_token_of_each() -> None:
    def shared(*prompts: str) -> int:
        return shared_start([np.frombuffer(prompt.encode(), np.uint8).astype(np.int32) for prompt in prompts])

    assert (shared("abcd", "abxd"), shared("abc", "abc"), shared("ab", "abcd"), shared("abc")) == (2, 2, 1, 2)
    assert shared("xa", "ya") == 0


def test_batches_over_engines_give_what_one_engine_gives(hf_dir: Path) -> None:
    batches = {0: tasks("a", "b"), 1: tasks("b"), 5: tasks("a")}
    station = Station(partial(open_driver, str(hf_dir), ROLLOUT), environment, only_episodes, threads=1)
    alone = dict(play_batches(station, batches, 1))
    assert list(alone) == [0, 1, 5] and [len(alone[number]) for number in alone] == [4, 2, 2]
    together = dict(play_batches(station, batches, 2))
    assert together.keys() == alone.keys() and all(same(alone[number], together[number]) for number in alone)


def test_a_killed_engine_process_is_named() -> None:
    station = Station(die, environment, only_episodes, threads=1)
    with pytest.raises(ProcessDied, match="run it again to go on"):
        list(play_batches(station, {0: tasks("a"), 1: tasks("b")}, 2))


@pytest.mark.parametrize(("change", "words"), [
    ("engine", "engine='gpt': set it to one of native"),
    ("config", "neither config.json nor a weights folder there"),
    ("tokenizer", "tokenizer.json: no such file"),
    ("weights", "no *.safetensors there"),
])
def test_what_cannot_be_opened_is_said_in_a_line(hf_dir: Path, tmp_path: Path, change: str, words: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(hf_dir, folder)
    for name, file in {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "model.safetensors"}.items():
        if name == change:
            (folder / file).unlink()
    with pytest.raises(ConfigError) as error:
        ModelDriver.open(folder, rollout=ROLLOUT, reward=RewardConfig(), device="cpu",
                         engine="gpt" if change == "engine" else "native")
    assert words in str(error.value) and "\n" not in str(error.value)
