"""Where an engine of this kind is known to be weak, and what this one does; each test has the number of its spot.

Spots of models are tested with the models (``grep -r test_w tests``).
"""

from __future__ import annotations

import os
import time

import pytest

from canobatch import (
    JoinConfig,
    JoinError,
    JoinStrategy,
    RateLimiter,
    Retry,
    RunCancelledError,
    TaskConfig,
    TaskError,
    WorkerLostError,
    Workflow,
)
from canobatch.errors import ConfigurationError, PayloadError, StoreKeyError, StoreTypeError, WorkflowError
from canobatch.models import Pending, PollTask, TimerTask
from tests.support.branches import FOREVER, Act, map_of, ran, split_of, statuses
from tests.support.models import SOON, Recorder, began, state_of
from tests.support.watch import await_that


def test_w1_a_quorum_does_not_wait_for_the_rest(shared_pool):
    """It joins at its n-th success, and kills what hangs."""
    final, run = ran(split_of([Act(), Act(), Act("hang")], JoinStrategy.quorum(2)), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["succeeded", "succeeded", "cancelled"]


def test_w1_a_percentage_does_not_wait_for_the_rest(shared_pool):
    """It joins as soon as enough have succeeded."""
    final, _ = ran(split_of([Act(), Act("hang")], JoinStrategy.percentage(0.5)), shared_pool)
    assert final == "joined"


def test_w1_a_split_that_cannot_succeed_need_not_go_on(shared_pool):
    """With fail_fast one failure of an "all" ends the others."""
    flow = split_of([Act("fail"), Act("hang")], JoinStrategy.all(), fail_fast=True)
    with pytest.raises(JoinError):
        ran(flow, shared_pool)


def test_w1_a_timeout_counts_what_was_in_time(shared_pool):
    """A partial join that has its successes at the timeout joins."""
    flow = split_of([Act(), Act("hang")], JoinStrategy.partial_timeout(), timeout=SOON)
    assert ran(flow, shared_pool)[0] == "joined"


HOPELESS = [ConfigurationError, WorkflowError, PayloadError, StoreKeyError, StoreTypeError]


@pytest.mark.parametrize("kind", HOPELESS, ids=lambda kind: kind.__name__)
def test_w9_what_cannot_be_mended_is_not_retried(kind, shared_pool):
    """Mistakes of the definition, and of keys and types, fail at the first attempt."""

    def task(ctx):
        raise kind("never")

    run = began(state_of(task, config=TaskConfig(retry=Retry.fixed(5, 0))), shared_pool)
    with pytest.raises(TaskError, match="never"):
        run.wait(30)
    assert run.report().states[0].attempts == 1


@pytest.mark.parametrize(("kind", "attempts"), [(OSError, 3), (ConnectionError, 3), (ValueError, 1)])
def test_w9_who_retries_says_which_errors(kind, attempts, shared_pool):
    """Only what retry_on names, and what derives from it, is tried again."""

    def task(ctx):
        raise kind("now and then")

    run = began(state_of(task, config=TaskConfig(retry=Retry.fixed(2, 0), retry_on=(OSError,))), shared_pool)
    with pytest.raises(TaskError):
        run.wait(30)
    assert run.report().states[0].attempts == attempts


def test_w9_a_missing_key_is_retried_by_who_asks_for_it(shared_pool):
    """Where another run may put the key, retry_on can name the error."""

    def task(ctx):
        if ctx.attempt < 3:
            ctx.store.get("not yet")
        return "end"

    config = TaskConfig(retry=Retry.fixed(2, 0), retry_on=(StoreKeyError,))
    assert began(state_of(task, config=config), shared_pool).wait(30) == "end"


def test_w10_a_crash_is_an_attempt_by_policy(shared_pool):
    """A task that takes its worker along is retried, or not, as its configuration says."""

    def task(ctx):
        if ctx.attempt == 1:
            os._exit(1)
        return "end"

    retry = Retry.fixed(1, 0)
    assert began(state_of(task, config=TaskConfig(retry=retry, where="worker")), shared_pool).wait(30) == "end"
    strict = TaskConfig(retry=retry, where="worker", retry_lost_worker=False)
    with pytest.raises(WorkerLostError):
        began(state_of(task, config=strict), shared_pool).wait(30)


def test_w10_an_observer_that_raises_fails_nothing(shared_pool):
    """Also when it is told of a retry."""

    class Angry:
        def on_event(self, event):
            raise RuntimeError("no")

    def task(ctx):
        if ctx.attempt == 1:
            raise OSError("once")
        return "end"

    flow = state_of(task, config=TaskConfig(retry=Retry.fixed(1, 0)), observer=Angry())
    assert began(flow, shared_pool).wait(30) == "end"


@pytest.mark.parametrize("states", [["end", "other"], ("end", "other"), {"end"}])
def test_w17_several_states_are_refused_with_the_cure(states, shared_pool):
    """A single task returns one state; the error says what runs many tasks."""
    with pytest.raises(WorkflowError, match="use register_split or register_map"):
        began(state_of(lambda: states), shared_pool).wait(30)


def test_w17_the_values_of_branches_are_kept(shared_pool):
    """What branches return is not thrown away."""
    _, run = ran(split_of([Act(value="a"), Act(value="b")], JoinStrategy.all(), into="values"), shared_pool)
    assert run.store.get("values") == ["a", "b"]


def test_w18_updates_do_not_race(shared_pool):
    """Branches that update, add and append at once lose nothing."""

    def change(ctx, item):
        ctx.store.update("most", lambda value: max(value, item), default=0)
        ctx.store.add("sum", item)
        ctx.store.append("all", item)

    _, run = ran(map_of(change, range(40), JoinStrategy.all()), shared_pool)
    assert run.store.get("most") == 39
    assert run.store.get("sum") == sum(range(40))
    assert run.store.get("all") == list(range(40))


def test_w21_two_states_of_one_name_are_refused():
    """Names of states are checked to be unique before anything runs."""

    class Same:
        def __repr__(self):
            return "same"

    with pytest.raises(ConfigurationError, match="two states are both called same"):
        Workflow("test").register(Same(), lambda: "end").register(Same(), lambda: "end").add_exit_state(
            "end"
        ).validate()


def test_w22_events_say_whose_they_are_and_balance(shared_pool):
    """Each has its run, number and time; runs and compensations end as often as they begin, branches all end."""
    seen = Recorder()
    flow = split_of([Act(), Act("fail")], JoinStrategy.all(), on_failure="failed").with_observer(seen)
    runs = [flow.start("split", pool=shared_pool, run_id=name) for name in ("one", "two")]
    assert [run.wait(30) for run in runs] == ["failed", "failed"]
    for name in ("one", "two"):
        own = [event for event in seen.events if event.run_id == name]
        assert [event.seq for event in own] == list(range(1, len(own) + 1))
        assert own[0].kind == "run_started"
        assert own[-1].kind == "run_finished"
        assert sorted(event.branch for event in own if event.kind == "branch_finished") == [0, 1]


def test_w24_jitter_does_not_exceed_the_cap():
    """The longest delay is the longest that was asked for."""
    retry = Retry.exponential(20, base=1.0, max_delay=30.0, jitter=1.0)
    assert max(retry.delay(k, lambda: 0.999) for k in range(1, 21)) == 30.0


def test_w26_a_failed_split_keeps_every_error(shared_pool):
    """The JoinError has each branch's own error, of its own kind."""
    flow = split_of([Act("fail"), Act("die"), Act("fail"), Act("fail"), Act("fail")], JoinStrategy.all())
    with pytest.raises(JoinError) as caught:
        ran(flow, shared_pool)
    errors = [branch.error for branch in caught.value.result.errors]
    assert len(errors) == 5
    assert isinstance(errors[1], WorkerLostError)
    assert all("refuses" in str(error) for index, error in enumerate(errors) if index != 1)


def test_w29_a_percentage_that_is_no_number_is_refused():
    """NaN is not satisfied by anything; it is a configuration error."""
    flow = split_of([Act()], JoinStrategy.percentage(float("nan")))
    with pytest.raises(ConfigurationError):
        flow.validate()


def test_w29_a_loser_that_never_looks_up_is_dead_all_the_same(shared_pool, tmp_path):
    """Losers are killed, not asked."""
    place = str(tmp_path)
    tasks = [Act(place=place, after=("1.1",)), Act("hang", place=place)]
    final, run = ran(split_of(tasks, JoinStrategy.any()), shared_pool)
    assert final == "joined"
    assert statuses(run) == ["succeeded", "cancelled"]


def test_w8_the_total_timeout_holds_between_states(shared_pool):
    """Many short states do not overrun it."""
    flow = Workflow("test", total_timeout=0.5).add_exit_state("end")
    flow.register("S", lambda ctx: time.sleep(0.01) or "S")
    began_at = time.monotonic()
    with pytest.raises(TimeoutError):
        began(flow, shared_pool).wait(30)
    assert time.monotonic() - began_at < 20


#: Seconds for which no call of the system can wait.
AGES = 1e300


class Sleeper(TimerTask):
    """Waits for ages."""

    def wait(self):
        return AGES

    def after_wait(self):
        return "end"


class Poller(PollTask):
    """Is never ready."""

    def poll(self):
        return Pending(AGES)


def fail():
    """A task that fails."""
    raise OSError("no")


def spent():
    """Return a limiter that has nothing left for ages."""
    limiter = RateLimiter(1, per=AGES)
    limiter.acquire()
    return limiter


@pytest.mark.parametrize(
    "flow",
    [
        state_of(Sleeper()),
        state_of(Poller()),
        state_of(fail, config=TaskConfig(retry=Retry.fixed(1, AGES))),
        state_of(Act("hang"), total_timeout=AGES, config=TaskConfig(attempt_timeout=AGES)),
        state_of(Act("hang"), config=TaskConfig(where="worker", rate_limiter=spent())),
    ],
    ids=["timer", "poll", "retry", "timeouts", "limiter"],
)
def test_a_wait_for_ages_is_a_wait(flow, shared_pool):
    """However long a delay or a limit is, it is kept, and a cancel ends it."""
    run = began(flow, shared_pool)
    await_that(lambda: run.report().state == "S", "the state should be entered")
    with pytest.raises(TimeoutError, match="has not ended"):
        run.wait(0.3)
    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(AGES)


def test_w25_a_branch_in_its_back_off_holds_no_place(shared_pool, tmp_path):
    """Under a bulkhead of one, another branch runs while the first waits for its next attempt."""
    config = TaskConfig(retry=Retry.fixed(1, FOREVER))
    tasks = [Act("fail", config=config), Act()]
    seen = Recorder()
    flow = Workflow("test").add_exit_state("joined").with_observer(seen)
    flow.register_split("split", tasks, JoinConfig(JoinStrategy.any(), "joined", bulkhead=1))
    run = flow.start("split", pool=shared_pool)
    assert run.wait(30) == "joined"
    await_that(lambda: seen.kinds()[-1] == "run_finished", "the run should end")
    assert [event.branch for event in seen.of("retry")] == [0]
