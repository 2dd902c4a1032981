"""What is reproduced, in numbers: conf/reproduce/recipe.yaml, typed and checked, at any scale."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_mtdrive.config import CONF_DIR, ConfigError
from nemo_mtdrive.config_checks import SFT_KINDS

RECIPES = CONF_DIR / "reproduce"
DATA = ("single", "two_turn", "multi_turn")
"""Sets of SFT data: single-turn and understanding; with 2-turn conversations too; with conversations of up to 6 turns."""
LEAST_SCENES = 4
SINGLE, BOOTSTRAP, MODEL = "single", "one_stage", "multi"
"""Rows of `sft` that others build on: whose answers make the 2-turn and 3-turn data, and which RL starts from."""
MODEL_ESTIMATOR = "cross_turn"
"""The estimator of the model that is shipped: the paper's (Table 3, ID 3)."""
RL_MODEL = "rl_model"
"""Its stage: where Table 3's run of that estimator ends, a further iteration begins."""


@dataclass
class Scenes:
    """Generated scenes: training ones of the seeds of split `train`, the others of split `held_out`."""

    train: int = 6000
    """Training scenes, those for validation inside runs included."""
    validation: int = 100
    """Of them, never learned from: what curves over steps are drawn with."""
    held_out: int = 1000
    """What every table is measured on."""
    difficulty: float = 0.5
    kinds: dict[str, float] = field(default_factory=dict)
    """Mixture of the training scenes, name -> weight; held-out scenes have the generator's own."""
    width: int = 224
    height: int = 112


@dataclass
class Data:
    """SFT data (Section 3.2, Appendix B)."""

    mock_share: float = 0.5
    max_turns: int = 6
    pairs: int = 1
    samples: int = 2
    """Episodes of a scene in the round that makes 3-turn data."""


@dataclass
class Vision:
    """A model whose vision tower knows roads, from which every SFT starts, as the paper's start from a pretrained one."""

    steps: int = 0
    """Of `pretrain-vision`; 0: there is none, each SFT starts from random weights of its seed."""
    freeze: bool = True
    """SFT and RL leave the tower and its projector as they are: a language model that knows nothing yet would shake them."""
    set: list[str] = field(default_factory=list)
    """Further KEY=VALUE of it."""


@dataclass
class Language:
    """Its language model knows how plans are written, as a pretrained one can count."""

    steps: int = 0
    """Of `pretrain-language`, from where the tower ended; 0: the language model has random weights."""
    set: list[str] = field(default_factory=list)
    """Further KEY=VALUE of it."""


@dataclass
class Stage:
    """A stage of SFT, as `config.SFTStage` with steps alone."""

    steps: int = 0
    kinds: dict[str, float] = field(default_factory=dict)


@dataclass
class SFT:
    """A row of Table 2."""

    label: str = ""
    data: str = "single"
    """One of `DATA`."""
    turns: int = 1
    """Most turns that it is evaluated with."""
    stages: list[Stage] = field(default_factory=list)
    set: list[str] = field(default_factory=list)
    """Further KEY=VALUE of the training."""


@dataclass
class RL:
    """The rows of Table 3."""

    steps: int = 60
    estimators: list[str] = field(default_factory=lambda: ["sequence", "per_turn", "cross_turn", "unbiased"])
    rl_set: bool = True
    """Train on the scenes that `curate rl-set` takes (Section 3.2); else on all training scenes."""
    turns: int = 6
    """Most turns in training and in the tables."""
    sweep: int = 8
    """Most turns that the turn sweep tries."""
    more: int = 60
    """Steps of the model's further iteration of Algorithm 1 (line 4: the reference becomes the policy), on other scenes of
    the set; Table 3 compares the estimators before it."""
    more_set: list[str] = field(default_factory=list)
    """Further KEY=VALUE of that iteration alone, after those of `set`."""
    set: list[str] = field(default_factory=list)
    """Further KEY=VALUE of the training."""


@dataclass
class Mock:
    """The share of scenes with a mock conversation (the paper's open question 2)."""

    shares: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0])
    stages: list[Stage] = field(default_factory=list)
    """Of SFT, the same for each share."""


@dataclass
class Size:
    """RL on few, some and many scenes (Appendix C: 7k, 13k, 26k), the same number of steps each."""

    parts: list[int] = field(default_factory=lambda: [7, 13, 26])
    epochs: float = 6.0
    """Of the 13 parts: the paper's 300 steps of 256 are about 6 over 13,000 scenes."""
    steps: int = 60
    validate_every: int = 10


@dataclass
class Pictures:
    """The image shuffle."""

    seed: int = 3
    kinds: list[str] = field(default_factory=list)
    """Roads, situations or whole kinds of which the question's words tell nothing: what to do is in the picture alone."""


@dataclass
class Costs:
    """CPU seconds of one core, from which the budget is reckoned before anything was measured here."""

    start: float = 30.0
    """Of a run's processes, and of its validation."""
    scene: float = 0.12
    single_turn: float = 0.021
    multi_turn: float = 0.034
    understanding: float = 0.051
    vision_picture: float = 0.016
    """Of `pretrain-vision`."""
    conversation: float = 0.04
    """Of `pretrain-language`."""
    sample: dict[str, float] = field(
        default_factory=lambda: {"single_turn": 0.045, "multi_turn": 0.18, "understanding": 0.05})
    """Of SFT, by kind."""
    rl_episode: float = 0.5
    """Played and learned from."""
    answer: float = 0.09
    """Of one turn of an evaluation, scored."""


@dataclass
class Recipe:
    """All of it."""

    config: str = "tiny"
    """conf/reproduce/NAME.yaml, what trainings have in common."""
    scenes: Scenes = field(default_factory=Scenes)
    data: Data = field(default_factory=Data)
    vision: Vision = field(default_factory=Vision)
    language: Language = field(default_factory=Language)
    play: list[str] = field(default_factory=list)
    """Further KEY=VALUE of `rollout`, for RL's rollouts and every evaluation alike (Section 4.1: the same sampling in both);
    SFT data is played as the config says."""
    sft: dict[str, SFT] = field(default_factory=dict)
    """Row -> how; `single`, `one_stage` and `multi` are there."""
    rl: RL = field(default_factory=RL)
    mock: Mock = field(default_factory=Mock)
    size: Size = field(default_factory=Size)
    pictures: Pictures = field(default_factory=Pictures)
    costs: Costs = field(default_factory=Costs)

    @property
    def training_scenes(self) -> int:
        """Scenes that are learned from."""
        return self.scenes.train - self.scenes.validation


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: no such file, an unknown key, or a value that cannot be meant; one line.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.load(path))
        assert isinstance(merged, DictConfig)
        recipe = OmegaConf.to_object(merged)
    except FileNotFoundError as error:
        raise ConfigError(f"--recipe {path}: no such file") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"--recipe {path}: {'; '.join(str(error).splitlines()[:2])}") from error
    assert isinstance(recipe, Recipe)
    check_recipe(recipe, path)
    return recipe


def check_recipe(recipe: Recipe, path: Path) -> None:
    """Refuse what cannot be made (ConfigError)."""
    for name in (SINGLE, BOOTSTRAP, MODEL):
        if name not in recipe.sft:
            raise ConfigError(f"--recipe {path}: sft has no row {name}; set it, other stages build on it")
    for name, row in recipe.sft.items():
        if row.data not in DATA:
            raise ConfigError(f"--recipe {path}: sft.{name}.data={row.data}: set it to one of {', '.join(DATA)}")
    for key, stages in [(f"sft.{name}", row.stages) for name, row in recipe.sft.items()] + [("mock", recipe.mock.stages)]:
        if not stages or any(stage.steps < 1 or not stage.kinds for stage in stages):
            raise ConfigError(f"--recipe {path}: {key}.stages: set one or more, each with kinds and steps of 1 or more")
        if unknown := {kind for stage in stages for kind in stage.kinds} - set(SFT_KINDS):
            raise ConfigError(f"--recipe {path}: {key}.stages: {', '.join(sorted(unknown))}: set kinds of "
                              f"{', '.join(SFT_KINDS)}")
    if recipe.sft[SINGLE].data != "single" or recipe.sft[BOOTSTRAP].data == "multi_turn":
        raise ConfigError(f"--recipe {path}: sft.single must learn from single, sft.one_stage from single or two_turn: "
                          "the data of more turns is made with them")
    if others := [item for item in recipe.play if not re.match(r"rollout\.\w+=", item)]:
        raise ConfigError(f"--recipe {path}: play: {', '.join(others)}: set keys of rollout, as rollout.temperature=0.5")
    if MODEL_ESTIMATOR not in recipe.rl.estimators:
        raise ConfigError(f"--recipe {path}: rl.estimators: set {MODEL_ESTIMATOR} among them, it is the model's")
    if recipe.rl.steps < 1 or recipe.rl.more < 1:
        raise ConfigError(f"--recipe {path}: rl.steps={recipe.rl.steps}, rl.more={recipe.rl.more}: set both to 1 or more")
    if recipe.language.steps and not recipe.vision.steps:
        raise ConfigError(f"--recipe {path}: language.steps={recipe.language.steps}, vision.steps=0: set both, one goes "
                          "on from the other")
    if not 0 < recipe.scenes.validation < recipe.scenes.train:
        raise ConfigError(f"--recipe {path}: scenes.validation={recipe.scenes.validation}: set it from 1 to less than "
                          f"scenes.train={recipe.scenes.train}")


def scaled(recipe: Recipe, scale: float, held_out: int | None) -> Recipe:
    """The same with fewer or more scenes and steps, in proportion; `held_out` sets the held-out scenes themselves."""
    def times(count: int, least: int = 1) -> int:
        return max(least, math.ceil(count * scale)) if count else 0

    def stages(given: list[Stage]) -> list[Stage]:
        return [replace(stage, steps=times(stage.steps)) for stage in given]

    scenes = recipe.scenes
    validation = times(scenes.validation, 2)
    return replace(
        recipe,
        scenes=replace(scenes, validation=validation, held_out=held_out or times(scenes.held_out, LEAST_SCENES),
                       train=max(times(scenes.train), validation + LEAST_SCENES)),
        vision=replace(recipe.vision, steps=times(recipe.vision.steps)),
        language=replace(recipe.language, steps=times(recipe.language.steps)),
        sft={name: replace(row, stages=stages(row.stages)) for name, row in recipe.sft.items()},
        mock=replace(recipe.mock, stages=stages(recipe.mock.stages)),
        rl=replace(recipe.rl, steps=times(recipe.rl.steps), more=times(recipe.rl.more)),
        size=replace(recipe.size, steps=times(recipe.size.steps), validate_every=times(recipe.size.validate_every)))
