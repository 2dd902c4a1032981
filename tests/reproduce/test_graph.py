"""The stages: no cycles, what tables share is made once, values decide hashes, commands that the project understands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_mtdrive.cli import _parser
from nemo_mtdrive.config import Config, ConfigError, load_config
from nemo_mtdrive.driving.sources import Address, open_scenes
from nemo_mtdrive.models.tiny import random_hf_state
from nemo_mtdrive.ranks import hf_config, load_tokenizer, tokenizer_files
from nemo_mtdrive.reproduce.graph import HELD_OUT, TRAIN, WHATS, graph_for, size_scenes, stages_of, whole_graph
from nemo_mtdrive.reproduce.recipe import RECIPES, Recipe, load_recipe, scaled
from nemo_mtdrive.reproduce.stages import CONFIGS, Stage, graph_of, hashes, needed_for, spelled

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPES / "recipe.yaml")


def test_every_stage_comes_after_what_it_needs(recipe: Recipe) -> None:
    seen: set[str] = set()
    for name, stage in whole_graph(recipe, SEEDS).items():
        assert set(stage.needs) <= seen
        seen.add(name)


def test_cycles_and_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="need each other: a -> b -> a"):
        graph_of([Stage("a", (), ("b",)), Stage("b", (), ("a",))])
    with pytest.raises(ConfigError, match="stage a needs b, which is not there"):
        graph_of([Stage("a", (), ("b",))])
    with pytest.raises(ConfigError, match="two of one name that differ"):
        graph_of([Stage("a", (), ()), Stage("a", (("x",),), ())])


def test_what_tables_share_is_one_stage(recipe: Recipe) -> None:
    parts = {what: set(graph_for(recipe, SEEDS, [what])) for what in WHATS}
    for shared in (TRAIN, "data_single", "sft_single-s1"):
        assert all(shared in part for what, part in parts.items() if what != "mock") and TRAIN in parts["mock"]
    together = graph_for(recipe, SEEDS, WHATS)
    assert set(together) == set.union(*parts.values())
    assert sum(name.startswith("rl_cross_turn") for name in together) == len(SEEDS)
    assert {"rl_cross_turn-s2", "sft_multi-s2"} <= parts["table1"] & parts["table3"] & parts["turns"]
    assert "eval_rl_model-s2" in (parts["table1"] & parts["turns"]) - parts["table3"]
    assert not {name for name in parts["model"] if name.endswith(("-s2", "-s3"))}, "the model is of the first seed"


def test_every_table_stands_on_every_seed(recipe: Recipe) -> None:
    for what in ("table1", "table2", "table3", "turns", "mock", "size"):
        names = stages_of(recipe, SEEDS, what)
        assert len({name[-3:] for name in names if name[-3:-1] == "-s"}) == len(SEEDS)


def test_the_rows_of_the_paper_are_there(recipe: Recipe) -> None:
    assert [row.turns for row in recipe.sft.values()] == [1, 2, 2, 2, 6]
    two_stage = whole_graph(recipe, SEEDS)["sft_two_stage-s1"].commands[0]
    stages = next(word for word in two_stage if word.startswith("sft.stages="))
    assert stages.count("steps:") == 2 and "{multi_turn:1}" in stages.replace("kinds:", "")
    for estimator in ("sequence", "per_turn", "cross_turn", "unbiased"):
        assert f"mtgrpo.estimator={estimator}" in whole_graph(recipe, SEEDS)[f"rl_{estimator}-s3"].commands[0]


def test_the_model_goes_on_from_table_3_on_other_scenes(recipe: Recipe) -> None:
    graph = whole_graph(recipe, SEEDS)
    first, second = graph["rl_cross_turn-s2"].commands[0], graph["rl_model-s2"].commands[0]
    assert "model.init_from={rl_cross_turn-s2}/checkpoints/latest" in second and "mtgrpo.estimator=cross_turn" in second
    assert second[-1] == "mtgrpo.lr_end=0" and "mtgrpo.lr_end=0" not in first
    assert "seed=2" in first and "seed=102" in second and f"mtgrpo.steps={recipe.rl.more}" in second


def test_rollouts_and_evaluations_sample_alike(recipe: Recipe) -> None:
    cooler = whole_graph(replace(recipe, play=["rollout.temperature=0.5"]), SEEDS)
    told = {name for name, stage in cooler.items() if "rollout.temperature=0.5" in stage.commands[0]}
    plays = {name for name in cooler if name.startswith(("rl_", "eval_", "pictures_"))}
    assert told == plays - {"rl_set", "eval_drivers"}
    before, after = hashes(whole_graph(replace(recipe, play=[]), SEEDS)), hashes(cooler)
    assert {name for name in before if before[name] != after[name]} == told | {"model"}, "SFT and its data stay"


def test_a_value_changes_the_hash_of_what_stands_on_it(recipe: Recipe) -> None:
    before = hashes(whole_graph(recipe, SEEDS))
    changed = hashes(whole_graph(replace(recipe, rl=replace(recipe.rl, steps=recipe.rl.steps + 1)), SEEDS))
    different = {name for name in before if before[name] != changed[name]}
    assert {"rl_cross_turn-s1", "eval_rl_cross_turn-s1", "model"} <= different
    assert not different & {TRAIN, "sft_multi-s1", "eval_sft_multi-s1", "data_multi_turn"}
    seeds = hashes(whole_graph(recipe, (1,)))
    assert seeds.items() <= before.items(), "fewer seeds make nothing anew"
    data = hashes(whole_graph(replace(recipe, scenes=replace(recipe.scenes, train=recipe.scenes.train + 1)), SEEDS))
    assert {name for name in data if data[name] == before[name]} == {HELD_OUT, "eval_drivers"}


def test_the_text_of_the_config_is_part_of_the_hash(recipe: Recipe, tmp_path: Path) -> None:
    graph = whole_graph(recipe, (1,))
    before = hashes(graph)
    text = (CONFIGS / f"{recipe.config}.yaml").read_text()
    (tmp_path / f"{recipe.config}.yaml").write_text(text)
    assert hashes(graph, tmp_path) == before
    (tmp_path / f"{recipe.config}.yaml").write_text(text + "# anything\n")
    assert {name for name, mark in hashes(graph, tmp_path).items() if mark == before[name]} == {
        name for name in graph if name in (TRAIN, HELD_OUT, "eval_drivers", "data_single") or name.startswith("data_mock")}


def test_the_hash_does_not_know_where_it_is(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(whole_graph(recipe, SEEDS))
    monkeypatch.chdir(tmp_path)
    assert hashes(whole_graph(recipe, SEEDS)) == before
    words = [word for stage in whole_graph(recipe, SEEDS).values() for command in stage.commands for word in command]
    assert not [word for word in words if word.startswith("/") or str(CONFIGS) in word]


def test_every_command_is_one_of_the_project(recipe: Recipe, tmp_path: Path) -> None:
    """The words are parsed by the command line itself, those of training composed and checked as they will be."""
    graph = whole_graph(replace(recipe, language=replace(recipe.language, steps=5)), (1,))
    assert "language" in graph
    root = tmp_path / "root"
    for stage in graph.values():
        for needed in (*stage.needs, stage.name):
            folder = root / "stages" / needed / "out"
            (folder / "checkpoints" / "latest").mkdir(parents=True, exist_ok=True)
            for file in ("lines.jsonl", "scenes.txt", "config.json", "checkpoints/latest/config.json"):
                (folder / file).touch()
    for name, stage in graph.items():
        for program, *words in spelled(stage, root):
            if program != "nemo-mtdrive":
                assert Path(words[0]).is_file()
                continue
            options = _parser().parse_args(words)
            if words[0] in ("sft", "rl", "pretrain-vision", "pretrain-language"):
                config = load_config(options.config_name, options.overrides, options.config_dir)
                assert isinstance(config, Config)
                assert name in ("vision", "language") or config.run_dir == str(root / "stages" / name / "out")
                assert config.seed == (101 if name == "rl_model-s1" else 1)
                path = "" if name == "language" else str(root / "stages" / TRAIN / "out")  # it reads no scene
                assert config.scenes.image_width == recipe.scenes.width and config.scenes.path == path


def test_training_and_held_out_scenes_have_no_seed_in_common(recipe: Recipe) -> None:
    for scale, held_out in ((1.0, None), (0.001, 5), (3.0, 20_000)):
        at = scaled(recipe, scale, held_out)
        graph = whole_graph(at, SEEDS)
        sets = {}
        for name in (TRAIN, HELD_OUT):
            words = graph[name].commands[0]
            given = {key[2:]: words[words.index(key) + 1] for key in ("--count", "--seed", "--split")}
            sets[name] = set(open_scenes(Address("procedural", "", given)).ids())
        assert len(sets[TRAIN]) == at.scenes.train and len(sets[HELD_OUT]) == at.scenes.held_out
        assert not sets[TRAIN] & sets[HELD_OUT]
        for stage in graph.values():  # nothing that learns reads a held-out scene
            learns = stage.name.startswith(("data_", "sft_", "rl_", "vision", "language"))
            assert not (learns and HELD_OUT in stage.needs)
            assert not (stage.name.startswith(("eval_", "pictures_")) and TRAIN in stage.needs)


def test_data_and_run_split_alike(recipe: Recipe) -> None:
    """Scenes that a run validates on are held out of the data that it learns from: same number, same seed."""
    graph = whole_graph(recipe, SEEDS)
    for stage in graph.values():
        for words in stage.commands:
            if words[1] == "curate":
                assert words[words.index("--held-out") + 1] == str(recipe.scenes.validation)
                assert words[words.index("--seed") + 1] == "7"
            if words[1] in ("sft", "rl"):
                assert {"scenes.seed=7", f"scenes.held_out={recipe.scenes.validation}"} <= set(words)


def test_a_size_is_in_proportion(recipe: Recipe) -> None:
    counts = size_scenes(recipe)
    assert list(counts) == [7, 13, 26]
    assert counts[26] == pytest.approx(2 * counts[13], abs=1) and counts[7] == pytest.approx(7 / 13 * counts[13], abs=1)


def test_scaling(recipe: Recipe) -> None:
    tiny = scaled(recipe, 0.001, None)
    assert tiny.scenes.train == tiny.scenes.validation + 4 and tiny.scenes.held_out == 4
    assert all(stage.steps >= 1 for row in tiny.sft.values() for stage in row.stages) and tiny.rl.steps == 1
    assert scaled(recipe, 1.0, None) == recipe
    assert scaled(recipe, 1.0, 2000).scenes.held_out == 2000
    assert scaled(recipe, 2.0, None).rl.steps == 2 * recipe.rl.steps


def test_a_common_start_is_a_stage_when_it_has_steps(recipe: Recipe) -> None:
    with_start, without = (whole_graph(replace(recipe, vision=replace(recipe.vision, steps=steps),
                                               language=replace(recipe.language, steps=0)), SEEDS) for steps in (10, 0))
    assert "vision" in with_start["sft_single-s2"].needs and "vision" in with_start["sft_mock_50-s1"].needs
    assert "model.init_from={vision}" in with_start["sft_multi-s1"].commands[0]
    assert all("model.freeze_vision=true" in with_start[name].commands[0] for name in ("sft_multi-s1", "rl_unbiased-s3"))
    assert not [word for word in without["rl_unbiased-s3"].commands[0] if "freeze" in word]
    assert "vision" not in without and not [word for word in without["sft_multi-s1"].commands[0] if "init_from" in word]
    assert "language" not in with_start
    both = whole_graph(replace(recipe, vision=replace(recipe.vision, steps=10),
                               language=replace(recipe.language, steps=5)), SEEDS)
    assert both["language"].needs == ("vision",) and "model.init_from={vision}" in both["language"].commands[0]
    assert all("model.init_from={language}" in both[name].commands[0] for name in ("sft_single-s1", "sft_mock_0-s3"))


@pytest.mark.parametrize(("changed", "words"), [
    ({"rl": {"step": 3}}, "step"),
    ({"vision": {"steps": 0}, "language": {"steps": 5}}, "language.steps=5, vision.steps=0: set both"),
    ({"sft": {"multi": {"data": "six_turn"}}}, "set it to one of single, two_turn, multi_turn"),
    ({"rl": {"estimators": ["unbiased"]}}, "cross_turn among them"),
    ({"scenes": {"validation": 10**6}}, "from 1 to less than"),
    ({"sft": {"single": {"stages": []}}}, "set one or more"),
    ({"mock": {"stages": [{"steps": 3, "kinds": {"dreams": 1}}]}}, "dreams: set kinds of single_turn"),
    ({"sft": {"single": {"data": "two_turn"}}}, "must learn from single"),
    ({"play": ["temperature=0.5"]}, "temperature=0.5: set keys of rollout, as rollout.temperature=0.5"),
])
def test_recipes_that_cannot_be_made(changed: dict[str, object], words: str, tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(RECIPES / "recipe.yaml"), changed), tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match=words):
        load_recipe(tmp_path / "recipe.yaml")


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "nothing.yaml")


def test_needed_for_is_closed(recipe: Recipe) -> None:
    graph = whole_graph(recipe, (1,))
    part = needed_for(graph, ["rl_set"])
    assert "sft_multi-s1" in part and HELD_OUT not in part
    assert list(part) == [name for name in graph if name in part]


def test_the_model_fits_into_eight_megabytes(recipe: Recipe) -> None:
    """In bfloat16, its tokenizer included."""
    config = load_config(recipe.config, [], CONFIGS)
    state = random_hf_state(hf_config(config, load_tokenizer(config)), 1)
    tokenizer = sum(path.stat().st_size for path in tokenizer_files(config).iterdir())
    assert 2 * sum(tensor.numel() for tensor in state.values()) + tokenizer < 8_000_000
