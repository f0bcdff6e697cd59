"""Runs from start to end: the path they take, retries, timeouts, cancels, reports, and the pool that serves them."""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, timedelta

import loky
import pytest

from canobatch import (
    CancelToken,
    JoinConfig,
    JoinStrategy,
    MemoryStore,
    Retry,
    RunCancelledError,
    SharedStore,
    Task,
    TaskConfig,
    TaskError,
    WorkerLostError,
    WorkerPool,
    Workflow,
    WorkflowError,
)
from canobatch.errors import (
    ConfigurationError,
    PoolClosedError,
    RetryExhaustedError,
    TaskTimeoutError,
    WorkflowTimeoutError,
)
from canobatch.pool import close_default_pool
from tests.support.branches import FOREVER, Act, RefusalError, await_marks, contents, map_of, mark, marks, ran, statuses
from tests.support.models import SOON
from tests.support.tasks import assert_works, square
from tests.support.watch import Scene, Witness, await_that

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
WORKER = TaskConfig(where="worker")
PARENT = TaskConfig(where="parent")
EITHER = pytest.mark.parametrize("where", ["parent", "worker"])


def single(task, *, config=None, on_error=None, **options) -> Workflow:
    """Return a workflow of one task, state "begin", that ends in "end" or "failed"."""
    flow = Workflow("test", **options).register("begin", task, config=config, on_error=on_error)
    return flow.add_exit_states(["end", "failed"])


def chain(*names, **options) -> Workflow:
    """Return a workflow that goes from each name to the next and notes where it was."""

    def step(name, following):
        def task(ctx):
            ctx.store.append("seen", name)
            return following

        return task

    flow = Workflow("chain", **options).add_exit_state(names[-1])
    for name, following in itertools.pairwise(names):
        flow.register(name, step(name, following))
    return flow


class Recorder:
    """Keeps every event."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def kinds(self):
        return [event.kind for event in self.events]


class S(enum.Enum):
    """States that workers import."""

    BEGIN = 1
    SPLIT = 2
    END = 3


# -- the path


def test_one_hop():
    """A run goes from its initial state to the state that the task returns, and returns it."""
    assert chain("a", "b").orchestrate("a") == "b"


def test_many_steps_share_the_store():
    """What a task writes is there for the tasks after it."""
    run = chain("a", "b", "c", "d", "e").start("a")
    assert run.wait(30) == "e"
    assert run.store.get("seen") == ["a", "b", "c", "d"]
    assert run.report().path == ["a", "b", "c", "d", "e"]


def test_a_run_may_start_anywhere():
    """Any registered state can be the initial one."""
    run = chain("a", "b", "c", "d").start("c")
    assert run.wait(30) == "d"
    assert run.store.get("seen") == ["c"]


@EITHER
def test_a_state_may_lead_to_itself(where, shared_pool):
    """A state that returns itself is visited until it returns another, each visit with the writes of those before."""

    def count(ctx):
        ctx.store.add("visits")
        return "begin" if ctx.store.get("visits") < 5 else "end"

    run = single(count, config=TaskConfig(where=where)).start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert run.store.get("visits") == 5
    report = run.report()
    assert report.path == ["begin"] * 5 + ["end"]
    assert [(state.visit, state.attempts) for state in report.states] == [(n, 1) for n in range(1, 6)]


def test_an_exit_wins_over_a_handler():
    """A state that is an exit ends the run although it has a handler, which does not run."""
    called = []
    flow = Workflow("test").register("a", lambda: "b").register("b", lambda: called.append(1) or "c")
    assert flow.add_exit_states(["b", "c"]).orchestrate("a") == "b"
    assert called == []


def test_starting_at_an_exit_ends_at_once():
    """A run that starts at an exit state returns it, runs nothing, and starts no process."""
    called = []
    flow = Workflow("test").register("a", lambda: called.append(1) or "a").add_exit_state("a")
    run = flow.start("a")
    assert run.wait(30) == "a"
    assert called == []
    assert run.report().path == ["a"]
    assert run.report().states == []


def test_no_worker_is_started_for_tasks_in_the_parent(monkeypatch):
    """A workflow whose tasks all run in the parent needs no pool, not even an open one."""
    pool = WorkerPool(1)
    pool.close()
    assert chain("a", "b", "c").orchestrate("a", pool=pool) == "c"


def test_states_of_different_types_are_compared_by_value(shared_pool):
    """A task in a worker may return a state that equals one of the workflow's."""
    flow = (
        Workflow("test")
        .register(S.BEGIN, lambda: ("a", 1), config=WORKER)
        .register(("a", 1), lambda: S.SPLIT, config=WORKER)
        .register_map(S.SPLIT, square, [1, 2], JoinConfig(all_, S.END, into="v"))
        .add_exit_state(S.END)
    )
    run = flow.start(S.BEGIN, pool=shared_pool)
    assert run.wait(60) is S.END
    assert run.report().path == [S.BEGIN, ("a", 1), S.SPLIT, S.END]


# -- where tasks run


def pid_of(config=None, pool=None, **options):
    """Return the pid in which a single task runs."""

    def note(ctx):
        ctx.store.put("pid", os.getpid())
        return "end"

    run = single(note, config=config, **options).start("begin", pool=pool)
    assert run.wait(60) == "end"
    return run.store.get("pid")


def test_a_single_task_runs_in_the_parent():
    """Without a reason for a worker a single task runs in this process."""
    assert pid_of() == pid_of(PARENT) == os.getpid()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (WORKER, {}),
        (TaskConfig(attempt_timeout=100.0), {}),
        (TaskConfig(memory_limit=1 << 34), {}),
        (None, {"total_timeout": 100.0}),
        (None, {"default_config": WORKER}),
    ],
)
def test_a_single_task_runs_in_a_worker_for_a_reason(config, options, shared_pool):
    """A single task runs in a worker when told to, and whenever it may have to be killed."""
    assert pid_of(config, shared_pool, **options) in {worker.pid for worker in shared_pool.workers}


def test_a_task_s_own_configuration_goes_before_the_default(shared_pool):
    """The workflow's default is for tasks that bring no configuration."""

    @dataclass
    class Here(Task):
        config = PARENT

        def run(self, ctx):
            ctx.store.put("pid", os.getpid())
            return "end"

    run = single(Here(), default_config=WORKER).start("begin", pool=shared_pool)
    run.wait(60)
    assert run.store.get("pid") == os.getpid()


@EITHER
def test_what_a_task_is_told(where, shared_pool):
    """A context has the run, the state, the attempt, parameters, a logger, and neither branch nor deadline."""

    def look(ctx):
        ctx.store.put(
            "facts", (ctx.run_id, ctx.state, ctx.branch, ctx.attempt, ctx.logger.name, ctx.deadline, ctx.cancelled)
        )
        ctx.store.put("size", ctx.params.size)
        return S.END

    flow = Workflow("flow").register(S.BEGIN, look, config=TaskConfig(where=where)).add_exit_state(S.END)
    run = flow.start(S.BEGIN, pool=shared_pool, run_id="my run", params={"size": 3})
    assert run.wait(60) is S.END
    assert run.id == "my run"
    assert run.store.get("facts") == ("my run", S.BEGIN, None, 1, "canobatch.flow", None, False)
    assert run.store.get("size") == 3


@EITHER
def test_async_tasks_run_to_their_end(where, shared_pool):
    """An async function or run method is run where a plain one would be, and its result counts."""

    async def wait(ctx):
        await asyncio.sleep(0)
        ctx.store.put("function", True)
        return "method"

    class Wait(Task):
        async def run(self, ctx):
            await asyncio.sleep(0)
            ctx.store.put("method", True)
            return "end"

    config = TaskConfig(where=where)
    flow = single(wait, config=config).register("method", Wait(), config=config)
    run = flow.start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert contents(run.store) == {"function": True, "method": True}


@EITHER
def test_a_task_needs_no_argument(where, shared_pool):
    """Functions, methods and callables may do without a context."""

    class Bare(Task):
        def run(self):
            return "end"

    for task in (lambda: "end", Bare(), Bare().run):
        assert single(task, config=TaskConfig(where=where)).orchestrate("begin", pool=shared_pool) == "end"


# -- parameters


@dataclass(frozen=True)
class Settings:
    """Parameters that a workflow declares."""

    size: int
    name: str = "default"


@EITHER
def test_declared_parameters_reach_the_tasks(where, shared_pool):
    """With a dataclass declared, tasks get an instance of it, be it given as one or as a mapping."""

    def look(ctx):
        ctx.store.put("params", ctx.params)
        return "end"

    flow = single(look, config=TaskConfig(where=where), params=Settings)
    for given in ({"size": 3}, Settings(3)):
        run = flow.start("begin", pool=shared_pool, params=given)
        assert run.wait(60) == "end"
        assert run.store.get("params") == Settings(3, "default")


def test_parameters_are_those_of_the_run(shared_pool):
    """Runs of one workflow at once each have their own parameters, in branches too."""
    flow = map_of(lambda ctx, item: ctx.params["base"] + item, range(3), all_, into="v")
    runs = [flow.start("split", pool=shared_pool, params={"base": base}) for base in (0, 10, 20)]
    assert [run.wait(60) for run in runs] == ["joined"] * 3
    assert [run.store.get("v") for run in runs] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_parameters_that_do_not_fit_start_nothing():
    """A run with parameters that do not fit is refused before anything runs."""
    called = []
    with pytest.raises(ConfigurationError, match="size"):
        single(lambda: called.append(1) or "end", params=Settings).start("begin")
    assert called == []


# -- stores


def test_each_run_has_a_fresh_store():
    """Without an explicit store nothing is left for the next run."""
    flow = chain("a", "b", "c")
    assert [flow.start("a").wait(30) for _ in range(2)] == ["c", "c"]
    run = flow.start("a")
    run.wait(30)
    assert run.store.get("seen") == ["a", "b"]


@pytest.mark.parametrize("make", [SharedStore, MemoryStore])
def test_an_explicit_store_is_kept(make, shared_pool):
    """Runs of a workflow with a store find what is in it, and leave what they wrote."""
    store = make()
    store.put("seen", ["before"])
    flow = chain("a", "b", store=store, default_config=WORKER)
    for _ in range(2):
        run = flow.start("a", pool=shared_pool)
        assert run.wait(60) == "b"
        assert run.store is store
    assert store.get("seen") == ["before", "a", "a"]


def test_runs_that_share_a_store_lose_nothing(shared_pool):
    """Many runs at once on one store: every append and addition is there afterwards."""
    store = SharedStore()

    def write(ctx, item):
        ctx.store.append("items", (ctx.run_id, item))
        ctx.store.add("count")

    flow = map_of(write, range(10), all_, workflow={"store": store})
    runs = [flow.start("split", pool=shared_pool, run_id=str(number)) for number in range(6)]
    assert {run.wait(60) for run in runs} == {"joined"}
    assert store.get("count") == 60
    items = store.get("items")
    # Each run commits at once, in branch order.
    assert [[n for run_id, n in items if run_id == str(number)] for number in range(6)] == [list(range(10))] * 6
    assert [run_id for run_id, _ in items[::10] for _ in range(10)] == [run_id for run_id, _ in items]


@EITHER
def test_a_failed_attempt_writes_nothing(where, shared_pool):
    """What an attempt wrote before it failed is not there, neither for the next attempt nor at the end."""

    def write(ctx):
        ctx.store.append("attempts", ctx.attempt)
        ctx.store.put(f"by {ctx.attempt}", len(ctx.store.get("attempts")))
        if ctx.attempt < 3:
            raise RefusalError("no")
        return "end"

    run = single(write, config=TaskConfig(where=where, retry=Retry.fixed(5, 0.0))).start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert contents(run.store) == {"attempts": [3], "by 3": 1}


def test_a_router_reads_and_decides(shared_pool):
    """A router sees the store and is in the path; if it writes, the run fails, and nothing is written."""
    store = SharedStore()
    store.put("way", "left")
    flow = (
        Workflow("test", store=store)
        .register_router("fork", lambda ctx: ctx.store.get("way"))
        .register("left", lambda: "end")
        .register_router("writes", lambda ctx: ctx.store.put("k", 1) or "end")
        .add_exit_state("end")
    )
    run = flow.start("fork")
    assert run.wait(30) == "end"
    assert run.report().path == ["fork", "left", "end"]
    with pytest.raises(WorkflowError, match="state 'writes' is a router and must not write"):
        flow.orchestrate("writes")
    assert contents(store) == {"way": "left"}


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


# -- cancels


def cancelled(run):
    """Wait for a run that must end as cancelled; return the error."""
    with pytest.raises(RunCancelledError) as caught:
        run.wait(60)
    return caught.value


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


# -- the handle and the report


def test_waiting_may_be_limited(shared_pool, tmp_path):
    """wait(timeout) raises TimeoutError while the run goes on, and the run is not disturbed by it."""
    run = single(Act(value="end", place=str(tmp_path), after=("go",)), config=WORKER).start("begin", pool=shared_pool)
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 s"):
        run.wait(0.05)
    assert "running" in repr(run)
    report = run.report()
    assert (report.state, report.path, report.error) == ("begin", ["begin"], None)
    assert report.states[0].duration is None
    mark(tmp_path, "go")
    assert run.wait(60) == "end"
    assert "finished" in repr(run)
    assert run.id in repr(run)


def test_every_run_has_an_id_of_its_own():
    """Runs without a given id get different ones."""
    flow = chain("a", "b")
    runs = [flow.start("a") for _ in range(5)]
    assert [run.wait(30) for run in runs] == ["b"] * 5
    assert len({run.id for run in runs}) == 5


def test_a_report_is_the_story_of_the_run(shared_pool):
    """Path, visits, attempts and durations of each state, and of each branch, are on the report."""
    flow = (
        Workflow("story")
        .register("begin", lambda: "split")
        .register_map("split", square, [1, 2, 3], JoinConfig(all_, "end"))
        .add_exit_state("end")
    )
    run = flow.start("begin", pool=shared_pool, run_id="r1")
    assert run.wait(60) == "end"
    report = run.report()
    assert (report.run_id, report.workflow, report.state, report.error) == ("r1", "story", "end", None)
    assert report.path == ["begin", "split", "end"]
    assert [(state.state, state.visit, state.attempts, state.error) for state in report.states] == [
        ("begin", 1, 1, None),
        ("split", 2, 3, None),
    ]
    assert report.started_at.tzinfo is UTC
    assert all(state.started_at.tzinfo is UTC and 0 <= state.duration <= report.duration for state in report.states)
    assert report.states[0].started_at <= report.states[1].started_at
    assert list(report.splits) == ["split"]
    assert report.splits["split"].values == [1, 4, 9]
    # It is over: the duration stands still.
    assert run.report().duration == report.duration


def test_a_report_is_plain_data(shared_pool):
    """to_dict of a run that had everything, errors and odd states included, is what JSON can say."""
    flow = (
        Workflow("plain")
        .register(S.BEGIN, lambda: S.SPLIT)
        .register_split(
            S.SPLIT, [Act(value=S.END), Act("fail"), Act("die")], JoinConfig(all_, S.END, on_failure=("odd", 1))
        )
        .register(("odd", 1), Act("fail"))
        .add_exit_state(S.END)
    )
    run = flow.start(S.BEGIN, pool=shared_pool)
    with pytest.raises(TaskError):
        run.wait(60)
    plain = json.loads(json.dumps(run.report().to_dict()))
    assert plain["path"] == ["BEGIN", "SPLIT", "('odd', 1)"]
    assert plain["state"] == "('odd', 1)"
    assert [state["state"] for state in plain["states"]] == plain["path"]
    assert plain["states"][1]["error"].startswith("JoinError: ")
    assert plain["error"].startswith("TaskError: state ('odd', 1)")
    assert [branch["status"] for branch in plain["splits"]["SPLIT"]["branches"]] == ["succeeded", "failed", "lost"]
    assert plain["splits"]["SPLIT"]["failed"] == 2


# -- observers


def test_events_tell_the_story(shared_pool):
    """Every event has the run, a running number and a time; starts and ends balance."""
    recorder = Recorder()
    flow = map_of(square, [1, 2], all_).with_observer(recorder)
    run = flow.start("split", pool=shared_pool)
    run.wait(60)
    kinds = recorder.kinds()
    assert kinds[:3] == ["run_started", "state_entered", "split_started"]
    assert sorted(kinds[3:7]) == ["branch_finished"] * 2 + ["branch_started"] * 2
    assert kinds[7:] == ["split_finished", "state_entered", "run_finished"]
    assert [event.seq for event in recorder.events] == list(range(1, 11))
    assert {event.run_id for event in recorder.events} == {run.id}
    assert all(event.time.tzinfo is UTC for event in recorder.events)


@pytest.mark.parametrize(("task", "kind"), [(Act("fail"), "run_failed"), (Act("ok", value="end"), "run_finished")])
def test_an_end_is_told_once(task, kind):
    """Each run ends with exactly one event, of the kind of its end, as the last."""
    recorder = Recorder()
    run = single(task).with_observer(recorder).start("begin")
    if kind == "run_failed":
        with pytest.raises(TaskError):
            run.wait(30)
    else:
        run.wait(30)
    assert recorder.kinds()[-1] == kind
    assert len([k for k in recorder.kinds() if k in {"run_finished", "run_failed", "run_cancelled"}]) == 1


def test_a_cancel_is_told_once():
    """A cancelled run ends with one event that says so."""
    recorder, token = Recorder(), CancelToken()
    token.cancel("why not")
    cancelled(chain("a", "b").with_observer(recorder).start("a", cancel=token))
    assert recorder.kinds()[-1] == "run_cancelled"
    assert recorder.events[-1].detail.reason == "why not"


def test_an_observer_that_fails_disturbs_nobody(caplog):
    """What an observer raises is logged; the run and the other observers go on."""

    class Failing:
        def on_event(self, event):
            raise RefusalError("not today")

    recorder = Recorder()
    flow = chain("a", "b").with_observer(Failing()).with_observer(recorder)
    with caplog.at_level(logging.ERROR):
        assert flow.orchestrate("a") == "b"
    assert recorder.kinds() == ["run_started", "state_entered", "state_entered", "run_finished"]
    assert "an observer failed" in caplog.text


@EITHER
def test_progress_reaches_the_observers(where, shared_pool):
    """What a task reports arrives with its state; the last report, at its total, always does."""

    def work(ctx):
        for done in range(101):
            ctx.progress(done, 100, f"step {done}")
        return "end"

    recorder = Recorder()
    single(work, config=TaskConfig(where=where)).with_observer(recorder).orchestrate("begin", pool=shared_pool)
    told = [event for event in recorder.events if event.kind == "progress"]
    assert told[-1].detail == (100, 100, "step 100")
    assert {(event.state, event.branch, event.attempt) for event in told} == {("begin", None, 1)}
    assert [event.detail[0] for event in told] == sorted(event.detail[0] for event in told)


# -- many runs on one pool


def test_many_runs_at_once_have_their_own_results(shared_pool):
    """Runs of several workflows on one pool do not mix."""
    flow = map_of(lambda ctx, item: (ctx.params["n"], item), range(8), all_, into="v")
    runs = [flow.start("split", pool=shared_pool, params={"n": n}) for n in range(12)]
    assert [run.wait(100) for run in runs] == ["joined"] * 12
    assert [run.store.get("v") for run in runs] == [[(n, item) for item in range(8)] for n in range(12)]


@pytest.mark.parametrize("long_task", [0.02, 0.0])
def test_a_large_run_does_not_starve_a_small_one(long_task, shared_pool):
    """A run with few tasks gets its share of workers while another would go on for ever."""
    small_has_ended = threading.Event()

    def items():
        for index in range(1_000_000):
            if small_has_ended.is_set():
                return
            yield index

    def work(ctx, item):
        time.sleep(long_task)
        ctx.store.put("k", 1) if item == 0 else None

    recorder = Recorder()
    large = map_of(work, items, all_, reduce=(lambda total, value: total + 1, 0), into="n").with_observer(recorder)
    large = large.start("split", pool=shared_pool)
    await_that(lambda: "branch_finished" in recorder.kinds()[-50:], "the large run should be under way")
    try:
        small = map_of(square, range(5), all_, into="v").start("split", pool=shared_pool)
        assert small.wait(60) == "joined"
        assert small.store.get("v") == [0, 1, 4, 9, 16]
        assert large.report().state == "split"
    finally:
        small_has_ended.set()
        assert large.wait(60) == "joined"


def test_runs_share_workers_evenly(shared_pool):
    """Of two runs that could each use all workers each gets about as much done, although one was first."""
    is_enough = threading.Event()

    def items():
        yield from itertools.takewhile(lambda _: not is_enough.is_set(), range(1_000_000))

    def work(ctx, item):
        time.sleep(0.005)

    def start():
        recorder = Recorder()
        flow = map_of(work, items, all_, reduce=(lambda total, value: total + 1, 0), into="n").with_observer(recorder)
        runs.append(flow.start("split", pool=shared_pool))
        return lambda: recorder.kinds().count("branch_finished")

    runs = []
    done_by_first = start()
    try:
        await_that(lambda: done_by_first() > 20, "the first run should be under way")
        done_by_second = start()
        await_that(lambda: done_by_second() > 20, "the second run should be under way")
        before = done_by_first(), done_by_second()
        await_that(lambda: done_by_second() - before[1] >= 200, "the second run should get on")
        done = done_by_first() - before[0]
    finally:
        is_enough.set()
        assert {run.wait(60) for run in runs} == {"joined"}
    assert 200 / 3 < done < 200 * 3


# -- pools


def pids_of(pool, count=1, **join):
    """Return the pids that served a map."""
    _, run = ran(map_of(lambda ctx, item: os.getpid(), range(count), all_, into="v", **join), pool)
    return run.store.get("v")


def in_worker(pool, fn):
    """Return what a function returns in a worker."""
    _, run = ran(map_of(lambda ctx, item: fn(), [0], all_, into="v"), pool)
    return run.store.get("v")[0]


def test_a_worker_is_replaced_after_so_many_calls():
    """With max_tasks_per_worker=n no worker serves more than n calls, and all calls are served."""
    with WorkerPool(2, max_tasks_per_worker=3) as pool:
        pids = pids_of(pool, 20)
    assert len(pids) == 20
    assert max(Counter(pids).values()) <= 3
    assert os.getpid() not in pids


def test_one_call_a_worker():
    """max_tasks_per_worker=1 gives each call a fresh process."""
    with WorkerPool(2, max_tasks_per_worker=1) as pool:
        pids = pids_of(pool, 6)
    assert len(set(pids)) == 6


def test_an_initializer_runs_first_in_every_worker():
    """The initializer has run before any task, once in each worker, those that replace others included."""

    def initialize():
        os.environ["INITIALIZED"] = f"{os.environ.get('INITIALIZED', '')}{os.getpid()};"

    with WorkerPool(2, initializer=initialize, max_tasks_per_worker=2) as pool:
        flow = map_of(lambda ctx, item: (os.getpid(), os.environ.get("INITIALIZED")), range(8), all_, into="v")
        _, run = ran(flow, pool)
    assert all(found == f"{pid};" for pid, found in run.store.get("v"))


def test_an_initializer_that_fails_fails_the_runs():
    """When the initializer raises, runs on the pool fail with an error that says so and has it as its cause."""

    def initialize():
        raise RefusalError("no licence")

    with WorkerPool(2, initializer=initialize) as pool:
        for _ in range(2):
            with pytest.raises(
                ConfigurationError, match="initializer failed in a worker: RefusalError: no licence"
            ) as caught:
                map_of(square, range(3), all_).orchestrate("split", pool=pool)
            assert isinstance(caught.value.__cause__, RefusalError)
        with pytest.raises(ConfigurationError, match="initializer failed"):
            pool.warm_up()


def test_an_initializer_that_kills_its_worker_fails_the_runs():
    """When workers die before they are ready the run fails; they are not started again for ever."""
    with (
        WorkerPool(1, initializer=lambda: os._exit(7)) as pool,
        pytest.raises(WorkerLostError, match=r"died before .* ready"),
    ):
        map_of(square, range(3), all_).orchestrate("split", pool=pool)


def test_workers_have_the_environment_they_are_given():
    """env is added to this process's environment in the workers, and nowhere else."""
    with WorkerPool(1, env={"CANOBATCH_TEST_ENV": "given"}) as pool:
        assert in_worker(pool, lambda: (os.environ.get("CANOBATCH_TEST_ENV"), os.environ.get("PATH"))) == (
            "given",
            os.environ["PATH"],
        )
    assert "CANOBATCH_TEST_ENV" not in os.environ


LIMITS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def limits(pool):
    """Return what numerical libraries in a worker are told."""
    names = list(LIMITS)
    return in_worker(pool, lambda: [os.environ.get(name) for name in names])


def test_threads_of_libraries_are_limited(monkeypatch):
    """threads_per_worker is what BLAS and OpenMP are told; what the user has set is left alone."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    with WorkerPool(1, threads_per_worker=3) as pool:
        assert limits(pool) == ["3", "3", "3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with WorkerPool(1, threads_per_worker=3, env={"MKL_NUM_THREADS": "5"}) as pool:
        assert limits(pool) == ["7", "3", "5"]


def test_by_default_workers_share_the_cores(monkeypatch):
    """Without threads_per_worker each worker may use its part of the cores, at least one."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    cores = loky.cpu_count()
    for workers in (1, cores * 2):
        with WorkerPool(workers) as pool:
            assert limits(pool) == [str(max(1, cores // workers))] * 3


def test_by_default_there_are_as_many_workers_as_cores():
    """WorkerPool() has one worker for each core of this process."""
    with WorkerPool() as pool:
        pool.warm_up()
        assert len(pool.workers) == loky.cpu_count()


def test_warming_up_starts_all_workers():
    """Before it is needed a pool has no process; after warm_up all workers are ready and idle, each in its slot."""
    with WorkerPool(3) as pool:
        assert pool.workers == ()
        pool.warm_up()
        pool.warm_up()
        infos = pool.workers
        assert [info.slot for info in infos] == [0, 1, 2]
        assert len({info.pid for info in infos}) == 3
        assert not any(info.busy for info in infos)
        assert {(info.run_id, info.state, info.branch) for info in infos} == {(None, None, None)}
        assert set(pids_of(pool, 10)) <= {info.pid for info in infos}
        assert repr(pool) == "<WorkerPool 3 workers>"


@pytest.mark.parametrize("timeout", [0, timedelta(0)])
def test_warming_up_may_take_too_long(timeout):
    """warm_up raises TimeoutError when the workers are not ready in time; the pool is still good."""
    with WorkerPool(1) as pool:
        with pytest.raises(TimeoutError, match="not ready within 0 s"):
            pool.warm_up(timeout=timeout)
        assert_works(pool)


def test_workers_say_what_they_do(shared_pool, tmp_path):
    """While calls run, workers shows which worker has which run, state and branch."""
    place = str(tmp_path)
    tasks = [Act(place=place, after=("go",)) for _ in range(2)]
    flow = Workflow("test").register_split(S.SPLIT, tasks, JoinConfig(all_, S.END)).add_exit_state(S.END)
    run = flow.start(S.SPLIT, pool=shared_pool)
    await_marks(tmp_path, "0.1", "1.1")
    busy = [info for info in shared_pool.workers if info.busy]
    mark(tmp_path, "go")
    assert run.wait(60) is S.END
    assert {(info.run_id, info.state, info.branch) for info in busy} == {(run.id, S.SPLIT, 0), (run.id, S.SPLIT, 1)}


def test_closing_twice_is_fine():
    """close ends everything, and may be called again, also on a pool that never started."""
    unused = WorkerPool(1)
    unused.close()
    unused.close()
    pool = WorkerPool(1)
    pids_of(pool)
    pool.close()
    pool.close()
    assert pool.workers == ()
    assert repr(pool) == "<WorkerPool closed>"


def test_a_closed_pool_refuses_calls():
    """A run on a closed pool fails with an error that says so."""
    with WorkerPool(1) as pool:
        pids_of(pool)
    for task in (lambda: map_of(square, [1], all_).orchestrate("split", pool=pool), pool.warm_up):
        with pytest.raises(PoolClosedError, match="the pool is closed; make another"):
            task()


def test_closing_a_pool_ends_its_runs(tmp_path):
    """A run whose pool is closed under it fails with an error that says so; nothing of it lives on."""
    with Witness(tmp_path, "task") as witness:

        def hang(ctx, item):
            scene = Scene(str(tmp_path))
            scene.enter("task")
            scene.runs("task")
            time.sleep(FOREVER)

        with WorkerPool(2) as pool:
            run = map_of(hang, [1], all_).start("split", pool=pool)
            witness.scene.await_runs("task")
        with pytest.raises(PoolClosedError, match="closed while the run used it"):
            run.wait(60)
        assert witness.survivors() == []


def test_the_default_pool_is_shared_and_can_be_closed():
    """Runs without a pool use one that the process keeps; after it was closed the next run makes another."""
    first, second = set(pids_of(None, 10)), set(pids_of(None, 10))
    assert len(first | second) <= loky.cpu_count()
    close_default_pool()
    close_default_pool()
    third = set(pids_of(None, 10))
    assert not third & (first | second)


def test_the_working_directory_travels(shared_pool, tmp_path, monkeypatch):
    """A worker works where the launcher works when the run begins a state, also after that has moved."""
    for name in ("one", "two"):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        assert in_worker(shared_pool, os.getcwd) == str(place)


def test_the_module_path_travels(shared_pool, tmp_path, monkeypatch):
    """A module that the launcher can import can be imported in workers that were started before."""
    (tmp_path / "brand_new_module.py").write_text("VALUE = 42\ndef task(ctx, item):\n    return VALUE + item\n")

    def load():
        import brand_new_module

        return brand_new_module.VALUE

    with pytest.raises(Exception, match="brand_new_module"):
        in_worker(shared_pool, load)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert in_worker(shared_pool, load) == 42
    import brand_new_module

    _, run = ran(map_of(brand_new_module.task, [1], all_, into="v"), shared_pool)
    assert run.store.get("v") == [43]
    del sys.modules["brand_new_module"]


def test_a_definition_is_sent_anew_when_it_differs(shared_pool):
    """Workflows whose tasks look alike but differ do not get each other's code or values."""
    for factor in range(5):
        _, run = ran(map_of(lambda ctx, item, factor=factor: item * factor, range(3), all_, into="v"), shared_pool)
        assert run.store.get("v") == [0, factor, 2 * factor]


def test_what_a_task_keeps_in_its_worker_stays_there(shared_pool):
    """A task may change its own object: the launcher's and the next attempt's are as they were sent."""

    @dataclass
    class Counting(Task):
        count: int = 0

        def run(self, ctx):
            self.count += 1
            return self.count

    task = Counting()
    flow = Workflow("test").register_split("split", [task] * 3, JoinConfig(all_, "end", into="v")).add_exit_state("end")
    ran(flow, shared_pool)
    assert task.count == 0
