"""PollTask: until ready, with errors in a row borne or not, and never without a pause between."""

from __future__ import annotations

from datetime import timedelta

import pytest

from canobatch.errors import ConfigurationError, WorkflowError
from canobatch.models import ErrorPolicy, Pending, PollTask, Ready
from tests.support.stage import FakeStage, Moments, context

NO = OSError("no answer")


def poll_of(*moments, policy=None) -> PollTask:
    """Return a poll task that goes through these moments."""

    class Poll(PollTask):
        def __init__(self):
            self.moments = Moments(*moments)
            self.on_poll_error = policy or ErrorPolicy.fail_fast()

        def poll(self, ctx):
            return self.moments()

    return Poll()


def test_ready_at_once_is_one_poll():
    """A poll that is ready ends the loop without a wait."""
    stage = FakeStage(poll_of(Ready("next")))
    assert stage.model.drive(stage) == "next"
    assert (len(stage.calls), stage.waits) == (1, [])


def test_each_pending_says_how_long_to_wait():
    """The delay is chosen by each poll."""
    stage = FakeStage(poll_of(Pending(1.0), Pending(timedelta(seconds=2)), Ready("next")))
    assert stage.model.drive(stage) == "next"
    assert stage.waits == [1.0, 2.0]


def test_an_error_fails_at_once_by_default():
    """Without a policy the first error ends the loop."""
    stage = FakeStage(poll_of(NO, Ready("next")))
    with pytest.raises(OSError, match="no answer"):
        stage.model.drive(stage)
    assert len(stage.calls) == 1


def test_errors_within_the_budget_are_borne():
    """Two errors and an answer, with two allowed."""
    stage = FakeStage(poll_of(NO, NO, Ready("next"), policy=ErrorPolicy.tolerate(2)))
    assert stage.model.drive(stage) == "next"


def test_one_error_more_than_the_budget_fails():
    """The third error in a row is raised, and there is no fourth poll."""
    stage = FakeStage(poll_of(NO, policy=ErrorPolicy.tolerate(2)))
    with pytest.raises(OSError, match="no answer"):
        stage.model.drive(stage)
    assert len(stage.calls) == 3


def test_pending_starts_the_count_of_errors_again():
    """Only errors in a row count."""
    moments = [NO, NO, Pending(0), NO, NO, Pending(0), NO, NO, Ready("next")]
    stage = FakeStage(poll_of(*moments, policy=ErrorPolicy.tolerate(2)))
    assert stage.model.drive(stage) == "next"


def test_w11_each_borne_error_is_followed_by_a_pause():
    """A tolerated error never spins: the policy's pause comes before the next poll, a second if not said."""
    stage = FakeStage(poll_of(NO, NO, Ready("next"), policy=ErrorPolicy.tolerate(2, pause=5.0)))
    stage.model.drive(stage)
    assert stage.waits == [5.0, 5.0]
    assert ErrorPolicy.tolerate(2).pause == 1.0


def test_a_budget_of_none_fails_at_the_first_error():
    """Tolerating no errors is failing fast."""
    assert not ErrorPolicy.tolerate(0).bears(1)
    assert not ErrorPolicy.fail_fast().bears(1)


def test_w9_what_cannot_be_mended_is_not_borne():
    """A configuration error ends the loop whatever the policy."""
    stage = FakeStage(poll_of(ConfigurationError("never"), policy=ErrorPolicy.skip()))
    with pytest.raises(ConfigurationError, match="never"):
        stage.model.drive(stage)
    assert len(stage.calls) == 1


def test_a_retry_polls_with_a_fresh_count_of_errors():
    """Each attempt at the loop may bear as many errors as the first."""
    stage = FakeStage(poll_of(NO, NO, NO, Ready("next"), policy=ErrorPolicy.tolerate(1)), attempts=2)
    assert stage.model.drive(stage) == "next"
    assert len(stage.calls) == 4


@pytest.mark.parametrize("answer", ["next", None, ["a", "b"]])
def test_another_answer_is_refused_with_what_to_return(answer):
    """A poll that returns neither Ready nor Pending fails, and is not tolerated or retried."""
    stage = FakeStage(poll_of(answer, policy=ErrorPolicy.skip()), attempts=3)
    with pytest.raises(WorkflowError, match=r"return Ready\(state\) or Pending\(seconds\)"):
        stage.model.drive(stage)
    assert len(stage.calls) == 1


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "soon", None])
def test_an_impossible_delay_is_refused(delay):
    """A delay is a number of seconds, at least 0."""
    with pytest.raises(ConfigurationError, match="delay must be at least 0 seconds"):
        Pending(delay)


@pytest.mark.parametrize(
    ("errors", "pause"), [(-1, 1.0), (1.5, 1.0), (True, 1.0), (1, -1), (1, float("inf")), (1, "x")]
)
def test_impossible_policies_are_refused(errors, pause):
    """Errors are a whole number and the pause a number of seconds, neither below 0."""
    with pytest.raises(ConfigurationError, match=r"ErrorPolicy\.tolerate"):
        ErrorPolicy.tolerate(errors, pause)


def test_a_poll_runs_in_one_piece_by_hand():
    """As a branch of a split the loop runs where it is."""
    assert poll_of(NO, Pending(0), Ready("next"), policy=ErrorPolicy.tolerate(1, pause=0)).run(context()) == "next"
