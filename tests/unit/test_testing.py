"""The kit for tests of workflows, used as its users do."""

from __future__ import annotations

import multiprocessing
import threading
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

import pytest

from canobatch import JoinConfig, JoinStrategy, MemoryStore, Retry, Task, TaskConfig, Workflow
from canobatch.errors import (
    JoinError,
    PayloadError,
    RetryExhaustedError,
    TaskError,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowTimeoutError,
)
from canobatch.join import BranchStatus
from canobatch.models import CompensatableTask, Pending, PollTask, Ready, TimerTask
from canobatch.resources import Resource
from canobatch.testing import (
    FakeClock,
    InlineBackend,
    RecordingObserver,
    assert_all_states_entered,
    assert_balanced,
    assert_compensation_ran,
    assert_path,
    failing,
)

any_, all_, quorum = JoinStrategy.any(), JoinStrategy.all(), JoinStrategy.quorum


class S(Enum):
    """States of the example."""

    START = auto()
    COUNT = auto()
    REPORT = auto()
    DONE = auto()


def load(ctx):
    """Put texts into the store."""
    ctx.store.put("texts", ["a b", "a c", "b b"])
    return S.COUNT


class Count(Task):
    """Counts the words of one text."""

    config = TaskConfig(retry=Retry.exponential(3, base=10.0), attempt_timeout=30.0)

    def __init__(self, index):
        self.index = index

    def run(self, ctx):
        ctx.store.append("seen", self.index)
        return len(ctx.store.get("texts")[self.index].split())


def report(ctx):
    """Read what the split came to."""
    ctx.store.put("total", sum(ctx.store.get("counts")))
    return S.DONE


def words(**join):
    """The example of the README."""
    return (
        Workflow("words", store=MemoryStore())
        .register(S.START, load)
        .register_split(S.COUNT, [Count(n) for n in range(3)], JoinConfig(all_, S.REPORT, into="counts", **join))
        .register(S.REPORT, report)
        .add_exit_state(S.DONE)
    )


def mapped(fn, items, strategy, *, config=None, **join):
    """A workflow of one map, from "m" to "end"."""
    flow = Workflow("m").register_map("m", fn, items, JoinConfig(strategy, "end", **join), config=config)
    return flow.add_exit_states(["end", "failed"])


# -- the example of the module


def test_a_flaky_count_is_retried(inline_backend, fake_clock, recording):
    """What the documentation shows works."""
    inline_backend.fail("COUNT", OSError("disk"), branch=1, attempts=2)
    run = words().with_observer(recording).start(S.START, pool=inline_backend)
    run.wait(30)
    assert_path(run, ["START", "COUNT", "REPORT", "DONE"])
    assert run.store.get("counts") == [2, 2, 2]
    assert [event.branch for event in recording.of("retry")] == [1, 1]
    assert fake_clock.elapsed > 10.0
    assert_balanced(recording)


# -- inline backend


def test_branches_run_in_order_in_this_thread_s_process(inline_backend):
    """One after the other, with the store, effects in branch order, and no process."""
    before = threading.active_count()
    run = words().start(S.START, pool=inline_backend)
    assert run.wait(30) is S.DONE
    assert inline_backend.calls == [(S.COUNT, n, 1) for n in range(3)]
    assert run.store.get("total") == 6
    assert run.store.get("seen") == [0, 1, 2]
    assert threading.active_count() <= before
    assert not multiprocessing.active_children()


def test_a_strategy_that_is_satisfied_begins_nothing_more(inline_backend, recording):
    """What a pool would kill is not begun."""
    flow = mapped(lambda ctx, item: item, range(10), quorum(3), into="v").with_observer(recording)
    run = flow.start("m", pool=inline_backend)
    run.wait(30)
    assert run.store.get("v") == [0, 1, 2]
    assert len(inline_backend.calls) == 3
    assert {str(branch.status) for branch in run.report().splits["m"][3:]} == {"not_started"}
    assert_balanced(recording)


def test_the_same_run_takes_the_same_course(recording):
    """Two runs tell the same story."""
    stories = []
    for _ in range(2):
        recording.clear()
        flow = mapped(failing(lambda ctx, item: item, ValueError("no")), range(4), any_, on_failure="failed")
        with FakeClock(), InlineBackend() as pool:
            flow.with_observer(recording).orchestrate("m", pool=pool)
        stories.append([event[1:7] for event in recording.events])
    assert stories[0] == stories[1]
    assert len(stories[0]) > 5


def test_tasks_get_copies_and_what_cannot_be_sent_fails_here_too(inline_backend):
    """As in a worker: a closure's list stays as it was, and what does not pickle is a PayloadError."""
    seen = []
    mapped(lambda ctx, item: seen.append(item), [1], all_).orchestrate("m", pool=inline_backend)
    assert seen == []
    with pytest.raises(JoinError) as caught:
        mapped(lambda ctx, item: threading.Lock(), [1], all_).orchestrate("m", pool=inline_backend)
    assert isinstance(caught.value.result[0].error, PayloadError)


def test_a_failed_attempt_leaves_nothing(inline_backend):
    """Writes of a branch that failed are not committed."""

    def work(ctx, item):
        ctx.store.append("seen", item)
        if item == 1:
            raise ValueError("no")

    run = mapped(work, range(3), quorum(2)).start("m", pool=inline_backend)
    run.wait(30)
    assert run.store.get("seen") == [0, 2]


class Tool(Resource):
    """Lives in workers."""

    scope = "worker"
    torn_down = 0

    def setup(self):
        self.size = 7

    def teardown(self):
        Tool.torn_down += 1


def test_contexts_are_whole(inline_backend, recording):
    """A task has its params, ids, earlier splits, progress and resources."""

    def second(ctx, item):
        ctx.progress(1, 2, "half")
        return (ctx.params["n"], ctx.state, ctx.branch, ctx.attempt, ctx.split("a").values, ctx.resource("r").size)

    flow = (
        Workflow("w", resources={"r": Tool()})
        .register_map("a", lambda ctx, item: item, [5], JoinConfig(all_, "b"))
        .register_map("b", second, [0], JoinConfig(all_, "end", into="v"))
        .add_exit_state("end")
        .with_observer(recording)
    )
    run = flow.start("a", pool=inline_backend, params={"n": 3})
    run.wait(30)
    assert run.store.get("v") == [(3, "b", 0, 1, [5], 7)]
    assert [event.detail for event in recording.of("progress")] == [(1, 2, "half")]
    inline_backend.close()
    assert Tool.torn_down == 1


def test_single_tasks_that_run_in_workers_run_inline(inline_backend):
    """With where="worker" a single task comes here as well."""
    flow = Workflow("w").register("a", lambda: "b", config=TaskConfig(where="worker")).add_exit_state("b")
    assert flow.orchestrate("a", pool=inline_backend) == "b"
    assert inline_backend.calls == [("a", None, 1)]


# -- faults


def test_a_lost_worker_can_be_had_without_one(inline_backend):
    """A loss is what it is with a pool: a status, an error, a retry."""
    inline_backend.lose("m", branch=0)
    inline_backend.lose("m", branch=1, attempts=5)
    config = TaskConfig(retry=Retry.fixed(1, 0.0))
    run = mapped(lambda ctx, item: ctx.attempt, range(2), any_, config=config).start("m", pool=inline_backend)
    run.wait(30)
    flow = mapped(lambda ctx, item: ctx.attempt, range(2), all_, on_failure="failed", config=config)
    run = flow.start("m", pool=inline_backend)
    assert run.wait(30) == "failed"
    kept, lost = run.report().splits["m"]
    assert (kept.value, kept.attempts) == (2, 2)
    assert lost.status is BranchStatus.LOST
    assert isinstance(lost.error, RetryExhaustedError)
    assert isinstance(lost.error.last_error, WorkerLostError)


def test_timeouts_can_be_had_without_waiting(inline_backend, fake_clock):
    """A task that takes longer than it may, by the fake clock, or that is said to, times out."""

    def slow(ctx, item):
        assert ctx.deadline == 5.0
        fake_clock.advance(item)
        return item

    config = TaskConfig(attempt_timeout=5.0)
    inline_backend.time_out("m", branch=0)
    run = mapped(slow, [1, 2, 7], quorum(1), config=config).start("m", pool=inline_backend)
    run.wait(30)
    flow = mapped(slow, [1, 2, 7], all_, config=config, on_failure="failed").start("m", pool=inline_backend)
    assert flow.wait(30) == "failed"
    said, fine, late = flow.report().splits["m"]
    assert (said.status, fine.status, late.status) == ("timed_out", "succeeded", "timed_out")
    assert isinstance(late.error, TaskTimeoutError)


def test_tasks_can_be_made_to_fail_anywhere(inline_backend, fake_clock):
    """failing() works for single tasks in the parent, with their own configuration, and for maps."""
    flow = Workflow("w").register("a", failing(lambda: "b", OSError("disk"), attempts=2)).add_exit_state("b")
    with pytest.raises(TaskError, match="OSError: disk"):
        flow.orchestrate("a")
    count = failing(Count(0), OSError("disk"), attempts=2)
    assert count.config is Count.config
    assert repr(count) == "failing(Count)"
    flow = Workflow("w").register("a", lambda ctx: ctx.store.put("texts", ["x y"]) or "b")
    flow.register_split("b", [count], JoinConfig(all_, "end", into="v")).add_exit_state("end")
    run = flow.start("a", pool=inline_backend)
    run.wait(30)
    assert run.store.get("v") == [2]
    assert run.report().splits["b"][0].attempts == 3


# -- fake clock


def test_waits_pass_at_once(inline_backend, fake_clock):
    """Back-offs, polls and timers take their time on the fake clock only."""

    class Poll(PollTask):
        def poll(self, ctx):
            ctx.store.add("polls")
            return Ready("timer") if ctx.store.get("polls") == 5 else Pending(600.0)

    class Timer(TimerTask):
        def wait(self, ctx):
            return 86_400.0

        def after_wait(self, ctx):
            return "end"

    flow = Workflow("w").register("poll", Poll()).register("timer", Timer()).add_exit_state("end")
    run = flow.start("poll", pool=inline_backend)
    assert run.wait(30) == "end"
    assert fake_clock.elapsed == pytest.approx(4 * 600.0 + 86_400.0)
    assert run.report().duration == pytest.approx(fake_clock.elapsed)


def test_a_total_timeout_comes_at_its_time(inline_backend, fake_clock):
    """A run that waits past its limit is stopped at it."""
    flow = Workflow("w", total_timeout=100.0)
    flow.register("a", failing(lambda: "b", OSError("disk")), config=TaskConfig(retry=Retry.fixed(3, 1000.0)))
    with pytest.raises(WorkflowTimeoutError):
        flow.add_exit_state("b").orchestrate("a", pool=inline_backend)
    assert fake_clock.elapsed == pytest.approx(100.0)


def test_the_clock_says_when(fake_clock):
    """Events and reports have its time, and outside of it time is real again."""
    start = datetime(2030, 5, 1, tzinfo=UTC)
    with FakeClock(start) as clock:
        run = Workflow("w").register("a", lambda: clock.advance(60) or "b").add_exit_state("b").start("a")
        run.wait(30)
        assert run.report().started_at == start
        assert run.report().duration == 60.0
        assert clock.now() == start + timedelta(minutes=1)
    assert fake_clock.elapsed == 0.0


def test_a_scheduler_s_wait_ends_when_its_time_has_come(fake_clock):
    """What waits on the clock goes on when it was advanced past that, or is woken."""
    wake, passed = threading.Condition(), threading.Event()

    def wait():
        with wake:
            while fake_clock.now() < fake_clock._start + timedelta(hours=1):
                fake_clock.wait(wake, fake_clock._start + timedelta(hours=1))
        passed.set()

    thread = threading.Thread(target=wait)
    thread.start()
    fake_clock.advance(1800)
    assert not passed.is_set()
    fake_clock.advance(1800)
    thread.join(30)
    assert passed.is_set()


# -- recording and assertions


def test_paths_are_compared_by_state_or_label(inline_backend, recording):
    """A run, its report and a recording all have a path."""
    run = words().with_observer(recording).start(S.START, pool=inline_backend)
    run.wait(30)
    for path in (run, run.report(), recording, list(S)):
        assert_path(path, [S.START, "COUNT", S.REPORT, "DONE"])
    with pytest.raises(AssertionError, match="from step 2 on") as caught:
        assert_path(run, ["START", "DONE"])
    assert "went      START -> COUNT -> REPORT -> DONE" in str(caught.value)
    with pytest.raises(AssertionError, match="from step 5 on"):
        assert_path(run, ["START", "COUNT", "REPORT", "DONE", "MORE"])
    assert_all_states_entered(recording, words())
    recording.clear()
    with pytest.raises(AssertionError, match="no run entered START, COUNT, REPORT"):
        assert_all_states_entered(recording, words())


class Booked(CompensatableTask):
    """Something that can be undone, or not."""

    def __init__(self, following, fails=False):
        self.following = following
        self.fails = fails

    def run(self, ctx):
        return self.following, "receipt"

    def compensate(self, ctx, output):
        if self.fails:
            raise OSError("office closed")


def trip(*, fails=False):
    """Two bookings, then a failure."""

    def fail(ctx):
        raise ValueError("no")

    flow = Workflow("trip").register("flight", Booked("hotel")).register("hotel", Booked("pay", fails))
    return flow.register("pay", fail).add_exit_state("end")


def test_compensations_are_compared(recording):
    """The last booking is undone first; other orders, states and failures are told."""
    with pytest.raises(TaskError):
        trip().with_observer(recording).orchestrate("flight")
    assert_compensation_ran(recording, ["hotel", "flight"])
    assert_balanced(recording)
    with pytest.raises(AssertionError, match=r"expected  flight, hotel\n  were      'hotel', 'flight'"):
        assert_compensation_ran(recording, ["flight", "hotel"])
    recording.clear()
    with pytest.raises(Exception, match="could not be undone"):
        trip(fails=True).with_observer(recording).orchestrate("flight")
    with pytest.raises(AssertionError, match=r"compensating state 'hotel' failed: .*OSError: office closed"):
        assert_compensation_ran(recording, ["hotel", "flight"])


def test_what_is_not_balanced_is_told(recording):
    """A start without an end and an end without a start are both wrong."""
    Workflow("w").register("a", lambda: "b").add_exit_state("b").with_observer(recording).orchestrate("a")
    assert_balanced(recording)
    end = recording.events.pop()
    with pytest.raises(AssertionError, match="did not end"):
        assert_balanced(recording)
    recording.events += [end, end]
    with pytest.raises(AssertionError, match="run_finished without a start"):
        assert_balanced(recording)


def test_a_recording_can_be_waited_for(recording):
    """wait_for returns the event, or says what there was instead."""
    go = threading.Event()
    run = Workflow("w").register("a", lambda: go.wait() and "b").add_exit_state("b").with_observer(recording).start("a")
    assert recording.wait_for("state_entered").state == "a"
    with pytest.raises(TimeoutError, match="there were run_started, state_entered"):
        recording.wait_for("run_finished", timeout=0.01)
    go.set()
    assert recording.wait_for("state_entered", count=2).state == "b"
    run.wait(30)


def test_observers_of_the_kit_are_observers():
    """A recording is what with_observer takes."""
    Workflow("w").with_observer(RecordingObserver())
