"""Single tasks that fail, are tried again, or take too long."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from datetime import timedelta

import pytest

from canobatch import (
    JoinStrategy,
    Retry,
    RunCancelledError,
    TaskConfig,
    TaskError,
    WorkerLostError,
    WorkerPool,
    Workflow,
)
from canobatch.errors import (
    RetryExhaustedError,
    TaskTimeoutError,
    WorkflowTimeoutError,
)
from tests.support.branches import FOREVER, Act, RefusalError, contents, map_of, mark, marks
from tests.support.models import SOON
from tests.support.single import Recorder, single
from tests.support.tasks import assert_works
from tests.support.watch import await_that

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
WORKER = TaskConfig(where="worker")
PARENT = TaskConfig(where="parent")
EITHER = pytest.mark.parametrize("where", ["parent", "worker"])


# -- failures


@EITHER
def test_a_failed_task_says_where_and_why(where, shared_pool):
    """The error has state, attempt and path; its cause is the task's own error; the text says it all."""

    def fail(ctx):
        raise RefusalError("out of order")

    flow = (
        Workflow("test")
        .register("a", lambda: "b")
        .register("b", fail, config=TaskConfig(where=where))
        .add_exit_state("end")
    )
    run = flow.start("a", pool=shared_pool)
    with pytest.raises(TaskError) as caught:
        run.wait(60)
    error = caught.value
    assert type(error) is TaskError
    assert (error.state, error.branch, error.attempt, error.path) == ("b", None, 1, ("a", "b"))
    assert type(error.__cause__) is RefusalError
    assert str(error.__cause__) == "out of order"
    assert str(error) == "state 'b', attempt 1: RefusalError: out of order"
    report = run.report()
    assert report.error is error
    assert report.path == ["a", "b"]
    assert report.state == "b"
    assert [state.error for state in report.states] == [None, error]


def test_the_error_of_a_parent_s_task_is_the_very_same():
    """What a task in the parent raised is the cause, with its traceback."""
    own = RefusalError("this one")

    def fail():
        raise own

    with pytest.raises(TaskError) as caught:
        single(fail).orchestrate("begin")
    assert caught.value.__cause__ is own
    assert own.__traceback__ is not None


def test_the_error_of_a_worker_s_task_has_its_traceback(shared_pool):
    """What a task in a worker raised comes with the text of its traceback, which begins in the user's code."""

    def inner():
        raise RefusalError("deep down")

    def fail(ctx):
        try:
            inner()
        except RefusalError as error:
            raise ValueError("on top") from error

    with pytest.raises(TaskError) as caught:
        single(fail, config=WORKER).orchestrate("begin", pool=shared_pool)
    error = caught.value
    assert "in inner" in error.traceback
    assert "deep down" in error.traceback
    assert "canobatch/worker.py" not in error.traceback
    assert (type(error.__cause__), type(error.__cause__.__cause__)) == (ValueError, RefusalError)
    assert any("in inner" in note for note in error.__notes__)


@EITHER
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError("much"), asyncio.CancelledError()],
    ids=repr,
)
def test_whatever_a_task_raises_is_a_failed_attempt(where, error, shared_pool):
    """No exception of a task ends anything but its attempt."""

    def fail(ctx):
        raise error

    with pytest.raises(TaskError) as caught:
        single(fail, config=TaskConfig(where=where)).orchestrate("begin", pool=shared_pool)
    assert type(caught.value.__cause__) is type(error)


@EITHER
def test_a_failure_may_lead_to_another_state(where, shared_pool):
    """With on_error a task that failed for good leads there; its writes are dropped, its error is on the report."""

    def fail(ctx):
        ctx.store.put("k", 1)
        raise RefusalError("no")

    run = single(fail, config=TaskConfig(where=where, retry=Retry.fixed(1, 0.0)), on_error="failed").start(
        "begin", pool=shared_pool
    )
    assert run.wait(60) == "failed"
    assert contents(run.store) == {}
    report = run.report()
    assert report.error is None
    assert isinstance(report.states[0].error, RetryExhaustedError)
    assert report.states[0].attempts == 2
    assert report.path == ["begin", "failed"]


def test_a_lost_worker_may_lead_to_another_state(shared_pool):
    """on_error is for every way in which a task can fail: also for a death and for a timeout."""
    assert single(Act("die"), config=WORKER, on_error="failed").orchestrate("begin", pool=shared_pool) == "failed"
    timeout = TaskConfig(attempt_timeout=0.1)
    assert single(Act("hang"), config=timeout, on_error="failed").orchestrate("begin", pool=shared_pool) == "failed"


def test_an_error_is_raised_by_every_wait():
    """Whoever waits for a failed run gets its error, also later."""

    def fail():
        raise RefusalError("no")

    run = single(fail).start("begin")
    for _ in range(2):
        with pytest.raises(TaskError, match="RefusalError: no"):
            run.wait(30)
    assert "failed" in repr(run)


def test_a_run_may_fail_in_a_run():
    """A task that orchestrates another workflow fails with that run's error as its cause."""

    def fail():
        raise RefusalError("inside")

    with pytest.raises(TaskError) as caught:
        single(lambda: single(fail).orchestrate("begin")).orchestrate("begin")
    assert isinstance(caught.value.__cause__, TaskError)
    assert isinstance(caught.value.__cause__.__cause__, RefusalError)


# -- retries


@EITHER
def test_two_retries_are_three_attempts(where, shared_pool, tmp_path):
    """A task that fails for good is tried once and then as often as its retries say, no more."""
    act = Act("fail", str(tmp_path))
    config = TaskConfig(where=where, retry=Retry.fixed(2, 0.0))
    run = single(act, config=config).start("begin", pool=shared_pool)
    with pytest.raises(RetryExhaustedError) as caught:
        run.wait(60)
    error = caught.value
    assert marks(tmp_path) == {"None.1", "None.2", "None.3"}
    assert (error.attempts, error.attempt, error.state, error.path) == (3, 3, "begin", ("begin",))
    assert isinstance(error.last_error, RefusalError)
    assert error.__cause__ is error.last_error
    assert "attempt 3 of 3" in str(error)
    assert run.report().states[0].attempts == 3


@EITHER
def test_attempts_end_with_the_first_success(where, shared_pool, tmp_path):
    """A task that succeeds at its third attempt is not tried again."""
    config = TaskConfig(where=where, retry=Retry.exponential(5, base=0.01))
    run = single(Act("fail fail ok", str(tmp_path), value="end"), config=config).start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert marks(tmp_path) == {"None.1", "None.2", "None.3"}


@EITHER
def test_a_single_attempt_is_unwrapped(where, shared_pool):
    """With one allowed attempt the error is a plain TaskError whose cause is the task's own."""
    with pytest.raises(TaskError) as caught:
        single(Act("fail"), config=TaskConfig(where=where, retry=Retry.none())).orchestrate("begin", pool=shared_pool)
    assert type(caught.value) is TaskError
    assert isinstance(caught.value.__cause__, RefusalError)


@EITHER
def test_only_what_is_listed_is_retried(where, shared_pool, tmp_path):
    """What is in retry_on, by inheritance too, is retried; any other error ends the task at once, unwrapped."""

    def fail(ctx):
        mark(str(tmp_path), ctx.attempt)
        raise (OSError if ctx.attempt == 1 else KeyError)("no")

    config = TaskConfig(where=where, retry=Retry.fixed(5, 0.0), retry_on=(ValueError, OSError))
    with pytest.raises(TaskError) as caught:
        single(fail, config=config).orchestrate("begin", pool=shared_pool)
    assert type(caught.value) is TaskError
    assert caught.value.attempt == 2
    assert isinstance(caught.value.__cause__, KeyError)
    assert marks(tmp_path) == {"1", "2"}


def test_an_exit_of_the_task_is_not_retried_by_default(shared_pool, tmp_path):
    """SystemExit is no Exception, so the default retries leave it alone."""

    def leave(ctx):
        mark(str(tmp_path), ctx.attempt)
        sys.exit(3)

    config = TaskConfig(where="worker", retry=Retry.fixed(3, 0.0))
    with pytest.raises(TaskError) as caught:
        single(leave, config=config).orchestrate("begin", pool=shared_pool)
    assert isinstance(caught.value.__cause__, SystemExit)
    assert marks(tmp_path) == {"1"}


def test_a_lost_worker_is_retried_unless_told_otherwise(shared_pool, tmp_path):
    """A death counts as an attempt; retry_lost_worker=False ends the task with it."""
    act = Act("die ok", str(tmp_path), value="end")
    retry = Retry.fixed(1, 0.0)
    assert single(act, config=TaskConfig(where="worker", retry=retry)).orchestrate("begin", pool=shared_pool) == "end"
    with pytest.raises(WorkerLostError) as caught:
        single(act, config=TaskConfig(where="worker", retry=retry, retry_lost_worker=False)).orchestrate(
            "begin", pool=shared_pool
        )
    assert caught.value.attempt == 1


def test_an_attempt_that_takes_too_long_is_killed_and_retried(shared_pool, tmp_path):
    """Each attempt has its own timeout; after the last one the error is that of the timeout."""
    config = TaskConfig(attempt_timeout=SOON, retry=Retry.fixed(2, 0.0))
    flow = single(Act("hang ok", str(tmp_path), value="end"), config=config)
    assert flow.orchestrate("begin", pool=shared_pool) == "end"
    assert marks(tmp_path) == {"None.1", "None.2"}
    config = TaskConfig(attempt_timeout=0.3, retry=Retry.fixed(2, 0.0))
    with pytest.raises(RetryExhaustedError) as caught:
        single(Act("hang"), config=config).orchestrate("begin", pool=shared_pool)
    assert caught.value.attempts == 3
    assert isinstance(caught.value.last_error, TaskTimeoutError)
    assert isinstance(caught.value.last_error, TimeoutError)
    assert caught.value.last_error.limit == 0.3


def test_a_timeout_may_be_what_is_retried(shared_pool):
    """retry_on=TimeoutError is met by an attempt's own timeout."""
    config = TaskConfig(attempt_timeout=SOON, retry=Retry.fixed(1, 0.0), retry_on=(TimeoutError,))
    assert single(Act("hang ok", value="end"), config=config).orchestrate("begin", pool=shared_pool) == "end"


def test_a_waiting_attempt_holds_no_worker(tmp_path):
    """While a task waits for its next attempt, the only worker serves another run."""
    recorder = Recorder()
    config = TaskConfig(where="worker", retry=Retry.fixed(1, FOREVER))
    with WorkerPool(1) as pool:
        waiting = single(Act("fail"), config=config).with_observer(recorder).start("begin", pool=pool)
        await_that(lambda: "retry" in recorder.kinds(), "the first attempt should have failed")
        assert_works(pool)
        assert waiting.report().duration < FOREVER
        # And a cancel does not wait for the next attempt either.
        waiting.cancel()
        with pytest.raises(RunCancelledError):
            waiting.wait(60)


def test_delays_are_kept(shared_pool):
    """The next attempt does not begin before its delay is over."""
    begun = []

    def fail():
        begun.append(time.monotonic())
        raise RefusalError("no")

    with pytest.raises(RetryExhaustedError):
        single(fail, config=TaskConfig(retry=Retry.fixed(2, 0.2))).orchestrate("begin")
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(begun))


# -- the whole run's timeout


def timed_out(run):
    """Wait for a run that must run out of time; return the error."""
    with pytest.raises(WorkflowTimeoutError) as caught:
        run.wait(60)
    return caught.value


def test_a_run_that_takes_too_long_is_killed(shared_pool):
    """After its total timeout what runs is killed and the error says how long, where, and by which way."""
    flow = Workflow("slow", total_timeout=timedelta(seconds=0.5)).register("a", lambda: "b").register("b", Act("hang"))
    error = timed_out(flow.add_exit_state("end").start("a", pool=shared_pool))
    assert error.limit == 0.5
    assert error.elapsed >= 0.5
    assert isinstance(error, TimeoutError)
    assert "did not end within 0.5 s" in str(error)
    # Where the load is high the first state may already have taken all the time.
    assert (error.state, error.path) in [("b", ("a", "b")), ("a", ("a",))]
    assert_works(shared_pool)


def test_a_total_timeout_ends_a_split(shared_pool):
    """Branches are killed by the run's timeout, whatever their split allows; on_timeout is not for it."""
    flow = map_of(
        lambda ctx, act: act.run(ctx),
        [Act("hang")] * 3,
        all_,
        timeout=FOREVER,
        on_timeout="late",
        on_failure="failed",
        workflow={"total_timeout": 0.3},
    )
    assert timed_out(flow.start("split", pool=shared_pool)).state == "split"


def test_a_total_timeout_ends_a_wait_for_the_next_attempt(shared_pool):
    """A retry that is far away does not keep a run beyond its time."""
    config = TaskConfig(retry=Retry.fixed(1, FOREVER))
    timed_out(single(Act("fail"), config=config, total_timeout=1.0).start("begin", pool=shared_pool))


def test_a_total_timeout_ends_a_loop_of_short_steps(shared_pool):
    """The time is checked between states: many short steps are not for ever."""
    error = timed_out(single(lambda: "begin", total_timeout=0.5).start("begin", pool=shared_pool))
    assert set(error.path) == {"begin"}
    assert len(error.path) >= 1


def test_a_run_within_its_time_is_not_disturbed(shared_pool):
    """A run that ends in time ends as without a timeout."""
    assert single(Act(value="end"), total_timeout=FOREVER).orchestrate("begin", pool=shared_pool) == "end"


def test_on_error_is_not_for_the_total_timeout(shared_pool):
    """When the run's time is up its tasks' on_error is not entered."""
    timed_out(single(Act("hang"), on_error="failed", total_timeout=0.2).start("begin", pool=shared_pool))
