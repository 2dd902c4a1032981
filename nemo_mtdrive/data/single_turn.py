"""Single-turn SFT data (Section 3.2): the question of a scene, and the human's trajectory as the answer."""

from __future__ import annotations

from nemo_mtdrive.data.lines import IMAGE_PLACEHOLDER, Line, make_line, provenance_of
from nemo_mtdrive.dialogue.prompt import answer_text, first_question
from nemo_mtdrive.driving.scene import Scene

__all__ = ["IMAGE_PLACEHOLDER", "can_teach", "human_answer", "question", "single_turn"]


def can_teach(scene: Scene) -> bool:
    """Whether a scene can be learned from: it can be driven, and the human's future is known."""
    return scene.drivable and scene.future is not None


def question(scene: Scene) -> str:
    """The first question of a scene (Appendix A.1).

    Raises:
        ValueError: the scene has no history or command.
    """
    if scene.history is None or scene.command is None:
        raise ValueError(f"scene {scene.scene_id}: no history or command, so it can be scored but not driven")
    return first_question(scene.history, scene.command)


def human_answer(scene: Scene) -> str:
    """The human's 8 points as the model would write them.

    Raises:
        ValueError: the scene has no recorded future.
    """
    if scene.future is None:
        raise ValueError(f"scene {scene.scene_id}: no recorded future to learn from")
    return answer_text(scene.future)


def single_turn(scene: Scene, image_key: str, seed: int) -> Line:
    """One line of single-turn data.

    Raises:
        ValueError: see `question` and `human_answer`.
    """
    return make_line("", "single_turn", image_key, [question(scene), human_answer(scene)],
                     provenance_of(scene, seed, ["human"]))
