"""The config tree: a short delta composes, and everything that cannot work is one clear line before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemo_mtdrive.config import Config, ConfigError, check, load_config, read_config, save_config
from nemo_mtdrive.config_checks import seconds_of


def test_the_demo_composes_over_the_papers_defaults() -> None:
    config = load_config("scratch_cpu", ["mtgrpo.estimator=per_turn"])
    assert (config.mtgrpo.group_size, config.reward.pdm_weight, config.reward.format_weight) == (8, 0.8, 0.2)
    assert config.rollout.max_turns == 6
    assert config.mtgrpo.estimator == "per_turn"
    assert config.world_size == 2


def test_defaults_are_the_papers() -> None:
    rl = Config().mtgrpo
    assert (rl.prompts_per_step, rl.mini_batch_prompts, rl.group_size, rl.steps) == (256, 128, 8, 300)
    assert (rl.lr, rl.kl_coefficient, rl.kl_estimator) == (1e-6, 0.01, "k3")
    assert (Config().sft.lr, Config().sft.batch_size, Config().rollout.max_context) == (4e-5, 128, 11500)


def test_the_demos_model_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = Path(load_config("demo_cpu", []).model.init_from)
    assert start.is_absolute() and (start / "config.json").is_file()


def test_sizes_beside_a_model_that_has_its_own_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.layers with model.init_from=.*tiny_driver: .* leave model.layers out"):
        load_config("demo_cpu", ["model.layers=6"])
    assert load_config("demo_cpu", ["model.layers=6", "model.init_from="]).model.layers == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mtgrpo.group_size=1"], "mtgrpo.group_size=1: set it to 2 or more"),
        (["mtgrpo.grup_size=8"], "grup_size"),
        (["nonsense=1"], "nonsense"),
        (["mtgrpo.steps=many"], "'many'"),
        (["rollout.max_turns=0"], "rollout.max_turns=0: set it to a positive number"),
        (["mtgrpo.lr_end=2"], "mtgrpo.lr_end=2.0: set it from 0 to 1"),
        (["rollout.top_p=1.5"], "rollout.top_p=1.5: set it up to 1, the share of the mass that is drawn from; 1 draws"),
        (["rollout.top_p=0"], "rollout.top_p=0.0: set it to a positive number"),
        (["rollout.temperature=0"], "rollout.temperature=0.0: set it to a positive number; 0, greedy, is for playing alone"),
        (["mtgrpo.lr=0"], "mtgrpo.lr=0.0: set it to a positive number"),
        (["mtgrpo.estimator=best"], "mtgrpo.estimator=best: set it to one of sequence, per_turn, cross_turn"),
        (["environment.perception=radar"], "environment.perception=radar: set it to one of oracle, kinematic"),
        (["scenes.image_width=200"], "scenes.image_width=200: set it to a multiple of 28"),
        (["mtgrpo.mini_batch_prompts=3"], "mtgrpo.mini_batch_prompts=3: set it to a divisor"),
        (["sft.batch_size=1", "parallel.data=2"], "sft.batch_size=1: set it to parallel.data=2 or more"),
        (["model.head_size=24"], "model.head_size=24: set it to a multiple of 16, as 64"),
        (["parallel.tensor=4"], "model.hidden_size=256: set it to a multiple of model.head_size * parallel.tensor = 512"),
        (["scenes=av2"], "scenes.path='': no such folder"),
        (["scenes=av2", "scenes.path=/nowhere"], "scenes.path='/nowhere': no such folder"),
        (["scenes=mars"], "Could not find 'scenes/mars'"),
        (["model.init_from=/nowhere"], "no config.json there"),
        (["mtgrpo"], "mtgrpo"),
        (["sft.stages=[{kinds:{two_turn:1}}]"], "sft.stages[0].kinds: two_turn: 1; set kinds of single_turn, multi_turn"),
        (["sft.stages=[{epochs:0}]"], "sft.stages[0]: steps=0, epochs=0; set one of them above 0"),
        (["sft.stages=[{lr:-1}]"], "sft.stages[0].lr=-1: set it above 0, or to 0 for sft.lr"),
        (["sft.learn=some"], "sft.learn=some: set it to one of last, all"),
        (["sft.data=/nowhere"], "sft.data='/nowhere': no *.jsonl there"),
        (["transfer.visual_embeddings=on"], "transfer.visual_embeddings=on with model.freeze_vision=false"),
        (["transfer.visual_embeddings=on", "model.freeze_vision=true", "model.freeze_projector=true", "transfer.iptc=false"],
         "set transfer.iptc=true"),
        (["transfer.visual_embeddings=yes"], "transfer.visual_embeddings=yes: set it to one of auto, on, off"),
        (["mtgrpo.max_staleness=2"], "mtgrpo.max_staleness=2: set it to 0 (first rollouts, then training) or 1"),
        (["mtgrpo.max_staleness=1"], "mtgrpo.max_staleness=1: set mtgrpo.importance_cap too"),
        (["mtgrpo.max_staleness=1", "mtgrpo.importance_cap=2", "mtgrpo.tied_groups=refill"], "set mtgrpo.tied_groups to"),
        (["max_time_per_run=3h"], "max_time_per_run='3h': set it to DAYS:HOURS:MINUTES:SECONDS"),
    ],
)
def test_what_cannot_work_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("scratch_cpu", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


ROLLOUT = f"rollout.python={sys.executable}"
"""Where there is no environment with vLLM: it is only looked for."""


@pytest.fixture
def site(tmp_path: Path) -> list[str]:
    """Overrides that name a site's folders."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sft.jsonl").write_text("")
    return [f"scenes.path={tmp_path}", f"model.init_from={tmp_path}", ROLLOUT]


def test_the_rl_config_is_section_4_1(site: list[str]) -> None:
    config = load_config("rl_qwen25vl_7b_32gpu", site)
    rl = config.mtgrpo
    assert (config.world_size, config.sft.stages, config.scenes.count) == (32, [], 13000)
    assert (rl.prompts_per_step, rl.mini_batch_prompts, rl.group_size, rl.steps) == (256, 128, 8, 300)
    assert (rl.lr, rl.kl_coefficient, rl.kl_estimator, rl.estimator) == (1e-6, 0.01, "k3", "cross_turn")
    assert (config.rollout.max_turns, config.rollout.max_context) == (6, 11500)
    assert (config.reward.pdm_weight, config.reward.format_weight) == (0.8, 0.2)


def test_the_sft_config_is_section_4_1(site: list[str]) -> None:
    config = load_config("sft_qwen25vl_7b_64gpu", [*site, f"sft.data={site[1].partition('=')[2]}"])
    assert (config.world_size, config.sft.lr, config.sft.batch_size, config.sft.micro_batch_tokens) == (64, 4e-5, 128, 11500)
    assert [(stage.kinds, stage.epochs, stage.steps) for stage in config.sft.stages] == [({}, 4.0, 0)]


@pytest.mark.parametrize("name", ["rl_qwen25vl_7b_32gpu", "sft_qwen25vl_7b_64gpu"])
def test_a_site_that_is_not_set_is_one_clear_line(name: str) -> None:
    with pytest.raises(ConfigError, match="no such folder; set it to a folder of OpenScene data"):
        load_config(name, [ROLLOUT])
    with pytest.raises(ConfigError, match=r"no config.json there; set it to a Qwen2\.5-VL directory"):
        load_config(name, ["scenes.path=.", ROLLOUT])


def test_a_config_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("scenes: {path: ???}")
    with pytest.raises(ConfigError, match="--config-name mine: while parsing a flow node"):
        load_config("mine", [], tmp_path)


@pytest.mark.parametrize(("limit", "seconds"), [("", None), ("00:03:45:00", 13500.0), ("1:0:0:1", 86401.0)])
def test_the_time_limit(limit: str, seconds: float | None) -> None:
    assert seconds_of(limit) == seconds


def test_an_unknown_config_name_and_folder() -> None:
    with pytest.raises(ConfigError, match="nothing_here"):
        load_config("nothing_here", [])
    with pytest.raises(ConfigError, match="no such folder"):
        load_config("scratch_cpu", [], Path("/nowhere"))


def test_a_file_of_another_version_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mtgrpo:\n  old_key: 1\n")
    with pytest.raises(ConfigError, match="old_key.*another version wrote it"):
        read_config(tmp_path / "config.yaml")


def test_written_and_read_back(tmp_path: Path) -> None:
    config = load_config("scratch_cpu", ["scenes.kinds={curve: 2.0}", "seed=5"])
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    check(read_config(tmp_path / "config.yaml"))
