"""mtGRPO (Algorithm 1): the trainer. `MTGRPOTrainer.step` reads like lines 6 to 13 of the paper's listing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_mtdrive.algorithms.advantage import has_spread
from nemo_mtdrive.algorithms.ahead import AsyncRollouts, Pending, RolloutsAhead
from nemo_mtdrive.algorithms.batch import Payload, build_micro_batch, joined
from nemo_mtdrive.algorithms.loss import LossSettings, mtgrpo_loss
from nemo_mtdrive.algorithms.metrics import logprob_gap, rollout_metrics, update_metrics
from nemo_mtdrive.algorithms.mini_batches import MiniBatch, TrainingMicroBatch, assemble, each_of
from nemo_mtdrive.algorithms.pictures import Pictures
from nemo_mtdrive.algorithms.policy import DataShare, MicroBatch, Policy
from nemo_mtdrive.algorithms.schedule import learning_rate
from nemo_mtdrive.algorithms.updates import DumpPlace, Updates
from nemo_mtdrive.config import MtGRPOConfig, RolloutConfig
from nemo_mtdrive.data.sampler import EpochSampler
from nemo_mtdrive.dialogue.tokenizer import Tokenizer
from nemo_mtdrive.telemetry.timers import StepTimers
from nemo_mtdrive.types import Episode, Group, RolloutTask


class Rollouts(AsyncRollouts, Protocol):
    """Where groups come from: rollout workers behind IPSS, or the baseline transfer."""

    def generate(self, tasks: list[RolloutTask], *, more: bool = False) -> list[Group]:
        """All groups of the tasks, in their order; the images stay available until the next call without `more`."""

    def images(self, episodes: Sequence[Episode]) -> Callable[[str], Payload]:
        """How to get at the images of episodes of this step's groups, by key."""

    def publish_next(self) -> None:
        """The policy's weights changed: put them into the engines as the next version."""

    @property
    def policy_version(self) -> int:
        """Number of the last published weights."""

    def collect(self) -> dict[str, float]:
        """Transfer metrics since the last call."""


class TensorCache(Protocol):
    """IPTC, or nothing of it: builds or keeps the tensors of a micro-batch."""

    def get(self, key: Hashable, build: Callable[[], MicroBatch]) -> MicroBatch:
        """The tensors of a key on the device."""

    def drop(self, key: Hashable) -> None:
        """Forget a key before the step ends."""

    def on_step_end(self) -> dict[str, float]:
        """Drop what the step held; returns metrics of it."""


class MTGRPOTrainer:
    """Multi-turn group relative policy optimization of a policy on scenes."""

    def __init__(self, settings: MtGRPOConfig, policy: Policy, share: DataShare, rollouts: Rollouts, cache: TensorCache,
                 tokenizer: Tokenizer, scene_ids: list[str], seed: int, rollout: RolloutConfig, dump: DumpPlace) -> None:
        self.settings = settings
        self.policy = policy
        self.share = share
        self.rollouts = rollouts
        self.cache = cache
        self.tokenizer = tokenizer
        self.scene_ids = scene_ids
        self.seed = seed
        self.rollout = rollout
        self.timers = StepTimers()
        self.pictures = Pictures(cache, lambda episodes: self.rollouts.images(episodes), share.device)
        self.groups: list[Group] = []
        """All groups of the last step, those that were left out included, for recording."""
        self._ahead = None
        if settings.max_staleness:
            self._ahead = RolloutsAhead(rollouts, self.draw_tasks, settings.iterations * settings.steps)
        self._sampler = EpochSampler(len(scene_ids), seed)
        self._refill_sampler = EpochSampler(len(scene_ids), seed + 1)
        self._updates = Updates("rl", policy, settings.max_skipped_updates, dump)
        self._loss = LossSettings(settings.clip_low, settings.clip_high, settings.kl_coefficient, settings.kl_estimator,
                                  settings.dual_clip, settings.entropy_coefficient, settings.importance_cap)

    def step(self, step: int) -> dict[str, float]:
        """One step of Algorithm 1: sample questions (6), roll out under pi_old (7, 8), score (9), update (10 to 13)."""
        self.timers = StepTimers()
        if step % self.settings.steps == 0 and step > 0:  # the first iteration's is set where training starts
            self.policy.set_reference()  # line 4
        with self.timers("rollout"):
            groups = self.roll_out(step)
        with self.timers("advantage"):
            mini_batches = self.assemble(step, groups)
        lr = self.learning_rate(step)
        self.policy.set_lr(lr, self.settings.weight_decay)
        self.policy.temperature = self.rollout.temperature  # pi_theta is what the rollouts sample from
        with self.timers("log_prob"):
            self.recompute_old_logprobs(mini_batches)
        with self.timers("reference"):
            self.compute_reference_logprobs(mini_batches)
        with self.timers("update"):
            updates = [self.update(step, number, mini_batch)
                       for number, mini_batch in enumerate(mini_batches * self.settings.inner_updates)]
        metrics = rollout_metrics(self.groups, self.settings.estimator, self.rollout.max_turns) | update_metrics(updates)
        metrics["staleness"] = float(max((self._lag(group) for group in groups), default=0))
        metrics |= {"lr": lr, "groups/generated": float(len(self.groups)), "groups/trained": float(len(groups))}
        metrics |= logprob_gap(each_of(mini_batches))
        with self.timers("weight_sync"):
            self.publish()
        metrics |= self.pictures.collect()
        return metrics | self.cache.on_step_end() | self.rollouts.collect() | self.timers.collect()

    def learning_rate(self, step: int) -> float:
        """Over the steps of all iterations."""
        settings = self.settings
        return learning_rate(step, settings.iterations * settings.steps, settings.lr, settings.warmup_steps, settings.lr_end)

    def roll_out(self, step: int) -> list[Group]:
        """Lines 6 to 9, and which groups are trained on: a group without spread teaches nothing but the KL term."""
        count, rounds = self.settings.prompts_per_step, 0
        ahead = self._ahead
        self.groups = ahead.take(step) if ahead is not None else self.rollouts.generate(self.draw_tasks(step))
        if self.settings.tied_groups == "keep":
            return self.groups
        trained = self._with_spread(self.groups)
        while self.settings.tied_groups == "refill" and len(trained) < count and rounds < self.settings.refill_rounds:
            rounds += 1
            found = self.rollouts.generate(self.draw_refill(step, rounds, count - len(trained)), more=True)
            self.groups = self.groups + found
            trained += self._with_spread(found)
        return trained

    def publish(self) -> None:
        """Line 7 of the next step: pi_old becomes what was just trained."""
        if self._ahead is not None:
            self._ahead.weights_changed()  # the workers are playing; they get it as soon as they are idle
        else:
            self.rollouts.publish_next()

    def settle(self) -> None:
        """Wait until no rollout is under way ahead of the trainer, as before a validation or a checkpoint."""
        if self._ahead is not None:
            self._ahead.settle()

    @property
    def pending(self) -> Pending | None:
        """Rollouts that wait for their step after `settle`; part of a checkpoint."""
        return self._ahead.pending if self._ahead is not None else None

    def restore(self, pending: Pending, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Go on with the rollouts of a checkpoint."""
        assert self._ahead is not None, "a checkpoint with pending rollouts belongs to a run with mtgrpo.max_staleness=1"
        self._ahead.restore(pending, images)

    def draw_tasks(self, step: int) -> list[RolloutTask]:
        """Line 6: the questions of this step, each to be rolled out G times."""
        count = self.settings.prompts_per_step
        return self._tasks(step, 0, self._sampler.take(step * count, count))

    def draw_refill(self, step: int, rounds: int, missing: int) -> list[RolloutTask]:
        """Further questions for those whose rollouts were all alike; the draw depends on step and round alone."""
        count = self.settings.prompts_per_step
        start = (step * self.settings.refill_rounds + rounds - 1) * count
        return self._tasks(step, rounds * count, self._refill_sampler.take(start, missing))

    def _tasks(self, step: int, first_slot: int, chosen: Sequence[int]) -> list[RolloutTask]:
        return [RolloutTask(scene_id=self.scene_ids[index], group_size=self.settings.group_size,
                            seed=task_seed(self.seed, step, slot), policy_version=self.rollouts.policy_version,
                            step=step, slot=slot, temperature=self.rollout.temperature)
                for slot, index in enumerate(chosen, start=first_slot)]

    def _lag(self, group: Group) -> int:
        """By how many versions the weights that played a group are behind the published ones."""
        return self.rollouts.policy_version - min(episode.policy_version for episode in group.episodes)

    def _with_spread(self, groups: list[Group]) -> list[Group]:
        return [group for group in groups if has_spread(group, self.settings.estimator, self.rollout.max_turns)]

    def assemble(self, step: int, groups: list[Group]) -> list[MiniBatch]:
        """Line 10: advantages of every token, and this data rank's share of the mini-batches."""
        return assemble(step, groups, self.settings, self.rollout, self.share)

    def recompute_old_logprobs(self, mini_batches: list[MiniBatch]) -> None:
        """log pi_old by the trainer itself: the engine's own differ by its numerics, and the ratio must start at 1."""
        micros = each_of(mini_batches)
        found = self.policy.get_inference_log_probs([self.tensors(micro) for micro in micros]) if micros else []
        for micro, logprobs in zip(micros, found, strict=True):
            micro.old_logprobs = logprobs

    def compute_reference_logprobs(self, mini_batches: list[MiniBatch]) -> None:
        """log pi_ref for the KL term; not needed where beta is 0."""
        micros = each_of(mini_batches)
        if self.settings.kl_coefficient == 0 or not micros:
            for micro in micros:
                micro.reference_logprobs = micro.old_logprobs
            return
        found = self.policy.get_init_policy_logprobs([self.tensors(micro) for micro in micros])
        for micro, logprobs in zip(micros, found, strict=True):
            micro.reference_logprobs = logprobs

    def update(self, step: int, number: int, mini_batch: MiniBatch) -> dict[str, float]:
        """Line 12: one optimizer step on a mini-batch, the `number`-th of the step."""
        self.policy.loss_function = self._micro_batch_loss
        self.policy.want_entropy = self.settings.entropy_coefficient > 0
        batch = []
        for micro in mini_batch:
            assert micro.old_logprobs is not None and micro.reference_logprobs is not None
            batch.append(self.tensors(micro) | {"old_logprobs": micro.old_logprobs,
                                                "reference_logprobs": micro.reference_logprobs})
        return self._updates.run(step, number, batch, [[e.episode_id for e in micro.episodes] for micro in mini_batch])

    def tensors(self, micro: TrainingMicroBatch) -> MicroBatch:
        """The micro-batch on the device: from IPTC, or built anew for each phase without it."""
        def build() -> MicroBatch:
            device, episodes = self.share.device, micro.episodes
            of_token = [np.full(len(e.tokens), weight) for e, weight in zip(episodes, micro.weights, strict=True)]
            return build_micro_batch(episodes, None, self.tokenizer, device) | {
                "advantages": joined(micro.advantages, torch.float32).to(device),
                "weights": joined(of_token, torch.float32).to(device),
                "engine_logprobs": joined((e.logprobs for e in episodes), torch.float32).to(device)}

        return self.cache.get(micro.key, build) | self.pictures.of(micro.episodes)

    def _micro_batch_loss(self, logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return mtgrpo_loss(logprobs, batch["old_logprobs"], batch["reference_logprobs"], batch["advantages"],
                           batch["mask"], batch["weights"], self._loss, engine_logprobs=batch["engine_logprobs"],
                           entropy=batch.get("entropy"))


def task_seed(seed: int, step: int, slot: int) -> int:
    """Seed of a task: tasks of a step must differ, or all their scenes are answered with the same draws."""
    return int(np.random.SeedSequence((seed, step, slot)).generate_state(1)[0])
