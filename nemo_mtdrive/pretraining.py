"""`nemo-mtdrive pretrain-vision` and `pretrain-language`: train a part of a tiny model, measure it, and write a model to
start from."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_mtdrive.config import Config, ConfigError
from nemo_mtdrive.data.prepare import scene_arguments
from nemo_mtdrive.data.sampler import split_ids
from nemo_mtdrive.data.views import read_views
from nemo_mtdrive.evaluation.settings import weights_mark
from nemo_mtdrive.telemetry.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from nemo_mtdrive.algorithms.policy import MicroBatch
    from nemo_mtdrive.algorithms.resumable import ResumableTraining
    from nemo_mtdrive.models.qwen25_vl import Qwen25VLModel

REPORT = "pretraining.json"
SHARD_BYTES = 5_000_000_000


def pretrain_vision(config: Config, out: Path, progress: Progress) -> dict[str, Any]:
    """Write a Hugging Face directory whose vision tower has learned from the config's training scenes; the language model
    has random weights. Returns the report that lies beside it.

    Killed, it goes on where it last saved (a file beside `out`) when it is called again; what is done is not done again.

    Raises:
        ConfigError: no stored pictures, a model that is there already, or `out` holds what was asked for otherwise.
    """
    request = json.dumps({"scenes": asdict(config.scenes), "model": asdict(config.model), "seed": config.seed,
                          "pretraining": asdict(config.pretraining)}, sort_keys=True)
    _refuse(config)
    if out.exists():
        return _done_before(out, request)
    from nemo_mtdrive.algorithms.vision_pretraining import VisionPretraining
    from nemo_mtdrive.models.tiny import random_hf_state
    from nemo_mtdrive.ranks import hf_config, load_tokenizer

    source = scene_arguments(config, out).open()
    train, held_out = split_ids(list(source.ids()), config.scenes.held_out, config.scenes.seed)
    train, settings = train[:config.scenes.count], config.pretraining
    with progress.phase("read scenes", total=len(train), unit="scenes") as bar:
        views = read_views(source, train, bar.advance)
    with _one_rank(config):
        hf = hf_config(config, load_tokenizer(config))
        model = _model(config, hf)
        model.load_hf_state(random_hf_state(hf, config.seed))
        training = VisionPretraining(model.module, model.hf_config.hidden_size, views, source.image, settings, config.seed)
        _train(training, settings.steps, settings.save_every, out, request, progress, "vision")
        report: dict[str, Any] = {"scenes": len(views.ids), "steps": settings.steps, "request": request}
        if held_out[:settings.measured]:
            seen = read_views(source, held_out[:settings.measured], lambda _: None)
            report |= {"held_out_scenes": len(seen.ids), **training.measure(seen)}
        _write(config, model, out, report)
    _state_of(out).unlink(missing_ok=True)
    return report


def pretrain_language(config: Config, out: Path, progress: Progress) -> dict[str, Any]:
    """Write the model of `model.init_from` with a language model that has learned how plans are written; its tower stays as
    it is. Returns the report that lies beside it. Killed, it goes on as `pretrain_vision` does.

    Raises:
        ConfigError: no model to start from, or `out` holds what was asked for otherwise.
    """
    if not config.model.init_from:
        raise ConfigError("model.init_from='': set it to the model whose language is to learn, as `nemo-mtdrive "
                          "pretrain-vision` writes one")
    start, settings = Path(config.model.init_from), config.language
    request = json.dumps({"start": weights_mark(start), "seed": config.seed, "language": asdict(settings)}, sort_keys=True)
    if out.exists():
        return _done_before(out, request)
    from nemo_mtdrive.algorithms.language_pretraining import LanguagePretraining
    from nemo_mtdrive.models.logprobs import Scoring
    from nemo_mtdrive.models.start import check_start, load_start
    from nemo_mtdrive.ranks import hf_config, load_tokenizer

    check_start(start, 1, 1)
    with _one_rank(config):
        tokenizer = load_tokenizer(config)
        model = _model(config, hf_config(config, tokenizer))
        load_start(model, start)

        def logprobs(batch: MicroBatch) -> Tensor:
            scores = model.module(batch["tokens"], batch["positions"], segments=batch["segments"],
                                  scoring=Scoring(batch["mask"]))
            found: Tensor = scores.logprobs
            return found

        training = LanguagePretraining(model.module, logprobs, tokenizer, settings, config.seed)
        before = training.measure()
        _train(training, settings.steps, settings.save_every, out, request, progress, "language")
        report = {"steps": settings.steps, "conversations": settings.steps * settings.batch_size,
                  "cross_entropy_before": before, "cross_entropy": training.measure(), "request": request}
        _write(config, model, out, report)
    _state_of(out).unlink(missing_ok=True)
    return report


def _train(training: ResumableTraining, steps: int, save_every: int, out: Path, request: str, progress: Progress,
           name: str) -> None:
    """To the last step, from where a killed command saved."""
    state = _state_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if state.exists() and training.load(state, request):
        progress.note(f"goes on at step {training.step}")
    with progress.phase(name, total=steps, unit="steps") as bar:
        bar.advance(training.step)
        while training.step < steps:
            bar.advance(1, loss=training.train_step())
            if training.step % save_every == 0:
                training.save(state, request)


def _state_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.pretraining.safetensors")


def _refuse(config: Config) -> None:
    if config.model.init_from:
        raise ConfigError(f"model.init_from={config.model.init_from}: leave it empty; a new tiny model is made here")
    if config.scenes.source == "procedural" and not config.scenes.uri:
        raise ConfigError("scenes.source=procedural: every picture is looked at many times; write the scenes with "
                          "`nemo-mtdrive scenes generate` and set scenes.source=files scenes.path=DIR")


def _done_before(out: Path, request: str) -> dict[str, Any]:
    report = out / REPORT
    found: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {}
    if found.get("request") != request:
        raise ConfigError(f"--out {out}: it holds something else than what is asked for; name another folder")
    return found


@contextmanager
def _one_rank(config: Config) -> Iterator[None]:
    """This process alone as megatron's group."""
    import torch

    from nemo_mtdrive.models import parallel

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(config.parallel.threads)
    parallel.initialise(1, 1, config.seed, config.rollout.start_timeout_s)
    try:
        yield
    finally:
        parallel.shutdown()


def _model(config: Config, hf: dict[str, Any]) -> Qwen25VLModel:
    """Its weights are still to come."""
    import torch

    from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, build_model

    unused = OptimizerOptions(clip_gradient=1.0, weight_decay=0.0, beta1=0.9, beta2=0.95, epsilon=1e-8, distributed=False)
    return build_model(hf, optimizer=unused, sequence_parallel=False, dtype=torch.float32,
                       max_length=config.rollout.max_context)


def _write(config: Config, model: Qwen25VLModel, out: Path, report: dict[str, Any]) -> None:
    import torch

    from nemo_mtdrive.models.hf_files import SafetensorsWriter
    from nemo_mtdrive.models.whole_directory import whole_directory
    from nemo_mtdrive.ranks import hf_config, load_tokenizer

    tokenizer = load_tokenizer(config)
    weights = [(name, tensor.detach().float().cpu()) for name, tensor in model.export_hf_state()]
    planned = [(name, tuple(tensor.shape)) for name, tensor in weights]
    with whole_directory(out, overwrite=False, expected_bytes=4 * sum(tensor.numel() for _, tensor in weights)) as folder:
        with SafetensorsWriter(folder, planned, torch.float32, SHARD_BYTES) as writer:
            for name, tensor in weights:
                writer.write(name, tensor)
        (folder / "config.json").write_text(json.dumps(hf_config(config, tokenizer), indent=1))
        tokenizer.save(folder)
        (folder / REPORT).write_text(json.dumps(report, indent=1))
