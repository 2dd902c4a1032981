"""The main job as a training rank lives it: evaluate, SFT cold start, evaluate, mtGRPO, evaluate; resumable anywhere.

All ranks run the same code on the same episodes and so decide alike; rank 0 alone speaks to the workers, writes metrics,
dumps and summary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_mtdrive.algorithms.ahead import pending_images, read_pending, write_pending
from nemo_mtdrive.algorithms.limits import RunEnded, RunLimit
from nemo_mtdrive.algorithms.mtgrpo import MTGRPOTrainer, task_seed
from nemo_mtdrive.algorithms.policy import Policy
from nemo_mtdrive.algorithms.rollouts import RolloutClient
from nemo_mtdrive.algorithms.sft import SFTTrainer
from nemo_mtdrive.callbacks.checkpointing import random_state, set_random_state
from nemo_mtdrive.callbacks.retention import CheckpointStore
from nemo_mtdrive.config import Config
from nemo_mtdrive.data.curate import SceneArguments
from nemo_mtdrive.data.prepare import Splits
from nemo_mtdrive.data.single_turn import question
from nemo_mtdrive.evaluation.evaluate import BOOTSTRAP, facts_of, summarise
from nemo_mtdrive.telemetry import spans
from nemo_mtdrive.telemetry.metrics import MetricsLogger
from nemo_mtdrive.telemetry.progress import Progress
from nemo_mtdrive.telemetry.recorder import EpisodeRecorder
from nemo_mtdrive.telemetry.timeline import StepTimeline
from nemo_mtdrive.types import Episode, Group, RolloutTask
from nemo_mtdrive.whole_file import write_whole

PENDING = "pending_rollouts.msgpack"
"""Beside a checkpoint's weights: the rollouts that were under way ahead of the trainer."""
END = "after_rl"
"""The evaluation that ends a run."""
EVALUATION_STEP = 0
"""Every evaluation draws with the same seeds, so that rows differ by the policy alone."""


@dataclass(frozen=True)
class JobState:
    """Where a job is; stored with each checkpoint."""

    phase: str
    """"sft" or "rl"."""
    step: int
    """Steps of the phase that are done."""


class TrainingJob:
    """One rank's part of the main job."""

    def __init__(self, config: Config, run_dir: Path, policy: Policy, rollouts: RolloutClient,
                 sft: SFTTrainer | None, rl: MTGRPOTrainer, splits: Splits, scenes: SceneArguments,
                 checkpoints: CheckpointStore, save: Callable[[Path], None], load: Callable[[Path], None],
                 progress: Progress, rank: int, limit: RunLimit) -> None:
        """`save` and `load` write and read the policy's weights, optimizer and reference in a folder (collective)."""
        self.config = config
        self.rank = rank
        self._limit = limit
        self._save = save
        self._load = load
        self.run_dir = run_dir
        self.policy = policy
        self.rollouts = rollouts
        self.sft = sft
        self.rl = rl
        self.splits = splits
        self.checkpoints = checkpoints
        self.progress = progress
        self.is_main = rank == 0
        traced = config.logging.trace_steps
        self._timeline = StepTimeline(run_dir, traced) if self.is_main and traced else None
        self._scenes = scenes.open()
        self._summary = Summary(run_dir / "summary.json")
        # read once, before any collective call: a rank that looked later could see what rank 0 has just added
        self._evaluated = set(self._summary.read()) if config.resume else set()
        self._recorder = EpisodeRecorder(run_dir, max_episodes=config.logging.recorded_episodes, with_tokens=False)

    def run(self) -> None:
        """Everything that is not done yet, or as much as `limit` allows; status.json says which."""
        try:
            self._run()
            ended = ""
        except RunEnded as end:
            ended = str(end)
            self.progress.note(f"{ended}; resume=true goes on")
        if self.is_main:
            write_whole(self.run_dir / "status.json", json.dumps({"finished": not ended, "reason": ended}))
        self.rollouts.stop()

    def _run(self) -> None:
        state = self.resume()
        self.rollouts.publish()
        if state.phase == "sft":
            if state.step == 0:
                self.evaluate("before_sft")
            self.run_sft(state.step)
            state = JobState("rl", 0)
        if state.step == 0:
            self.evaluate("after_sft" if self.sft is not None else "before_rl")
        if self.rl_steps:
            self.run_rl(state.step)
            self.evaluate(END)

    def resume(self) -> JobState:
        """Load the last whole checkpoint, if the job is to be resumed and there is one; else start with the policy."""
        found = self.checkpoints.latest() if self.config.resume else None
        if found is None:
            self.checkpoints.clear()
            self._evaluated = set()  # by an attempt that failed before its first checkpoint
            if self.is_main:
                self._summary.clear()
            self.policy.set_reference()
            return JobState("sft" if self.sft is not None else "rl", 0)
        saved = found.state
        self._load(found.path)
        if found.same_ranks:
            set_random_state(saved["random"])
        else:  # no rank can go on where one was; all draw anew, each its own
            torch.manual_seed(task_seed(self.config.seed, saved["job"]["step"], self.rank))
        self.rollouts.policy_version = saved["policy_version"]
        if (found.path / PENDING).is_file():
            pending = read_pending(found.path / PENDING)
            self.rl.restore(pending, pending_images(pending, self._scenes.image))
        state = JobState(**saved["job"])
        if state.phase == "rl" and state.step < self.rl_steps:  # what a shorter run ended with is not the end any more
            self._evaluated.discard(END)
            if self.is_main:
                self._summary.drop(END)
        if self.is_main:
            self._recorder.drop_after("train", state.step - 1 if state.phase == "rl" else -1)
        self.progress.note(f"resumed from {found.name}: {state.phase} step {state.step}")
        return state

    def run_sft(self, done: int) -> None:
        """SFT from step `done` on; a checkpoint at the end and every `checkpoint.sft_every_steps`."""
        assert self.sft is not None
        total = self.sft.steps
        with self._metrics("sft", done) as metrics, self.progress.phase("SFT", total=total, unit="steps") as bar:
            bar.advance(done)
            self._validate_sft(done)  # what ended after the checkpoint may have missed it
            for step in range(done, total):
                values = self.sft.step(step)
                metrics.log(step, values)
                bar.advance(1, loss=values["loss"])
                if step + 1 < total:
                    self._between_sft_steps(JobState("sft", step + 1))
        self.policy.set_reference()
        self.rollouts.publish_next()
        self.save(JobState("rl", 0), {})
        self._end_if_due()

    def _between_sft_steps(self, state: JobState) -> None:
        """Validate and save where that is due; end the run where its time is up."""
        why = self._limit.reason()
        if why or state.step % self.config.checkpoint.sft_every_steps == 0:
            self.save(state, {})
        if why:
            raise RunEnded(f"{why}: SFT step {state.step} is saved")
        self._validate_sft(state.step)

    def _validate_sft(self, step: int) -> None:
        every = self.config.validation.sft_every_steps
        if every and step and step % every == 0:
            self.rollouts.publish_next()
            self.evaluate(f"sft_step_{step}")

    def _end_if_due(self) -> None:
        if why := self._limit.reason():
            raise RunEnded(f"{why}: the SFT model is saved")

    @property
    def rl_steps(self) -> int:
        """Steps of Algorithm 1: I iterations of M."""
        return self.config.mtgrpo.iterations * self.config.mtgrpo.steps

    def run_rl(self, done: int) -> None:
        """Algorithm 1 from step `done` on: I iterations of M steps."""
        total = self.rl_steps
        with self._metrics("rl", done) as metrics, self.progress.phase("mtGRPO", total=total, unit="steps") as bar:
            bar.advance(done)
            self._validate_rl(done)  # what ended after the checkpoint may have missed it
            for step in range(done, total):
                began = time.monotonic_ns()
                values = self.rl.step(step)
                spans.flush()
                if self._timeline is not None:
                    values |= self._timeline.close_step(step, began)
                metrics.log(step, values)
                self.record("train", step, self.rl.groups)
                bar.advance(1, reward=values.get("reward/mean", float("nan")), kl=values.get("kl", float("nan")),
                            gap=values.get("logprob_gap/max", float("nan")))
                self._after_rl_step(JobState("rl", step + 1), values)

    def _after_rl_step(self, state: JobState, values: Mapping[str, float]) -> None:
        """Save and validate where that is due; end the run where its time is up."""
        last, every = state.step == self.rl_steps, self.config.checkpoint.every_steps
        why = "" if last else self._limit.reason()
        if last or why or (every and state.step % every == 0):
            self.save(state, values)
        if why:
            raise RunEnded(f"{why}: mtGRPO step {state.step} is saved")
        self._validate_rl(state.step)

    def _validate_rl(self, step: int) -> None:
        every = self.config.validation.every_steps
        if every and step % every == 0 and 0 < step < self.rl_steps:
            self.evaluate(f"rl_step_{step}")

    def evaluate(self, name: str) -> None:
        """Roll out the held-out scenes once each with the training sampler and add the row to summary.json."""
        if name in self._evaluated:
            return
        ids = self.splits.held_out[:self.config.validation.scenes]
        if not ids:
            return
        self.rl.settle()
        version, temperature = self.rollouts.policy_version, self.config.rollout.temperature
        tasks = [RolloutTask(scene_id=scene_id, group_size=1, seed=task_seed(self.config.seed, EVALUATION_STEP, slot),
                             policy_version=version, step=EVALUATION_STEP, temperature=temperature, purpose=name, slot=slot)
                 for slot, scene_id in enumerate(ids)]
        with self.progress.phase(f"evaluate {name.replace('_', ' ')}", total=len(tasks), unit="scenes") as bar:
            groups = self.rollouts.generate(tasks, bar, more=True)  # the images of rollouts that wait stay too
        episodes = [episode for group in groups for episode in group.episodes]
        if self.is_main:
            facts = {scene_id: facts_of(self._scenes.load(scene_id)) for scene_id in ids}
            self._summary.add(name, summarise(episodes, facts=facts, bootstrap=BOOTSTRAP))
        self.record(name, EVALUATION_STEP, groups)

    def record(self, purpose: str, step: int, groups: Sequence[Group]) -> None:
        """Dump a few episodes for the report, with their scenes and pictures: those first whose later turns changed the
        score the most, for better or worse."""
        if not self.is_main or not self.config.logging.recorded_episodes:
            return
        episodes = [episode for group in groups for episode in group.episodes]
        kept = sorted(episodes, key=lambda episode: (-_change(episode), episode.episode_id))
        kept = kept[:self.config.logging.recorded_episodes]
        scenes = {episode.scene_id: self._scenes.load(episode.scene_id) for episode in kept}
        images = {key: self._scenes.image(episode.scene_id) for episode in kept for key in episode.image_keys}
        self._recorder.record(step, purpose, kept, prompts={name: question(scene) for name, scene in scenes.items()},
                              images=images, scenes=scenes)

    def save(self, state: JobState, metrics: Mapping[str, float]) -> None:
        """A checkpoint with weights, optimizer, reference and where the job is."""
        trainer_state = {"job": asdict(state), "policy_version": self.rollouts.policy_version, "random": random_state()}
        wanted = ("reward/mean", self.config.checkpoint.best_metric)
        kept = {name: value for name, value in metrics.items() if "/PDMS" in name or name in wanted}
        self.rl.settle()

        def write(folder: Path) -> None:
            self._save(folder)
            if self.is_main and self.rl.pending is not None:
                write_pending(folder / PENDING, self.rl.pending)

        self.checkpoints.save(f"{state.phase}-{state.step:06d}", write, trainer_state, kept)

    def _metrics(self, phase: str, done: int) -> MetricsLogger | NoMetrics:
        if not self.is_main:
            return NoMetrics()
        logging = self.config.logging
        return MetricsLogger(self.run_dir, phase=phase, resume_step=done - 1 if done else None,
                             tensorboard=logging.tensorboard,
                             wandb={"project": logging.wandb_project} if logging.wandb_project else None)


def _change(episode: Episode) -> float:
    """How far PDMS moved between the first and the last turn, 0..1."""
    return abs(episode.turns[-1].pdm_score - episode.turns[0].pdm_score) if episode.turns else 0.0


class NoMetrics:
    """What ranks other than 0 log to."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Summary:
    """summary.json: one row a finished evaluation, written whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """What is there; empty where no evaluation is done."""
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def add(self, name: str, row: Any) -> None:
        """Add or replace a row."""
        write_whole(self._path, json.dumps(self.read() | {name: row}, indent=1))

    def drop(self, name: str) -> None:
        """Forget a row, if it is there."""
        rows = self.read()
        if rows.pop(name, None) is not None:
            write_whole(self._path, json.dumps(rows, indent=1))

    def clear(self) -> None:
        """Forget the rows of an earlier run of the same directory."""
        self._path.unlink(missing_ok=True)
