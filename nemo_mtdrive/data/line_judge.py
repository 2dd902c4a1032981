"""Judges curated lines anew from their scenes, each by itself; `check` holds a folder of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mtdrive.config import AgentConfig
from nemo_mtdrive.config_checks import MOST_TURNS, SFT_KINDS
from nemo_mtdrive.data.datasets import DataError, read_image
from nemo_mtdrive.data.lines import IMAGE_PLACEHOLDER, Line, Provenance, answers_of
from nemo_mtdrive.data.multi_turn import feedback_on
from nemo_mtdrive.data.single_turn import human_answer, question
from nemo_mtdrive.data.understanding import points_on_road
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.dialogue.questions import ENOUGH_PROGRESS, NO, YES, Question, QuestionError, read_question
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.feedback import format_object, format_point, object_box
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reviewers import open_reviewer

_KEYS = ["id", "kind", "scene_id", "messages", "images", "provenance"]
_PROVENANCE = {name: {"str": str, "int": int, "list[str]": list}[kind]
               for name, kind in Provenance.__annotations__.items()}


def check_form(line: Any) -> None:
    """Refuse what is no line of ours.

    Raises:
        DataError: what is wrong.
    """
    if not isinstance(line, dict) or list(line) != _KEYS:
        raise DataError(f"keys {list(line) if isinstance(line, dict) else type(line).__name__}, want {_KEYS}")
    if line["kind"] not in SFT_KINDS:
        raise DataError(f"kind {line['kind']!r}, want one of {', '.join(SFT_KINDS)}")
    provenance, messages = line["provenance"], line["messages"]
    if not isinstance(provenance, dict) or list(provenance) != list(_PROVENANCE):
        raise DataError(f"provenance: want {', '.join(_PROVENANCE)}")
    for name, kind in _PROVENANCE.items():
        if type(provenance[name]) is not kind:
            raise DataError(f"provenance.{name}: got {provenance[name]!r}, want {kind.__name__}")
    if not isinstance(messages, list) or not all(isinstance(message, dict) and list(message) == ["role", "content"]
                                                 and isinstance(message["content"], str) for message in messages):
        raise DataError("messages: want a list of {role, content}")
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"messages: roles {roles}, want user and assistant in turn")
    marks = [message["content"].count("<image>") for message in messages]
    if not messages[0]["content"].startswith(IMAGE_PLACEHOLDER) or sum(marks) != 1 or len(line["images"]) != 1:
        raise DataError(f"want one image and one {IMAGE_PLACEHOLDER!r}, at the start of the first message")
    if provenance["scene"] != line["scene_id"] or len(provenance["answers"]) != len(roles) // 2:
        raise DataError("provenance: want the line's scene, and an author for every answer")


class LineJudge:
    """Judges the lines of a folder.

    Args:
        folder: with images/.
        agent: who gave the feedback.
    """

    def __init__(self, folder: Path, agent: AgentConfig) -> None:
        self._folder, self._agent_config = folder, agent
        self._agents: dict[str, Reviewer] = {}
        self._scorers: dict[str, PDMAgent] = {}

    def check(self, line: Line, scene: Scene) -> None:
        """Judge a line that `check_form` takes, of this scene.

        Raises:
            DataError: what is wrong with it.
        """
        self._check_image(line)
        try:
            self._check_line(line, scene)
        except QuestionError as error:
            raise DataError(str(error)) from error

    def _check_image(self, line: Line) -> None:
        name = line["images"][0]
        if image_key(read_image(self._folder / name)) != Path(name).stem:
            raise DataError(f"{name}: its content is another image's; curate the data again")

    def _check_line(self, line: Line, scene: Scene) -> None:
        asked = line["messages"][0]["content"].removeprefix(IMAGE_PLACEHOLDER)
        provenance = line["provenance"]
        if (provenance["source"], provenance["licence"]) != (scene.source, scene.licence):
            raise DataError(f"provenance: source {provenance['source']!r}, the scene's is {scene.source!r}")
        if line["kind"] == "understanding":
            self._check_understanding(asked, answers_of(line), scene, provenance)
            return
        if asked != question(scene):
            raise DataError("the question is not the scene's")
        *rejected, last = answers_of(line)
        if last != human_answer(scene) or provenance["answers"][-1] != "human":
            raise DataError("the last answer is not the human's")
        turns = len(rejected) + 1
        if (turns != 1) if line["kind"] == "single_turn" else not 2 <= turns <= MOST_TURNS:
            raise DataError(f"{turns} answers in {line['kind']} data")
        self._check_feedback(rejected, [message["content"] for message in line["messages"][2::2]], scene, provenance)

    def _check_feedback(self, answers: Sequence[str], feedback: Sequence[str], scene: Scene, provenance: dict[str, Any],
                        ) -> None:
        if not answers:
            return
        agent = self._agent(provenance["perception"])
        for turn, (answer, said) in enumerate(zip(answers, feedback, strict=True), start=1):
            wanted = feedback_on(answer, scene, agent)
            if not wanted:
                raise DataError(f"answer {turn} is not rejected by the agent")
            if said != wanted:
                raise DataError(f"feedback {turn} is not what the agent says of the answer: got {_differing(said, wanted)}")
            author = provenance["answers"][turn - 1]
            if author == "constant_velocity" and answer != answer_text(constant_velocity(scene)):
                raise DataError(f"answer {turn} is not the constant-velocity driver's")
            if (author == "model") and not provenance["model"]:
                raise DataError(f"answer {turn} is a model's, and provenance.model is empty")

    def _check_understanding(self, asked: str, answers: Sequence[str], scene: Scene, provenance: dict[str, Any]) -> None:
        read = read_question(asked)
        if (read.metric, read.form) != (provenance["metric"], provenance["form"]):
            raise DataError(f"provenance: {provenance['metric']} {provenance['form']}, the question is of {read.metric} "
                            f"{read.form}")
        if len(answers) != 1 or answers[0] not in (YES, NO):
            raise DataError(f"answers {list(answers)}, want one, {YES!r} or {NO!r}")
        wanted = YES if scored_yes(read, scene, self._scorer(provenance["perception"])) else NO
        if answers[0] != wanted:
            raise DataError(f"the answer is {answers[0]!r}, the scorer's is {wanted!r}")

    def _agent(self, perception: str) -> Reviewer:
        if perception not in self._agents:
            self._agents[perception] = open_reviewer(self._agent_config, _known(perception), cache_size=1)
        return self._agents[perception]

    def _scorer(self, perception: str) -> PDMAgent:
        if perception not in self._scorers:
            self._scorers[perception] = PDMAgent(_known(perception), cache_size=2)
        return self._scorers[perception]


def _known(perception: str) -> str:
    if perception not in ("oracle", "kinematic"):
        raise DataError(f"provenance.perception: got {perception!r}, want oracle or kinematic")
    return perception


def _differing(got: str, wanted: str) -> str:
    """The first line in which two texts differ."""
    pairs = zip([*got.splitlines(), ""], [*wanted.splitlines(), ""], strict=False)
    first = next(((one, other) for one, other in pairs if one != other), (got[-60:], wanted[-60:]))
    return f"{first[0][:120]!r}, want {first[1][:120]!r}"


def scored_yes(asked: Question, scene: Scene, agent: PDMAgent) -> bool:
    """The scorer's answer to a question about a scene.

    Raises:
        DataError: it names a point or object that is not there, or not one alone.
    """
    if asked.trajectory is None:
        assert asked.point is not None, "read_question gives a point or a trajectory"
        return bool(points_on_road(agent.prepare(scene), asked.point[None])[0])
    (review,) = agent.review(scene, asked.trajectory[None])
    score = review.scores[asked.metric]
    if asked.form == "trajectory":
        return score >= (ENOUGH_PROGRESS if asked.metric == "EP" else 1.0)
    if asked.form == "trajectory_point":
        texts = [format_point(point) for point in asked.trajectory]
        assert asked.point is not None, "read_question gives the point of this form"
        place = _only([number for number, text in enumerate(texts) if text == format_point(asked.point)], "point")
        return (asked.metric, place) not in {(found["metric"], found["point"]) for found in review.violations}
    without = scene_without(scene, asked.obstacle, agent)
    return bool(agent.review(without, asked.trajectory[None])[0].scores[asked.metric] != score)


def scene_without(scene: Scene, obstacle: str, agent: PDMAgent) -> Scene:
    """The scene without the object that reads so at t = 0.

    Raises:
        DataError: no object reads so, or several.
    """
    prepared = agent.prepare(scene)
    seen = prepared.observation
    here = [int(track) for track in np.flatnonzero(seen.present[0])]
    place = _only([track for track in here if format_object(object_box(prepared, 0, track)) == obstacle], "object")
    gone = seen.tracks[place].token
    return replace(scene, scene_id=f"{scene.scene_id} without {gone}",
                   tracks=tuple(track for track in scene.tracks if track.token != gone))


def _only(places: Sequence[int], what: str) -> int:
    if len(places) != 1:
        raise DataError(f"the question's {what} is there {len(places)} times, want once")
    return places[0]


