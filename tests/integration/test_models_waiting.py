"""Polls, timers and steps in real runs: here or in workers, bounded, cancelled, and retried."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from canobatch import JoinConfig, JoinStrategy, Retry, RunCancelledError, TaskConfig, TaskError, WorkerPool
from canobatch.errors import (
    PayloadError,
    RetryExhaustedError,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.models import Done, ErrorPolicy, More, Node, Pending, PollTask, Ready, SteppedTask, TimerTask
from canobatch.workflow import Workflow
from tests.support.branches import FOREVER
from tests.support.models import WORKER, Recorder, began, state_of
from tests.support.tasks import assert_works
from tests.support.watch import Witness, await_that, is_alive

EITHER = pytest.mark.parametrize("config", [None, WORKER], ids=["here", "worker"])


class CountDown(PollTask):
    """Ready at the third poll; counts them in the store."""

    def poll(self, ctx):
        ctx.store.add("polls")
        return Ready("end") if ctx.store.get("polls") >= 3 else Pending(0.01)


@EITHER
def test_a_poll_sees_what_the_polls_before_it_wrote(config, shared_pool):
    """Polls of one attempt share a view, and all they wrote is committed with the answer."""
    run = began(state_of(CountDown(), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("polls") == 3


class Flaky(PollTask):
    """Fails in its polls as often as it is told, each poll leaving a line."""

    on_poll_error = ErrorPolicy.tolerate(2, pause=0.01)

    def __init__(self, place, failures):
        self.place = str(place)
        self.failures = failures

    def poll(self, ctx):
        with Path(self.place).open("a") as lines:
            lines.write("poll\n")
        ctx.store.append("written", len(Path(self.place).read_text().splitlines()))
        if len(Path(self.place).read_text().splitlines()) <= self.failures:
            raise OSError("no answer")
        return Ready("end")


@EITHER
def test_what_a_failed_poll_wrote_is_dropped(config, shared_pool, tmp_path):
    """A tolerated poll leaves no trace in the store; observers are told of it."""
    seen = Recorder()
    run = began(state_of(Flaky(tmp_path / "polls", 2), config=config, observer=seen), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("written") == [3]
    assert len(seen.of("retry")) == 2


@EITHER
def test_a_burst_of_errors_ends_the_poll(config, shared_pool, tmp_path):
    """The third error in a row is the task's, as it is, and goes to on_error if there is one."""
    with pytest.raises(TaskError, match="no answer") as caught:
        began(state_of(Flaky(tmp_path / "polls", 9), config=config), shared_pool).wait(30)
    assert isinstance(caught.value.__cause__, OSError)
    assert len((tmp_path / "polls").read_text().splitlines()) == 3
    run = began(state_of(Flaky(tmp_path / "again", 9), config=config, on_error="failed"), shared_pool)
    assert run.wait(30) == "failed"


def test_a_retried_poll_starts_its_loop_again(shared_pool, tmp_path):
    """Each retry is a whole loop with a fresh count of errors, and counts as one attempt."""
    config = TaskConfig(retry=Retry.fixed(1, 0))
    run = began(state_of(Flaky(tmp_path / "polls", 5), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.report().states[0].attempts == 2


def test_what_a_failed_loop_wrote_is_dropped(shared_pool, tmp_path):
    """Pending polls of an attempt that failed in the end leave no trace."""

    class Twice(PollTask):
        def poll(self, ctx):
            ctx.store.append("polls", ctx.attempt)
            if len(ctx.store.get("polls")) < 3:
                return Pending(0)
            if ctx.attempt == 1:
                raise OSError("lost it")
            return Ready("end")

    run = began(state_of(Twice(), config=TaskConfig(retry=Retry.fixed(1, 0))), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("polls") == [2, 2, 2]


class Never(PollTask):
    """Never ready; hangs in its polls if told to."""

    def __init__(self, place=None, hang=False):
        self.place = None if place is None else str(place)
        self.hang = hang

    def poll(self, ctx):
        if self.place:
            Path(self.place).write_text(str(os.getpid()))
        if self.hang:
            time.sleep(FOREVER)
        return Pending(0.01)


@pytest.mark.parametrize("hang", [False, True], ids=["between polls", "in a poll"])
def test_the_attempt_timeout_bounds_the_whole_loop(hang, shared_pool):
    """A loop that does not end in time is a timed-out attempt, wherever it is just then."""
    with pytest.raises(TaskTimeoutError, match=r"did not end within 0\.3 s") as caught:
        began(state_of(Never(hang=hang), config=TaskConfig(attempt_timeout=0.3)), shared_pool).wait(30)
    assert caught.value.limit == 0.3


@pytest.mark.parametrize(
    "policy",
    [ErrorPolicy.skip(), ErrorPolicy.tolerate(100, pause=0)],
)
def test_a_policy_does_not_bear_the_attempt_s_own_timeout(policy, shared_pool):
    """However many errors are tolerated, the attempt ends when its time is up."""

    class Angry(PollTask):
        on_poll_error = policy

        def poll(self, ctx):
            if policy.pause == 0:
                time.sleep(FOREVER)
            raise OSError("no")

    with pytest.raises(TaskTimeoutError):
        began(state_of(Angry(), config=TaskConfig(attempt_timeout=0.3)), shared_pool).wait(30)


def test_a_waiting_poll_occupies_no_worker(tmp_path):
    """With one worker, another run goes through while a poll waits for long."""
    with WorkerPool(1) as pool:

        class Slow(PollTask):
            def poll(self, ctx):
                return Pending(FOREVER)

        run = began(state_of(Slow(), config=WORKER), pool)
        await_that(lambda: run.report().state == "S", "the poll should begin")
        assert_works(pool)
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            run.wait(30)


class Sleeper(TimerTask):
    """Waits for as long as it was told."""

    def __init__(self, seconds):
        self.seconds = seconds

    def wait(self, ctx):
        ctx.store.put("waited", self.seconds)
        return self.seconds

    def after_wait(self, ctx):
        return "end" if ctx.store.get("waited") == self.seconds else "other"


@EITHER
def test_a_timer_waits_and_goes_on(config, shared_pool):
    """After the wait the run goes on; what wait wrote is seen by after_wait."""
    began_at = time.monotonic()
    assert began(state_of(Sleeper(0.2), config=config), shared_pool).wait(30) == "end"
    assert time.monotonic() - began_at >= 0.2


def test_the_attempt_timeout_cuts_a_long_timer(shared_pool):
    """A timer that would take longer than its attempt may is a timeout."""
    with pytest.raises(TaskTimeoutError):
        began(state_of(Sleeper(FOREVER), config=TaskConfig(attempt_timeout=0.2)), shared_pool).wait(30)


def test_the_total_timeout_cuts_a_long_timer(shared_pool):
    """So does the run's total timeout, as an error of the run."""
    with pytest.raises(WorkflowTimeoutError):
        began(state_of(Sleeper(FOREVER), total_timeout=0.3), shared_pool).wait(30)


@EITHER
def test_a_cancel_ends_a_timer(config, shared_pool):
    """A timer that waits for long ends at once when its run is cancelled."""
    run = began(state_of(Sleeper(FOREVER), config=config), shared_pool)
    await_that(lambda: run.report().state == "S", "the timer should begin")
    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(30)


class Steps(SteppedTask):
    """Counts to six; each step writes its cursor, and fails as often as it is told."""

    def __init__(self, place, failures=None, how="raise"):
        self.place = str(place)
        self.failures = failures or {}
        self.how = how

    def step(self, ctx, cursor):
        ctx.store.append("steps", cursor)
        with Path(self.place).open("a") as lines:
            lines.write(f"{cursor}\n")
        calls = Path(self.place).read_text().splitlines().count(str(cursor))
        if calls <= self.failures.get(cursor, 0):
            if self.how == "die":
                os._exit(1)
            raise OSError(f"at {cursor}")
        at = (cursor or 0) + 1
        return Done("end") if at == 6 else More(at)


@EITHER
@pytest.mark.parametrize("method", ["register", "register_stepped"])
def test_w19_a_retried_step_keeps_its_cursor(config, method, shared_pool, tmp_path):
    """The unit of a retry is one step, whichever method registered the task."""
    where = None if config is None else config.where
    config = TaskConfig(retry=Retry.fixed(2, 0), where=where)
    flow = getattr(Workflow("test"), method)("S", Steps(tmp_path / "calls", {3: 2}), config=config)
    run = began(flow.add_exit_state("end"), shared_pool)
    assert run.wait(30) == "end"
    assert (tmp_path / "calls").read_text().split() == ["None", "1", "2", "3", "3", "3", "4", "5"]
    assert run.store.get("steps") == [None, 1, 2, 3, 4, 5]


def test_w10_a_step_whose_worker_dies_is_retried_with_its_cursor(shared_pool, tmp_path):
    """A crash is one failed attempt like any other."""
    config = TaskConfig(where="worker", retry=Retry.fixed(1, 0))
    run = began(state_of(Steps(tmp_path / "calls", {2: 1}, "die"), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("steps") == [None, 1, 2, 3, 4, 5]


def test_what_the_steps_before_a_failure_wrote_stays(shared_pool, tmp_path):
    """Each step is committed with its cursor: a failed step leaves what was before it."""
    seen = Recorder()
    run = began(state_of(Steps(tmp_path / "calls", {3: 9}), on_error="failed", observer=seen), shared_pool)
    assert run.wait(30) == "failed"
    assert run.store.get("steps") == [None, 1, 2]
    assert [event.detail for event in seen.of("checkpoint")] == [1, 2, 3]


@EITHER
def test_a_step_cannot_spoil_its_cursor(config, shared_pool):
    """A retry gets the cursor as it was returned, whatever the failed attempt did to it."""

    class Spoils(SteppedTask):
        def step(self, ctx, cursor):
            if cursor is None:
                return More([])
            if ctx.attempt == 1:
                cursor.append("spoilt")
                raise OSError("again")
            return Done("other" if cursor else "end")

    where = None if config is None else config.where
    flow = state_of(Spoils(), config=TaskConfig(retry=Retry.fixed(1, 0), where=where))
    assert began(flow, shared_pool).wait(30) == "end"


def test_a_cursor_is_plain_data(shared_pool):
    """One that cannot be packed is refused at once, also where nothing is recorded."""

    class Bad(SteppedTask):
        def step(self, ctx, cursor):
            return More(threading.Lock())

    with pytest.raises(PayloadError, match="its cursor cannot be packed"):
        began(state_of(Bad()), shared_pool).wait(30)


def test_w2_a_state_entered_again_begins_at_its_start(shared_pool):
    """A loop back to a stepped state starts with no cursor: cursors belong to visits."""

    class Pair(SteppedTask):
        def step(self, ctx, cursor):
            ctx.store.append("cursors", cursor)
            return More(1) if cursor is None else Done("B")

    flow = Workflow("test").register_stepped("S", Pair()).add_exit_state("end")
    flow.register("B", lambda ctx: "end" if len(ctx.store.get("cursors")) == 4 else "S")
    run = began(flow, shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("cursors") == [None, 1, None, 1]


class Hangs(SteppedTask):
    """Enters the scene and hangs."""

    def __init__(self, place):
        self.place = place

    def step(self, ctx, cursor):
        from tests.support.watch import Scene

        scene = Scene(self.place)
        scene.enter("step")
        scene.runs("step")
        time.sleep(FOREVER)


def test_a_cancel_kills_a_step_in_a_worker(shared_pool, tmp_path):
    """The process that runs the step is dead when the cancelled run ends."""
    with Witness(tmp_path, "step") as witness:
        run = began(state_of(Hangs(str(tmp_path)), config=WORKER), shared_pool)
        witness.scene.await_runs("step")
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            run.wait(30)
        assert witness.survivors() == []


def test_a_cancel_ends_a_poll_in_the_parent(shared_pool):
    """A loop without pauses sees the cancel between two polls."""

    class Busy(PollTask):
        def poll(self, ctx):
            return Pending(0)

    run = began(state_of(Busy()), shared_pool)
    await_that(lambda: run.report().state == "S", "the poll should begin")
    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(30)


def test_a_poll_whose_worker_dies_is_an_attempt_lost(shared_pool):
    """A crash in a poll ends the loop, unless the policy bears it."""

    class Dies(PollTask):
        def poll(self, ctx):
            os._exit(7)

    with pytest.raises(WorkerLostError, match="status 7"):
        began(state_of(Dies(), config=WORKER), shared_pool).wait(30)


class Branch(Node):
    """A node as a branch."""

    def prep(self, ctx):
        return ctx.branch

    def exec(self, value):
        return value * 10

    def post(self, ctx, result):
        return result


class Timed(TimerTask):
    def wait(self):
        return 0.01

    def after_wait(self, ctx):
        return "timed"


def test_models_mix_as_branches(shared_pool, tmp_path):
    """A split takes nodes, polls, timers and steps beside plain functions; each runs in one piece."""
    tasks = [Branch(), CountDown(), Timed(), Steps(tmp_path / "calls"), lambda ctx: "plain"]
    flow = Workflow("test").register_split("S", tasks, JoinConfig(JoinStrategy.all(), "end", into="values"))
    run = began(flow.add_exit_state("end"), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("values") == [0, "end", "timed", "end", "plain"]


def test_w17_a_list_of_states_is_refused_with_the_cure(shared_pool):
    """Ready with several states is an error that says how to run many tasks."""

    class Many(PollTask):
        def poll(self):
            return Ready(["end", "other"])

    with pytest.raises(WorkflowError, match="use register_split or register_map"):
        began(state_of(Many()), shared_pool).wait(30)


def test_exhausted_steps_say_how_often_they_were_tried(shared_pool, tmp_path):
    """A step that fails for good is a RetryExhaustedError with its attempts and last error."""
    flow = state_of(Steps(tmp_path / "calls", {1: 9}), config=TaskConfig(retry=Retry.fixed(2, 0)))
    with pytest.raises(RetryExhaustedError) as caught:
        began(flow, shared_pool).wait(30)
    assert (caught.value.attempts, type(caught.value.last_error)) == (3, OSError)


def test_nothing_of_a_hung_poll_survives_its_timeout(shared_pool, tmp_path):
    """The process of a poll that was timed out is dead."""
    place = tmp_path / "pid"
    with pytest.raises(TaskTimeoutError):
        began(state_of(Never(place, hang=True), config=TaskConfig(attempt_timeout=3.0)), shared_pool).wait(30)
    assert not is_alive(int(place.read_text()))
