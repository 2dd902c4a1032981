"""The typed configuration tree: the only place with defaults, and every check of a value.

Hydra reads `conf/NAME.yaml` (a short delta over these defaults) and command-line overrides; a key that is not here is
an error. Defaults are the paper's where it names a value (Section 4.1), so a 32-GPU run needs only paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
IMAGE_MULTIPLE = 28
"""Sides of an image are multiples of this: 14-pixel patches, merged 2 x 2."""


class ConfigError(ValueError):
    """A request that cannot be run: one line with the key, what was got and what to set. Exit code 2."""


@dataclass
class ScenesConfig:
    """Where scenes come from (`driving.sources.open_scenes`)."""

    uri: str = ""
    """The whole address, as `navsim://DIR?split=trainval`; it takes the place of `source` and `path`."""
    source: str = "procedural"
    """procedural (generated once, kept in the run's folder), files, av2, navsim or py123d."""
    path: str = ""
    """Folder of scene files or shards, of AV2 logs, or the data root of navsim or py123d; unused by procedural."""
    count: int = 13000
    """Training scenes (Section 4.1: 13,000 samples)."""
    held_out: int = 1000
    """Scenes kept for evaluation, never trained on."""
    seed: int = 7
    image_width: int = 1932
    image_height: int = 1092
    kinds: dict[str, float] = field(default_factory=dict)
    """Mixture of generated kinds, name -> weight; empty takes the generator's own mixture."""


@dataclass
class EnvironmentConfig:
    """The environment servers (CPU)."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port; a busy one is refused at start-up."""
    workers: int = 8
    """Scoring processes of a server; a core each."""
    queue_items: int = 16384
    """Answers that may be waiting or in hand; more are told to come again (503 with Retry-After)."""
    perception: str = "oracle"
    """What the agent's feedback and reward see: oracle (recorded future) or kinematic (constant velocity)."""
    cache_scenes: int = 4096
    """Scenes whose prepared scoring data is kept in memory, all workers of a server together."""
    timeout_s: float = 120.0
    retries: int = 4


@dataclass
class AgentConfig:
    """Who reviews trajectories: gives rewards and feedback (Section 3.1; others: Section 5)."""

    kind: str = "pdm"
    """pdm (rules), learned (a reward model), or `package.module:factory` of your own (docs/reviewers.md)."""
    path: str = ""
    """learned: the folder that `nemo-mtdrive train-reviewer` wrote; handed to a factory as it is."""


@dataclass
class RolloutConfig:
    """Rollout workers and their sampling; evaluation uses the same (Section 4.1)."""

    workers: int = 1
    max_turns: int = 6
    max_answer_tokens: int = 256
    max_context: int = 11500
    max_running: int = 256
    """Most episodes that a worker runs at once; bounds the engine's memory."""
    temperature: float = 1.0
    """Of sampling; the policy that is trained and scored is softmax(logits / temperature)."""
    dtype: str = "bfloat16"
    threads: int = 2
    """CPU threads of one worker."""
    heartbeat_timeout_s: float = 120.0
    start_timeout_s: float = 600.0
    rollout_timeout_s: float = 3600.0


@dataclass
class RewardConfig:
    """Eq. 2: r = pdm_weight * PDMS + format_weight * format."""

    pdm_weight: float = 0.8
    format_weight: float = 0.2


@dataclass
class ModelConfig:
    """What is trained. Without `init_from` a tiny model of the sizes below starts from random weights."""

    init_from: str = ""
    """Directory of a Qwen2.5-VL: Hugging Face's (config.json, safetensors), NeMo 2's, or a checkpoint of a run."""
    tokenizer: str = ""
    """Directory with tokenizer.json; empty takes the one in `init_from`, or the tiny one that is shipped."""
    hidden_size: int = 256
    layers: int = 3
    ffn_size: int = 512
    vision_hidden_size: int = 128
    vision_layers: int = 2
    vision_ffn_size: int = 256
    dtype: str = "bfloat16"
    freeze_vision: bool = False
    """The vision tower is not trained."""
    freeze_projector: bool = False
    """The patch merger between the vision tower and the language model is not trained."""
    recompute: str = "none"
    """Activations that the backward pass computes again: none, selective (the MLPs' insides) or full (whole layers)."""


@dataclass
class ParallelConfig:
    """Training ranks: world = tensor * pipeline * data."""

    tensor: int = 4
    pipeline: int = 1
    sequence: bool = False
    """Sequence parallelism: norms and residuals are split over the tensor ranks too (less memory)."""
    data: int = 8
    threads: int = 1
    """CPU threads of one training rank."""


@dataclass
class SFTConfig:
    """Cold start on single-turn and two-turn data (Section 3.2); skipped when `steps` is 0."""

    steps: int = 6720
    """215,000 samples, batch 128, 4 epochs (Section 4.1)."""
    batch_size: int = 128
    micro_batch_tokens: int = 16384
    """Tokens of a micro-batch, padding included; conversations of like length go together."""
    lr: float = 4e-5
    warmup_steps: int = 100
    weight_decay: float = 0.01
    two_turn_share: float = 0.4
    """Share of two-turn samples in a batch; paper: 50,000 of 130,000 trajectory samples."""
    seed: int = 11


@dataclass
class MtGRPOConfig:
    """Algorithm 1 and Eqs. 2-4; defaults of Section 4.1."""

    estimator: str = "cross_turn"
    """sequence (Table 3 ID 1), per_turn (ID 2, Eq. 3), cross_turn (ID 3), or unbiased (docs/mtgrpo.md)."""
    iterations: int = 1
    """I: how often the reference is set to the policy."""
    steps: int = 300
    """M: steps an iteration."""
    inner_updates: int = 1
    """mu: passes over a step's batch."""
    group_size: int = 8
    prompts_per_step: int = 256
    mini_batch_prompts: int = 128
    micro_batch_tokens: int = 16384
    lr: float = 1e-6
    weight_decay: float = 0.0
    clip_grad: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    """Set it above clip_low to let rare good tokens grow faster."""
    dual_clip: float = 0.0
    """c > 1: the loss of a token with a negative advantage is bounded by c |A|; 0: off."""
    kl_coefficient: float = 0.01
    kl_estimator: str = "k3"
    aggregation: str = "sequence_mean"
    """Over tokens: sequence_mean (Eq. 4, 1/|o_i|), token_mean (all tokens of the mini-batch alike) or constant."""
    importance_cap: float = 0.0
    """Weigh tokens by min(pi_trainer / pi_engine, cap) against the engine's other numerics; 0: off."""
    tied_groups: str = "keep"
    """Groups whose advantages are all 0: keep, drop, or refill (draw other scenes in their place)."""
    refill_rounds: int = 2
    """Most times that a step draws again with tied_groups=refill."""


@dataclass
class TransferConfig:
    """How episodes reach the trainer (Section 3.4)."""

    ipss: bool = True
    """Stream each finished episode while others still generate; false: wait for all, pixels per rollout."""
    iptc: bool = True
    """Keep the step's tensors on the device for log-prob, reference and update; false: build them anew each time."""
    link: str = "shm"
    """shm (one node) or zmq (many)."""
    threads: int = 2
    in_flight: int = 64
    image_store_mb: int = 1024
    tensor_cache_mb: int = 4096


@dataclass
class ValidationConfig:
    """Held-out evaluation inside a run."""

    every_steps: int = 25
    """0: only before SFT, after SFT and after RL."""
    scenes: int = 200


@dataclass
class CheckpointConfig:
    """What is kept; resuming is `resume=true` with the same run_dir."""

    every_steps: int = 25
    """RL steps between checkpoints; 0: only the last."""
    sft_every_steps: int = 500
    keep: int = 2
    """The newest that stay."""
    best_metric: str = "rollout/last_turn/PDMS"
    """The checkpoint with the best value of this metric of an RL step stays too; empty: none."""
    higher_is_better: bool = True


@dataclass
class LoggingConfig:
    """Beside metrics.jsonl and summary.json, which are always written."""

    tensorboard: bool = True
    wandb_project: str = ""
    recorded_episodes: int = 6
    """Episodes of each rollout dump that the report shows."""


@dataclass
class Config:
    """One job: `nemo-mtdrive rl --config-name NAME key=value ...`."""

    run_dir: str = "runs/rl"
    seed: int = 1
    resume: bool = False
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    mtgrpo: MtGRPOConfig = field(default_factory=MtGRPOConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def world_size(self) -> int:
        """Number of training ranks."""
        return self.parallel.tensor * self.parallel.pipeline * self.parallel.data


_schema = OmegaConf.structured(Config)
OmegaConf.set_struct(_schema.scenes.kinds, False)  # its keys are the generator's, everything else has fixed keys
ConfigStore.instance().store(name="schema", node=_schema)


def load_config(name: str, overrides: Sequence[str], config_dir: Path = CONF_DIR) -> Config:
    """Compose `config_dir/name.yaml` with overrides like `mtgrpo.steps=10` and check it.

    Raises:
        ConfigError: unknown name or key, a value of the wrong type, or one that `check` refuses.
    """
    if not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            composed = compose(name, overrides=list(overrides))
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"--config-name {name}: {_first_lines(error)}") from error
    assert isinstance(config, Config)
    check(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the whole tree as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(path: Path) -> Config:
    """Read what `save_config` wrote.

    Raises:
        ConfigError: the file does not fit the tree, as when another version wrote it.
    """
    try:
        loaded = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_lines(error)}; another version wrote it, use or remove its folder") from error
    assert isinstance(loaded, DictConfig)
    config = OmegaConf.to_object(loaded)
    assert isinstance(config, Config)
    return config


def _first_lines(error: BaseException) -> str:
    """The part of a Hydra or OmegaConf message that says what is wrong, on one line."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return "; ".join(lines[:2])


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
    if 0 < rl.dual_clip <= 1:
        raise ConfigError(f"mtgrpo.dual_clip={rl.dual_clip}: set it above 1, or to 0 for off")
    if config.sft.batch_size < config.parallel.data:
        raise ConfigError(f"sft.batch_size={config.sft.batch_size}: set it to parallel.data={config.parallel.data} or more")
    if not config.model.init_from and config.model.hidden_size % (128 * config.parallel.tensor):
        raise ConfigError(f"model.hidden_size={config.model.hidden_size}: set it to a multiple of 128 * parallel.tensor = "
                          f"{128 * config.parallel.tensor} (heads are 128 wide)")
    _check_scenes(config.scenes)
    start = config.model.init_from
    if start and not any((Path(start) / part / "config.json").is_file() for part in ("", "context/hf", "model/context/hf")):
        raise ConfigError(f"model.init_from={start!r}: no config.json there; set it to a Qwen2.5-VL directory")
    _check_agent(config.agent)


SOURCES = {"procedural": "", "files": "scene files", "av2": "AV2 logs", "navsim": "OpenScene data", "py123d": "py123d data"}
"""Kinds of sources -> what their folder holds."""


def _check_scenes(scenes: ScenesConfig) -> None:
    if scenes.uri:
        if scenes.uri.partition("://")[0] not in SOURCES or "://" not in scenes.uri:
            raise ConfigError(f"scenes.uri={scenes.uri!r}: set it to SCHEME://PATH?name=value with a scheme of "
                              f"{', '.join(SOURCES)}")
    elif scenes.source in ("files", "av2") and not (scenes.path and Path(scenes.path).is_dir()):
        raise ConfigError(f"scenes.path={scenes.path!r}: no such folder; set it to a folder of {SOURCES[scenes.source]}")


CHOICES = {
    "scenes.source": tuple(SOURCES),
    "environment.perception": ("oracle", "kinematic"),
    "rollout.dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "model.recompute": ("none", "selective", "full"),
    "mtgrpo.estimator": ("sequence", "per_turn", "cross_turn", "unbiased"),
    "mtgrpo.tied_groups": ("keep", "drop", "refill"),
    "mtgrpo.aggregation": ("sequence_mean", "token_mean", "constant"),
    "mtgrpo.kl_estimator": ("k1", "k2", "k3"),
    "transfer.link": ("shm", "zmq"),
}

MAY_BE_ZERO = frozenset((
    "seed", "scenes.seed", "environment.port", "environment.retries", "reward.pdm_weight",
    "reward.format_weight", "sft.steps", "sft.warmup_steps", "sft.weight_decay", "sft.two_turn_share", "sft.seed",
    "mtgrpo.steps", "mtgrpo.weight_decay", "mtgrpo.kl_coefficient", "mtgrpo.clip_grad", "mtgrpo.dual_clip",
    "mtgrpo.importance_cap", "validation.every_steps",
    "validation.scenes", "checkpoint.every_steps", "logging.recorded_episodes",
))


def _check_agent(agent: AgentConfig) -> None:
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
