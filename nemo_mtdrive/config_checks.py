"""Every check of a config's values: what cannot work is refused before any process or GPU is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_mtdrive.config import AgentConfig, Config, RolloutConfig, ScenesConfig, SFTConfig, SFTDataConfig

IMAGE_MULTIPLE = 28
"""Sides of an image are multiples of this: 14-pixel patches, merged 2 x 2."""

_SIZES = tuple(f"model.{part}" for part in ("hidden_size", "head_size", "layers", "ffn_size", "vision_hidden_size",
                                            "vision_layers", "vision_ffn_size"))
"""Of a new tiny model; one that is trained further has its own."""


class ConfigError(ValueError):
    """A request that cannot be run: one line with the key, what was got and what to set. Exit code 2."""


def check(config: Config) -> None:
    """Refuse values that cannot work, before any process or GPU is taken.

    Raises:
        ConfigError: the first key that is wrong, what was got and what to set.
    """
    _check_choices(config)
    _check_positive(config, "")
    for key, side in (("image_width", config.scenes.image_width), ("image_height", config.scenes.image_height)):
        if side % IMAGE_MULTIPLE:
            raise ConfigError(f"scenes.{key}={side}: set it to a multiple of {IMAGE_MULTIPLE}")
    rl = config.mtgrpo
    if rl.group_size < 2:
        raise ConfigError(f"mtgrpo.group_size={rl.group_size}: set it to 2 or more; a group of one has no advantage")
    if rl.prompts_per_step % rl.mini_batch_prompts:
        raise ConfigError(f"mtgrpo.mini_batch_prompts={rl.mini_batch_prompts}: set it to a divisor of "
                          f"mtgrpo.prompts_per_step={rl.prompts_per_step}")
    if rl.lr_end > 1:
        raise ConfigError(f"mtgrpo.lr_end={rl.lr_end}: set it from 0 to 1, the share of mtgrpo.lr that is left at the end")
    if 0 < rl.dual_clip <= 1:
        raise ConfigError(f"mtgrpo.dual_clip={rl.dual_clip}: set it above 1, or to 0 for off")
    if rl.max_staleness > 1:
        raise ConfigError(f"mtgrpo.max_staleness={rl.max_staleness}: set it to 0 (first rollouts, then training) or 1 "
                          "(side by side)")
    if rl.max_staleness and not rl.importance_cap:
        raise ConfigError("mtgrpo.max_staleness=1: set mtgrpo.importance_cap too, as 2, since the rollouts' policy differs "
                          "from the trained one")
    if rl.max_staleness and rl.tied_groups == "refill":
        raise ConfigError("mtgrpo.max_staleness=1: set mtgrpo.tied_groups to keep or drop; nothing can be drawn again while "
                          "workers play the next step")
    if config.reward.progressive_weight and rl.estimator == "unbiased":
        raise ConfigError("reward.progressive_weight: set it to 0 with mtgrpo.estimator=unbiased, which lets the last reward"
                          " count for all turns that remain and would pay the last step of progress again for each")
    if config.sft.batch_size < config.parallel.data:
        raise ConfigError(f"sft.batch_size={config.sft.batch_size}: set it to parallel.data={config.parallel.data} or more")
    _check_heads(config)
    _check_scenes(config.scenes)
    start = config.model.init_from
    if start and not any((Path(start) / part / "config.json").is_file() for part in ("", "context/hf", "model/context/hf")):
        raise ConfigError(f"model.init_from={start!r}: no config.json there; set it to a Qwen2.5-VL directory")
    _check_agent(config.agent)
    _check_embeddings(config)
    if config.rollout.top_p > 1:
        raise ConfigError(f"rollout.top_p={config.rollout.top_p:g}: set it up to 1, the share of the mass that is drawn "
                          "from; 1 draws from all")
    _check_engine(config.rollout)
    _check_sft(config.sft)
    _check_sft_data(config.sft_data)
    seconds_of(config.max_time_per_run)


def refuse_sizes(config: Config, overrides: Sequence[str]) -> None:
    """Look at what was asked for by hand; the sizes that a config brings along are passed over in silence.

    Raises:
        ConfigError: sizes beside `model.init_from`, a model that has its own.
    """
    asked = [name for name in (override.partition("=")[0].lstrip("+") for override in overrides) if name in _SIZES]
    if config.model.init_from and asked:
        raise ConfigError(f"{asked[0]} with model.init_from={config.model.init_from}: the model there has its own sizes; "
                          f"leave {asked[0]} out, or start a new model: model.init_from=")


def refuse_greedy(config: Config) -> None:
    """Of a run that trains: its groups are draws, and it learns softmax(logits / temperature).

    Raises:
        ConfigError: no temperature. What plays and does not train (`evaluate`, `label`, `curate`) takes 0, which is greedy.
    """
    if config.rollout.temperature == 0.0:
        raise ConfigError("rollout.temperature=0.0: set it to a positive number; 0, greedy, is for playing alone")


def _check_heads(config: Config) -> None:
    model = config.model
    if model.init_from:
        return
    if model.head_size % 16:
        raise ConfigError(f"model.head_size={model.head_size}: set it to a multiple of 16, as 64")
    multiple = model.head_size * config.parallel.tensor
    if model.hidden_size % multiple:
        raise ConfigError(f"model.hidden_size={model.hidden_size}: set it to a multiple of model.head_size * "
                          f"parallel.tensor = {multiple}")


def _check_embeddings(config: Config) -> None:
    if config.transfer.visual_embeddings != "on":
        return
    for part in ("vision", "projector"):
        if not getattr(config.model, f"freeze_{part}"):
            raise ConfigError(f"transfer.visual_embeddings=on with model.freeze_{part}=false: every update would change the "
                              f"embeddings; set model.freeze_{part}=true, or transfer.visual_embeddings=auto")
    if not config.transfer.iptc:
        raise ConfigError("transfer.visual_embeddings=on with transfer.iptc=false: nothing would keep them; set "
                          "transfer.iptc=true")


def seconds_of(limit: str) -> float | None:
    """Seconds of `max_time_per_run`, None for no limit.

    Raises:
        ConfigError: not of the form DAYS:HOURS:MINUTES:SECONDS.
    """
    if not limit:
        return None
    parts = limit.split(":")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"max_time_per_run={limit!r}: set it to DAYS:HOURS:MINUTES:SECONDS, as 00:03:45:00")
    days, hours, minutes, seconds = map(int, parts)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


ROLLOUT_PYTHON = Path(__file__).resolve().parent.parent / ".venv-rollout" / "bin" / "python"
"""Python of the rollout environment that `make rollout-env` makes."""


def rollout_python(rollout: RolloutConfig) -> Path:
    """The Python that rollout workers with engine=vllm are started with."""
    return Path(rollout.python) if rollout.python else ROLLOUT_PYTHON


def _check_engine(rollout: RolloutConfig) -> None:
    if rollout.engine != "vllm":
        return
    if not os.access(rollout_python(rollout), os.X_OK):
        raise ConfigError(f"rollout.engine=vllm: no Python at {rollout_python(rollout)}; run `make rollout-env`, or set "
                          "rollout.python to that of an environment with vLLM")
    if rollout.vllm.gpu_memory_utilization > 1:
        raise ConfigError(f"rollout.vllm.gpu_memory_utilization={rollout.vllm.gpu_memory_utilization:g}: set it to a "
                          "number up to 1")
    if rollout.vllm.weight_transfer not in ("ipc", "nccl"):
        raise ConfigError(f"rollout.vllm.weight_transfer={rollout.vllm.weight_transfer}: set it to one of ipc, nccl")


SFT_KINDS = ("single_turn", "multi_turn", "understanding")


def _check_sft(sft: SFTConfig) -> None:
    if sft.data and not any(Path(sft.data).glob("*.jsonl")):
        raise ConfigError(f"sft.data={sft.data!r}: no *.jsonl there; set it to a folder that `nemo-mtdrive curate` wrote")
    for number, stage in enumerate(sft.stages):
        key = f"sft.stages[{number}]"
        for kind, times in stage.kinds.items():
            if kind not in SFT_KINDS or times < 0:
                raise ConfigError(f"{key}.kinds: {kind}: {times:g}; set kinds of {', '.join(SFT_KINDS)} to 0 or more")
        if stage.steps < 0 or (stage.steps == 0 and stage.epochs <= 0):
            raise ConfigError(f"{key}: steps={stage.steps}, epochs={stage.epochs:g}; set one of them above 0")
        if stage.lr < 0:
            raise ConfigError(f"{key}.lr={stage.lr:g}: set it above 0, or to 0 for sft.lr")


MOST_TURNS = 6


def _check_sft_data(data: SFTDataConfig) -> None:
    if not data.kinds or not set(data.kinds) <= set(SFT_KINDS):
        raise ConfigError(f"sft_data.kinds={list(data.kinds)}: set it to some of {', '.join(SFT_KINDS)}")
    if data.mock_share > 1:
        raise ConfigError(f"sft_data.mock_share={data.mock_share:g}: set it to a number from 0 to 1")
    if not 2 <= data.max_turns <= MOST_TURNS:
        raise ConfigError(f"sft_data.max_turns={data.max_turns}: set it from 2 to {MOST_TURNS}")


SOURCES = {"procedural": "", "files": "scene files", "av2": "AV2 logs", "navsim": "OpenScene data", "py123d": "py123d data"}
"""Kinds of sources -> what their folder holds."""


def _check_scenes(scenes: ScenesConfig) -> None:
    if scenes.rl_set and not Path(scenes.rl_set).is_file():
        raise ConfigError(f"scenes.rl_set={scenes.rl_set!r}: no such file; set it to the scenes.txt of "
                          "`nemo-mtdrive curate rl-set`")
    if scenes.difficulty > 1:
        raise ConfigError(f"scenes.difficulty={scenes.difficulty}: set it to a number from 0 to 1")
    if scenes.uri:
        if scenes.uri.partition("://")[0] not in SOURCES or "://" not in scenes.uri:
            raise ConfigError(f"scenes.uri={scenes.uri!r}: set it to SCHEME://PATH?name=value with a scheme of "
                              f"{', '.join(SOURCES)}")
    elif scenes.source in ("files", "av2", "navsim") and not (scenes.path and Path(scenes.path).is_dir()):
        raise ConfigError(f"scenes.path={scenes.path!r}: no such folder; set it to a folder of {SOURCES[scenes.source]}")


CHOICES = {
    "scenes.source": tuple(SOURCES),
    "environment.perception": ("oracle", "kinematic"),
    "rollout.engine": ("native", "vllm"),
    "rollout.dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "model.recompute": ("none", "selective", "full"),
    "sft.learn": ("last", "all"),
    "mtgrpo.estimator": ("sequence", "per_turn", "cross_turn", "unbiased"),
    "mtgrpo.tied_groups": ("keep", "drop", "refill"),
    "mtgrpo.aggregation": ("sequence_mean", "token_mean", "constant"),
    "mtgrpo.kl_estimator": ("k1", "k2", "k3"),
    "transfer.link": ("shm", "zmq"),
    "transfer.visual_embeddings": ("auto", "on", "off"),
}

MAY_BE_ZERO = frozenset((
    "seed", "scenes.seed", "scenes.difficulty", "environment.port", "environment.retries", "environment.max_restarts",
    "rollout.max_restarts", "rollout.temperature", "max_restarts", "reward.pdm_weight",
    "reward.format_weight", "reward.progressive_weight", "sft.warmup_steps", "sft.weight_decay", "sft.seed",
    "pretraining.warmup_steps", "pretraining.weight_decay", "pretraining.ground_weight",
    "language.warmup_steps", "language.weight_decay",
    "sft_data.mock_share", "sft_data.seed",
    "mtgrpo.steps", "mtgrpo.warmup_steps", "mtgrpo.lr_end",
    "mtgrpo.weight_decay", "mtgrpo.kl_coefficient", "mtgrpo.clip_grad", "mtgrpo.dual_clip",
    "mtgrpo.entropy_coefficient", "mtgrpo.max_skipped_updates", "sft.max_skipped_updates",
    "mtgrpo.importance_cap", "mtgrpo.max_staleness", "validation.every_steps",
    "validation.sft_every_steps", "validation.scenes", "checkpoint.every_steps", "logging.recorded_episodes",
    "logging.trace_steps",
))


def _check_agent(agent: AgentConfig) -> None:
    if agent.navsim_caches and not Path(agent.navsim_caches).is_dir():
        raise ConfigError(f"agent.navsim_caches={agent.navsim_caches!r}: no such folder; set it to one that "
                          "`nemo-mtdrive import-caches` wrote")
    if agent.kind == "learned" and not Path(agent.path, "reward_model.safetensors").is_file():
        raise ConfigError(f"agent.path={agent.path!r}: no reward_model.safetensors there; set it to a folder that "
                          "`nemo-mtdrive train-reviewer` wrote")
    if agent.kind in ("pdm", "learned"):
        return
    module, _, name = agent.kind.partition(":")
    try:
        known = name.isidentifier() and find_spec(module) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise ConfigError(f"agent.kind={agent.kind}: no such agent; set it to pdm, learned, or package.module:factory of "
                          "a module that can be imported")


def _check_choices(config: Config) -> None:
    for key, choices in CHOICES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value not in choices:
            raise ConfigError(f"{key}={value}: set it to one of {', '.join(choices)}")


def _check_positive(node: Any, prefix: str) -> None:
    for item in fields(node):
        value, key = getattr(node, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            _check_positive(value, f"{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            least = 0 if key in MAY_BE_ZERO else 1 if isinstance(value, int) else None
            if value < 0 or (least is None and value <= 0) or (least == 1 and value < 1):
                raise ConfigError(f"{key}={value}: set it to {'0 or more' if least == 0 else 'a positive number'}")
