"""What a step's rollouts looked like: rewards per turn, group spread, validity, and the engine/trainer log-prob gap.

An episode counts once, however many turns it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nemo_mtdrive.algorithms.advantage import has_spread, lonely_turns
from nemo_mtdrive.types import NOT_OURS, Episode, Group

if TYPE_CHECKING:
    from nemo_mtdrive.algorithms.mini_batches import TrainingMicroBatch


def rollout_metrics(groups: Sequence[Group], estimator: str, max_turns: int) -> dict[str, float]:
    """Means over the valid episodes of a step; rewards in 0..1, PDMS in 0..100."""
    episodes = [episode for group in groups for episode in group.episodes]
    valid = [episode for episode in episodes if episode.valid and episode.turns]
    metrics = {
        "episodes/invalid": float(sum(not episode.valid for episode in episodes)),
        "groups/with_spread": float(np.mean([has_spread(group, estimator, max_turns) for group in groups])),
        "groups/lonely_turns": float(sum(lonely_turns(group) for group in groups)),
    }
    if not valid:
        return metrics
    longest = max(len(episode.turns) for episode in valid)
    for turn in range(longest):
        reached = [episode.turns[turn].reward for episode in valid if len(episode.turns) > turn]
        metrics |= {f"reward/turn_{turn + 1}": float(np.mean(reached)), f"groups/turn_{turn + 1}_rollouts": len(reached)}
    return metrics | {
        "reward/mean": float(np.mean([np.mean(episode.rewards) for episode in valid])),
        "turns/mean": float(np.mean([len(episode.turns) for episode in valid])),
        "rollout/turn_1/PDMS": 100 * float(np.mean([episode.turns[0].pdm_score for episode in valid])),
        "rollout/last_turn/PDMS": 100 * float(np.mean([episode.turns[-1].pdm_score for episode in valid])),
        "format/mean": float(np.mean([np.mean([t.format_score for t in episode.turns]) for episode in valid])),
        "episodes/clean": float(np.mean([episode.reason == "clean" for episode in valid])),
        "episodes/tokens": float(np.mean([len(episode.tokens) for episode in valid])),
    }


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a step's optimizer updates: means over those that were done, and how many were skipped.

    A step has none where every episode was invalid; "skipped_updates" is always there.
    """
    done = [update for update in updates if not update["skipped_updates"]]
    means = {name: float(np.mean([update[name] for update in done])) for name in (done[0] if done else {})}
    return means | {"skipped_updates": float(len(updates) - len(done))}


def logprob_gap(micro_batches: Sequence[TrainingMicroBatch]) -> dict[str, float]:
    """|log p by the engine - log p by the trainer| of the model's own tokens: largest and mean.

    In fp32 it is rounding (below 1e-4); a stale weight, a lost image or a wrong position shows here first.
    """
    gaps = [_gap(micro.episodes, micro.old_logprobs.float().cpu().numpy()[0])
            for micro in micro_batches if micro.old_logprobs is not None]
    flat = np.concatenate(gaps) if gaps else np.zeros(0)
    return {"logprob_gap/max": float(flat.max()), "logprob_gap/mean": float(flat.mean())} if flat.size else {}


def _gap(episodes: Sequence[Episode], trainer: np.ndarray) -> np.ndarray:
    own = np.concatenate([episode.turn_of_token for episode in episodes]) != NOT_OURS
    return np.abs(trainer - np.concatenate([episode.logprobs for episode in episodes]))[own]
