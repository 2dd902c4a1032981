"""Multi-turn SFT data (Section 3.2, Appendix B): rejected trajectories with the agent's feedback, then the human's.

Who gives the rejected answers:

- the constant-velocity driver, the paper's augmentation: two turns;
- a model (`bootstrap`): as many turns as it was rejected;
- several of them stacked, the paper's mock multi-turn data: up to six turns. It does not follow how a model really goes
  on, so only a share of the scenes gets it.

Feedback is always what the agent says of the trajectory as written, with two decimals, as in an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.data.lines import Line, make_line, provenance_of, random_of
from nemo_mtdrive.data.plans import perturbed
from nemo_mtdrive.data.single_turn import human_answer, question
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.prompt import answer_text, unreadable_feedback
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import ade, constant_velocity
from nemo_mtdrive.pdm.review import Reviewer, feedback_to

LEAST_STACKED = 2
"""Rejected answers of a mock line, at least: with one it would be a two-turn line."""

TRIES = 4
"""Perturbed trajectories that are drawn for each one that is wanted, at most."""

Fits = Callable[[Sequence[str]], bool]
"""Whether a conversation of these texts is short enough."""


@dataclass(frozen=True)
class Rejected:
    """An answer that the agent has something to say against."""

    driver: str
    answer: str
    """As it was written."""
    feedback: str
    trajectory: NDArray[np.float64] | None
    """[8, 3] as it was read; None where it could not be."""


@dataclass(frozen=True)
class MultiTurnSettings:
    """How multi-turn data is made."""

    seed: int
    perception: str
    mock_share: float
    """Share of the scenes that get a mock line."""
    max_turns: int
    """Most answers of a conversation, the human's included: 2 to 6."""


def feedback_on(answer: str, scene: Scene, agent: Reviewer) -> str:
    """What an episode would say to an answer; empty where the agent is content."""
    parsed = parse_answer(answer)
    if parsed.trajectory is None:
        return unreadable_feedback(parsed.problem)
    return feedback_to(agent, scene, parsed.trajectory)


def judge(driver: str, answer: str, scene: Scene, agent: Reviewer) -> Rejected | None:
    """The answer with its feedback, or None where the agent is content with it."""
    feedback = feedback_on(answer, scene, agent)
    return Rejected(driver, answer, feedback, parse_answer(answer).trajectory) if feedback else None


def stack(scene: Scene, image_key: str, rejected: Sequence[Rejected], name: str, settings: MultiTurnSettings,
          model: str = "") -> Line:
    """The line of a question, rejected answers with their feedback, and the human's answer.

    Raises:
        ValueError: the scene has no history, command or future.
    """
    texts = [question(scene)]
    for turn in rejected:
        texts += [turn.answer, turn.feedback]
    answers = [*(turn.driver for turn in rejected), "human"]
    provenance = provenance_of(scene, settings.seed, answers, perception=settings.perception, model=model)
    return make_line(name, "multi_turn", image_key, [*texts, human_answer(scene)], provenance)


def multi_turn(scene: Scene, image_key: str, agent: Reviewer, settings: MultiTurnSettings, fits: Fits) -> Iterator[Line]:
    """The lines of a scene that need no model: the constant-velocity driver's where it is rejected, and a mock line."""
    first = judge("constant_velocity", answer_text(constant_velocity(scene)), scene, agent)
    if first is not None:
        yield from fitting([stack(scene, image_key, [first], "constant_velocity", settings)], fits)
    if has_mock(scene.scene_id, settings):
        wanted = mock_length(scene.scene_id, settings)
        known = [] if first is None else [first]
        pool = known + perturbed_answers(scene, agent, wanted - len(known), settings.seed)
        yield from mock_line(scene, image_key, pool, "mock", settings, fits)


def has_mock(scene_id: str, settings: MultiTurnSettings) -> bool:
    """Whether a scene is in the share that gets a mock line."""
    return settings.max_turns > LEAST_STACKED and random_of(settings.seed, scene_id, "mock").random() < settings.mock_share


def mock_length(scene_id: str, settings: MultiTurnSettings) -> int:
    """Rejected answers in a scene's mock line, uniform from 2 to `max_turns` - 1."""
    return int(random_of(settings.seed, scene_id, "mock length").integers(LEAST_STACKED, settings.max_turns))


def mock_line(scene: Scene, image_key: str, pool: Sequence[Rejected], name: str, settings: MultiTurnSettings,
              fits: Fits, model: str = "") -> Iterator[Line]:
    """One line of different rejected answers, each nearer to the human's than the one before; none from fewer than two.

    Where the conversation is too long, the farthest go first.
    """
    different = list({turn.answer: turn for turn in pool}.values())
    ordered = sorted(different, key=lambda turn: _distance(turn, scene), reverse=True)
    ordered = ordered[-mock_length(scene.scene_id, settings):]
    while len(ordered) >= LEAST_STACKED:
        line = stack(scene, image_key, ordered, name, settings, model)
        if fits(_texts(line)):
            yield line
            return
        ordered = ordered[1:]


def perturbed_answers(scene: Scene, agent: Reviewer, wanted: int, seed: int) -> list[Rejected]:
    """Up to `wanted` rejected answers that are the human's with another speed and a drift."""
    assert scene.future is not None, "scenes without a future are left out before"
    found: list[Rejected] = []
    for plan in perturbed(scene.future, random_of(seed, scene.scene_id, "perturbed"), TRIES * max(wanted, 0)):
        if len(found) == wanted:
            break
        turn = judge("perturbed_human", answer_text(plan), scene, agent)
        if turn is not None:
            found.append(turn)
    return found


def fitting(lines: Sequence[Line], fits: Fits) -> Iterator[Line]:
    """The lines that are short enough."""
    return (line for line in lines if fits(_texts(line)))


def _texts(line: Line) -> list[str]:
    return [message["content"] for message in line["messages"]]


def _distance(turn: Rejected, scene: Scene) -> float:
    """ADE to the human [m]; what could not be read is farthest."""
    if turn.trajectory is None or scene.future is None:
        return float("inf")
    return ade(turn.trajectory, scene.future)
