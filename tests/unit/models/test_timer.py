"""TimerTask: one wait, by duration or by the calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from canobatch.errors import WorkflowError
from canobatch.models import TimerTask
from tests.support.stage import FakeStage, Moments, context


def timer_of(wait, after="next") -> TimerTask:
    """Return a timer that waits for ``wait`` and then does ``after``."""

    waits = wait if isinstance(wait, Moments) else Moments(wait)
    afters = after if isinstance(after, Moments) else Moments(after)

    class Timer(TimerTask):
        def wait(self):
            return waits()

        def after_wait(self):
            return afters()

    return Timer()


@pytest.mark.parametrize("wait", [30, 30.0, timedelta(seconds=30), datetime.fromtimestamp(1030, UTC)])
def test_it_waits_once_for_as_long_as_it_was_told(wait):
    """Seconds, a timedelta and an aware datetime all end after the same time."""
    stage = FakeStage(timer_of(wait))
    assert stage.model.drive(stage) == "next"
    assert stage.calls == [("wait",), ("after_wait",)]
    assert sum(stage.waits) == 30


@pytest.mark.parametrize("wait", [0, -5, timedelta(0), datetime.fromtimestamp(999, UTC)])
def test_what_is_past_is_no_wait(wait):
    """A time that has come already goes on at once."""
    stage = FakeStage(timer_of(wait))
    assert stage.model.drive(stage) == "next"
    assert stage.waits == []


def test_the_zone_of_a_datetime_counts():
    """Two spellings of one instant wait equally long."""
    stage = FakeStage(timer_of(datetime.fromtimestamp(1060, timezone(timedelta(hours=5)))))
    stage.model.drive(stage)
    assert sum(stage.waits) == 60


def test_a_calendar_wait_heeds_a_clock_that_is_set():
    """The wall clock is looked at again on the way, so a wait until nine ends at nine."""
    stage = FakeStage(timer_of(datetime.fromtimestamp(1000 + 3600, UTC)))
    passes = stage.wait

    def wait(seconds):
        passes(seconds)
        if len(stage.waits) == 1:
            stage.epoch += 3000

    stage.wait = wait
    stage.model.drive(stage)
    assert sum(stage.waits) == pytest.approx(600)


def test_a_relative_wait_does_not_heed_the_wall_clock():
    """Half a minute is half a minute, whatever the calendar says meanwhile."""
    stage = FakeStage(timer_of(90.0))
    passes = stage.wait

    def wait(seconds):
        passes(seconds)
        stage.epoch -= 1000

    stage.wait = wait
    stage.model.drive(stage)
    assert sum(stage.waits) == 90


def test_an_error_of_wait_means_no_wait():
    """If wait fails nothing is waited for and after_wait is not called."""
    stage = FakeStage(timer_of(Moments(OSError("which?"))))
    with pytest.raises(OSError, match="which"):
        stage.model.drive(stage)
    assert (stage.calls, stage.waits) == ([("wait",)], [])


def test_an_error_of_after_wait_is_raised():
    """What after_wait raises fails the task."""
    stage = FakeStage(timer_of(1, Moments(OSError("what now?"))))
    with pytest.raises(OSError, match="what now"):
        stage.model.drive(stage)


def test_a_retry_of_after_wait_does_not_wait_again():
    """Once known, the time to wake up is kept."""
    stage = FakeStage(timer_of(30, Moments(OSError("not yet"), "next")), attempts=2)
    assert stage.model.drive(stage) == "next"
    assert stage.calls == [("wait",), ("after_wait",), ("after_wait",)]
    assert sum(stage.waits) == 30


@pytest.mark.parametrize("answer", [None, "soon", True, float("nan"), float("inf"), datetime(2030, 1, 1)])  # noqa: DTZ001
def test_another_answer_is_refused_with_what_to_return(answer):
    """Neither nonsense nor a time of no zone is guessed at."""
    stage = FakeStage(timer_of(answer))
    with pytest.raises(WorkflowError, match="wait returned"):
        stage.model.drive(stage)


def test_a_timer_runs_in_one_piece_by_hand():
    """As a branch of a split it waits where it is."""
    assert timer_of(0.001).run(context()) == "next"
