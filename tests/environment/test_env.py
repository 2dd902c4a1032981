"""Episodes: turns, ends, idempotency, batches, refusals, eviction."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mtdrive.dialogue.prompt import first_question
from nemo_mtdrive.environment.env import DrivingEnvironment, EpisodeError, OutOfOrder, UnknownEpisode, UnknownScene
from nemo_mtdrive.image_key import image_key
from tests.environment.environment_fakes import FEEDBACK, MAX_TURNS, FakeReviewer, FakeScenes, answer


@pytest.fixture
def environment():
    return DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS)


def test_reset_shows_the_question_and_the_image(environment):
    seen = environment.reset("e", "s2", want_image=True)
    scene = environment.scenes.load("s2")
    assert seen.prompt == first_question(scene.history, "GO STRAIGHT")
    assert seen.image.shape == (28, 56, 3) and (seen.image == 20).all() and seen.image_key == image_key(seen.image)
    assert (seen.episode_id, seen.scene_id) == ("e", "s2")


def test_a_group_loads_and_draws_its_scene_once(environment):
    group = environment.reset_many([(f"e{i}", "s1", i == 0) for i in range(8)])
    assert environment.scenes.loads == ["s1"] and environment.scenes.images == ["s1"]
    assert group[0].image is not None and all(seen.image is None for seen in group[1:])
    assert len({seen.image_key for seen in group}) == 1


def test_a_clean_answer_ends_the_episode(environment):
    environment.reset("e", "s0", want_image=False)
    result = environment.step("e", 0, answer(0.5))
    assert (result.done, result.reason, result.feedback, result.violations) == (True, "clean", "", [])
    assert result.format_score == 1.0 and result.scores["PDMS"] == pytest.approx(1 / 1.5)
    np.testing.assert_array_equal(result.trajectory, [[x, 0.5, 0.0] for x in range(8)])
    with pytest.raises(OutOfOrder, match="got turn 1, but it ended with turn 0"):
        environment.step("e", 1, answer(0.5))


def test_violations_give_feedback_until_the_turns_are_used_up(environment):
    environment.reset("e", "s0", want_image=False)
    for turn in range(MAX_TURNS):
        result = environment.step("e", turn, answer(2.0))
        assert result.turn == turn and result.feedback == FEEDBACK and len(result.violations) == 8
        assert (result.done, result.reason) == ((True, "max_turns") if turn == MAX_TURNS - 1 else (False, ""))


def test_clean_in_the_last_turn_is_clean(environment):
    environment.reset("e", "s0", want_image=False)
    environment.step("e", 0, answer(2.0))
    environment.step("e", 1, answer(2.0))
    assert environment.step("e", 2, answer(0.0)).reason == "clean"


def test_an_unreadable_answer_has_no_scores_but_another_turn(environment):
    environment.reset("e", "s0", want_image=False)
    result = environment.step("e", 0, "I cannot <|im_end|> say [PT")
    assert (result.trajectory, result.scores, result.format_score, result.done) == (None, None, 0.0, False)
    assert result.feedback == (
        "This was your previous trajectory prediction. It could not be read: the list is malformed or cut after point "
        "0. The format is: [PT, (x, y, heading), ...] with 8 points.\n"
        "Based on these issues, provide an improved trajectory prediction.")
    environment.step("e", 1, "")
    last = environment.step("e", 2, "")
    assert (last.done, last.reason) == (True, "max_turns") and environment.agent.calls == []


def test_the_same_turn_again_is_answered_alike_and_scored_once(environment):
    environment.reset("e", "s0", want_image=False)
    first = environment.step("e", 0, answer(2.0))
    assert environment.step("e", 0, answer(0.0)) is first
    environment.step("e", 1, answer(0.0))
    assert environment.step("e", 0, answer(2.0)) is first and environment.agent.calls == [("s0", 1), ("s0", 1)]


def test_answers_to_one_scene_are_one_batch(environment):
    environment.reset_many([(f"e{i}", f"s{i % 2}", False) for i in range(6)])
    environment.step("e0", 0, answer(2.0))
    environment.agent.calls.clear()
    sideways = [3.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    results = environment.step_many([
        *((f"e{i}", 1 if i == 0 else 0, answer(sideways[i])) for i in range(6)), ("e5", 0, "again")])
    assert sorted(environment.agent.calls) == [("s0", 3), ("s1", 3)]
    assert [r.episode_id for r in results] == ["e0", "e1", "e2", "e3", "e4", "e5", "e5"]
    assert [r.scores["PDMS"] for r in results] == pytest.approx([1 / (1 + y) for y in [*sideways, 0.5]])


def test_a_refused_item_moves_no_episode(environment):
    environment.reset_many([("a", "s0", False), ("b", "s0", False)])
    with pytest.raises(OutOfOrder, match="episode 'b': got turn 1, want turn 0"):
        environment.step_many([("a", 0, answer(2.0)), ("b", 1, answer(2.0))])
    assert environment.agent.calls == []
    assert environment.step("a", 0, answer(0.0)).reason == "clean"


def test_a_reviewer_that_fails_moves_no_episode(environment):
    environment.reset("e", "s0", want_image=False)
    broken = answer(0.0).replace("(0,", "(901,")
    with pytest.raises(RuntimeError, match="hole"):
        environment.step("e", 0, broken)
    assert environment.step("e", 0, answer(0.0)).reason == "clean"


@pytest.mark.parametrize("turn", [-1, 1, 99])
def test_out_of_order(environment, turn):
    environment.reset("e", "s0", want_image=False)
    with pytest.raises(OutOfOrder, match=f"got turn {turn}, want turn 0"):
        environment.step("e", turn, answer(0.0))


def test_unknown_things_are_named(environment):
    with pytest.raises(UnknownScene, match="scene 'nowhere'"):
        environment.reset("e", "nowhere", want_image=False)
    with pytest.raises(EpisodeError, match="can be scored but not driven"):
        environment.reset("e", "bare", want_image=False)
    with pytest.raises(UnknownEpisode, match="episode 'e': not open here"):
        environment.step("e", 0, "")
    with pytest.raises(ValueError, match="max_turns=0: set it to 1 or more"):
        DrivingEnvironment(FakeScenes(), FakeReviewer(), 0)


def test_reset_starts_anew_and_close_forgets(environment):
    environment.reset("e", "s0", want_image=False)
    environment.step("e", 0, answer(0.0))
    environment.reset("e", "s1", want_image=False)
    assert environment.step("e", 0, answer(2.0)).reason == ""
    environment.close("e")
    environment.close("e")
    with pytest.raises(UnknownEpisode):
        environment.step("e", 1, answer(0.0))


def test_old_and_surplus_episodes_are_dropped():
    now = [0.0]
    environment = DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS, max_episodes=3, max_age_s=10.0,
                                     clock=lambda: now[0])
    environment.reset_many([(f"e{i}", "s0", False) for i in range(4)])
    assert environment.open_episodes == 3
    with pytest.raises(UnknownEpisode, match="'e0'"):
        environment.step("e0", 0, "")
    now[0] = 11.0
    environment.reset("late", "s0", want_image=False)
    assert environment.open_episodes == 1


def test_scenes_of_ended_episodes_are_let_go(environment):
    environment.reset("e", "s0", want_image=False)
    environment.step("e", 0, answer(0.0))
    environment.reset("f", "s0", want_image=False)
    assert environment.scenes.loads == ["s0", "s0"]


def test_warm_up_reviews_one_straight_trajectory(environment):
    environment.warm_up()
    assert environment.agent.calls == [("s0", 1)] and environment.open_episodes == 0
