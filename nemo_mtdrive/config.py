"""The typed configuration tree: the only place with defaults; `config_checks` refuses what cannot work.

Hydra reads `conf/NAME.yaml` (a short delta over these defaults) and command-line overrides; a key that is not here is
an error. Defaults are the paper's where it names a value (Section 4.1), so a 32-GPU run needs only paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_mtdrive.config_checks import ConfigError, check, refuse_greedy, refuse_sizes
from nemo_mtdrive.config_pretraining import LanguageConfig, PretrainingConfig
from nemo_mtdrive.config_rollout import RolloutConfig

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
OmegaConf.register_new_resolver("checkout", lambda path: str(CONF_DIR.parent / path))
"""`${checkout:models/tiny_driver}` in a config: what comes with the program, wherever a command is run."""


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
    commands: dict[str, float] = field(default_factory=dict)
    """Shares of TURN LEFT, GO STRAIGHT and TURN RIGHT among generated scenes; empty takes the generator's own."""
    difficulty: float = 0.5
    """0 to 1, of generated scenes: more traffic, harder braking, worse weather."""
    rl_set: str = ""
    """File with a scene id a line (`nemo-mtdrive curate rl-set` writes it): of the training scenes, RL takes only these."""


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
    servers: int = 1
    """Server processes; they stand in for each other. With a fixed `port`, the next ports are taken too."""
    timeout_s: float = 120.0
    """Deadline of a request, waiting for a server that is started again included."""
    retries: int = 4
    """Requests whose reply was lost are sent so often again; a server that is not there is waited for."""
    max_restarts: int = 3
    """Times that each server is started again without a new checkpoint in between (docs/fault_tolerance.md)."""


@dataclass
class AgentConfig:
    """Who reviews trajectories: gives rewards and feedback (Section 3.1; others: Section 5)."""

    kind: str = "pdm"
    """pdm (rules), learned (a reward model), or `package.module:factory` of your own (docs/reviewers.md)."""
    path: str = ""
    """learned: the folder that `nemo-mtdrive train-reviewer` wrote; handed to a factory as it is."""
    navsim_caches: str = ""
    """Folder that `nemo-mtdrive import-caches` wrote: scenes of the same ids are scored on NAVSIM's own preparation."""


@dataclass
class RewardConfig:
    """Eq. 2: r = pdm_weight * PDMS + format_weight * format (docs/mtgrpo.md)."""

    pdm_weight: float = 0.8
    format_weight: float = 0.2
    progressive_weight: float = 0.0
    """Times PDMS of a turn less that of the turn before, added to the reward of every turn but the first; 0: Eq. 2."""


@dataclass
class ModelConfig:
    """What is trained. Without `init_from` a tiny model of the sizes below starts from random weights."""

    init_from: str = ""
    """Directory of a Qwen2.5-VL: Hugging Face's (config.json, safetensors), NeMo 2's, or a checkpoint of a run."""
    tokenizer: str = ""
    """Directory with tokenizer.json; empty takes the one in `init_from`, or the tiny one that is shipped."""
    hidden_size: int = 256
    head_size: int = 128
    """Of the language model, a multiple of 16; a tiny model learns more with heads of 64, of which it has twice as many."""
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
class SFTStage:
    """Training on a mixture of data for some epochs; the schedule of the learning rate begins anew with each stage."""

    kinds: dict[str, float] = field(default_factory=dict)
    """How often a sample of each kind comes in an epoch, as {single_turn: 1, multi_turn: 0.5}; empty: all, once."""
    epochs: float = 4.0
    """Section 4.1 (Table 2's ablation: 6)."""
    steps: int = 0
    """Optimizer steps, where above 0; else as many as the epochs take."""
    lr: float = 0.0
    """Of this stage, as a later one may forget less with a lower one; 0: `sft.lr`."""


@dataclass
class SFTConfig:
    """Supervised fine-tuning (Section 3.2): single-turn, multi-turn and understanding data."""

    stages: list[SFTStage] = field(default_factory=lambda: [SFTStage()])
    """One stage on everything (Table 2, ID 3 to 5), two for single-turn data first (ID 2); none skips SFT."""
    data: str = ""
    """Folder of SFT data (`nemo-mtdrive curate`); empty: curated from the training scenes in the run's folder."""
    learn: str = "last"
    """Which answers of multi-turn data are learned: the last one (earlier ones are rejected trajectories) or all."""
    batch_size: int = 128
    micro_batch_tokens: int = 11500
    """Tokens of a micro-batch, packed."""
    lr: float = 4e-5
    """At the end of the warm-up; a cosine takes it down to a hundredth."""
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_skipped_updates: int = 3
    """As `mtgrpo.max_skipped_updates`."""
    seed: int = 11


@dataclass
class SFTDataConfig:
    """What is curated for SFT from the training scenes (Section 3.2, Appendix B); defaults of `nemo-mtdrive curate` too."""

    kinds: list[str] = field(default_factory=lambda: ["single_turn", "multi_turn", "understanding"])
    mock_share: float = 0.5
    """Share of the scenes that get a mock multi-turn conversation: several rejected trajectories stacked."""
    max_turns: int = 6
    """Most answers of a conversation."""
    pairs: int = 1
    """Pairs of understanding questions a scene."""
    seed: int = 5


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
    """Tokens of a micro-batch, packed."""
    lr: float = 1e-6
    warmup_steps: int = 0
    """Steps in which the learning rate rises to `lr`: Adam's first updates are as large as any, whatever they rest on."""
    lr_end: float = 1.0
    """A cosine takes it down to this share of `lr` at the last step; 1: constant."""
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
    entropy_coefficient: float = 0.0
    """Times the policy's entropy at each own token, added to the objective; 0: off."""
    importance_cap: float = 0.0
    """Weigh tokens by min(pi_trainer / pi_engine, cap) against the engine's other numerics; 0: off."""
    tied_groups: str = "keep"
    """Groups whose advantages are all 0: keep, drop, or refill (draw other scenes in their place)."""
    refill_rounds: int = 2
    """Most times that a step draws again with tied_groups=refill."""
    max_skipped_updates: int = 3
    """An update whose loss or gradient is not finite is skipped and dumped to RUN/nan; more than so many end the run."""
    max_staleness: int = 0
    """Updates by which the weights that roll out may lag: 0, or 1 to play the next step's scenes while this one trains."""


@dataclass
class TransferConfig:
    """How episodes reach the trainer (Section 3.4)."""

    ipss: bool = True
    """Stream each finished episode while others still generate; false: wait for all, pixels per rollout."""
    iptc: bool = True
    """Keep the step's tensors on the device for log-prob, reference and update; false: build them anew each time."""
    visual_embeddings: str = "auto"
    """Keep what a frozen vision tower and projector make of an image in place of its pixels: auto (where both are frozen
    and iptc is on), on (refused elsewhere) or off."""
    link: str = "shm"
    """shm (images through the shared memory of each node) or zmq (over sockets alone); both reach other nodes."""
    threads: int = 2
    in_flight: int = 64
    image_store_mb: int = 1024
    tensor_cache_mb: int = 4096
    weight_bucket_mb: int = 512
    """Weights go to the engines in buckets of this size; no process holds more of them beside its own copy."""


@dataclass
class ValidationConfig:
    """Held-out evaluation inside a run."""

    every_steps: int = 25
    """RL steps; 0: only before SFT, after SFT and after RL."""
    sft_every_steps: int = 0
    """SFT steps; 0: none between."""
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
    trace_steps: int = 4
    """RL steps, the last ones, that trace.json and the report's timeline show; 0: no timeline is kept."""


@dataclass
class Config:
    """One job: `nemo-mtdrive rl --config-name NAME key=value ...`."""

    run_dir: str = "runs/rl"
    seed: int = 1
    resume: bool = False
    max_restarts: int = 3
    """Times that the training ranks go on from the last checkpoint by themselves, without a new one in between."""
    max_time_per_run: str = ""
    """DAYS:HOURS:MINUTES:SECONDS; the job then ends after a checkpoint, and `resume=true` goes on. Empty: no limit."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    sft_data: SFTDataConfig = field(default_factory=SFTDataConfig)
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
for _open in (_schema.scenes.kinds, _schema.scenes.commands):  # names of the generator; everything else has fixed keys
    OmegaConf.set_struct(_open, False)
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
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"--config-name {name}: {_first_lines(error)}") from error
    assert isinstance(config, Config)
    refuse_sizes(config, overrides)
    check(config)
    refuse_greedy(config)
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
