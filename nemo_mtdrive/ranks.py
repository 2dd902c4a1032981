"""What each process of a job does from start to end: environment server, rollout worker, training rank.

Each reads the run directory (config.yaml, endpoints.json, splits.json) and builds its parts; imports that take seconds
are inside the functions, so that a process imports only what it needs.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_mtdrive.config import Config, read_config
from nemo_mtdrive.config_checks import seconds_of
from nemo_mtdrive.launch import Endpoints, read_endpoints
from nemo_mtdrive.process import GAVE_UP, SHM_ROOT, die_with_parent

if TYPE_CHECKING:
    import torch

    from nemo_mtdrive.dialogue.tokenizer import Tokenizer
    from nemo_mtdrive.environment.scenes import SceneSource
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel
    from nemo_mtdrive.pdm.review import Reviewer
    from nemo_mtdrive.rollout.worker import WorkerParts
    from nemo_mtdrive.transfer.link import LinkKind

LOST_AFTER_S = 30.0
HEARTBEAT_S = 2.0
MEGABYTE = 1 << 20


def serve_environment(run_dir: Path, index: int) -> int:
    """One environment server of a run; returns the exit code."""
    from urllib.parse import urlsplit

    from nemo_mtdrive.environment.server import serve
    from nemo_mtdrive.environment.worker import WorkerSpec

    config, endpoints = _read(run_dir)
    address = urlsplit(endpoints.environment_urls[index])
    environment = config.environment
    spec = WorkerSpec(f"{__name__}:scoring_parts", {"run_dir": str(run_dir)}, _scenes_a_worker(config))
    return serve(spec, workers=environment.workers, queue_items=environment.queue_items,
                 max_turns=config.rollout.max_turns, host=address.hostname or "127.0.0.1", port=address.port or 0,
                 token=endpoints.environment_token, shared_port=True)


def scoring_parts(run_dir: str) -> tuple[SceneSource, Reviewer]:
    """Scenes and reviewer of a run, for one scoring worker of its environment server."""
    from nemo_mtdrive.data.prepare import scene_arguments
    from nemo_mtdrive.pdm.reviewers import open_reviewer

    config = read_config(Path(run_dir) / "config.yaml")
    return (scene_arguments(config, Path(run_dir)).open(),
            open_reviewer(config.agent, config.environment.perception, _scenes_a_worker(config)))


def _scenes_a_worker(config: Config) -> int:
    return max(1, config.environment.cache_scenes // config.environment.workers)


def run_rollout_worker(run_dir: Path, index: int) -> int:
    """One rollout worker of a run; returns the exit code."""
    from nemo_mtdrive.rollout.worker import WorkerConfig, run_worker

    config, endpoints = _read(run_dir)
    _record_spans(config, run_dir, worker_name(index))
    return run_worker(
        WorkerConfig(worker_name(index), endpoints.control, heartbeat_s=HEARTBEAT_S,
                     trainer_timeout_s=config.rollout.start_timeout_s, keys=endpoints.keys),
        partial(_worker_parts, config, endpoints, index))


def worker_name(index: int) -> str:
    """The name by which the trainer knows a worker."""
    return f"worker-{index}"


def _worker_parts(config: Config, endpoints: Endpoints, index: int) -> WorkerParts:
    from nemo_mtdrive.environment.client import EnvironmentClient
    from nemo_mtdrive.rollout.model_driver import ENGINES
    from nemo_mtdrive.rollout.multi_turn import RolloutSettings
    from nemo_mtdrive.rollout.worker import WorkerParts
    from nemo_mtdrive.transfer.link import open_sender
    from nemo_mtdrive.transfer.segments import RunFolder
    from nemo_mtdrive.transfer.stream import EpisodeStream
    from nemo_mtdrive.transfer.weights import WeightReader

    tokenizer = load_tokenizer(config)
    rollout, transfer = config.rollout, config.transfer
    hf = hf_config(config, tokenizer)
    engine = ENGINES[rollout.engine](hf, tokenizer, rollout, "")
    folder = RunFolder(Path(endpoints.weights_root), endpoints.run_id)
    reader = WeightReader(folder)
    sender = open_sender(_link_kind(config), endpoints.episodes, endpoints.run_id, in_flight=transfer.in_flight,
                         lost_after_s=LOST_AFTER_S, shm_root=SHM_ROOT,
                         image_budget_bytes=transfer.image_store_mb * MEGABYTE, keys=endpoints.keys)
    stream = EpisodeStream(sender, threads=transfer.threads, in_flight=transfer.in_flight,
                           flush_timeout_s=rollout.rollout_timeout_s)
    first = index % len(endpoints.environment_urls)  # workers begin with different servers, and go to others in need
    environment = EnvironmentClient(endpoints.environment_urls[first:] + endpoints.environment_urls[:first],
                                    endpoints.environment_token, config.environment.timeout_s,
                                    config.environment.retries, waits=True)
    environment.wait_ready(rollout.start_timeout_s)

    def flush() -> Mapping[str, float]:
        if rollout.sleep:
            engine.sleep()
        return {f"stream_{name}": float(value) for name, value in asdict(stream.on_rollout_end()).items()}

    def read_weights(manifest: Mapping[str, Any]) -> Iterable[tuple[str, torch.Tensor]]:
        return reader.iterate(int(manifest["version"]))

    def close() -> None:
        stream.close()
        environment.disconnect()
        engine.close()
        folder.close()

    settings = RolloutSettings(rollout.max_turns, rollout.max_answer_tokens, rollout.max_running,
                               config.reward.pdm_weight, config.reward.format_weight,
                               config.reward.progressive_weight, rollout.episode_timeout_s)
    return WorkerParts(engine, environment, tokenizer, settings, stream.on_episode_end, flush, read_weights, close)


def run_training_rank(run_dir: Path, resume: bool) -> int:
    """One training rank of a run (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the environment); the exit code.

    With `resume` it goes on from the last checkpoint, whatever the run's config says.
    """
    die_with_parent()
    gc.disable()  # nothing of the nine thousand modules that come now can be collected: a tenth of their seconds
    from nemo_mtdrive.algorithms.updates import NotFinite
    from nemo_mtdrive.models import parallel

    gc.freeze()
    gc.enable()
    config, endpoints = _read(run_dir)
    config.resume |= resume
    parallel.initialise(config.parallel.tensor, config.parallel.pipeline, config.seed, config.rollout.start_timeout_s)
    try:
        _train(config, endpoints, run_dir)
    except NotFinite as error:  # all ranks count alike
        print(f"training rank: {error}", file=sys.stderr, flush=True)
        return GAVE_UP
    finally:
        parallel.shutdown()
    return 0


def _train(config: Config, endpoints: Endpoints, run_dir: Path) -> None:
    import torch

    from nemo_mtdrive.algorithms.job import TrainingJob
    from nemo_mtdrive.algorithms.limits import RunLimit
    from nemo_mtdrive.algorithms.mtgrpo import MTGRPOTrainer
    from nemo_mtdrive.algorithms.policy import DataShare
    from nemo_mtdrive.algorithms.rollouts import Deadlines, RolloutClient
    from nemo_mtdrive.algorithms.sft import SFTTrainer
    from nemo_mtdrive.algorithms.updates import DumpPlace
    from nemo_mtdrive.callbacks.ipss import IPSS
    from nemo_mtdrive.callbacks.iptc import IPTC
    from nemo_mtdrive.callbacks.retention import CheckpointStore
    from nemo_mtdrive.callbacks.weight_sync import WeightSync
    from nemo_mtdrive.data.datasets import SFTDataset
    from nemo_mtdrive.data.prepare import read_splits, rl_scenes, scene_arguments
    from nemo_mtdrive.models import parallel
    from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, build_model
    from nemo_mtdrive.models.start import load_start
    from nemo_mtdrive.models.tiny import random_hf_state
    from nemo_mtdrive.rollout.pool import PoolLimits, WorkerPool
    from nemo_mtdrive.telemetry.events import EventProgress
    from nemo_mtdrive.transfer.link import open_receiver
    from nemo_mtdrive.transfer.segments import RunFolder
    from nemo_mtdrive.transfer.weights import WeightPublisher

    ranks, device = parallel.ranks(), parallel.device()
    _record_spans(config, run_dir, f"rank-{ranks.rank}")
    rollout, transfer = config.rollout, config.transfer
    events = os.fdopen(int(os.environ["MTDRIVE_EVENTS_FD"]), "w") if "MTDRIVE_EVENTS_FD" in os.environ else None
    progress = EventProgress(events)
    pool = None
    if ranks.rank == 0:
        limits = PoolLimits(rollout.heartbeat_timeout_s, rollout.stuck_timeout_s, rollout.max_restarts)
        pool = WorkerPool(
            endpoints.control, [worker_name(index) for index in range(rollout.workers)], limits=limits,
            on_lost=lambda name, pid, reason: progress.tell("lost", worker=name, pid=pid, reason=reason),
            keys=endpoints.keys)

    tokenizer = load_tokenizer(config)
    hf = hf_config(config, tokenizer)
    optimizer = OptimizerOptions(clip_gradient=config.mtgrpo.clip_grad, weight_decay=config.mtgrpo.weight_decay,
                                 beta1=0.9, beta2=0.95, epsilon=1e-8, distributed=device.type == "cuda")
    model = build_model(hf, optimizer=optimizer, sequence_parallel=config.parallel.sequence,
                        dtype=getattr(torch, config.model.dtype), max_length=rollout.max_context,
                        recompute=config.model.recompute, freeze_vision=config.model.freeze_vision,
                        freeze_projector=config.model.freeze_projector)
    if config.model.init_from:
        load_start(model, Path(config.model.init_from))
    else:
        model.load_hf_state(random_hf_state(hf, config.seed))
    model.prepare_for_training()

    kind = _link_kind(config)
    ipss = IPSS(open_receiver=partial(
        open_receiver, kind, endpoints.episodes[ranks.rank], endpoints.run_id, shm_root=SHM_ROOT,
        image_budget_bytes=transfer.image_store_mb * MEGABYTE, keep_frames=not transfer.iptc,
        keys=endpoints.keys))
    ipss.setup(None, None, "fit")
    folder = RunFolder(Path(endpoints.weights_root), endpoints.run_id)
    bucket = transfer.weight_bucket_mb * MEGABYTE
    weights = WeightSync(WeightPublisher(folder, writes=ranks.rank == 0, keep=2, bucket_bytes=bucket),
                         partial(model.export_hf_pieces, bucket), version=0)
    rollouts = RolloutClient(ipss, weights, pool, Deadlines(rollout.start_timeout_s, rollout.rollout_timeout_s),
                             parallel.check_agreement, decode_each_time=not transfer.iptc)
    share = DataShare(ranks.data_rank, ranks.data_size, device)
    dump = DumpPlace(run_dir / "nan", ranks.data_rank, writes=ranks.tensor_rank == 0 and ranks.pipeline_rank == 0)
    cache = IPTC(device, transfer.tensor_cache_mb * MEGABYTE, enabled=transfer.iptc)
    splits = read_splits(run_dir)
    sft = None
    if config.sft.stages:
        folder_of_data = Path(config.sft.data) if config.sft.data else run_dir / "sft_data"
        dataset = SFTDataset(folder_of_data, tokenizer, config.sft.learn)
        sft = SFTTrainer(config.sft, model, share, dataset, tokenizer, rollout.max_context, dump)
    cache.watch(model.vision_metrics)
    rl = MTGRPOTrainer(config.mtgrpo, model, share, rollouts, cache, tokenizer, rl_scenes(config, splits.train), config.seed,
                       rollout, dump)
    frozen = config.model.freeze_vision and config.model.freeze_projector
    if transfer.iptc:
        rollouts.on_picture = rl.pictures.prefetch
        if frozen and transfer.visual_embeddings != "off":
            rl.pictures.encode = model.encode_images
    kept = config.checkpoint
    checkpoints = CheckpointStore(run_dir / "checkpoints", keep=kept.keep, metric=kept.best_metric,
                                  higher_is_better=kept.higher_is_better, rank=ranks.rank, world_size=ranks.world,
                                  barrier=parallel.barrier)
    job = TrainingJob(config, run_dir, model, rollouts, sft, rl, splits, scene_arguments(config, run_dir), checkpoints,
                      partial(_save_model, model, carried=tokenizer_files(config)), partial(_load_model, model), progress,
                      ranks.rank, RunLimit(run_dir, seconds_of(config.max_time_per_run), parallel.follow_rank_0))
    with progress.phase("start rollout workers", total=rollout.workers, unit="workers"):
        rollouts.wait_ready()
    job.run()
    folder.close()


def _save_model(model: Qwen25VLModel, folder: Path, carried: Path) -> None:
    from nemo_mtdrive.models import checkpoint

    checkpoint.save(model, folder / "model", carried)


def _load_model(model: Qwen25VLModel, folder: Path) -> None:
    from nemo_mtdrive.models import checkpoint

    checkpoint.load(model, folder / "model")


def load_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of a config."""
    from nemo_mtdrive.dialogue.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_files(config))


def tokenizer_files(config: Config) -> Path:
    """Where a config's tokenizer lies: `model.tokenizer`, else in `model.init_from`, else the tiny one."""
    from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER

    if config.model.tokenizer or not config.model.init_from:
        return Path(config.model.tokenizer or TINY_TOKENIZER)
    from nemo_mtdrive.models.directories import hf_files

    return hf_files(Path(config.model.init_from))


def hf_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """HF's config.json of the model: the one in `model.init_from`, else the tiny model's."""
    from nemo_mtdrive.models.directories import model_config
    from nemo_mtdrive.models.tiny import tiny_hf_config

    model = config.model
    if model.init_from:
        return model_config(Path(model.init_from))
    return tiny_hf_config(
        vocab_size=tokenizer.vocab_size, image_pad=tokenizer.image_pad, video_pad=tokenizer.video_pad,
        vision_start=tokenizer.vision_start, vision_end=tokenizer.vision_end, im_start=tokenizer.im_start,
        im_end=tokenizer.im_end, layers=model.layers, hidden=model.hidden_size, mlp=model.ffn_size,
        head_size=model.head_size, vision_layers=model.vision_layers, vision_hidden=model.vision_hidden_size,
        vision_mlp=model.vision_ffn_size, max_length=config.rollout.max_context)


def _read(run_dir: Path) -> tuple[Config, Endpoints]:
    return read_config(run_dir / "config.yaml"), read_endpoints(run_dir / "endpoints.json")


def _record_spans(config: Config, run_dir: Path, process: str) -> None:
    from nemo_mtdrive.telemetry import spans
    from nemo_mtdrive.telemetry.timeline import SPANS_FOLDER

    if config.logging.trace_steps:
        spans.record(run_dir / SPANS_FOLDER, process)


def _link_kind(config: Config) -> LinkKind:
    return config.transfer.link if config.transfer.ipss else "baseline"  # type: ignore[return-value]
