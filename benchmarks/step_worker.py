"""The rollout worker of `step.py`: the real worker, engine, episodes and PDM scoring in one process.

The model of the benchmark has random weights and cannot write a trajectory. So that there are rewards, feedback and
episodes of different lengths all the same, each of its answers stands for a plan (the recorded future, moved by what the
answer's characters give) and the plan's text is what the environment gets. Everything else is as in a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.config import Config, read_config
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from nemo_mtdrive.environment.env import DrivingEnvironment, ResetItem, StepFailed, StepItem
from nemo_mtdrive.models.tiny import tiny_hf_config
from nemo_mtdrive.process import SHM_ROOT
from nemo_mtdrive.types import Observation, StepResult

MEGABYTE = 1 << 20


def scenes_of(config: Config) -> SceneSource:
    """The benchmark's generated scenes with pictures of the asked size."""
    return open_scenes(f"procedural://?count={config.scenes.count}&seed={config.scenes.seed}", config.scenes.image_width,
                       config.scenes.image_height)


def model_of(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """HF's config.json of the benchmark's model: windows alone in the vision tower, so that its cost grows with the image
    and not with its square, as it nearly does in the real one."""
    sizes = config.model
    hf = tiny_hf_config(
        vocab_size=tokenizer.vocab_size, image_pad=tokenizer.image_pad, video_pad=tokenizer.video_pad,
        vision_start=tokenizer.vision_start, vision_end=tokenizer.vision_end, im_start=tokenizer.im_start,
        im_end=tokenizer.im_end, layers=sizes.layers, hidden=sizes.hidden_size, mlp=sizes.ffn_size,
        vision_layers=sizes.vision_layers, vision_hidden=sizes.vision_hidden_size, vision_mlp=sizes.vision_ffn_size,
        max_length=config.rollout.max_context)
    hf["vision_config"]["fullatt_block_indexes"] = []
    return hf


class PlannedAnswers:
    """`environment.env.Environment` that scores the plan an answer stands for; see the module's docstring."""

    def __init__(self, scenes: SceneSource, inner: DrivingEnvironment) -> None:
        self._scenes = scenes
        self._inner = inner
        self._scene_of: dict[str, str] = {}

    def reset_many(self, items: Sequence[ResetItem]) -> list[Observation]:
        """Start episodes."""
        self._scene_of |= {episode_id: scene_id for episode_id, scene_id, _ in items}
        return self._inner.reset_many(items)

    def step_many(self, items: Sequence[StepItem]) -> Sequence[StepResult | StepFailed]:
        """Score the plans of the answers."""
        return self._inner.step_many([(name, turn, self._plan(name, turn, answer)) for name, turn, answer in items])

    def close_many(self, episode_ids: Sequence[str]) -> None:
        """Forget episodes."""
        self._inner.close_many(episode_ids)

    def _plan(self, episode_id: str, turn: int, answer: str) -> str:
        future = self._scenes.load(self._scene_of[episode_id]).future
        assert future is not None, "generated scenes have a recorded future"
        draw = np.random.default_rng(int.from_bytes(blake2b(f"{turn} {answer}".encode(), digest_size=8).digest(), "little"))
        grows = np.linspace(0.2, 1.0, len(future))[:, None]
        return answer_text(future + grows * draw.normal(size=3) * (4.0, 1.5, 0.1))


def work(run_dir: str, run_id: str, name: str, control: str, episodes: str, link: str) -> None:
    """The whole life of a worker process that speaks `link`."""
    from nemo_mtdrive.rollout.worker import WorkerConfig, run_worker
    from nemo_mtdrive.telemetry import spans

    config = read_config(Path(run_dir) / "config.yaml")
    spans.record(Path(run_dir) / "spans", name)
    code = run_worker(WorkerConfig(name, control, heartbeat_s=2.0, trainer_timeout_s=600.0),
                      lambda: _parts(config, run_id, episodes, link))
    raise SystemExit(code)


def _parts(config: Config, run_id: str, episodes: str, link: str) -> Any:
    import torch

    from nemo_mtdrive.pdm.reviewers import open_reviewer
    from nemo_mtdrive.rollout.native import NativeEngine
    from nemo_mtdrive.rollout.worker import RolloutSettings, WorkerParts
    from nemo_mtdrive.transfer.link import open_sender
    from nemo_mtdrive.transfer.segments import RunFolder
    from nemo_mtdrive.transfer.stream import EpisodeStream
    from nemo_mtdrive.transfer.weights import WeightReader

    rollout, transfer = config.rollout, config.transfer
    torch.set_num_threads(rollout.threads)
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    hf = model_of(config, tokenizer)
    engine = NativeEngine(
        hf, stop_token=tokenizer.im_end, forbidden_tokens=tokenizer.forbidden_below(hf["vocab_size"]).tolist(),
        max_context=rollout.max_context, dtype=torch.float32, device=torch.device("cpu"), prefill_tokens=16384)
    scenes = scenes_of(config)
    environment = DrivingEnvironment(scenes, open_reviewer(config.agent, "oracle", 64), rollout.max_turns)
    environment.warm_up()
    folder = RunFolder(SHM_ROOT, run_id)
    reader = WeightReader(folder)
    sender = open_sender(link, [episodes], run_id, in_flight=transfer.in_flight, lost_after_s=60, shm_root=SHM_ROOT,  # type: ignore[arg-type]
                         image_budget_bytes=transfer.image_store_mb * MEGABYTE)
    stream = EpisodeStream(sender, threads=transfer.threads, in_flight=transfer.in_flight, flush_timeout_s=600)

    def flush() -> Mapping[str, float]:
        return {f"stream_{key}": float(value) for key, value in asdict(stream.on_rollout_end()).items()}

    def read_weights(manifest: Mapping[str, Any]) -> Iterable[tuple[str, torch.Tensor]]:
        return reader.iterate(int(manifest["version"]))

    def close() -> None:
        stream.close()
        folder.close()

    settings = RolloutSettings(rollout.max_turns, rollout.max_answer_tokens, rollout.max_running, 0.8, 0.2)
    return WorkerParts(engine, PlannedAnswers(scenes, environment), tokenizer, settings, stream.on_episode_end, flush,
                       read_weights, close)
