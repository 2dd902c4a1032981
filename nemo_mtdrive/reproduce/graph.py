"""The whole reproduction as stages: a pure function of the recipe and the seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from nemo_mtdrive.config import Config, load_config
from nemo_mtdrive.reproduce.recipe import BOOTSTRAP, MODEL, MODEL_ESTIMATOR, RL_MODEL, SFT, SINGLE, Recipe
from nemo_mtdrive.reproduce.recipe import Stage as SFTStage
from nemo_mtdrive.reproduce.stages import CONFIGS, Graph, Stage, graph_of, named, needed_for

WHATS = ("model", "table1", "table2", "table3", "turns", "mock", "size")
"""What can be asked for; the order of `all`."""
SPLIT_SEED = 7
"""Of the training scenes into those that are learned from and those for validation: of a run and its data alike."""
TRAIN, HELD_OUT, DRIVERS, RL_SET = "scenes_train", "scenes_held_out", "eval_drivers", "rl_set"
VISION, LANGUAGE = "vision", "language"
"""What the models start from, one after the other."""
OTHER_SCENES = 100
"""Added to the seed of the model's second iteration, which would else draw the scenes of the first in the same order."""
EVALUATION_RECORDS = ("*.json", "episodes/*/*")
"""Every episode, from which all tables are read."""
TRAINING_RECORDS = ("summary.json", "splits.json")
"""Its evaluations, and which scenes it learned from."""
USUAL_TURNS = 2.2
"""That an episode takes, whatever the most; of the budget."""
MODEL_DIRECTORY = "model"
"""The stage whose output is the Hugging Face directory of the model that is shipped."""


def whole_graph(recipe: Recipe, seeds: Sequence[int]) -> Graph:
    """Every stage of every table."""
    first = seeds[0]
    stages = [*_scenes(recipe), _drivers(recipe), *_data(recipe, first)]
    if recipe.vision.steps:
        stages.append(_vision(recipe))
    if recipe.language.steps:
        stages.append(_language(recipe))
    if recipe.rl.rl_set:
        stages.append(_rl_set(recipe, first))
    stages.append(_model_directory(first))
    for seed in seeds:
        for name, row in recipe.sft.items():
            stages.append(_sft(recipe, f"sft_{name}", row, f"data_{row.data}", seed))
            start = name == MODEL
            stages.append(_evaluation(recipe, f"sft_{name}", seed, turns=recipe.rl.turns if start else row.turns,
                                      kinematic=start))
        stages += _reinforced(recipe, seed)
        stages += [_pictures(recipe, model, seed) for model in (f"sft_{MODEL}", RL_MODEL)]
        stages += _mock(recipe, seed)
        stages += _sizes(recipe, seed)
    return graph_of(stages)


def graph_for(recipe: Recipe, seeds: Sequence[int], whats: Sequence[str]) -> Graph:
    """The stages that some of `WHATS` stand on."""
    graph = whole_graph(recipe, seeds)
    return needed_for(graph, [name for what in whats for name in stages_of(recipe, seeds, what)])


def stages_of(recipe: Recipe, seeds: Sequence[int], what: str) -> list[str]:
    """Names of the stages that a table is read from."""
    model_sft, model_rl = f"sft_{MODEL}", RL_MODEL
    if what == "model":
        return [MODEL_DIRECTORY]
    bases = {
        "table1": [f"eval_sft_{SINGLE}", f"eval_{model_sft}", f"rl_{MODEL_ESTIMATOR}", model_rl, f"eval_{model_rl}",
                   f"pictures_{model_sft}", f"pictures_{model_rl}"],
        "table2": [f"eval_sft_{name}" for name in recipe.sft],
        "table3": [f"eval_{model_sft}", *(f"{part}rl_{name}" for name in recipe.rl.estimators for part in ("", "eval_"))],
        "turns": [f"eval_{model_rl}"],
        "mock": [f"eval_{mock_name(share)}" for share in recipe.mock.shares],
        "size": [name for part in recipe.size.parts for name in (size_name(part), f"eval_{size_name(part)}")],
    }[what]
    shared = [TRAIN, HELD_OUT, DRIVERS] if what == "table1" else []  # the scenes for the checks, which look at them
    return [*shared, *(named(base, seed) for base in bases for seed in seeds)]


def mock_name(share: float) -> str:
    """`sft_mock_25`: of a share of scenes with mock conversations."""
    return f"sft_mock_{round(100 * share)}"


def size_name(part: int) -> str:
    """`rl_size_13`: of so many parts of training scenes."""
    return f"rl_size_{part}"


def size_scenes(recipe: Recipe) -> dict[int, int]:
    """Parts -> training scenes: 13 parts are seen `size.epochs` times, the others in proportion."""
    drawn = recipe.size.steps * rl_batch(recipe)[0]
    return {part: min(recipe.training_scenes, max(1, round(drawn / recipe.size.epochs * part / 13)))
            for part in recipe.size.parts}


@lru_cache(16)
def config_of(name: str, values: tuple[str, ...]) -> Config:
    """A config of conf/reproduce with further KEY=VALUE."""
    return load_config(name, values, CONFIGS)


def rl_batch(recipe: Recipe) -> tuple[int, int]:
    """Questions of a step of RL, and rollouts of each."""
    rl = config_of(recipe.config, tuple(recipe.rl.set)).mtgrpo
    return rl.prompts_per_step, rl.group_size


def _scenes(recipe: Recipe) -> Iterator[Stage]:
    scenes = recipe.scenes
    size = ("--width", str(scenes.width), "--height", str(scenes.height))
    for name, split, count in ((TRAIN, "train", scenes.train), (HELD_OUT, "held_out", scenes.held_out)):
        kinds = ",".join(f"{kind}:{weight:g}" for kind, weight in scenes.kinds.items()) if split == "train" else ""
        yield Stage(name, (("nemo-mtdrive", "scenes", "generate", "--count", str(count), "--seed", "0", "--split", split,
                            *(("--kinds", kinds) if kinds else ()), "--difficulty", f"{scenes.difficulty:g}", *size,
                            "--format", "shards", "--out", "{out}"),), (), cpu_s=count * recipe.costs.scene)


def _data(recipe: Recipe, first: int) -> Iterator[Stage]:
    """Single-turn; 2-turn by the single-turn model and constant velocity; 3-turn and stacked by the 2-turn model."""
    single, two_turn = named(f"sft_{SINGLE}", first), named(f"sft_{BOOTSTRAP}", first)
    count, costs, data = recipe.training_scenes, recipe.costs, recipe.data
    plain = count * (costs.single_turn + costs.understanding)
    common = [_curate(recipe, "single-turn"), _curate(recipe, "understanding", "--pairs", str(data.pairs))]
    yield Stage("data_single", tuple(common), (TRAIN,), cpu_s=plain)
    yield Stage("data_two_turn", (
        *common, _curate(recipe, "multi-turn", "--mock-share", "0"),
        _curate(recipe, "multi-turn", "--model", f"{{{single}}}", "--turns", "1", "--mock-share", "0")), (TRAIN, single),
        cpu_s=plain + count * (costs.multi_turn + costs.answer))
    fitting = _fitting(recipe)
    share = (*fitting, "--mock-share", f"{data.mock_share:g}", "--max-turns", str(data.max_turns))
    yield Stage("data_multi_turn", (
        *common, _curate(recipe, "multi-turn", *share),
        _curate(recipe, "multi-turn", "--model", f"{{{single}}}", "--turns", "1", *share),
        _curate(recipe, "multi-turn", "--model", f"{{{two_turn}}}", "--turns", "2", "--samples", str(data.samples), *share)),
        (TRAIN, single, two_turn),
        cpu_s=plain + count * (costs.multi_turn + costs.answer * (1 + 2 * data.samples)))
    for chosen in recipe.mock.shares:
        yield Stage(f"data_mock_{round(100 * chosen)}", (
            common[0], _curate(recipe, "multi-turn", *fitting, "--mock-share", f"{chosen:g}", "--max-turns",
                                str(data.max_turns))),
            (TRAIN,), cpu_s=count * (costs.single_turn + costs.multi_turn))


def _curate(recipe: Recipe, kind: str, *options: str) -> tuple[str, ...]:
    """Of the training scenes but those for validation; the run that learns from it makes the same split."""
    return ("nemo-mtdrive", "curate", kind, "--scenes", f"{{{TRAIN}}}", "--out", "{out}", "--held-out",
            str(recipe.scenes.validation), "--seed", str(SPLIT_SEED), *options)


def _fitting(recipe: Recipe) -> tuple[str, ...]:
    """Conversations are kept to what the model's context holds."""
    return ("--tokenizer", "{tokenizer}", "--max-tokens", str(config_of(recipe.config, ()).rollout.max_context))


def _training(recipe: Recipe, command: str, seed: int, *values: str) -> tuple[str, ...]:
    freezes = recipe.vision.steps and recipe.vision.freeze
    frozen = ("model.freeze_vision=true", "model.freeze_projector=true") if freezes else ()
    return ("nemo-mtdrive", command, "--config-dir", "{conf}", "--config-name", recipe.config, "run_dir={out}",
            f"seed={seed}", *_training_scenes(recipe), "validation.scenes=0", *frozen, *values)


def _training_scenes(recipe: Recipe) -> tuple[str, ...]:
    """Where they are, and which of them are for validation."""
    scenes = recipe.scenes
    return ("scenes.source=files", f"scenes.path={{{TRAIN}}}", f"scenes.seed={SPLIT_SEED}", f"scenes.count={scenes.train}",
            f"scenes.held_out={scenes.validation}", f"scenes.image_width={scenes.width}",
            f"scenes.image_height={scenes.height}")


def _stages(stages: Sequence[SFTStage]) -> str:
    """As Hydra takes it."""
    each = [f"{{steps:{stage.steps},kinds:{{{','.join(f'{kind}:{times:g}' for kind, times in stage.kinds.items())}}}}}"
            for stage in stages]
    return f"sft.stages=[{','.join(each)}]"


def _start(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values and needs of an SFT's beginning."""
    start = LANGUAGE if recipe.language.steps else VISION
    return ((f"model.init_from={{{start}}}",), (start,)) if recipe.vision.steps else ((), ())


def _vision(recipe: Recipe) -> Stage:
    """The same start for all seeds."""
    batch = config_of(recipe.config, tuple(recipe.vision.set)).pretraining.batch_size
    command = ("nemo-mtdrive", "pretrain-vision", "--config-dir", "{conf}", "--config-name", recipe.config, "--out", "{out}",
               *_training_scenes(recipe), f"pretraining.steps={recipe.vision.steps}", *recipe.vision.set)
    return Stage(VISION, (command,), (TRAIN,), recipe.config,
                 recipe.costs.start + recipe.vision.steps * batch * recipe.costs.vision_picture)


def _language(recipe: Recipe) -> Stage:
    batch = config_of(recipe.config, tuple(recipe.language.set)).language.batch_size
    command = ("nemo-mtdrive", "pretrain-language", "--config-dir", "{conf}", "--config-name", recipe.config, "--out",
               "{out}", f"model.init_from={{{VISION}}}", f"language.steps={recipe.language.steps}", *recipe.language.set)
    return Stage(LANGUAGE, (command,), (VISION,), recipe.config,
                 recipe.costs.start + recipe.language.steps * batch * recipe.costs.conversation)


def _sft(recipe: Recipe, name: str, row: SFT, data: str, seed: int) -> Stage:
    values, needs = _start(recipe)
    command = _training(recipe, "sft", seed, f"sft.seed={seed}", _stages(row.stages), f"sft.data={{{data}}}", *values,
                        *row.set)
    return Stage(named(name, seed), (command,), (TRAIN, data, *needs), recipe.config, _sft_cost(recipe, row.stages),
                 TRAINING_RECORDS)


def _sft_cost(recipe: Recipe, stages: Sequence[SFTStage]) -> float:
    batch = config_of(recipe.config, ()).sft.batch_size
    return recipe.costs.start + batch * sum(stage.steps * _sample_cost(recipe, stage) for stage in stages)


def _sample_cost(recipe: Recipe, stage: SFTStage) -> float:
    """Of a sample of the mixture, if each kind has as many."""
    return sum(times * recipe.costs.sample[kind] for kind, times in stage.kinds.items()) / sum(stage.kinds.values())


def _rl_set(recipe: Recipe, first: int) -> Stage:
    model = named(f"sft_{MODEL}", first)
    return Stage(RL_SET, (_curate(recipe, "rl-set", "--model", f"{{{model}}}"),), (TRAIN, model),
                 cpu_s=recipe.training_scenes * recipe.costs.answer)


def _model_directory(first: int) -> Stage:
    """In bfloat16 with its tokenizer, as `model.init_from` takes it."""
    trained = named(RL_MODEL, first)
    return Stage(MODEL_DIRECTORY, (("python", "{converters}/nemo_to_hf.py", "--nemo", f"{{{trained}}}/checkpoints/latest",
                                    "--out", "{out}", "--dtype", "bfloat16", "--overwrite"),), (trained,), cpu_s=15.0)


def _reinforced(recipe: Recipe, seed: int) -> Iterator[Stage]:
    """Table 3: from one SFT model, each estimator; then the model, from where its estimator ended."""
    rl, sft = recipe.rl, f"sft_{MODEL}"
    needs, chosen = ((RL_SET,), (f"scenes.rl_set={{{RL_SET}}}/scenes.txt",)) if rl.rl_set else ((), ())
    for estimator in rl.estimators:
        name = f"rl_{estimator}"
        yield _rl(recipe, name, seed, sft, rl.steps, needs, f"mtgrpo.estimator={estimator}", *chosen)
        yield _evaluation(recipe, name, seed, turns=rl.turns)
    yield _rl(recipe, RL_MODEL, seed, f"rl_{MODEL_ESTIMATOR}", rl.more, needs, f"mtgrpo.estimator={MODEL_ESTIMATOR}",
              *chosen, *rl.more_set, run_seed=OTHER_SCENES + seed)
    yield _evaluation(recipe, RL_MODEL, seed, turns=rl.sweep, kinematic=True)


def _rl(recipe: Recipe, name: str, seed: int, start: str, steps: int, needs: tuple[str, ...], *values: str,
        run_seed: int | None = None) -> Stage:
    trained = named(start, seed)
    prompts, group = rl_batch(recipe)
    command = _training(recipe, "rl", seed if run_seed is None else run_seed,
                        f"model.init_from={{{trained}}}/checkpoints/latest", "sft.stages=[]", f"mtgrpo.steps={steps}",
                        f"rollout.max_turns={recipe.rl.turns}", *recipe.play, *recipe.rl.set, *values)
    return Stage(named(name, seed), (command,), (TRAIN, trained, *needs), recipe.config,
                 recipe.costs.start + steps * prompts * group * recipe.costs.rl_episode,
                 (*TRAINING_RECORDS, "metrics.jsonl", *(("rollouts/train-*.jsonl",) if name == RL_MODEL else ())))


def _evaluation(recipe: Recipe, model: str, seed: int, *, turns: int, kinematic: bool = False) -> Stage:
    trained = named(model, seed)
    feedback = ("oracle", "kinematic") if kinematic else ("oracle",)
    command = ("nemo-mtdrive", "evaluate", "--model", f"model={{{trained}}}", "--feedback", *feedback, "--scenes",
               f"{{{HELD_OUT}}}", "--turns", str(turns), "--seed", str(seed), "--record", "0", "--out", "{out}",
               *recipe.play)
    return Stage(named(f"eval_{model}", seed), (command,), (HELD_OUT, trained),
                 cpu_s=recipe.scenes.held_out * len(feedback) * min(turns, USUAL_TURNS) * recipe.costs.answer,
                 records=EVALUATION_RECORDS)


def _pictures(recipe: Recipe, model: str, seed: int) -> Stage:
    trained = named(model, seed)
    command = ("nemo-mtdrive", "evaluate", "--model", f"model={{{trained}}}", "--scenes", f"{{{HELD_OUT}}}", "--turns", "1",
               "--seed", str(seed), "--shuffle-images", str(recipe.pictures.seed), "--record", "0", "--out", "{out}",
               *recipe.play)
    return Stage(named(f"pictures_{model}", seed), (command,), (HELD_OUT, trained),
                 cpu_s=2 * recipe.scenes.held_out * recipe.costs.answer, records=EVALUATION_RECORDS)


def _mock(recipe: Recipe, seed: int) -> Iterator[Stage]:
    for share in recipe.mock.shares:
        name = mock_name(share)
        row = SFT(stages=recipe.mock.stages, set=recipe.sft[MODEL].set)
        yield _sft(recipe, name, row, f"data_mock_{round(100 * share)}", seed)
        yield _evaluation(recipe, name, seed, turns=recipe.rl.turns)


def _sizes(recipe: Recipe, seed: int) -> Iterator[Stage]:
    for part, count in size_scenes(recipe).items():
        name = size_name(part)
        yield _rl(recipe, name, seed, f"sft_{MODEL}", recipe.size.steps, (), f"mtgrpo.estimator={MODEL_ESTIMATOR}",
                  f"scenes.count={count}", f"validation.scenes={recipe.scenes.validation}",
                  f"validation.every_steps={recipe.size.validate_every}")
        yield _evaluation(recipe, name, seed, turns=recipe.rl.turns)


def _drivers(recipe: Recipe) -> Stage:
    """Constant velocity, PDM-Closed and the human on the held-out scenes."""
    return Stage(DRIVERS, (("nemo-mtdrive", "evaluate", "--driver", "constant_velocity", "pdm_closed", "human", "--scenes",
                            f"{{{HELD_OUT}}}", "--record", "0", "--out", "{out}"),), (HELD_OUT,),
                 cpu_s=recipe.scenes.held_out * 0.08, records=EVALUATION_RECORDS)
