"""Single-turn SFT data (Section 3.2): the question of a scene, and the human's trajectory as the answer."""

from __future__ import annotations

from typing import Any

from nemo_mtdrive.dialogue.prompt import answer_text, first_question
from nemo_mtdrive.driving.scene import Scene

IMAGE_PLACEHOLDER = "<image>\n"
"""How the conversation format that HF, LLaMA-Factory and ms-swift read marks the place of an image."""


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


def single_turn(scene: Scene, image_key: str) -> dict[str, Any]:
    """One line of single-turn data: messages, image, and where it comes from."""
    return {
        "id": f"{scene.scene_id}/single_turn",
        "kind": "single_turn",
        "scene_id": scene.scene_id,
        "messages": [
            {"role": "user", "content": IMAGE_PLACEHOLDER + question(scene)},
            {"role": "assistant", "content": human_answer(scene)},
        ],
        "images": [f"images/{image_key}.png"],
        "provenance": {"source": scene.source, "licence": scene.licence, "target": "human"},
    }
