"""Multi-turn data from a model's own answers (Appendix B): a model that has learned k turns makes samples of k + 1.

The loop, which this does one round of::

    curate single-turn; curate multi-turn        sft on that: sft_1
    curate multi-turn --model sft_1 --turns 1    its rejected answers, the human's as the second turn; sft: sft_2
    curate multi-turn --model sft_2 --turns 2    two rejected answers, the human's as the third turn; sft: sft_3
    ...

Several episodes of one scene (`samples`) are stacked into mock conversations, as the paper does from its third turn on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemo_mtdrive.data.curate import CHUNK, CurationTask, finish
from nemo_mtdrive.data.datasets import write_image
from nemo_mtdrive.data.folder import SetOfLines, working_in
from nemo_mtdrive.data.length import ConversationLength
from nemo_mtdrive.data.lines import Line
from nemo_mtdrive.data.model_answers import ModelPlay, play_chunks
from nemo_mtdrive.data.multi_turn import Fits, MultiTurnSettings, Rejected, fitting, has_mock, judge, mock_line, stack
from nemo_mtdrive.data.single_turn import can_teach
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.types import Episode

_MARKS = ("<image>", "<video>", "<audio>", "<|")
"""What an answer must not hold as text: readers of the data would take it for a picture or a special token."""


def curate_with_model(task: CurationTask, play: ModelPlay, scene_ids: Sequence[str], engines: int,
                      advance: Callable[[int], None]) -> dict[str, Any]:
    """Make the set of one round; returns the folder's statistics.

    Args:
        task: scenes, folder and settings of multi-turn data.
        play: the model; `rollout.max_turns` is how many turns it has learned.
        scene_ids: in an order that is kept.
        engines: processes with an engine each.
        advance: called with the number of scenes that are done.

    Raises:
        ConfigError: the folder holds another round of this length, or the model cannot be used.
    """
    with working_in(task.out):
        made = SetOfLines(task.out, f"multi_turn_after_{play.config.rollout.max_turns}")
        made.claim(task.request("multi_turn", scene_ids) | {"play": play.request()})
        (task.out / "images").mkdir(exist_ok=True)
        count = math.ceil(len(scene_ids) / CHUNK)
        chunks = {number: list(scene_ids[number * CHUNK:(number + 1) * CHUNK]) for number in range(count)}
        missing = {number: ids for number, ids in chunks.items() if not made.done and not made.part(number).exists()}
        advance(sum(len(ids) for number, ids in chunks.items() if number not in missing))
        if missing:
            station = _Stacking(task, play)
            for number, episodes in play_chunks(play, missing, engines):
                made.write_part(number, station.lines(episodes))
                advance(len(missing[number]))
        made.join(count)
        return finish(task.out)


class _Stacking:
    """Makes lines of episodes."""

    def __init__(self, task: CurationTask, play: ModelPlay) -> None:
        self._task, self._play = task, play
        self._scenes = task.scenes.open()
        self._agent = open_reviewer(task.agent, task.perception, cache_size=1)
        self._length = ConversationLength(task.tokenizer, task.max_tokens)

    def lines(self, episodes: Sequence[Episode]) -> list[Line]:
        """The lines of a chunk's episodes, by scene."""
        by_scene: dict[str, list[Episode]] = defaultdict(list)
        for episode in episodes:
            if episode.valid:
                by_scene[episode.scene_id].append(episode)
        return [line for scene_id, played in by_scene.items() for line in self._of_scene(scene_id, played)]

    def _of_scene(self, scene_id: str, episodes: Sequence[Episode]) -> list[Line]:
        scene = self._scenes.load(scene_id)
        if not can_teach(scene):
            return []
        image = self._scenes.image(scene_id)
        key = image_key(image)
        lines = list(bootstrap(scene, key, episodes, self._agent, self._task.multi_turn, self._length.limit_for(image),
                               str(self._play.model), self._play.config.rollout.max_turns))
        if lines:
            write_image(self._task.out / "images", key, image)
        return lines


def bootstrap(scene: Scene, image_key: str, episodes: Sequence[Episode], agent: Reviewer, settings: MultiTurnSettings,
              fits: Fits, model: str, turns: int) -> Iterator[Line]:
    """The lines of a scene that a model has driven: one of each episode with a rejected answer, and a mock one."""
    seen = set[tuple[str, ...]]()
    pool: list[Rejected] = []
    for episode in episodes:
        rejected = rejected_of(episode)[:settings.max_turns - 1]
        answers = tuple(turn.answer for turn in rejected)
        if not rejected or answers in seen:
            continue
        seen.add(answers)
        pool += rejected
        name = f"after_{turns}/{episode.index}"
        yield from fitting([stack(scene, image_key, rejected, name, settings, model)], fits)
    if pool and has_mock(scene.scene_id, settings):
        steady = judge("constant_velocity", answer_text(constant_velocity(scene)), scene, agent)
        pool = pool if steady is None else [*pool, steady]
        yield from mock_line(scene, image_key, pool, f"after_{turns}/mock", settings, fits, model)


def rejected_of(episode: Episode) -> list[Rejected]:
    """The answers of an episode up to the first one that the agent is content with, or that cannot be learned from."""
    found: list[Rejected] = []
    for turn in episode.turns:
        if not turn.feedback or any(mark in turn.answer for mark in _MARKS):
            break
        found.append(Rejected("model", turn.answer, turn.feedback, turn.trajectory))
    return found
