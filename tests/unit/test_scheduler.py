"""The scheduler in one process, on a clock that the tests move: flows, overlaps, failures, and the end."""

from __future__ import annotations

import http.server
import random
import threading
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from canobatch import Resource, RunCancelledError, TaskConfig, TaskError, Workflow, _clock
from canobatch.errors import (
    ConfigurationError,
    FlowOverlapError,
    FlowPausedError,
    FlowTrippedError,
    JournalError,
    ResourceError,
    SchedulerError,
    UnknownFlowError,
)
from canobatch.scheduler import BackoffPolicy, FlowStatus, Scheduler, SystemClock
from tests.support.clock import NOON, FakeClock
from tests.support.watch import NEVER, await_that

HERE = TaskConfig(where="parent")


class Body:
    """What a flow of a test does: notes its start, waits where it is told to, fails where it is told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = 0
        self.running = 0
        self.most_running = 0
        self.params = []
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def __call__(self, ctx) -> str:
        with self._lock:
            self.started += 1
            self.running += 1
            self.most_running = max(self.running, self.most_running)
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

    def await_starts(self, count: int) -> None:
        """Wait until so many runs have begun, and no more."""
        await_that(lambda: self.started >= count, f"{count} runs should begin")
        assert self.started == count

    @property
    def workflow(self) -> Workflow:
        """The workflow of one state that does it."""
        workflow = Workflow("body").register("start", self, config=HERE).add_exit_state("done")
        # Never entered: a run that is cancelled ends before it.
        return workflow.register("afterwards", lambda: "done", config=HERE)


@pytest.fixture
def body():
    """A body; at the end of the test its runs may end."""
    body = Body()
    yield body
    body.gate.set()


@pytest.fixture
def clock():
    """A clock at noon."""
    return FakeClock()


@pytest.fixture(params=["alone", "home"])
def make(clock, request, tmp_path):
    """Make a scheduler on the fake clock, by itself or with a home of its own: the rules are the same."""
    home = None if request.param == "alone" else tmp_path / "home"
    return lambda: Scheduler(home, clock=clock)


@pytest.fixture
def launch(clock, body):
    """Start a scheduler on the fake clock; it is stopped at the end of the test."""
    started = []

    def start(scheduler):
        running = scheduler.start()
        started.append(running)
        clock.is_quiet = lambda: (
            not body.gate.is_set() or all(info.status is not FlowStatus.RUNNING for info in running.list())
        )
        clock.settle()
        return running

    yield start
    for running in started:
        running.stop(0)


@pytest.fixture
def every_minute(clock, body, launch, make):
    """Start one flow "f" that runs every minute from noon, with these options."""

    def start(**options):
        return launch(make().every("f", body.workflow, "start", 60, **options))

    return start


@pytest.fixture
def by_hand(clock, body, launch, make):
    """Start one manual flow "f" with these options."""

    def start(**options):
        return launch(make().manual("f", body.workflow, "start", **options))

    return start


def await_status(running, status, flow="f"):
    """Wait until a flow has this status, and return what is known of it."""
    await_that(lambda: running.status(flow).status == status, f"{flow} should be {status}")
    return running.status(flow)


def told(running, *kinds, flow="f"):
    """What the history says: (seconds after noon of the tick, kind, reason) of records of these kinds."""
    return [
        (record.tick and (record.tick - NOON).total_seconds(), record.kind, str(record.reason))
        for record in running.history(flow, 1000)
        if not kinds or record.kind in kinds
    ]


def fired(running, flow="f"):
    """The ticks that began a run, in seconds after noon."""
    return [tick for tick, _, _ in told(running, "fired", flow=flow)]


# -- registration


def test_a_scheduler_begins_empty():
    """There are no flows but those that are registered."""
    scheduler = Scheduler()
    assert len(scheduler) == 0
    assert "f" not in scheduler


def test_every_way_to_register(body, clock, launch, make):
    """Seconds, minutes, hours, durations, cron and by hand; each returns the scheduler; the order is kept."""
    scheduler = (
        make()
        .every("duration", body.workflow, "start", timedelta(seconds=90), start="after_interval")
        .every_seconds("seconds", body.workflow, "start", 5, start="after_interval")
        .every_minutes("minutes", body.workflow, "start", 5, start="after_interval")
        .every_hours("hours", body.workflow, "start", 5, start="after_interval")
        .cron("cron", body.workflow, "start", "0 */5 * * * *")
        .manual("manual", body.workflow, "start")
    )
    assert len(scheduler) == 6
    assert "cron" in scheduler
    due = {info.id: info.next_run and (info.next_run - NOON).total_seconds() for info in launch(scheduler).list()}
    assert list(due.items()) == [
        ("duration", 90),
        ("seconds", 5),
        ("minutes", 300),
        ("hours", 18000),
        ("cron", 300),
        ("manual", None),
    ]


def test_flows_of_different_state_types_live_together(clock, launch, make):
    """One flow's states are strings, the other's numbers; each is reported as it is."""
    numbers = Workflow("numbers").register(1, lambda: 2, config=HERE).add_exit_state(2)
    words = Workflow("words").register("a", lambda: "b", config=HERE).add_exit_state("b")
    running = launch(make().manual("n", numbers, 1).manual("w", words, "a"))
    assert (running.trigger("n").wait(NEVER), running.trigger("w").wait(NEVER)) == (2, "b")
    assert (running.status("n").last_state, running.status("w").last_state) == (2, "b")


def test_an_id_is_taken_once(body):
    """A second flow under the same id is refused, and the first one stays."""
    scheduler = Scheduler().manual("f", body.workflow, "start")
    with pytest.raises(ConfigurationError, match="flow 'f' is registered already"):
        scheduler.every_seconds("f", body.workflow, "start", 5)
    assert len(scheduler) == 1


@pytest.mark.parametrize(
    ("register", "text"),
    [
        (lambda s, w: s.cron("f", w, "start", "not a cron"), "3 fields"),
        (lambda s, w: s.cron("f", w, "start", "* * * * *", "Mars"), "unknown time zone 'Mars'"),
        (lambda s, w: s.cron("f", w, "start", "0 0 30 2 *"), "never fires"),
        (lambda s, w: s.every("f", w, "start", 0), "an interval must be"),
        (lambda s, w: s.every_hours("f", w, "start", 1e300), "an interval must be"),
        (lambda s, w: s.every_minutes("f", w, "start", "5"), "an interval must be"),
        (lambda s, w: s.every("f", w, "start", 5, mode="x"), "mode must be"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_at_registration(body, register, text):
    """Bad expressions, zones and intervals are errors before anything starts."""
    scheduler = Scheduler()
    with pytest.raises(ConfigurationError, match=text):
        register(scheduler, body.workflow)
    assert len(scheduler) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("overlap", "sometimes"),
        ("catchup", None),
        ("catchup_window", -1),
        ("jitter", -1),
        ("jitter", "soon"),
        ("jitter", 61),
        ("backoff", 3),
        ("ping_url", "ftp://host/x"),
        ("ping_url", "host"),
        ("ping_url", 5),
        ("params", 5),
        ("timeout", 0),
        ("timeout", float("nan")),
    ],
)
def test_an_impossible_option_is_refused(body, name, value):
    """The error names the flow and the option."""
    with pytest.raises(ConfigurationError, match=f"flow 'f': .*{name}"):
        Scheduler().every("f", body.workflow, "start", 60, **{name: value})


def test_all_that_is_wrong_with_a_flow_is_said_at_once(body):
    """The error's problems are one sentence for each."""
    with pytest.raises(ConfigurationError) as caught:
        Scheduler().manual("", None, "start", overlap="x", timeout=-1)
    assert len(caught.value.problems) == 4


def test_start_checks_every_workflow():
    """A definition that cannot work, an unknown initial state, and parameters that do not fit: nothing runs."""

    @dataclass
    class Params:
        day: str

    threads = threading.active_count()
    sound = Workflow("w", params=Params).register("start", lambda: "done").add_exit_state("done")
    for broken, initial, params in [
        (Workflow("empty"), "start", None),
        (sound, "elsewhere", {"day": "today"}),
        (sound, "start", {"night": "today"}),
    ]:
        scheduler = Scheduler().every("f", broken, initial, 60, params=params)
        with pytest.raises(ConfigurationError, match="flow 'f': "):
            scheduler.start()
    assert threading.active_count() == threads


def test_a_scheduler_runs_once_at_a_time(clock, body, launch, make):
    """While it runs a second start is an error; stopped, it can be started again."""
    scheduler = make().manual("f", body.workflow, "start")
    running = launch(scheduler)
    with pytest.raises(SchedulerError, match="runs already"):
        scheduler.start()
    running.stop()
    assert launch(scheduler).trigger("f").wait(NEVER) == "done"


# -- triggers


def test_before_anything_has_run(by_hand):
    """A flow is idle, has no runs, and is not due."""
    info = by_hand().status("f")
    assert (info.id, info.status, info.run_count, info.last_run, info.next_run) == ("f", FlowStatus.IDLE, 0, None, None)


def test_a_trigger_returns_a_run(by_hand):
    """The run can be waited for; when it is, the status says so already."""
    running = by_hand()
    for count in range(1, 21):
        run = running.trigger("f")
        assert run.wait(NEVER) == "done"
        info = running.status("f")
        assert (info.status, info.run_count, info.last_state, info.last_run) == (
            FlowStatus.COMPLETED,
            count,
            "done",
            NOON,
        )
        assert info.last_duration >= 0
    assert [record.run_id for record in running.history("f", 1)] == [run.id]


def test_finished_runs_leave_no_thread(by_hand):
    """After twenty triggers there are as many threads as before."""
    running = by_hand()
    threads = threading.active_count()
    for _ in range(20):
        running.trigger("f").wait(NEVER)
    await_that(lambda: threading.active_count() <= threads, "the threads of runs should end")


def test_a_trigger_brings_parameters(by_hand, body):
    """Those of the trigger, or else those of the flow."""
    running = by_hand(params={"day": "Monday"})
    running.trigger("f").wait(NEVER)
    running.trigger("f", {"day": "Friday"}).wait(NEVER)
    assert body.params == [{"day": "Monday"}, {"day": "Friday"}]


def test_parameters_that_do_not_fit_change_nothing(clock, launch, make):
    """The trigger is an error that names the parameter, and the flow is as it was."""

    @dataclass
    class Params:
        day: str

    workflow = Workflow("w", params=Params).register("start", lambda: "done", config=HERE).add_exit_state("done")
    running = launch(make().manual("f", workflow, "start", params={"day": "Monday"}))
    with pytest.raises(ConfigurationError, match="do not fit Params"):
        running.trigger("f", {"night": "Friday"})
    assert (running.status("f").status, running.status("f").run_count) == (FlowStatus.IDLE, 0)
    assert running.trigger("f").wait(NEVER) == "done"


@pytest.mark.parametrize(
    "method", ["trigger", "status", "history", "cancel_flow", "reset_flow", "pause_flow", "unpause_flow"]
)
def test_an_unknown_flow_is_an_error(by_hand, method):
    """Every method that takes an id says which ids there are; it is a KeyError too."""
    with pytest.raises(UnknownFlowError, match="there is no flow 'g'; flows: f") as caught:
        getattr(by_hand(), method)("g")
    assert caught.value.flow == "g"
    assert isinstance(caught.value, KeyError)


def test_a_running_flow_is_not_triggered_again(by_hand, body):
    """Under skip the second trigger is an error that names the run in the way."""
    running = by_hand()
    body.gate.clear()
    run = running.trigger("f")
    with pytest.raises(FlowOverlapError, match="flow 'f' is running") as caught:
        running.trigger("f")
    assert (caught.value.flow, caught.value.run_ids) == ("f", (run.id,))
    assert running.status("f").run_count == 1
    assert running.status("f").status is FlowStatus.RUNNING
    body.gate.set()
    assert run.wait(NEVER) == "done"


def test_a_paused_flow_is_not_triggered(by_hand):
    """It says to unpause it; unpaused it runs."""
    running = by_hand()
    running.pause_flow("f")
    assert running.status("f").status is FlowStatus.PAUSED
    with pytest.raises(FlowPausedError, match="unpause_flow"):
        running.trigger("f")
    running.unpause_flow("f")
    assert running.trigger("f").wait(NEVER) == "done"


def test_a_tripped_flow_is_not_triggered(by_hand, body):
    """It says to reset it, and what the last failure was; reset it runs."""
    running = by_hand(backoff=BackoffPolicy.with_trip(1))
    body.error = ValueError("no luck")
    with pytest.raises(TaskError):
        running.trigger("f").wait(NEVER)
    assert running.status("f").status is FlowStatus.TRIPPED
    with pytest.raises(FlowTrippedError, match=r"no luck.*reset_flow"):
        running.trigger("f")
    body.error = None
    running.reset_flow("f")
    assert running.status("f").status is FlowStatus.IDLE
    assert running.trigger("f").wait(NEVER) == "done"


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_task_raises_the_flow_is_not_stranded(by_hand, body, error):
    """The run fails, the flow does not stay running, and runs again."""
    running = by_hand()
    body.error = error
    with pytest.raises(TaskError):
        running.trigger("f").wait(NEVER)
    info = running.status("f")
    assert (info.status, info.failure_streak, info.last_state) == (FlowStatus.IDLE, 1, "start")
    assert type(error).__name__ in info.last_error
    body.error = None
    assert running.trigger("f").wait(NEVER) == "done"


def test_a_run_that_cannot_even_begin_is_a_failure(every_minute, body, clock, monkeypatch):
    """Where no thread is to be had, the tick fails, is told, and the next one runs."""
    running = every_minute()
    body.await_starts(1)
    await_status(running, FlowStatus.COMPLETED)
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
    clock.advance(60)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert "no thread" in running.status("f").last_error
    assert told(running)[-2:] == [(60, "fired", ""), (None, "failed", "RuntimeError: no thread")]
    clock.advance(60)
    body.await_starts(2)


# -- ticks


def test_an_interval_runs_at_once_and_then_at_its_rate(every_minute, body, clock):
    """Ticks are at noon and at every full minute, whenever the clock is looked at."""
    running = every_minute()
    for count, seconds in enumerate([0, 59.5, 0.6, 59.9, 0.1, 70], start=1):
        clock.advance(seconds)
        expected = [1, 1, 2, 3, 3, 4][count - 1]
        body.await_starts(expected)
        await_status(running, FlowStatus.COMPLETED)
    assert fired(running) == [0, 60, 120, 180]
    assert running.status("f").next_run == NOON + timedelta(seconds=240)


def test_an_interval_may_start_later(every_minute, body, clock):
    """With start="after_interval" nothing runs at the start."""
    running = every_minute(start="after_interval")
    assert (body.started, running.status("f").next_run) == (0, NOON + timedelta(seconds=60))
    clock.advance(60)
    body.await_starts(1)


def test_a_fixed_rate_does_not_wait_for_the_run(every_minute, body, clock):
    """A run of 90 s skips the tick it overlaps, and the next one is on the grid."""
    body.gate.clear()
    running = every_minute()
    clock.advance(90)
    body.gate.set()
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(30)
    body.await_starts(2)
    assert told(running, "fired", "skipped") == [(0, "fired", ""), (60, "skipped", "overlap"), (120, "fired", "")]


def test_a_fixed_delay_counts_from_the_end_of_the_run(every_minute, body, clock):
    """A run of 45 s with a delay of 60 s runs at 0, 105 and 210."""
    body.gate.clear()
    running = every_minute(mode="fixed_delay")
    for count in range(1, 4):
        body.await_starts(count)
        assert running.status("f").next_run is None
        clock.advance(45)
        body.gate.set()
        await_status(running, FlowStatus.COMPLETED)
        clock.advance(59)
        assert body.started == count
        body.gate.clear()
        clock.advance(1)
    body.await_starts(4)
    assert fired(running) == [0, 105, 210, 315]


def test_a_trigger_puts_a_fixed_delay_off(every_minute, body, clock):
    """The delay counts from the end of whichever run was last."""
    running = every_minute(mode="fixed_delay")
    body.await_starts(1)
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(50)
    running.trigger("f").wait(NEVER)
    clock.advance(50)
    assert body.started == 2
    clock.advance(10)
    body.await_starts(3)


def test_cron_fires_on_the_wall_clock_of_its_zone(clock, body, launch, make):
    """09:00 in New York is 14:00 UTC in winter and 13:00 after the change of clocks."""
    running = launch(make().cron("f", body.workflow, "start", "0 9 * * *", "America/New_York"))
    expected = [NOON.replace(hour=14)]
    assert running.status("f").next_run == expected[0]
    clock.set(expected[0])
    body.await_starts(1)
    clock.set(datetime(2026, 3, 8, 12, 59, 59, tzinfo=NOON.tzinfo))
    assert running.status("f").next_run == datetime(2026, 3, 8, 13, tzinfo=NOON.tzinfo)


def test_jitter_puts_each_start_off(every_minute, body, clock, monkeypatch):
    """With 20 s of jitter and a random 0.5 each run begins 10 s after its tick, which stays the tick."""
    monkeypatch.setattr(random, "random", lambda: 0.5)
    running = every_minute(jitter=20)
    clock.advance(9.9)
    assert body.started == 0
    clock.advance(0.1)
    body.await_starts(1)
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(59)
    assert body.started == 1
    clock.advance(1)
    body.await_starts(2)
    assert fired(running) == [0, 60]


def test_ten_thousand_idle_flows_are_one_thread_that_sleeps(clock, body, launch, make):
    """Nothing wakes the scheduler until something is due, and then it wakes once."""
    scheduler = make()
    for n in range(10_000):
        scheduler.every(f"f{n}", body.workflow, "start", 3600 + n, start="after_interval")
    threads = threading.active_count()
    running = launch(scheduler)
    # With a home a second one waits for what other processes say.
    assert threading.active_count() <= threads + 2
    waits = clock.waits
    clock.advance(3599)
    assert (clock.waits, body.started) == (waits + 1, 0)
    clock.advance(1)
    body.await_starts(1)
    await_status(running, FlowStatus.COMPLETED, "f0")


# -- the clock is set, or nobody was there


def test_a_clock_put_forward_misses_ticks_with_a_reason(every_minute, body, clock):
    """Five minutes later three ticks are recorded as missed, and the newest, in time, runs."""
    running = every_minute()
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(270)
    body.await_starts(2)
    assert told(running, "fired", "skipped") == [(0, "fired", ""), (60, "skipped", "missed"), (240, "fired", "")]
    missed = running.history("f")[-3:]
    (missed,) = [record for record in missed if record.kind == "skipped"]
    assert (missed.tick, missed.until, missed.count) == (
        NOON + timedelta(seconds=60),
        NOON + timedelta(seconds=180),
        3,
    )


def test_a_clock_set_back_repeats_no_tick(every_minute, body, clock, caplog):
    """Half an hour back nothing runs until the clock is past the last tick again; the flow can be triggered."""
    running = every_minute()
    clock.advance(60)
    body.await_starts(2)
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(-1800)
    clock.advance(1800)
    assert fired(running) == [0, 60]
    assert "the clock was set back by 0:30:00" in caplog.text
    running.trigger("f").wait(NEVER)
    clock.advance(60)
    body.await_starts(4)
    assert fired(running) == [0, 60, None, 120]


@pytest.mark.parametrize(
    ("catchup", "expected"),
    [
        ("skip", [(0, "fired", ""), (3600, "skipped", "missed")]),
        ("last", [(0, "fired", ""), (3600, "skipped", "missed"), (10800, "fired", "")]),
        ("all", [(0, "fired", ""), (3600, "fired", ""), (7200, "fired", ""), (10800, "fired", "")]),
    ],
)
def test_after_a_long_sleep_ticks_are_caught_up_as_asked(clock, body, launch, catchup, expected, make):
    """Three hourly ticks passed half an hour ago and before: none, the newest, or all run, one after the other."""
    running = launch(make().every_hours("f", body.workflow, "start", 1, catchup=catchup))
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(12600)
    body.await_starts(sum(kind == "fired" for _, kind, _ in expected))
    await_that(lambda: running.status("f").status is FlowStatus.COMPLETED, "all should be done")
    assert told(running, "fired", "skipped") == expected
    assert body.most_running == 1


def test_a_suspend_is_noticed_when_the_clock_is_looked_at_again(every_minute, body, clock):
    """The wait for the next tick stood still with the machine; the wall clock tells, and each tick is accounted for."""
    running = every_minute()
    # As nothing wakes the scheduler, it still waits for noon and one minute.
    clock.pass_unseen(270)
    assert body.started == 1
    clock.look()
    body.await_starts(2)
    assert told(running, "fired", "skipped") == [(0, "fired", ""), (60, "skipped", "missed"), (240, "fired", "")]


@pytest.mark.parametrize(("seconds", "wait"), [(-5.0, []), (5.0, [5.0]), (86400.0, [60.0])])
def test_the_clock_on_the_wall_is_looked_at_once_a_minute(seconds, wait, monkeypatch):
    """No wait is longer, as it may stand still in a suspend, or the clock be set; one that is over does not begin."""
    now = 1_000_000.0
    monkeypatch.setattr(_clock, "epoch", lambda: now)
    waits = []
    wake = SimpleNamespace(wait=lambda *timeout: waits.extend(timeout))
    SystemClock().wait(wake, _clock.as_utc(now + seconds))
    assert waits == wait
    SystemClock().wait(wake, None)
    assert waits == wait


def test_too_old_ticks_are_not_caught_up(clock, body, launch, make):
    """With a window of two hours the oldest of three is missed."""
    running = launch(make().every_hours("f", body.workflow, "start", 1, catchup="all", catchup_window=7200))
    await_status(running, FlowStatus.COMPLETED)
    clock.advance(12600)
    body.await_starts(3)
    assert told(running, "fired", "skipped") == [
        (0, "fired", ""),
        (3600, "skipped", "missed"),
        (7200, "fired", ""),
        (10800, "fired", ""),
    ]


def test_one_flow_s_trouble_is_not_that_of_others_due_at_once(clock, body, launch, make, monkeypatch, caplog):
    """What cannot be written down of one is undone, and tried again five seconds later; the other runs in time."""
    scheduler = make()
    for flow in ("a", "b"):
        scheduler.every(flow, body.workflow, "start", 60, start="after_interval")
    running = launch(scheduler)
    record = type(running._ledger).record

    def broken(ledger, what):
        record(ledger, what)
        if what.flow == "a":
            raise JournalError("no space left", reason="full")

    with monkeypatch.context() as patch:
        patch.setattr(type(running._ledger), "record", broken)
        clock.advance(60)
    assert (fired(running, "a"), fired(running, "b")) == ([], [60])
    assert (running.status("a").run_count, body.started) == (0, 1)
    assert "flow 'a' could not be looked after" in caplog.text
    clock.advance(5)
    assert (fired(running, "a"), fired(running, "b")) == ([60], [60])
    assert (running.status("a").run_count, body.started) == (1, 2)


# -- overlaps


def test_skip_leaves_the_running_one_alone(every_minute, body, clock):
    """The tick is recorded as skipped for an overlap."""
    body.gate.clear()
    running = every_minute(overlap="skip")
    clock.advance(60)
    assert told(running, "skipped", "queued") == [(60, "skipped", "overlap")]


def test_queue_one_keeps_one_waiting(every_minute, body, clock):
    """One tick waits, the next is skipped; when the run ends, the one that waits begins."""
    body.gate.clear()
    running = every_minute(overlap="queue_one")
    for _ in range(3):
        clock.advance(60)
    assert told(running, "skipped", "queued") == [
        (60, "queued", ""),
        (120, "skipped", "overlap"),
        (180, "skipped", "overlap"),
    ]
    body.gate.set()
    body.await_starts(2)
    await_status(running, FlowStatus.COMPLETED)
    assert (fired(running), body.most_running) == ([0, 60], 1)


def test_queue_all_keeps_all_waiting(every_minute, body, clock):
    """Every tick waits for its turn, in order, and they never overlap."""
    body.gate.clear()
    running = every_minute(overlap="queue_all")
    for _ in range(5):
        clock.advance(60)
    body.gate.set()
    body.await_starts(6)
    await_status(running, FlowStatus.COMPLETED)
    assert (fired(running), body.most_running) == ([0, 60, 120, 180, 240, 300], 1)


@pytest.mark.parametrize("policy", ["cancel_old", "kill_old"])
def test_the_old_run_makes_way(by_hand, body, policy):
    """The run is cancelled, the new one begins when it has ended, and what waited before it is dropped."""
    running = by_hand(overlap=policy)
    body.gate.clear()
    first, second, third = (running.trigger("f") for _ in range(3))
    for replaced in (first, second):
        with pytest.raises(RunCancelledError, match=r"takes its place|was dropped: replaced"):
            replaced.wait(NEVER)
    body.gate.set()
    assert third.wait(NEVER) == "done"
    # The second may have begun before the third was there.
    assert body.started in (2, 3)
    assert (running.status("f").status, body.most_running) == (FlowStatus.COMPLETED, 1)


def test_allow_runs_both(by_hand, body):
    """Two runs at a time; the flow is running until both have ended."""
    running = by_hand(overlap="allow")
    body.gate.clear()
    runs = [running.trigger("f") for _ in range(2)]
    await_that(lambda: body.running == 2, "both should run")
    runs[0].cancel()
    with pytest.raises(RunCancelledError):
        runs[0].wait(NEVER)
    assert running.status("f").status is FlowStatus.RUNNING
    body.gate.set()
    assert runs[1].wait(NEVER) == "done"
    assert running.status("f").status is FlowStatus.COMPLETED


def test_a_trigger_may_wait_for_its_turn(by_hand, body):
    """Under queue_one the second trigger returns a run that begins later, the third is an error."""
    running = by_hand(overlap="queue_one")
    body.gate.clear()
    first, second = running.trigger("f"), running.trigger("f", {"n": 2})
    with pytest.raises(FlowOverlapError, match="and one run waits already"):
        running.trigger("f")
    with pytest.raises(TimeoutError):
        second.wait(0)
    body.gate.set()
    assert (first.wait(NEVER), second.wait(NEVER)) == ("done", "done")
    assert (body.params, body.most_running) == ([{}, {"n": 2}], 1)


def test_a_run_that_waits_can_be_cancelled(by_hand, body):
    """Its turn comes, it ends as cancelled without having begun its task, and the next one runs."""
    running = by_hand(overlap="queue_all")
    body.gate.clear()
    first, second, third = (running.trigger("f") for _ in range(3))
    second.cancel("not needed")
    body.gate.set()
    assert (first.wait(NEVER), third.wait(NEVER)) == ("done", "done")
    with pytest.raises(RunCancelledError, match="not needed"):
        second.wait(NEVER)
    assert body.started == 2


def test_what_waits_is_dropped_when_its_flow_is_paused_or_trips(by_hand, body):
    """Whoever waits for it is told why."""
    running = by_hand(overlap="queue_all", backoff=BackoffPolicy.with_trip(1))
    for off, text in [(lambda: running.pause_flow("f"), "paused"), (lambda: None, "tripped")]:
        body.gate.clear()
        first, second = running.trigger("f"), running.trigger("f")
        off()
        body.error = ValueError() if text == "tripped" else None
        body.gate.set()
        with pytest.raises(RunCancelledError, match=text):
            second.wait(NEVER)
        assert told(running, "skipped")[-1] == (None, "skipped", text)
        running.unpause_flow("f")
        with pytest.raises(TaskError) if text == "tripped" else nullcontext():
            first.wait(NEVER)


# -- failures


def test_without_a_policy_a_failure_changes_nothing(every_minute, body, clock):
    """The next tick runs, and the streak is counted until a success."""
    running = every_minute()
    body.error = ValueError("no")
    for count in range(2, 5):
        clock.advance(60)
        body.await_starts(count)
        await_status(running, FlowStatus.IDLE)
    assert running.status("f").failure_streak >= 3
    body.error = None
    clock.advance(60)
    info = await_status(running, FlowStatus.COMPLETED)
    assert (info.failure_streak, info.last_error) == (0, None)


def test_failures_rest_the_flow_and_the_ticks_are_skipped(every_minute, body, clock):
    """100 s, then 200 s of rest: ticks within it are skipped, with the reason, and the next is known."""
    body.error = ValueError("no")
    running = every_minute(backoff=BackoffPolicy(100, jitter=0))
    info = await_status(running, FlowStatus.BACKOFF)
    assert (info.failure_streak, info.next_run) == (1, NOON + timedelta(seconds=120))
    for _ in range(5):
        clock.advance(60)
        await_that(lambda: running.status("f").status is FlowStatus.BACKOFF, "it should rest")
    assert told(running, "fired", "skipped") == [
        (0, "fired", ""),
        (60, "skipped", "backoff"),
        (120, "fired", ""),
        (180, "skipped", "backoff"),
        (240, "skipped", "backoff"),
        (300, "skipped", "backoff"),
    ]


def test_a_cron_tick_within_a_backoff_is_skipped(clock, body, launch, make):
    """Every second for 3 s, with a rest of 60 s: one run."""
    body.error = ValueError("no")
    running = launch(make().cron("f", body.workflow, "start", "* * * * * *", backoff=BackoffPolicy(60)))
    clock.advance(1)
    await_status(running, FlowStatus.BACKOFF)
    for _ in range(3):
        clock.advance(1)
    assert [kind for _, kind, _ in told(running, "fired", "skipped")] == ["fired", "skipped", "skipped", "skipped"]


def test_a_fixed_delay_waits_for_the_end_of_a_backoff(every_minute, body, clock):
    """It runs when the longer of delay and rest is over."""
    body.error = ValueError("no")
    running = every_minute(mode="fixed_delay", backoff=BackoffPolicy(100, jitter=0))
    await_status(running, FlowStatus.BACKOFF)
    clock.advance(99)
    assert body.started == 1
    clock.advance(1)
    body.await_starts(2)


def test_a_reset_ends_a_backoff_at_once(every_minute, body, clock):
    """After a reset the next tick runs."""
    body.error = ValueError("no")
    running = every_minute(mode="fixed_delay", backoff=BackoffPolicy(10_000))
    await_status(running, FlowStatus.BACKOFF)
    running.reset_flow("f")
    body.error = None
    clock.advance(60)
    body.await_starts(2)


def test_a_trigger_overrides_a_backoff(by_hand, body):
    """What is asked for by hand runs, and its success ends the streak."""
    running = by_hand(backoff=BackoffPolicy(10_000))
    body.error = ValueError("no")
    with pytest.raises(TaskError):
        running.trigger("f").wait(NEVER)
    assert running.status("f").status is FlowStatus.BACKOFF
    body.error = None
    assert running.trigger("f").wait(NEVER) == "done"
    assert (running.status("f").status, running.status("f").failure_streak) == (FlowStatus.COMPLETED, 0)


def test_a_flow_trips_and_is_reset_and_trips_again(every_minute, body, clock):
    """At the limit nothing is dispatched any more, ticks are skipped as tripped, until a reset."""
    body.error = ValueError("no")
    running = every_minute(backoff=BackoffPolicy(0, streak_limit=2))
    for turn in (1, 2):
        clock.advance(60)
        info = await_status(running, FlowStatus.TRIPPED)
        assert (info.failure_streak, info.next_run, body.started) == (2, None, 2 * turn)
        clock.advance(60)
        assert told(running, "skipped")[-1][1:] == ("skipped", "tripped")
        assert body.started == 2 * turn
        if turn == 1:
            running.reset_flow("f")
            clock.advance(60)
            await_status(running, FlowStatus.BACKOFF)


def test_a_failure_may_pause_the_flow(every_minute, body, clock):
    """With pause_on_failure nothing more runs until it is unpaused."""
    body.error = ValueError("no")
    running = every_minute(pause_on_failure=True)
    info = await_status(running, FlowStatus.PAUSED)
    assert (info.next_run, "ValueError" in info.last_error) == (None, True)
    clock.advance(60)
    assert told(running, "skipped") == [(60, "skipped", "paused")]
    body.error = None
    running.unpause_flow("f")
    clock.advance(60)
    body.await_starts(2)


def test_a_pause_lets_the_run_end(every_minute, body, clock):
    """What runs goes on; then the flow is paused, and its ticks are skipped with the reason."""
    body.gate.clear()
    running = every_minute()
    running.pause_flow("f")
    assert running.status("f").status is FlowStatus.RUNNING
    body.gate.set()
    await_status(running, FlowStatus.PAUSED)
    clock.advance(60)
    assert told(running, "fired", "skipped") == [(0, "fired", ""), (60, "skipped", "paused")]


def test_a_paused_fixed_delay_goes_on_afterwards(every_minute, body, clock):
    """While it is paused a tick is skipped every interval; unpaused the next one runs."""
    running = every_minute(mode="fixed_delay")
    await_status(running, FlowStatus.COMPLETED)
    running.pause_flow("f")
    clock.advance(60)
    clock.advance(60)
    assert told(running, "skipped") == [(60, "skipped", "paused"), (120, "skipped", "paused")]
    running.unpause_flow("f")
    clock.advance(60)
    body.await_starts(2)


# -- cancels


def test_a_cancelled_flow_is_idle(by_hand, body):
    """The run ends as cancelled, the flow is neither completed nor failed, and runs again."""
    running = by_hand(backoff=BackoffPolicy())
    body.gate.clear()
    run = running.trigger("f")
    running.cancel_flow("f")
    with pytest.raises(RunCancelledError, match="flow 'f' was cancelled"):
        run.wait(NEVER)
    info = running.status("f")
    assert (info.status, info.failure_streak) == (FlowStatus.IDLE, 0)
    assert told(running)[-1][1] == "cancelled"
    body.gate.set()
    assert running.trigger("f").wait(NEVER) == "done"


def test_to_cancel_an_idle_flow_does_nothing(by_hand):
    """Nothing runs, nothing happens, and the next run is not hit."""
    running = by_hand()
    running.cancel_flow("f")
    assert running.status("f").status is FlowStatus.IDLE
    assert running.trigger("f").wait(NEVER) == "done"


def test_a_cancelled_flow_keeps_its_schedule(every_minute, body, clock):
    """After a cancel the next tick runs."""
    body.gate.clear()
    running = every_minute()
    running.cancel_flow("f")
    await_status(running, FlowStatus.IDLE)
    body.gate.set()
    clock.advance(60)
    body.await_starts(2)


# -- the end


@pytest.mark.parametrize(
    "register",
    [
        lambda s, w: s.every_hours("f", w, "start", 1, start="after_interval"),
        lambda s, w: s.cron("f", w, "start", "0 0 1 1 *"),
        lambda s, w: s.manual("f", w, "start"),
    ],
)
def test_a_stop_wakes_a_sleeping_scheduler(body, register):
    """On the real clock too: an hour's interval, a year's cron, or nothing due at all does not hold it up."""
    running = register(Scheduler(), body.workflow).start()
    running.stop()
    assert running.is_stopped
    running.wait(0)


def test_a_stop_wakes_a_scheduler_that_waits_for_the_end_of_a_backoff(body):
    """A rest of a minute does not hold it up."""
    body.error = ValueError("no")
    running = Scheduler().every("f", body.workflow, "start", 60, backoff=BackoffPolicy(60)).start()
    await_status(running, FlowStatus.BACKOFF)
    running.stop()
    assert running.is_stopped


def test_a_stopped_scheduler_says_so(by_hand):
    """A trigger is an error, a second stop is none, and what was is still known."""
    running = by_hand()
    running.trigger("f").wait(NEVER)
    running.stop()
    running.stop()
    with pytest.raises(SchedulerError, match="the scheduler has been stopped"):
        running.trigger("f")
    assert running.status("f").run_count == 1
    assert [record.kind for record in running.history("f")] == ["fired", "finished"]


def test_a_stop_waits_for_what_runs(by_hand, body):
    """The run comes to its end; while it does, nothing can be triggered."""
    running = by_hand(overlap="queue_all")
    body.gate.clear()
    first, second = running.trigger("f"), running.trigger("f")
    stopper = threading.Thread(target=running.stop)
    stopper.start()
    with pytest.raises(RunCancelledError, match="was dropped: stopped"):
        second.wait(NEVER)
    with pytest.raises(SchedulerError):
        running.trigger("f")
    assert not running.is_stopped
    body.gate.set()
    stopper.join(NEVER)
    assert first.wait(0) == "done"
    assert running.is_stopped


def test_a_stop_without_time_cancels_at_once(by_hand, body):
    """What heeds its cancel has ended when stop returns."""
    running = by_hand()
    body.gate.clear()
    run = running.trigger("f")
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        running.wait(timedelta(milliseconds=10))
    running.stop(timedelta(0))
    with pytest.raises(RunCancelledError, match="the scheduler was stopped"):
        run.wait(0)
    running.wait(timedelta(days=100_000))


def test_a_stop_returns_at_its_deadline_and_names_what_goes_on(clock, launch, make):
    """A task in this process that heeds nothing cannot be killed: the error has flow, run and state."""
    gate, begun = threading.Event(), threading.Event()

    def stubborn():
        begun.set()
        gate.wait(NEVER)
        return "done"

    workflow = Workflow("stubborn").register("start", stubborn, config=HERE).add_exit_state("done")
    running = make().manual("f", workflow, "start").start()
    run = running.trigger("f")
    assert begun.wait(NEVER)
    with pytest.raises(SchedulerError, match=f"flow 'f': run {run.id} in state 'start'"):
        running.stop(0)
    assert not running.is_stopped
    gate.set()
    running.stop()
    assert running.is_stopped


def test_the_end_of_a_with_block_is_a_stop(clock, body, make):
    """Left in peace, it waits for what runs."""
    body.gate.clear()
    with make().manual("f", body.workflow, "start").start() as running:
        run = running.trigger("f")
        threading.Timer(0.05, body.gate.set).start()
    assert run.wait(0) == "done"


def test_an_error_in_a_with_block_cancels(clock, body, make):
    """Left by an exception, it does not wait for what runs to come to its end."""
    body.gate.clear()
    scheduler = make().manual("f", body.workflow, "start")
    with suppress(ZeroDivisionError), scheduler.start() as running:
        run = running.trigger("f")
        raise ZeroDivisionError
    with pytest.raises(RunCancelledError):
        run.wait(0)


def test_who_waits_for_the_scheduler_is_told(by_hand):
    """wait() raises TimeoutError while it runs, and returns when it is stopped from elsewhere."""
    running = by_hand()
    with pytest.raises(TimeoutError):
        running.wait(0)
    threading.Timer(0.02, running.stop).start()
    running.wait(NEVER)


# -- observers and pings


def test_signals_are_for_the_main_thread(by_hand):
    """In another one serve is an error that names the way out."""
    running, errors = by_hand(), []

    def serve():
        try:
            running.serve()
        except SchedulerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(NEVER)
    assert "wait" in errors[0]


class Recorder:
    """Keeps the events of flows."""

    def __init__(self) -> None:
        self.events = []

    def on_event(self, event) -> None:
        if event.kind.startswith("flow_"):
            self.events.append(event)


def test_observers_hear_of_fired_and_skipped_ticks(clock, body, launch, make):
    """Those of the scheduler and those of the workflow, each once; one that raises is left out."""

    class Broken:
        def on_event(self, event):
            raise ValueError

    ours, theirs, both = Recorder(), Recorder(), Recorder()
    workflow = body.workflow.with_observer(Broken()).with_observer(theirs).with_observer(both)
    scheduler = make().with_observer(ours).with_observer(both).every("f", workflow, "start", 60)
    body.gate.clear()
    running = launch(scheduler)
    clock.advance(60)
    for recorder in (ours, theirs, both):
        await_that(lambda: len(recorder.events) == 2, "two events should be told")
        fired, skipped = recorder.events
        assert (fired.kind, fired.detail.flow, fired.detail.tick) == ("flow_fired", "f", NOON)
        assert fired.run_id == fired.detail.run_id
        assert (skipped.kind, skipped.detail.reason, skipped.time) == (
            "flow_skipped",
            "overlap",
            NOON + timedelta(seconds=60),
        )
        assert fired.seq < skipped.seq
    assert running.status("f").status is FlowStatus.RUNNING


def test_observers_hear_how_runs_of_flows_ended(body, launch, make):
    """Each run that fired ends with one event, which says how."""
    ours = Recorder()
    running = launch(make().with_observer(ours).manual("f", body.workflow, "start"))
    running.trigger("f").wait(NEVER)
    body.error = ValueError("no luck")
    with pytest.raises(TaskError):
        running.trigger("f").wait(NEVER)
    await_that(lambda: len(ours.events) == 4, "two beginnings and two ends should be told")
    assert [event.kind for event in ours.events] == ["flow_fired", "flow_ended"] * 2
    assert [event.run_id for event in ours.events[::2]] == [event.run_id for event in ours.events[1::2]]
    assert [event.detail.kind for event in ours.events[1::2]] == ["finished", "failed"]
    assert "no luck" in ours.events[3].detail.reason


def test_an_observer_may_ask_and_stop_the_scheduler(clock, body, make):
    """It is told without a lock held, in the scheduler's thread, which can be stopped from there."""
    seen = []

    class Curious:
        def on_event(self, event):
            if event.kind == "flow_fired":
                seen.append(running.status("f").run_count)
                running.stop()

    scheduler = make().with_observer(Curious()).manual("f", body.workflow, "start")
    running = scheduler.start()
    running.trigger("f")
    running.wait(NEVER)
    assert seen == [1]


@pytest.fixture
def ping_server():
    """A server that answers pings; returns its address and the paths it was asked for."""
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(500 if "sick" in self.path else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_start_success_and_failure_are_told_to_a_service(by_hand, body, ping_server):
    """Pings go to /start, to the address itself, and to /fail; a query stays; all are sent before the end."""
    address, paths = ping_server
    running = by_hand(ping_url=f"{address}/abc?rid=1")
    running.trigger("f").wait(NEVER)
    body.error = ValueError("no")
    with pytest.raises(TaskError):
        running.trigger("f").wait(NEVER)
    running.stop()
    assert paths == ["/abc/start?rid=1", "/abc?rid=1", "/abc/start?rid=1", "/abc/fail?rid=1"]


def test_a_service_that_does_not_answer_holds_nothing_up(by_hand, body, ping_server, caplog):
    """Runs go on where pings are refused or fail; each failure is logged."""
    address, _ = ping_server
    running = by_hand(ping_url=f"{address}/sick")
    assert running.trigger("f").wait(NEVER) == "done"
    running.stop()
    assert sum("the ping" in record.message for record in caplog.records) == 2


# -- resources


class Opened(Resource):
    """Says when it is set up and torn down."""

    def __init__(self, name, told, fails=False) -> None:
        self.name, self.told, self.fails = name, told, fails

    def setup(self) -> None:
        """Say so."""
        if self.fails:
            raise OSError("not there")
        self.told.append(f"{self.name} up")

    def teardown(self) -> None:
        """Say so."""
        self.told.append(f"{self.name} down")


def with_resource(told, name, **facts):
    """Return a workflow that says when it runs."""
    workflow = Workflow(name, resources={"thing": Opened(name, told, **facts)})
    return workflow.register("start", lambda: told.append(name) or "done", config=HERE).add_exit_state("done")


def test_resources_live_as_long_as_the_scheduler(make):
    """They are set up once, in the order of the flows, and torn down when it has stopped, last in first out."""
    told = []
    first = with_resource(told, "a")
    scheduler = make().manual("a", first, "start").manual("b", with_resource(told, "b"), "start")
    running = scheduler.manual("also a", first, "start").start()
    assert told == ["a up", "b up"]
    for flow in ("a", "also a", "b"):
        running.trigger(flow).wait(NEVER)
    running.stop()
    assert told == ["a up", "b up", "a", "a", "b", "b down", "a down"]


def test_a_resource_that_cannot_be_set_up_is_an_error_at_the_start(make):
    """Nothing runs, what was set up before is torn down, and no thread is left."""
    told = []
    threads = threading.active_count()
    scheduler = make().manual("a", with_resource(told, "a"), "start")
    with pytest.raises(ResourceError, match="not there"):
        scheduler.manual("b", with_resource(told, "b", fails=True), "start").start()
    assert told == ["a up", "a down"]
    assert threading.active_count() == threads
