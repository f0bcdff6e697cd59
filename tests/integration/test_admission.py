"""What is asked before an attempt is sent: breakers, limiters and shared bulkheads, with real workers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from canobatch import (
    CircuitBreaker,
    Counter,
    JoinConfig,
    JoinStrategy,
    MultiRateLimiter,
    RateLimiter,
    Retry,
    Semaphore,
    TaskConfig,
    WindowedRateLimiter,
    WorkerPool,
    Workflow,
)
from canobatch.errors import (
    CircuitOpenError,
    ConfigurationError,
    JoinError,
    RateLimitedError,
    RetryExhaustedError,
    RunCancelledError,
    TaskError,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowTimeoutError,
)
from canobatch.journal import SqliteJournal
from canobatch.models import More, Pending, PollTask, Ready, SteppedTask
from tests.support.branches import FOREVER, Act, await_marks, mark, marks, ran, split_of, statuses
from tests.support.tasks import assert_works, square
from tests.support.watch import await_that

NEVER = 100_000.0


def single(task, **config):
    """A workflow of one task in state "s", that ends in "end" or "failed"."""
    config.setdefault("where", "parent")
    flow = Workflow("single").register("s", task, config=TaskConfig(**config))
    return flow.add_exit_states(["end", "failed"])


def tripped(reset=NEVER, **settings):
    """A breaker that has opened."""
    breaker = CircuitBreaker(1, reset, **settings)
    breaker.acquire().fail()
    assert breaker.state == "open"
    return breaker


class Kinds:
    """Keeps what events there were."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if event.kind == kind]


# ---------------------------------------------------------------- circuit breakers


@pytest.mark.parametrize("where", ["parent", "worker"])
def test_an_open_breaker_lets_no_attempt_be_made(where, tmp_path):
    """The task is not run; its error names the state, says for how long, and counts no attempt."""

    def task():
        mark(tmp_path, "ran")
        return "end"

    watch = Kinds()
    flow = single(task, circuit_breaker=tripped(), retry=Retry.fixed(3, 0.0), where=where).with_observer(watch)
    with WorkerPool(1) as pool:
        run = flow.start("s", pool=pool)
        with pytest.raises(CircuitOpenError, match=r"state 's', attempt 1, was not made: .* is open") as caught:
            run.wait(60)
    assert caught.value.attempt == 0
    assert caught.value.state == "s"
    assert 0 < caught.value.retry_after <= NEVER
    assert marks(tmp_path) == set()
    assert run.report().states[0].attempts == 0
    assert [event.state for event in watch.of("circuit_open")] == ["s"]
    assert watch.of("retry") == []


def test_an_open_breaker_of_a_task_with_on_error_leads_there():
    """It is a failure for good like any other."""
    flow = Workflow("w").register("s", lambda: "end", on_error="failed", config=TaskConfig(circuit_breaker=tripped()))
    assert flow.add_exit_states(["end", "failed"]).orchestrate("s") == "failed"


def test_a_breaker_that_opens_midway_ends_the_retries():
    """Of six allowed attempts two are made; the rest are not, and the error is the breaker's, not of the retries."""
    calls = []

    def fails():
        calls.append(1)
        raise OSError

    flow = single(fails, circuit_breaker=CircuitBreaker(2, NEVER), retry=Retry.fixed(5, 0.0))
    with pytest.raises(CircuitOpenError) as caught:
        flow.orchestrate("s")
    assert len(calls) == 2
    assert caught.value.attempt == 2


def test_a_breaker_is_waited_for_when_its_error_is_to_be_retried():
    """With CircuitOpenError in retry_on the task waits for its trial, without using an attempt."""
    breaker = tripped(reset=0.05)
    flow = single(
        lambda ctx: "end" if ctx.attempt == 1 else "failed", circuit_breaker=breaker, retry_on=(CircuitOpenError,)
    )
    run = flow.start("s")
    assert run.wait(60) == "end"
    assert run.report().states[0].attempts == 1
    assert breaker.state == "closed"


def test_a_task_that_waits_for_a_trial_gets_the_next():
    """Where all trials are under way, the end of one is what is waited for, not a time."""
    breaker = tripped(reset=0.0)
    trial = breaker.acquire()
    watch = Kinds()
    flow = single(lambda: "end", circuit_breaker=breaker, retry_on=(CircuitOpenError,)).with_observer(watch)
    run = flow.start("s")
    await_that(lambda: watch.of("state_entered"), "the state should be entered")
    trial.release()
    assert run.wait(30) == "end"


def test_a_breaker_recovers_by_a_trial():
    """After its time one call is let through; its success closes the breaker."""
    breaker = tripped(reset=0.01)
    time.sleep(0.02)
    assert single(lambda: "end", circuit_breaker=breaker).orchestrate("s") == "end"
    assert breaker.state == "closed"


def test_successes_close_the_row_of_failures():
    """An attempt that succeeds at last begins the count anew."""
    breaker = CircuitBreaker(2, NEVER)

    def mends(ctx):
        if ctx.attempt == 1:
            raise OSError
        return "end"

    flow = single(mends, circuit_breaker=breaker, retry=Retry.fixed(1, 0.0))
    for _ in range(4):
        assert flow.orchestrate("s") == "end"
    assert breaker.state == "closed"


def test_a_breaker_is_shared_by_tasks_and_workflows():
    """What trips it in one workflow stops a task of another."""

    def fails():
        raise OSError

    breaker = CircuitBreaker(2, NEVER)
    for _ in range(2):
        with pytest.raises(TaskError, match="OSError"):
            single(fails, circuit_breaker=breaker).orchestrate("s")
    with pytest.raises(CircuitOpenError):
        single(lambda: "end", circuit_breaker=breaker).orchestrate("s")


def hangs():
    time.sleep(FOREVER)


def dies():
    os._exit(3)


@pytest.mark.parametrize(
    ("task", "config", "error"),
    [
        (hangs, {"attempt_timeout": 0.1}, TaskTimeoutError),
        (dies, {}, WorkerLostError),
    ],
)
def test_a_timeout_and_a_lost_worker_count_as_failures(task, config, error):
    """However an attempt fails, the breaker counts it."""
    breaker = CircuitBreaker(1, NEVER)
    flow = single(task, circuit_breaker=breaker, where="worker", **config)
    with WorkerPool(1) as pool:
        with pytest.raises(error):
            flow.orchestrate("s", pool=pool)
        assert breaker.state == "open"
        with pytest.raises(CircuitOpenError):
            flow.orchestrate("s", pool=pool)
        assert_works(pool)


def test_branches_share_a_breaker():
    """Failures of branches in workers open it for the branches that are still to come."""
    breaker = CircuitBreaker(2, NEVER)
    tasks = [Act("fail", config=TaskConfig(circuit_breaker=breaker)) for _ in range(6)]
    flow = split_of(tasks, JoinStrategy.all(), on_failure="failed")
    with WorkerPool(1) as pool:
        state, run = ran(flow, pool)
    assert state == "failed"
    branches = run.report().splits["split"]
    assert statuses(run) == ["failed"] * 6
    assert [branch.attempts for branch in branches] == [1, 1, 0, 0, 0, 0]
    assert [type(branch.error) for branch in branches[2:]] == [CircuitOpenError] * 4
    assert "branch 2" in str(branches[2].error)


def test_w7_killed_losers_count_as_neither(tmp_path):
    """Losers of an any() neither open a closed breaker nor keep the place of a trial."""
    breaker = CircuitBreaker(1, 0.0, half_open_max_calls=3)
    config = TaskConfig(circuit_breaker=breaker)
    place = str(tmp_path)

    def flow():
        losers = [Act("hang", place, config=config), Act("hang", place, config=config)]
        winner = Act("ok", place, ("0.1", "1.1"), config=TaskConfig())
        return split_of([*losers, winner], JoinStrategy.any())

    with WorkerPool(3) as pool:
        assert ran(flow(), pool)[0] == "joined"
        assert breaker.state == "closed"
        breaker.acquire().fail()
        for name in marks(place):
            Path(place, name).unlink()
        # Two trials that are killed: half open still, with all its places.
        assert ran(flow(), pool)[0] == "joined"
        assert breaker.state == "half_open"
        permits = [breaker.acquire() for _ in range(3)]
        for permit in permits:
            permit.succeed()
        assert breaker.state == "closed"


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_w7_a_run_that_is_cut_counts_as_neither(how, tmp_path):
    """A cancel or the run's timeout is no failure of what the breaker protects."""
    breaker = tripped(reset=0.0)

    def task():
        mark(tmp_path, "runs")
        time.sleep(FOREVER)

    flow = Workflow("w", total_timeout=None if how == "cancel" else 1.0)
    flow.register("s", task, config=TaskConfig(circuit_breaker=breaker, where="worker")).add_exit_state("end")
    with WorkerPool(1) as pool:
        pool.warm_up()
        run = flow.start("s", pool=pool)
        if how == "cancel":
            await_marks(tmp_path, "runs")
            run.cancel()
        with pytest.raises((RunCancelledError, WorkflowTimeoutError)):
            run.wait(60)
    assert breaker.state == "half_open"
    breaker.acquire().succeed()
    assert breaker.state == "closed"


def test_a_breaker_that_lets_all_through_changes_nothing():
    """A map with a closed breaker gives what it gives without one."""
    flow = Workflow("w").register_map(
        "s",
        square,
        range(50),
        JoinConfig(JoinStrategy.all(), "end", into="v"),
        config=TaskConfig(circuit_breaker=CircuitBreaker()),
    )
    with WorkerPool(2) as pool:
        run = flow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
    assert run.store.get("v") == [n * n for n in range(50)]


def test_an_open_breaker_by_hand_fails_its_attempt_and_is_not_retried():
    """Unless it is named: then the next attempt waits until the breaker lets calls through."""
    calls = []

    def by_hand(ctx):
        calls.append(ctx.attempt)
        with guard.acquire():
            return "end"

    guard = tripped()
    with pytest.raises(TaskError) as caught:
        single(by_hand, retry=Retry.fixed(3, 0.0)).orchestrate("s")
    assert isinstance(caught.value.__cause__, CircuitOpenError)
    assert calls == [1]
    guard = tripped(reset=0.1)
    assert single(by_hand, retry=Retry.fixed(1, 0.0), retry_on=(CircuitOpenError,)).orchestrate("s") == "end"
    assert calls == [1, 1, 2]


# ---------------------------------------------------------------- limiters


def begun(ctx, item):
    return time.monotonic()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RateLimiter(1, per=0.1, burst=2),
        lambda: MultiRateLimiter({"a": RateLimiter(1, per=0.1, burst=2), "b": WindowedRateLimiter(1000, 60.0)}),
    ],
)
def test_branches_begin_no_faster_than_the_limiter_lets_them(make):
    """Ten calls with three at once and then ten per second take 0.7 s at least; each is one attempt."""
    flow = Workflow("w").register_map(
        "s",
        begun,
        range(10),
        JoinConfig(JoinStrategy.all(), "end", into="at"),
        config=TaskConfig(rate_limiter=make()),
    )
    with WorkerPool(2) as pool:
        pool.warm_up()
        started = time.monotonic()
        run = flow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
    at = sorted(run.store.get("at"))
    # The k-th call may begin when its token is there, no sooner.
    assert all(moment - started >= (k - 2) * 0.1 - 0.001 for k, moment in enumerate(at))
    assert {branch.attempts for branch in run.report().splits["s"]} == {1}


def test_waiting_for_a_limiter_occupies_no_worker():
    """While a run waits for tokens that will not come, the only worker serves others."""
    empty = RateLimiter(1, per=NEVER)
    empty.acquire()
    flow = single(lambda: "end", rate_limiter=empty, where="worker")
    split = split_of([Act(config=TaskConfig(rate_limiter=empty))], JoinStrategy.all())
    with WorkerPool(1) as pool:
        pool.warm_up()
        runs = [flow.start("s", pool=pool), split.start("split", pool=pool)]
        assert_works(pool)
        for run in runs:
            run.cancel()
            with pytest.raises(RunCancelledError):
                run.wait(60)


def test_the_timeout_of_a_split_cuts_who_waits_for_a_limiter():
    """Waiting counts for the split's time, and leaves a branch that was not started."""
    limiter = RateLimiter(1, per=NEVER)
    tasks = [Act(config=TaskConfig(rate_limiter=limiter)) for _ in range(3)]
    flow = split_of(tasks, JoinStrategy.partial_timeout(), timeout=3.0)
    with WorkerPool(2) as pool:
        pool.warm_up()
        state, run = ran(flow, pool)
    assert state == "joined"
    assert statuses(run) == ["succeeded", "not_started", "not_started"]


def test_a_limiter_that_can_never_let_a_call_through_is_an_error_at_once():
    """Not a wait for ever: the TaskConfig is refused."""
    with pytest.raises(ConfigurationError, match="rate_limiter: a call that costs 1 can never be made"):
        TaskConfig(rate_limiter=RateLimiter(0.5))
    with pytest.raises(ConfigurationError, match="rate_limiter must be"):
        TaskConfig(rate_limiter=Semaphore(1))
    with pytest.raises(ConfigurationError, match="circuit_breaker must be"):
        TaskConfig(circuit_breaker=RateLimiter(1))


def test_an_open_breaker_costs_no_tokens():
    """What is not sent is not paid for."""
    limiter = WindowedRateLimiter(10, NEVER)
    flow = single(lambda: "end", rate_limiter=limiter, circuit_breaker=tripped())
    with pytest.raises(CircuitOpenError):
        flow.orchestrate("s")
    assert limiter.used == 0


@pytest.mark.parametrize("where", ["parent", "worker"])
def test_w9_the_next_attempt_waits_as_long_as_a_rate_limit_error_asks(where):
    """retry_after counts when it is longer than the delay of the Retry; the attempt is used."""

    def asks(ctx, *item):
        moments = [*ctx.store.get("never", []), time.monotonic()]
        if ctx.attempt == 1:
            raise RateLimitedError("429", retry_after=0.3)
        return "end" if not item else moments[0]

    watch = Kinds()
    config = TaskConfig(retry=Retry.fixed(1, 0.0), where="worker" if where == "worker" else None)
    with WorkerPool(1) as pool:
        pool.warm_up()
        flow = Workflow("w").with_observer(watch).register("s", asks, config=config).add_exit_state("end")
        started = time.monotonic()
        run = flow.start("s", pool=pool)
        assert run.wait(60) == "end"
        assert time.monotonic() - started >= 0.3
        assert run.report().states[0].attempts == 2
        (retry,) = watch.of("retry")
        assert retry.detail.__cause__.retry_after == 0.3
        join = JoinConfig(JoinStrategy.all(), "end", into="at")
        flow = Workflow("m", default_config=TaskConfig(retry=Retry.fixed(1, 0.0)))
        flow.register_map("s", asks, [1], join).add_exit_state("end")
        started = time.monotonic()
        run = flow.start("s", pool=pool)
        run.wait(60)
        assert run.store.get("at")[0] - started >= 0.3


def test_w9_what_no_attempt_can_mend_is_not_retried():
    """A ConfigurationError of the task's own ends it at once."""
    calls = []

    def task():
        calls.append(1)
        raise ConfigurationError("no such model")

    with pytest.raises(TaskError):
        single(task, retry=Retry.fixed(5, 0.0)).orchestrate("s")
    assert calls == [1]


def test_a_lost_worker_is_retried_by_policy(tmp_path):
    """With retry_lost_worker the next attempt follows, without it there is none."""
    with WorkerPool(1) as pool:
        flow = split_of([Act("die ok", config=TaskConfig(retry=Retry.fixed(1, 0.0)))], JoinStrategy.all())
        assert ran(flow, pool)[0] == "joined"
        config = TaskConfig(retry=Retry.fixed(1, 0.0), retry_lost_worker=False)
        flow = split_of([Act("die ok", config=config)], JoinStrategy.all())
        with pytest.raises(JoinError) as caught:
            ran(flow, pool)
        assert not isinstance(caught.value.result[0].error, RetryExhaustedError)
        assert caught.value.result[0].attempts == 1


# ---------------------------------------------------------------- shared bulkheads


def inside(ctx, item):
    """Note how many are inside at a time."""
    count = ctx.resource("inside", Counter)
    now = count.add(1)
    time.sleep(0.01)
    count.add(-1)
    return now


def crowded(name, places, count, branches):
    flow = Workflow(name, resources={"inside": count})
    join = JoinConfig(JoinStrategy.all(), "end", bulkhead=places, into="v")
    return flow.register_map("s", inside, range(branches), join).add_exit_state("end")


def test_w25_a_bulkhead_shared_by_several_splits_and_workflows():
    """Never more than its places run in all of them together, and all of them come to their end."""
    places, count = Semaphore(2), Counter()
    with WorkerPool(4) as pool:
        runs = [crowded(name, places, count, 15).start("s", pool=pool) for name in ("a", "b", "c")]
        for run in runs:
            assert run.wait(60) == "end"
            seen = run.store.get("v")
            assert len(seen) == 15
            assert max(seen) <= 2
    assert places.free == 2


def test_splits_that_share_a_bulkhead_take_turns():
    """A run of two branches does not wait for all forty of another."""
    places, order = Semaphore(1), Counter()

    def flow(name, branches):
        join = JoinConfig(JoinStrategy.all(), "end", bulkhead=places, into="v")
        flow = Workflow(name, resources={"order": order})
        return flow.register_map("s", lambda ctx, _: ctx.resource("order").add(), range(branches), join)

    with WorkerPool(2) as pool:
        with places.acquire():
            runs = []
            for name, branches in (("long", 40), ("short", 2)):
                runs.append(flow(name, branches).add_exit_state("end").start("s", pool=pool))
                await_that(lambda: len(places._line) == len(runs), f"{name} should stand in line")
        assert [run.wait(60) for run in runs] == ["end", "end"]
        assert runs[1].store.get("v") == [2, 4]


def test_w25_a_branch_in_its_back_off_holds_no_place(tmp_path):
    """With one place, a branch that waits a long time for its next attempt lets another run."""
    config = TaskConfig(retry=Retry.fixed(1, NEVER))
    tasks = [Act("fail", str(tmp_path), config=config), Act("ok")]
    flow = split_of(tasks, JoinStrategy.any(), bulkhead=Semaphore(1))
    with WorkerPool(1) as pool:
        state, run = ran(flow, pool)
    assert state == "joined"
    assert statuses(run)[1] == "succeeded"


def test_a_bulkhead_s_places_return_when_branches_are_killed(tmp_path):
    """Losers hold places until they are dead; then all are free."""
    place, places = str(tmp_path), Semaphore(3)
    tasks = [Act("hang", place), Act("hang", place), Act("ok", place, ("0.1", "1.1"))]
    with WorkerPool(3) as pool:
        assert ran(split_of(tasks, JoinStrategy.any(), bulkhead=places), pool)[0] == "joined"
        assert places.free == 3


def test_a_worker_that_dies_gives_its_branch_s_place_back():
    """The death of a worker frees the place that its call had."""
    places = Semaphore(1)
    config = TaskConfig(retry=Retry.fixed(1, 0.0))
    flow = split_of([Act("die ok", config=config), Act("ok")], JoinStrategy.all(), bulkhead=places)
    with WorkerPool(2) as pool:
        assert ran(flow, pool)[0] == "joined"
    assert places.free == 1


@pytest.mark.parametrize("bulkhead", [0, "2", RateLimiter(1)])
def test_an_impossible_bulkhead_is_refused(bulkhead):
    """A bulkhead is a number or a Semaphore."""
    with pytest.raises(ConfigurationError, match="bulkhead must be"):
        split_of([Act()], JoinStrategy.all(), bulkhead=bulkhead).validate()


def test_what_waits_for_a_bulkhead_held_elsewhere_goes_on_when_it_is_left():
    """A place that a thread of the launcher holds by hand keeps branches from being sent, until it leaves."""
    places = Semaphore(1)
    held = places.acquire()
    with WorkerPool(1) as pool:
        pool.warm_up()
        run = split_of([Act()], JoinStrategy.all(), bulkhead=places).start("split", pool=pool)
        assert_works(pool)
        held.release()
        assert run.wait(60) == "joined"


# ---------------------------------------------------------------- models


class Steps(SteppedTask):
    """Fails at its third step."""

    def __init__(self, config):
        self.config = config
        self.taken = []

    def step(self, ctx, cursor):
        self.taken.append(cursor)
        if cursor == 2:
            raise OSError
        return More((cursor or 0) + 1)


def test_each_step_of_a_model_asks_the_breaker():
    """What fails counts, and when the breaker opens no further attempt of the step is made."""
    task = Steps(TaskConfig(circuit_breaker=CircuitBreaker(2, NEVER), retry=Retry.fixed(5, 0.0)))
    with pytest.raises(CircuitOpenError) as caught:
        Workflow("w").register("s", task).add_exit_state("end").orchestrate("s")
    assert task.taken == [None, 1, 2, 2]
    assert caught.value.attempt == 2


class Polls(PollTask):
    """Ready at the third time."""

    def __init__(self, config):
        self.config = config
        self.polls = []

    def poll(self, ctx):
        self.polls.append(time.monotonic())
        return Ready("end") if len(self.polls) == 3 else Pending(0.0)


def test_each_poll_of_a_model_waits_for_the_limiter():
    """Polls come no faster than the limiter lets them."""
    task = Polls(TaskConfig(rate_limiter=RateLimiter(1, per=0.05)))
    started = time.monotonic()
    assert Workflow("w").register("s", task).add_exit_state("end").orchestrate("s") == "end"
    assert task.polls[2] - started >= 0.1 - 0.001


# ---------------------------------------------------------------- resume


def fails_while_marked(ctx, item):
    if Path(item, "broken").exists() and ctx.branch == 2:
        raise OSError
    return ctx.branch


def test_what_was_recorded_asks_nobody_again(tmp_path):
    """A resumed split pays for the branch that is run again, not for those that are kept."""
    window = WindowedRateLimiter(100, NEVER)
    flow = Workflow("w", journal=SqliteJournal(tmp_path / "journal")).register_map(
        "s",
        fails_while_marked,
        [str(tmp_path)] * 4,
        JoinConfig(JoinStrategy.all(), "end", into="v"),
        config=TaskConfig(rate_limiter=window),
    )
    mark(tmp_path, "broken")
    with WorkerPool(2) as pool:
        run = flow.add_exit_state("end").start("s", pool=pool)
        with pytest.raises(JoinError):
            run.wait(60)
        assert window.used == 4
        Path(tmp_path, "broken").unlink()
        resumed = flow.start_resume(run.id, pool=pool)
        assert resumed.wait(60) == "end"
    assert resumed.store.get("v") == [0, 1, 2, 3]
    assert window.used == 5
