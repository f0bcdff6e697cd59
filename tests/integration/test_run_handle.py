"""A run that begins later, that is watched, and that is told where to run and for how long."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import pytest

from canobatch import RunCancelledError, TaskConfig, Workflow
from canobatch.errors import ConfigurationError, WorkflowTimeoutError
from canobatch.journal import RunStatus, SqliteJournal
from tests.support.losers import Loser
from tests.support.watch import NEVER, Witness, await_that


def pid(ctx):
    """Leave the pid of the process that runs this."""
    ctx.store.put("pid", os.getpid())
    return "done"


def workflow(task=pid, **options) -> Workflow:
    """A workflow of one task."""
    return Workflow("w", **options).register("start", task).add_exit_state("done")


def test_a_run_may_begin_later():
    """Made without beginning it does nothing; begun it runs like any other, and its time counts from there."""
    run = workflow(total_timeout=NEVER).start("start", begins=False)
    with pytest.raises(TimeoutError):
        run.wait(0)
    assert run.report().path == []
    run.begin()
    assert run.wait(NEVER) == "done"


def test_a_run_that_is_cancelled_before_it_begins_enters_no_task():
    """Begun, it ends as cancelled."""
    entered = []
    run = workflow(lambda: entered.append(1) or "done").start("start", begins=False)
    run.cancel("not needed")
    run.begin()
    with pytest.raises(RunCancelledError, match="not needed"):
        run.wait(NEVER)
    assert entered == []


def test_how_long_to_wait_may_be_a_timedelta():
    """Like every duration."""
    gate = threading.Event()
    run = workflow(lambda: gate.wait(NEVER) and "done").start("start")
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
        run.wait(timedelta(milliseconds=10))
    gate.set()
    assert run.wait(timedelta(days=100_000_000)) == "done"


def test_who_watches_is_told_before_who_waits():
    """The watcher sees the report of the whole run; wait returns after it."""
    seen, gate = [], threading.Event()
    run = workflow(lambda: gate.wait(NEVER) and "done").start("start")
    run.watch(lambda: seen.append((run.report().state, run.error)))
    gate.set()
    run.wait(NEVER)
    assert seen == [("done", None)]
    run.watch(lambda: seen.append("late"))
    assert seen[-1] == "late"


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_watcher_that_raises_spoils_nothing(raised, caplog):
    """The others are told, the run ends as it would; what was raised is logged."""

    def fail():
        raise raised

    seen, gate = [], threading.Event()
    run = workflow(lambda: gate.wait(NEVER) and "done").start("start")
    run.watch(fail)
    run.watch(lambda: seen.append(run.error))
    gate.set()
    assert run.wait(NEVER) == "done"
    assert seen == [None]
    assert "a watcher of run" in caplog.text


def test_the_error_of_a_failed_run_is_there():
    """It is what wait raises; None as long as the run goes on."""
    gate = threading.Event()

    def fail():
        gate.wait(NEVER)
        raise ValueError("no")

    run = workflow(fail).start("start")
    assert run.error is None
    gate.set()
    with pytest.raises(Exception, match="no") as caught:
        run.wait(NEVER)
    assert run.error is caught.value


def test_a_run_for_which_there_is_no_thread_has_ended(monkeypatch):
    """begin raises, and so does wait; who watches is told."""
    seen = []
    run = workflow().start("start", begins=False)
    run.watch(lambda: seen.append(str(run.error)))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(RuntimeError):
            run.begin()
    with pytest.raises(RuntimeError, match="no thread"):
        run.wait(NEVER)
    assert seen == ["no thread"]


def test_a_run_says_where_its_single_tasks_run(shared_pool):
    """where="worker" for those that do not say so themselves."""
    there = workflow().start("start", pool=shared_pool, where="worker")
    here = workflow(pid, default_config=TaskConfig(where="parent")).start("start", pool=shared_pool, where="worker")
    assert there.wait(NEVER) == here.wait(NEVER) == "done"
    assert there.store.get("pid") != os.getpid()
    assert here.store.get("pid") == os.getpid()


@pytest.mark.parametrize("timeout", [0.3, timedelta(seconds=0.3)])
def test_a_run_may_have_less_time_than_its_workflow(shared_pool, tmp_path, timeout):
    """The smaller limit counts, is in the error, and kills."""
    with Witness(tmp_path, "a") as witness:
        endless = workflow(Loser("a", "ignores_sigterm", str(tmp_path)), total_timeout=NEVER)
        run = endless.start("start", pool=shared_pool, timeout=timeout)
        with pytest.raises(WorkflowTimeoutError, match=r"within 0\.3 s") as caught:
            run.wait(NEVER)
        assert caught.value.limit == 0.3
        assert [line for line in witness.survivors() if "lives" in line and "process" in line] == []


@pytest.mark.parametrize(("name", "value"), [("where", "there"), ("timeout", 0), ("timeout", "soon"), ("timeout", -1)])
def test_an_impossible_setting_of_a_run_is_refused(name, value):
    """The error names the setting; nothing has begun."""
    with pytest.raises(ConfigurationError, match=name):
        workflow().start("start", **{name: value})


# -- Ctrl-C at the very beginning


def interrupting(start, awaited):
    """Return a start of threads at which Ctrl-C comes to that of a run: before it, or when ``awaited`` is set."""

    def interrupted(thread):
        if not thread.name.startswith("canobatch-run-"):
            start(thread)
            return
        if awaited is not None:
            start(thread)
            assert awaited.wait(NEVER)
        raise KeyboardInterrupt

    return interrupted


def test_ctrl_c_while_a_run_begins_cancels_it(monkeypatch):
    """The run's task is told and ends before the KeyboardInterrupt is raised, although nobody waited yet."""
    entered, told = threading.Event(), []

    def task(ctx):
        entered.set()
        await_that(lambda: ctx.cancelled, "the run should be cancelled")
        told.append("cancelled")
        return "done"

    monkeypatch.setattr(threading.Thread, "start", interrupting(threading.Thread.start, entered))
    with pytest.raises(KeyboardInterrupt):
        workflow(task).orchestrate("start")
    assert told == ["cancelled"]


@pytest.mark.parametrize("way", ["orchestrate", "resume"])
def test_ctrl_c_before_a_run_has_a_thread_ends_it(way, monkeypatch, tmp_path):
    """No task runs, the journal has the end, and the run can be resumed."""
    entered = []

    def task():
        entered.append(way)
        return "done"

    journal = SqliteJournal(tmp_path / "home")
    flow = workflow(task, journal=journal)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupting(threading.Thread.start, None))
        with pytest.raises(KeyboardInterrupt):
            flow.orchestrate("start", run_id="r")
        if way == "resume":
            with pytest.raises(KeyboardInterrupt):
                flow.resume("r")
    assert entered == []
    assert journal.run("r").summary.status is RunStatus.CANCELLED
    assert flow.resume("r") == "done"
    assert entered == [way]


def test_a_run_for_which_there_is_no_thread_lets_go_of_its_journal(monkeypatch, tmp_path):
    """It can be resumed at once."""
    flow = workflow(journal=SqliteJournal(tmp_path / "home"))
    with monkeypatch.context() as patch:
        start = threading.Thread.start

        def refused(thread):
            if thread.name.startswith("canobatch-run-"):
                raise RuntimeError("no thread")
            start(thread)

        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="no thread"):
            flow.orchestrate("start", run_id="r")
    assert flow.resume("r") == "done"


def test_a_run_that_failed_before_it_began_can_be_resumed(tmp_path):
    """Its journal is let go of, whoever found that it could not begin."""
    flow = workflow(lambda: "done", journal=SqliteJournal(tmp_path))
    run = flow.start("start", begins=False)
    run.fail(RuntimeError("no thread"))
    run.end()
    with pytest.raises(RuntimeError, match="no thread"):
        run.wait(NEVER)
    assert flow.resume(run.id) == "done"
