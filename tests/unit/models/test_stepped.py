"""SteppedTask: cursors handed on, kept before the next step, and kept by a retry."""

from __future__ import annotations

import pytest

from canobatch.errors import WorkflowError
from canobatch.models import Done, More, SteppedTask
from tests.support.stage import FakeStage, context


class Count(SteppedTask):
    """Counts to ``last``, failing as often as it is told at some cursors."""

    def __init__(self, last, failures=None):
        self.last = last
        self.failures = dict(failures or {})

    def step(self, ctx, cursor):
        if self.failures.get(cursor, 0) > 0:
            self.failures[cursor] -= 1
            raise OSError(f"at {cursor}")
        at = (cursor or 0) + 1
        return Done("next") if at == self.last else More(at)


def cursors(stage):
    """Return what the steps were given."""
    return [cursor for _, cursor in stage.calls]


def test_the_cursor_goes_from_step_to_step():
    """The first step gets None, each other what the one before returned."""
    stage = FakeStage(Count(4))
    assert stage.model.drive(stage) == "next"
    assert cursors(stage) == [None, 1, 2, 3]


def test_each_cursor_is_kept_before_the_next_step():
    """A cursor is committed as it comes, not at the end."""
    seen = []

    class Watch(Count):
        def step(self, ctx, cursor):
            seen.append(list(stage.cursors))
            return super().step(ctx, cursor)

    stage = FakeStage(Watch(4))
    stage.model.drive(stage)
    assert seen == [[], [1], [1, 2], [1, 2, 3]]


def test_a_transient_error_is_retried_with_the_same_cursor():
    """A retry repeats its step, not the ones before."""
    stage = FakeStage(Count(6, {3: 2}), attempts=3)
    assert stage.model.drive(stage) == "next"
    assert cursors(stage) == [None, 1, 2, 3, 3, 3, 4, 5]


def test_each_step_has_all_its_attempts():
    """What one step used up is not missing at the next."""
    stage = FakeStage(Count(4, {None: 1, 1: 1, 2: 1, 3: 1}), attempts=2)
    assert stage.model.drive(stage) == "next"


def test_an_error_that_is_left_is_raised():
    """When the attempts are used up the error of the step is the task's."""
    stage = FakeStage(Count(4, {2: 9}), attempts=2)
    with pytest.raises(OSError, match="at 2"):
        stage.model.drive(stage)
    assert stage.cursors == [1, 2]


def test_done_at_once_keeps_nothing():
    """A single step needs no cursor."""
    stage = FakeStage(Count(1))
    assert stage.model.drive(stage) == "next"
    assert stage.cursors == []


def test_w2_each_visit_begins_at_the_start():
    """A cursor belongs to its visit: the same task driven again gets None first."""
    task = Count(3)
    for _ in range(2):
        stage = FakeStage(task)
        task.drive(stage)
        assert cursors(stage)[0] is None


@pytest.mark.parametrize("answer", ["next", 5, None, ["a", "b"]])
def test_another_answer_is_refused_with_what_to_return(answer):
    """A step that returns neither More nor Done fails."""

    class Wrong(SteppedTask):
        def step(self, ctx, cursor):
            return answer

    with pytest.raises(WorkflowError, match=r"return More\(cursor\) or Done\(state\)"):
        Wrong().drive(FakeStage(Wrong()))


def test_steps_run_in_one_piece_by_hand():
    """As a branch of a split the loop runs where it is."""
    assert Count(3).run(context()) == "next"
