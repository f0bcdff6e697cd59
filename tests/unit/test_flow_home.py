"""Schedulers that share a home: two in one process, as two processes would, each on a clock of its own."""

from __future__ import annotations

import subprocess
import threading
import uuid
from contextlib import contextmanager
from datetime import timedelta

import pytest

from canobatch import RunCancelledError, TaskConfig, TaskError, Workflow, _procs, _sqlite
from canobatch.errors import (
    FlowOverlapError,
    FlowPausedError,
    FlowTrippedError,
    JournalError,
    SchedulerError,
    UnknownFlowError,
)
from canobatch.scheduler import BackoffPolicy, FlowHome, FlowStatus, Scheduler
from canobatch.scheduler.home import SqliteLedger
from canobatch.scheduler.ledger import Claim, MemoryLedger
from tests.support.clock import NOON, FakeClock
from tests.support.watch import NEVER, await_that

HERE = TaskConfig(where="parent")


class Body:
    """Waits for its gate, and counts how many of it run at a time."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = self.running = self.most_running = 0
        self.error: BaseException | None = None
        self.params = []
        self._lock = threading.Lock()

    def __call__(self, ctx) -> str:
        with self._lock:
            self.started += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.params.append(dict(ctx.params))
        try:
            while not self.gate.wait(0.01):
                if ctx.cancelled:
                    return "afterwards"
            if self.error is not None:
                raise self.error
            return "done"
        finally:
            with self._lock:
                self.running -= 1

    @property
    def workflow(self) -> Workflow:
        workflow = Workflow("body").register("start", self, config=HERE).add_exit_state("done")
        return workflow.register("afterwards", lambda: "done", config=HERE)


class Node:
    """One scheduler of the home, with its clock."""

    def __init__(self, home, register, body, now=NOON) -> None:
        self.clock = FakeClock(now)
        self.running = register(Scheduler(home, clock=self.clock)).start()
        self.clock.is_quiet = lambda: (
            not body.gate.is_set() or all(info.status is not FlowStatus.RUNNING for info in self.running.list())
        )
        self.clock.settle()

    def __getattr__(self, name):
        return getattr(self.running, name)


@pytest.fixture
def body():
    """A body; its runs may end at the end of the test."""
    body = Body()
    yield body
    body.gate.set()


@pytest.fixture
def home(tmp_path):
    """A directory that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture
def node(home, body):
    """Start schedulers of the home; they are stopped at the end."""
    nodes = []

    def start(register, now=NOON):
        nodes.append(Node(home, register, body, now))
        return nodes[-1]

    yield start
    for each in nodes:
        each.stop(0)


def minutely(body, **options):
    """Register a flow "f" that runs every minute."""
    return lambda scheduler: scheduler.every("f", body.workflow, "start", 60, **options)


def manual(body, **options):
    """Register a flow "f" that is triggered."""
    return lambda scheduler: scheduler.manual("f", body.workflow, "start", **options)


def told(node, *kinds):
    """(seconds after noon of the tick, kind, reason) of the records of these kinds."""
    return [
        (record.tick and (record.tick - NOON).total_seconds(), record.kind, str(record.reason))
        for record in node.history("f", 1000)
        if record.kind in kinds
    ]


def await_idle(node, body, count):
    """Wait until so many runs have begun, and none runs any more."""
    await_that(
        lambda: body.started == count and node.status("f").status is not FlowStatus.RUNNING,
        f"{count} runs should have ended",
    )


# -- ticks


def test_each_tick_runs_once(node, body):
    """Of two schedulers that see every tick, one takes it; both know what happened."""
    a, b = node(minutely(body)), node(minutely(body))
    for count in range(1, 5):
        for each in (a, b):
            each.clock.set(NOON + timedelta(seconds=60 * (count - 1)))
        await_idle(a, body, count)
    assert [tick for tick, _, _ in told(a, "fired")] == [0, 60, 120, 180]
    assert told(a, "skipped") == []
    assert told(b, "fired", "finished") == told(a, "fired", "finished")
    assert a.status("f").run_count == b.status("f").run_count == 4


def test_a_second_start_keeps_the_anchor(node, body):
    """Seven seconds past the minute nothing runs, as the grid is that of the first start; what was missed is told."""
    first = node(minutely(body))
    await_idle(first, body, 1)
    first.stop()
    second = node(minutely(body), now=NOON + timedelta(seconds=187))
    await_idle(second, body, 2)
    assert told(second, "fired", "skipped") == [(0, "fired", ""), (60, "skipped", "missed"), (180, "fired", "")]
    assert second.status("f").next_run == NOON + timedelta(seconds=240)


@pytest.mark.parametrize(("catchup", "ticks"), [("skip", [0]), ("last", [0, 10800]), ("all", [0, 3600, 7200, 10800])])
def test_ticks_that_nobody_saw_are_caught_up_as_asked(node, body, catchup, ticks):
    """Three hourly ticks while no scheduler ran: skipped, the newest, or all of them."""

    def hourly(scheduler):
        return scheduler.every_hours("f", body.workflow, "start", 1, catchup=catchup)

    first = node(hourly)
    await_idle(first, body, 1)
    first.stop()
    second = node(hourly, now=NOON + timedelta(hours=3.5))
    await_idle(second, body, len(ticks))
    assert [tick for tick, _, _ in told(second, "fired")] == ticks
    assert body.most_running == 1


def test_a_fixed_delay_counts_from_the_recorded_end(node, body):
    """Started anew 20 s after the end of a run, the flow is due 40 s later; its other scheduler waits as well."""
    register = minutely(body, mode="fixed_delay")
    first = node(register)
    await_idle(first, body, 1)
    first.stop()
    second, third = (node(register, now=NOON + timedelta(seconds=20)) for _ in range(2))
    assert second.status("f").next_run == NOON + timedelta(seconds=60)
    for each in (second, third):
        each.clock.advance(40)
    await_idle(second, body, 2)
    third.clock.advance(59)
    assert body.started == 2


def test_another_schedule_under_the_same_id_is_an_error(node, body, home):
    """It names both schedules; once forgotten, the id is free."""
    first = node(minutely(body))
    await_idle(first, body, 1)
    first.stop()
    other = Scheduler(home).every("f", body.workflow, "start", 90)
    with pytest.raises(SchedulerError, match=r"every 60 s, fixed rate, not every 90 s.*forget") as caught:
        other.start()
    assert caught.value.flow == "f"
    with FlowHome(home) as shared:
        shared.forget("f")
    with other.start() as running:
        await_that(lambda: running.status("f").status is FlowStatus.COMPLETED, "it should run")
        assert running.status("f").run_count == 1


# -- overlaps


def test_a_flow_that_runs_elsewhere_is_not_triggered(node, body):
    """Under skip it is an error here; status says that it runs, wherever that is."""
    a, b = node(manual(body)), node(manual(body))
    body.gate.clear()
    run = a.trigger("f")
    with pytest.raises(FlowOverlapError, match="in another process"):
        b.trigger("f")
    assert b.status("f").status is FlowStatus.RUNNING
    body.gate.set()
    run.wait(NEVER)
    assert b.status("f").status is FlowStatus.COMPLETED
    assert b.trigger("f").wait(NEVER) == "done"


def test_who_meets_a_claim_leaves_it_as_it_is(node, body, home):
    """What skips or waits elsewhere does not touch the description of the run that is in its way."""
    a, b = (node(minutely(body, overlap="queue_one", start="after_interval")) for _ in range(2))
    body.gate.clear()
    run = a.trigger("f")
    b.clock.advance(60)
    b.clock.advance(60)
    assert told(b, "queued", "skipped") == [(60, "queued", ""), (120, "skipped", "overlap")]
    ledger = SqliteLedger(home)
    assert ledger.left_over("f").run_id == run.id
    ledger.close()


@pytest.mark.parametrize("is_of_this_boot", [True, False])
def test_what_a_holder_left_is_killed_unless_it_was_of_another_boot(node, body, home, is_of_this_boot):
    """A token of before the machine was started anew means nothing, whoever carries it now."""
    node(manual(body)).stop(0)
    token = uuid.uuid4().hex
    left = subprocess.Popen(["sleep", "1000"], env={_procs.TOKEN: token})
    try:
        ledger = SqliteLedger(home)
        ledger.describe_claim("f", Claim("gone", "process 1 elsewhere", token))
        if not is_of_this_boot:
            ledger._write("UPDATE claims SET boot_id='another'")
        ledger.close()
        b = node(manual(body))
        assert b.trigger("f").wait(NEVER) == "done"
        assert [record.kind for record in b.history("f")] == ["interrupted", "fired", "finished"]
        assert (left.poll() is None) is not is_of_this_boot
    finally:
        left.kill()
        left.wait()


def test_a_trigger_waits_for_a_run_elsewhere(node, body):
    """Under queue_one it begins in its own scheduler when the other's run has ended."""
    a, b = node(manual(body, overlap="queue_one")), node(manual(body, overlap="queue_one"))
    body.gate.clear()
    first, second = a.trigger("f", {"n": 1}), b.trigger("f", {"n": 2})
    with pytest.raises(FlowOverlapError, match="one run waits already"):
        a.trigger("f")
    body.gate.set()
    assert (first.wait(NEVER), second.wait(NEVER)) == ("done", "done")
    assert (body.params, body.most_running) == ([{"n": 1}, {"n": 2}], 1)


def test_a_tick_that_waits_is_taken_by_whoever_is_free(node, body):
    """A tick that one scheduler queued begins in the one whose run has ended, also if the first has stopped."""
    a, b = (node(minutely(body, overlap="queue_all", start="after_interval")) for _ in range(2))
    body.gate.clear()
    run = a.trigger("f")
    b.clock.advance(60)
    assert told(b, "queued") == [(60, "queued", "")]
    b.stop()
    body.gate.set()
    run.wait(NEVER)
    await_idle(a, body, 2)
    assert [tick for tick, _, _ in told(a, "fired")] == [None, 60]
    assert body.most_running == 1


def test_a_run_elsewhere_makes_way(node, body):
    """Under cancel_old its scheduler cancels it, and then the new one begins here."""
    a, b = node(manual(body, overlap="cancel_old")), node(manual(body, overlap="cancel_old"))
    body.gate.clear()
    old = a.trigger("f")
    await_that(lambda: body.running == 1, "it should run")
    new = b.trigger("f")
    with pytest.raises(RunCancelledError):
        old.wait(NEVER)
    body.gate.set()
    assert new.wait(NEVER) == "done"
    assert body.most_running == 1


def test_allow_runs_in_both(node, body):
    """Two schedulers may run the flow at a time."""
    a, b = node(manual(body, overlap="allow")), node(manual(body, overlap="allow"))
    body.gate.clear()
    runs = [a.trigger("f"), b.trigger("f")]
    await_that(lambda: body.running == 2, "both should run")
    body.gate.set()
    assert [run.wait(NEVER) for run in runs] == ["done", "done"]


# -- state


def test_what_is_known_of_a_flow_outlives_its_schedulers(node, body):
    """Count, streak, trip, pause and history are there after a start anew."""
    register = manual(body, backoff=BackoffPolicy.with_trip(1))
    first = node(register)
    first.trigger("f").wait(NEVER)
    body.error = ValueError("no luck")
    with pytest.raises(TaskError):
        first.trigger("f").wait(NEVER)
    first.stop()
    second = node(register)
    info = second.status("f")
    assert (info.status, info.run_count, info.failure_streak) == (FlowStatus.TRIPPED, 2, 1)
    assert (info.last_state, info.last_run, "no luck" in info.last_error) == ("start", NOON, True)
    with pytest.raises(FlowTrippedError):
        second.trigger("f")
    assert [record.kind for record in second.history("f")] == ["fired", "finished", "fired", "failed"]
    second.reset_flow("f")
    second.pause_flow("f")
    second.stop()
    with pytest.raises(FlowPausedError):
        node(register).trigger("f")


def test_a_pause_holds_in_all_schedulers(node, body):
    """What one pauses no other runs, and what it unpauses runs again."""
    a, b = node(minutely(body, start="after_interval")), node(minutely(body, start="after_interval"))
    a.pause_flow("f")
    b.clock.advance(60)
    assert told(b, "skipped") == [(60, "skipped", "paused")]
    a.unpause_flow("f")
    b.clock.advance(60)
    await_idle(b, body, 1)


# -- from outside


def test_flows_are_seen_from_outside(node, body, home):
    """A process without a scheduler sees status and history, and pauses and resets."""
    a = node(minutely(body, start="after_interval"))
    with FlowHome(home) as shared:
        a.clock.advance(60)
        await_idle(a, body, 1)
        assert [(info.id, info.status, info.run_count) for info in shared.list()] == [("f", FlowStatus.COMPLETED, 1)]
        assert [record.kind for record in shared.history("f")] == ["fired", "finished"]
        shared.pause_flow("f")
        assert a.status("f").status is FlowStatus.PAUSED
        shared.unpause_flow("f")
        shared.reset_flow("f")
        assert shared.status("f").status is a.status("f").status is FlowStatus.IDLE


def test_flows_are_triggered_and_cancelled_from_outside(node, body, home):
    """A scheduler takes the command at once; the run's id comes back, or why it cannot run."""
    a = node(manual(body))
    body.gate.clear()
    with FlowHome(home) as shared:
        run_id = shared.trigger("f", {"day": "Friday"}, timeout=NEVER)
        assert [record.run_id for record in a.history("f")] == [run_id]
        with pytest.raises(SchedulerError, match="FlowOverlapError: flow 'f' is running"):
            shared.trigger("f", timeout=NEVER)
        await_that(lambda: body.running == 1, "it should run")
        shared.cancel_flow("f", timeout=NEVER)
        await_that(lambda: a.status("f").status is FlowStatus.IDLE, "it should be cancelled")
        shared.cancel_flow("f")
        assert shared.cancel_run(run_id) is None
    assert body.params == [{"day": "Friday"}]


def test_a_run_that_waits_for_its_turn_is_cancelled(node, body, home):
    """It never begins, and the next in line does; the history says so."""
    body.gate.clear()
    a = node(manual(body, overlap="queue_all"))
    with FlowHome(home) as shared:
        second = [shared.trigger("f", {"n": n}, timeout=NEVER) for n in range(3)][1]
        assert shared.cancel_run(second, timeout=NEVER) == "f"
        assert shared.cancel_run(second) is None
    body.gate.set()
    await_that(lambda: a.status("f").run_count == 2, "the others should run")
    assert body.params == [{"n": 0}, {"n": 2}]
    told = [(record.kind, record.run_id) for record in a.history("f") if record.run_id == second]
    assert told == [("queued", second), ("skipped", second)]
    assert [record.reason for record in a.history("f") if record.kind == "skipped"] == ["cancelled"]


def test_a_command_that_nobody_takes_is_withdrawn(node, body, home):
    """Without a scheduler a trigger is an error, and does not run later."""
    node(manual(body)).stop()
    with FlowHome(home) as shared, pytest.raises(SchedulerError, match=r"no scheduler of .* has taken the command"):
        shared.trigger("f", timeout=timedelta(seconds=0.05))
    later = node(manual(body))
    later.clock.settle()
    assert (body.started, later.status("f").run_count) == (0, 0)


@pytest.mark.parametrize(
    "method",
    ["status", "history", "pause_flow", "unpause_flow", "reset_flow", "forget", "trigger", "cancel_flow"],
)
def test_an_unknown_flow_of_a_home_is_an_error(home, method):
    """Every method that takes an id says which ids the home has."""
    with FlowHome(home) as shared, pytest.raises(UnknownFlowError, match=r"there is no flow 'g' in .*; flows: none"):
        getattr(shared, method)("g")


def test_a_running_flow_is_not_forgotten(node, body, home):
    """Its claim would be lost; it says to cancel it first."""
    a = node(manual(body))
    body.gate.clear()
    run = a.trigger("f")
    with FlowHome(home) as shared:
        with pytest.raises(SchedulerError, match="is running"):
            shared.forget("f")
        body.gate.set()
        run.wait(NEVER)
        shared.forget("f")
        assert shared.list() == []


# -- what cannot be written down


def broken(*args, **kwargs):
    """Stands for a disk that is full."""
    raise JournalError("no space left", reason="full")


def test_a_tick_that_cannot_be_written_down_is_tried_again(node, body, monkeypatch, caplog):
    """Nothing runs that is not on disk; five seconds later the same tick does."""
    a = node(minutely(body, start="after_interval"))
    with monkeypatch.context() as patch:
        patch.setattr(a.running._ledger, "record", broken)
        a.clock.advance(60)
        assert body.started == 0
    assert "could not be looked after" in caplog.text
    a.clock.advance(5)
    await_idle(a, body, 1)
    assert told(a, "fired", "skipped") == [(60, "fired", "")]
    assert a.status("f").run_count == 1


def test_a_trigger_that_cannot_be_written_down_is_an_error(node, body, monkeypatch):
    """The flow is as it was, also for another scheduler, and can be triggered again."""
    a, b = node(manual(body)), node(manual(body))
    with monkeypatch.context() as patch:
        patch.setattr(a.running._ledger, "record", broken)
        with pytest.raises(JournalError):
            a.trigger("f")
    assert (body.started, a.status("f").status, a.status("f").run_count) == (0, FlowStatus.IDLE, 0)
    assert b.trigger("f").wait(NEVER) == "done"
    assert a.trigger("f").wait(NEVER) == "done"


def test_an_end_that_cannot_be_written_down_strands_no_flow(node, body, monkeypatch):
    """The run has ended for whoever waits for it, and the next one runs."""
    a = node(manual(body))
    body.gate.clear()
    run = a.trigger("f")
    with monkeypatch.context() as patch:
        patch.setattr(a.running._ledger, "record", broken)
        body.gate.set()
        assert run.wait(NEVER) == "done"
    assert a.trigger("f").wait(NEVER) == "done"


def test_flows_due_at_once_are_written_down_at_once(node, body, monkeypatch):
    """Thirty ticks are one transaction, and the ends that come while another is written are one, too."""
    count = 30

    def register(scheduler):
        for number in range(count):
            scheduler.every(f"f{number}", body.workflow, "start", 60, start="after_interval")
        return scheduler

    a = node(register)
    transactions = []
    transaction = _sqlite.transaction
    monkeypatch.setattr(_sqlite, "transaction", lambda connection: transactions.append(1) or transaction(connection))
    body.gate.clear()
    a.clock.advance(60)
    await_that(lambda: body.running == count, "all should run")
    assert len(transactions) == 1
    with a.running._wake:
        body.gate.set()
        await_that(lambda: len(a.running._ends) == count, "all should end")
    await_that(lambda: a.status("f0").status is FlowStatus.COMPLETED, "the ends should be noted")
    assert len(transactions) == 2
    assert all(a.status(f"f{number}").status is FlowStatus.COMPLETED for number in range(count))


def test_a_tick_that_cannot_be_committed_is_tried_again(node, body, monkeypatch, caplog):
    """The disk fills up at the very end of a step: nothing runs, and five seconds later the same tick does."""
    a = node(minutely(body, start="after_interval"))
    transaction = _sqlite.transaction

    @contextmanager
    def full(connection):
        with transaction(connection):
            yield
            raise JournalError("no space left", reason="full")

    with monkeypatch.context() as patch:
        patch.setattr(_sqlite, "transaction", full)
        a.clock.advance(60)
        assert body.started == 0
    assert "could not be looked after" in caplog.text
    a.clock.advance(5)
    await_idle(a, body, 1)
    assert told(a, "fired", "skipped") == [(60, "fired", "")]


def test_what_several_write_to_has_no_write_ahead_log(node, body, home):
    """Rows of one that several processes write to can be lost, before SQLite 3.51.3."""
    a = node(manual(body))
    connection = a.running._ledger._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("persist",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)


# -- what cannot be a home


@pytest.mark.parametrize("kind", ["memory", "home"])
def test_a_tick_is_taken_once(home, kind):
    """Whoever asks, and whatever else guards it."""
    ledgers = [SqliteLedger(home), SqliteLedger(home)] if kind == "home" else [MemoryLedger()] * 2
    for ledger in ledgers:
        ledger.enrol("f", "manual", NOON)
    assert [ledger.take_tick("f", NOON) for ledger in (*ledgers, *ledgers)] == [True, False, False, False]
    for ledger in ledgers:
        ledger.close()


def test_a_home_may_be_made_by_several_at_once(tmp_path):
    """None of them takes what another one has just begun for something else, or for locked."""
    errors = []

    def make(place, barrier):
        barrier.wait(NEVER)
        try:
            SqliteLedger(place).close()
        except JournalError as error:
            errors.append(error)

    for number in range(20):
        barrier = threading.Barrier(6)
        makers = [threading.Thread(target=make, args=(tmp_path / str(number), barrier)) for _ in range(6)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
    assert errors == []


def test_a_file_that_is_no_database_is_left_alone(home, body):
    """A flows.db of something else is an error that names it, and is not touched."""
    home.mkdir()
    (home / "flows.db").write_bytes(b"not a database at all, but 64 bytes or more of something else entirely")
    before = (home / "flows.db").read_bytes()
    with pytest.raises(JournalError, match=r"flows\.db"):
        Scheduler(home).manual("f", body.workflow, "start").start()
    assert (home / "flows.db").read_bytes() == before


def test_a_home_that_cannot_be_made_is_an_error(tmp_path, body):
    """A file in its place is told; the scheduler has started nothing."""
    (tmp_path / "file").write_text("")
    threads = threading.active_count()
    with pytest.raises(JournalError):
        Scheduler(tmp_path / "file").manual("f", body.workflow, "start").start()
    assert threading.active_count() == threads
