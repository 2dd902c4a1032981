"""Our reward for other trainers: a function that TRL's GRPOTrainer can call.

    reward = PDMReward(environment)          # a DrivingEnvironment here, or an EnvironmentClient of a server
    GRPOTrainer(model, reward_funcs=reward, train_dataset=Dataset.from_list(grpo_rows(scenes)), ...)

The dataset's column `scene_id` says which scene a completion drives in. TRL's GRPO is of one turn, so this is r_i0 of
Eq. 2; the turns after it are what `algorithms.mtgrpo` is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.config import RewardConfig
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.prompt import first_question
from nemo_mtdrive.environment.reward import turn_reward
from nemo_mtdrive.environment.scenes import SceneSource
from nemo_mtdrive.pdm.review import Review

Completion = str | Sequence[Mapping[str, Any]]
"""What TRL gives for one answer: its text, or chat messages whose last one is the assistant's."""


class Scorer(Protocol):
    """What scores trajectories by scene id; `DrivingEnvironment` and `EnvironmentClient` both do."""

    def score_many(self, items: Sequence[tuple[str, NDArray[np.float64]]]) -> Sequence[Sequence[Review] | str]:
        """For each (scene_id, trajectories [B, 8, 3]) its reviews, or why it has none."""
        ...


class PDMReward:
    """r = w_p * PDMS + w_f * format of each completion (Eq. 2), called as TRL calls its reward functions.

    Args:
        scorer: the environment, in this process or a server's client.
        weights: of Eq. 2; the paper's by default.
    """

    def __init__(self, scorer: Scorer, weights: RewardConfig | None = None) -> None:
        self.__name__ = "pdm_reward"  # TRL names its metrics after this
        self._scorer = scorer
        self._weights = weights or RewardConfig()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """The rewards of completions, in order; None, which TRL leaves out, where scoring itself failed.

        Args:
            prompts: not needed.
            completions: one for each prompt.
            columns: the dataset's other columns; `scene_id` is needed.

        Raises:
            ValueError: no `scene_id`, or not one for each completion.
        """
        scene_ids = columns.get("scene_id")
        if scene_ids is None or isinstance(scene_ids, str) or len(scene_ids) != len(completions):
            got = "none" if scene_ids is None else f"{len(scene_ids)}"
            raise ValueError(f"scene_id: got {got} for {len(completions)} completions; give the dataset a column scene_id "
                             f"(its columns: {', '.join(sorted(columns)) or 'no other'})")
        answers = [parse_answer(completion_text(completion)) for completion in completions]
        rows: dict[str, list[int]] = {}
        for row, (scene_id, answer) in enumerate(zip(scene_ids, answers, strict=True)):
            if answer.trajectory is not None:
                rows.setdefault(str(scene_id), []).append(row)
        batches = [np.stack([trajectory for row in of_scene if (trajectory := answers[row].trajectory) is not None])
                   for of_scene in rows.values()]
        scored = self._scorer.score_many(list(zip(rows, batches, strict=True))) if rows else []
        scores: dict[int, Mapping[str, float] | None] = {}
        for of_scene, reviews in zip(rows.values(), scored, strict=True):
            for place, row in enumerate(of_scene):
                scores[row] = None if isinstance(reviews, str) else reviews[place].scores
        return [None if row in scores and scores[row] is None else turn_reward(
                    scores.get(row), answer.format_score, self._weights.pdm_weight, self._weights.format_weight)
                for row, answer in enumerate(answers)]


def completion_text(completion: Completion) -> str:
    """The assistant's words in a completion: a text, or the last message's content (a text, or parts with `text`)."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    content = completion[-1].get("content", "")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or () if part.get("type", "text") == "text")


def grpo_rows(scenes: SceneSource, scene_ids: Iterable[str] | None = None, *, chat: bool = False) -> list[dict[str, Any]]:
    """Rows for a TRL dataset: {"prompt", "scene_id"} of each scene that can be driven.

    Args:
        scenes: the source.
        scene_ids: which of them; all by default.
        chat: prompts as chat messages, for models with a chat template.

    Raises:
        KeyError, SceneError: as the source raises them.
    """
    rows: list[dict[str, Any]] = []
    for scene_id in scenes.ids() if scene_ids is None else scene_ids:
        scene = scenes.load(scene_id)
        if scene.history is None or scene.command is None:
            continue
        question = first_question(scene.history, scene.command)
        rows.append({"prompt": [{"role": "user", "content": question}] if chat else question, "scene_id": scene_id})
    return rows
