"""Two-turn SFT data (Section 3.2, Appendix B): a trajectory that breaks a rule, the agent's feedback, the human's answer.

The first trajectory is the constant-velocity driver's, the paper's augmentation; a scene where that driver breaks no
rule gives no two-turn line.
"""

from __future__ import annotations

from typing import Any

from nemo_mtdrive.data.single_turn import IMAGE_PLACEHOLDER, human_answer, question
from nemo_mtdrive.dialogue.answer import parse_answer
from nemo_mtdrive.dialogue.prompt import answer_text
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.driving.trajectory import constant_velocity
from nemo_mtdrive.pdm.review import Reviewer, feedback_to


def multi_turn(scene: Scene, image_key: str, agent: Reviewer, perception: str) -> dict[str, Any] | None:
    """One line of two-turn data from the constant-velocity driver, or None where it breaks no rule.

    What is reviewed is the trajectory as written (two decimals), as in an episode.
    """
    first = answer_text(constant_velocity(scene))
    written = parse_answer(first).trajectory
    if written is None:
        return None
    feedback = feedback_to(agent, scene, written)
    if not feedback:
        return None
    return {
        "id": f"{scene.scene_id}/multi_turn/constant_velocity",
        "kind": "multi_turn",
        "scene_id": scene.scene_id,
        "messages": [
            {"role": "user", "content": IMAGE_PLACEHOLDER + question(scene)},
            {"role": "assistant", "content": first},
            {"role": "user", "content": feedback},
            {"role": "assistant", "content": human_answer(scene)},
        ],
        "images": [f"images/{image_key}.png"],
        "provenance": {"source": scene.source, "licence": scene.licence, "target": "human",
                       "turn_1": "constant_velocity", "perception": perception},
    }
