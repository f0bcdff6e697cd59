"""Runs that are cancelled: what ends, when, and what is left."""

from __future__ import annotations

import threading

import pytest

from canobatch import (
    CancelToken,
    JoinStrategy,
    TaskConfig,
    WorkerPool,
)
from tests.support.branches import FOREVER, Act, await_marks, contents, map_of, mark, marks, statuses
from tests.support.single import cancelled, chain, single
from tests.support.tasks import assert_works
from tests.support.watch import await_that

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
WORKER = TaskConfig(where="worker")
PARENT = TaskConfig(where="parent")
EITHER = pytest.mark.parametrize("where", ["parent", "worker"])


# -- cancels


def test_a_cancel_before_the_start_runs_nothing():
    """A run whose token is cancelled already ends at once, without any task."""
    token, called = CancelToken(), []
    token.cancel("not today")
    error = cancelled(single(lambda: called.append(1) or "end").start("begin", cancel=token))
    assert called == []
    assert (error.reason, error.state, error.path) == ("not today", "begin", ("begin",))
    assert "not today" in str(error)


def test_a_run_that_is_through_is_not_cancelled():
    """An exit state goes before a cancel: a run that starts at one, or has reached it, ends well."""
    token = CancelToken()
    token.cancel()
    assert chain("a", "b").orchestrate("b", cancel=token) == "b"
    token = CancelToken()
    flow = single(lambda: token.cancel() or "end")
    assert flow.orchestrate("begin", cancel=token) == "end"


def test_a_cancel_between_states_ends_the_run():
    """A cancel that comes while a task runs in the parent is seen when it has ended, before the next one begins."""
    token, called = CancelToken(), []
    flow = single(lambda ctx: ctx.store.put("k", 1) or token.cancel("enough") or "next")
    flow.register("next", lambda: called.append(1) or "end")
    run = flow.start("begin", cancel=token)
    error = cancelled(run)
    assert called == []
    assert (error.state, error.path) == ("next", ("begin", "next"))
    assert run.store.get("k") == 1
    assert run.report().error is error


def test_a_parent_s_task_can_see_the_cancel():
    """A task in the parent is not killed, but sees by ctx.cancelled that it should end."""
    begun = threading.Event()

    def loop(ctx):
        begun.set()
        await_that(lambda: ctx.cancelled, "the cancel should be seen")
        return "next"

    run = single(loop).register("next", lambda: "end").start("begin")
    assert begun.wait(60)
    run.cancel()
    assert cancelled(run).state == "next"


def test_a_cancel_kills_what_runs_in_a_worker(shared_pool, tmp_path):
    """A task that would never end is killed with the run, and the pool goes on."""
    run = single(Act("hang", str(tmp_path)), config=WORKER).start("begin", pool=shared_pool)
    await_marks(tmp_path, "None.1")
    run.cancel("no more")
    error = cancelled(run)
    assert (error.reason, error.state) == ("no more", "begin")
    assert_works(shared_pool)


def test_a_cancel_kills_all_branches(shared_pool, tmp_path):
    """A cancel in the middle of a split kills its branches; none completes, and the report shows them cut."""
    run = map_of(lambda ctx, act: act.run(ctx), [Act("hang", str(tmp_path))] * 6, all_, into="v").start(
        "split", pool=shared_pool
    )
    await_marks(tmp_path, "0.1", "1.1", "2.1")
    run.cancel()
    assert cancelled(run).state == "split"
    assert contents(run.store) == {}
    assert set(statuses(run)) <= {"cancelled", "not_started"}
    assert statuses(run)[:3] == ["cancelled"] * 3
    assert_works(shared_pool)


def test_a_cancel_ends_a_run_that_waits_for_a_worker(tmp_path):
    """A run whose calls wait for a busy pool is cancelled at once, and never runs."""
    with WorkerPool(1) as pool:
        holder = single(Act("hang", str(tmp_path)), config=WORKER).start("begin", pool=pool)
        await_marks(tmp_path, "None.1")
        waiting = map_of(lambda ctx, item: mark(str(tmp_path), "ran"), [1], all_).start("split", pool=pool)
        await_that(lambda: waiting.report().path, "the run should have begun")
        waiting.cancel()
        cancelled(waiting)
        assert set(statuses(waiting)) <= {"not_started"}
        holder.cancel()
        cancelled(holder)
        assert_works(pool)
    assert "ran" not in marks(tmp_path)


def test_cancelling_twice_is_fine(shared_pool, tmp_path):
    """The first cancel counts; those after it, also after the end, change nothing."""
    run = single(Act("hang", str(tmp_path)), config=WORKER).start("begin", pool=shared_pool)
    await_marks(tmp_path, "None.1")
    run.cancel("first")
    run.cancel("second")
    assert cancelled(run).reason == "first"
    run.cancel("third")
    assert cancelled(run).reason == "first"


def test_a_late_cancel_changes_nothing():
    """A run that has ended stays as it ended."""
    run = chain("a", "b").start("a")
    assert run.wait(30) == "b"
    run.cancel("late")
    assert run.wait(30) == "b"
    assert run.report().error is None


def test_a_token_ends_every_run_that_has_it(shared_pool, tmp_path):
    """Runs that share a token are cancelled together; others go on."""
    token = CancelToken()
    runs = []
    for name in "ab":
        place = tmp_path / name
        place.mkdir()
        runs.append(single(Act("hang", str(place)), config=WORKER).start("begin", pool=shared_pool, cancel=token))
        await_marks(place, "None.1")
    other = single(Act(value="end", place=str(tmp_path), after=("go",)), config=WORKER).start("begin", pool=shared_pool)
    token.cancel("all of you")
    assert {cancelled(run).reason for run in runs} == {"all of you"}
    mark(tmp_path, "go")
    assert other.wait(60) == "end"


def test_a_token_that_is_not_cancelled_changes_nothing(shared_pool):
    """A run with a token that nobody cancels is a run like others, and the token serves the next one."""
    token = CancelToken()
    for _ in range(2):
        assert single(Act(value="end"), config=WORKER).orchestrate("begin", pool=shared_pool, cancel=token) == "end"
    assert not token.is_cancelled


def test_a_cancel_goes_before_a_timeout(shared_pool, tmp_path):
    """A run that is both cancelled and out of time ends as cancelled."""
    token = CancelToken()
    token.cancel("first")
    flow = single(Act("hang"), total_timeout=1e-9)
    assert cancelled(flow.start("begin", pool=shared_pool, cancel=token)).reason == "first"


def test_on_error_is_not_for_cancels(shared_pool, tmp_path):
    """A cancel is no failure of the task or the join: on_error and on_failure are not entered."""
    run = single(Act("hang", str(tmp_path)), config=WORKER, on_error="failed").start("begin", pool=shared_pool)
    await_marks(tmp_path, "None.1")
    run.cancel()
    cancelled(run)
    place = tmp_path / "split"
    place.mkdir()
    flow = map_of(
        lambda ctx, act: act.run(ctx),
        [Act("hang", str(place))],
        all_,
        on_failure="failed",
        on_timeout="late",
        timeout=FOREVER,
    )
    run = flow.start("split", pool=shared_pool)
    await_marks(place, "0.1")
    run.cancel()
    cancelled(run)
