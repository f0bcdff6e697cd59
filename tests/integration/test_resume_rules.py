"""What a resumed run keeps, and what it refuses, rule by rule."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter

import pytest

from canobatch import (
    CancelToken,
    JoinConfig,
    JoinStrategy,
    Retry,
    RunCancelledError,
    Task,
    TaskConfig,
    TaskError,
    WorkerPool,
    Workflow,
    WorkflowError,
    _faults,
    _procs,
)
from canobatch.engine import resume as resuming
from canobatch.errors import CompensationError, RunInUseError, VersionMismatchError
from canobatch.journal import MemoryJournal, RunStatus, SqliteJournal, owner
from canobatch.models import BatchTask, CompensatableTask, Count, StreamTask
from canobatch.testing import FakeClock, InlineBackend
from tests.support.dying import DEATHS, Crash, Dying, Mortal
from tests.support.journaled import content, mark, marks
from tests.support.log_journal import LogJournal
from tests.support.watch import is_alive

ALL = JoinStrategy.all()


@pytest.fixture
def points(monkeypatch, caplog):
    """Set what is called at each fault point."""
    # A record of an error would hold all that its traceback does.
    caplog.set_level(logging.CRITICAL + 1, "canobatch")
    return lambda hook: monkeypatch.setattr(_faults, "hook", hook)


@pytest.fixture(params=["file", "memory", "somebody else's"])
def journal(request, tmp_path):
    """A journal of each kind."""
    if request.param == "file":
        return SqliteJournal(tmp_path / "home")
    return MemoryJournal() if request.param == "memory" else LogJournal(tmp_path / "log")


@pytest.fixture
def inline():
    """A backend without processes."""
    with InlineBackend() as backend:
        yield backend


def interrupt(workflow, points, pool, name, number=1, initial="MAP", **options):
    """Run until the n-th passing of a named point of the engine, and die there, with all durable that was accepted."""
    points(Death(workflow.journal, name, number))
    with pytest.raises(DEATHS):
        workflow.orchestrate(initial, pool=pool, run_id="r", **options)
    points(None)


class Death:
    """From the n-th passing of a named point on nothing more happens; but first what was accepted becomes durable."""

    def __init__(self, journal, name, number):
        self.journal = journal
        self.name = name
        self.number = number
        self.passed = Counter()
        self.is_dead = False

    def __call__(self, point):
        """Pass a point."""
        if self.is_dead:
            raise Crash(point)
        self.passed[point] += 1
        if point == self.name and self.passed[point] >= self.number:
            while len(succeeded(self.journal)) < self.passed["engine.accept.after"]:
                pass
            self.is_dead = True
            raise Crash(point)


def succeeded(journal):
    """Return the branches whose success is recorded."""
    return {attempt.branch for attempt in journal.run("r").attempts if attempt.status == "succeeded"}


def flow(place, journal, items, join=None, work=None, **facts):
    """Return a workflow of one map whose executions leave marks."""

    def default(ctx, item):
        mark(place, ctx.branch)
        return item

    join = join or JoinConfig(ALL, "DONE", into="values")
    workflow = Workflow("flow", journal=journal, **facts)
    return workflow.register_map("MAP", work or default, items, join).add_exit_state("DONE")


# -- what is refused


OTHERS = {
    "other items": ["a", "b", "c", "d"],
    "fewer items": [0, 1],
    "fewer from a generator": lambda ctx: iter(range(2)),
    "none": [],
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("number", [4, 3], ids=["all recorded", "all but one recorded"])
def test_outcomes_are_not_given_to_other_items(number, others, journal, inline, tmp_path, points):
    """Other items, or fewer, are an error also where nothing is left to be done; with the right ones it goes on."""
    interrupt(flow(tmp_path, journal, [0, 1, 2, 3]), points, inline, "engine.accept.after", number)
    with pytest.raises(VersionMismatchError, match="a resumed run needs the same items"):
        flow(tmp_path, journal, others).resume("r", pool=inline)
    run = flow(tmp_path, journal, [0, 1, 2, 3]).start_resume("r", pool=inline)
    assert run.wait() == "DONE"
    assert run.store.get("values") == [0, 1, 2, 3]


class Value(Task):
    """Returns its number."""

    def __init__(self, number):
        self.number = number

    def run(self):
        """Return it."""
        return self.number


@pytest.mark.parametrize("number", [5, 4], ids=["all recorded", "all but one recorded"])
def test_a_split_that_lost_tasks_is_refused(number, journal, inline, points):
    """Outcomes of branches that are no more are not counted for those that are."""

    def split(count):
        tasks = [Value(index) for index in range(count)]
        return (
            Workflow("split", journal=journal)
            .register_split("MAP", tasks, JoinConfig(ALL, "DONE", into="values"))
            .add_exit_state("DONE")
        )

    interrupt(split(5), points, inline, "engine.accept.after", number)
    with pytest.raises(VersionMismatchError, match=r"branch \d was recorded, and there are only 3"):
        split(3).resume("r", pool=inline)
    run = split(5).start_resume("r", pool=inline)
    assert run.wait() == "DONE"
    assert run.store.get("values") == [0, 1, 2, 3, 4]


class Batch(BatchTask):
    """A batch whose items are told."""

    def __init__(self, items):
        self.items = items

    def load(self, ctx):
        """Return the items."""
        return self.items

    def process_item(self, ctx, item):
        """Return it."""
        return item

    def finish(self, ctx, results):
        """Keep the values."""
        ctx.store.put("values", [one.value for one in results])
        return "DONE"


@pytest.mark.parametrize("others", [[0, 1], [4, 5, 6, 7]], ids=["fewer", "other"])
def test_a_batch_with_other_items_is_refused(others, journal, inline, points):
    """The same for the items of a batch."""

    def batch(items):
        return Workflow("batch", journal=journal).register("MAP", Batch(items)).add_exit_state("DONE")

    interrupt(batch([0, 1, 2, 3]), points, inline, "engine.commit.before")
    with pytest.raises(VersionMismatchError, match="a resumed run needs the same items"):
        batch(others).resume("r", pool=inline)
    run = batch([0, 1, 2, 3]).start_resume("r", pool=inline)
    assert run.wait() == "DONE"
    assert run.store.get("values") == [0, 1, 2, 3]


def test_a_refused_resume_leaves_a_failed_run_as_it_was(journal, tmp_path):
    """A definition that cannot go on does not take away what the run failed with."""

    def fail(ctx):
        if (tmp_path / "fixed").exists():
            return "DONE"
        raise ValueError("broken")

    def one(state):
        return Workflow("one", journal=journal).register(state, fail).add_exit_state("DONE")

    with pytest.raises(TaskError, match="broken"):
        one("OLD").orchestrate("OLD", run_id="r")
    before = journal.runs()
    with pytest.raises(WorkflowError, match="'OLD', which workflow 'one' does not have"):
        one("NEW").resume("r")
    (after,) = journal.runs()
    assert (after.status, after.error, after.state) == (before[0].status, before[0].error, before[0].state)
    assert after.status is RunStatus.FAILED
    (tmp_path / "fixed").touch()
    assert one("OLD").resume("r") == "DONE"


class Local:
    """What is pickled by reference."""


@pytest.mark.parametrize("is_by_value", [True, False])
def test_values_by_value_need_their_interpreter(is_by_value, journal, monkeypatch):
    """A lambda in the store is refused under another Python or cloudpickle, and said; a class of a module is not."""

    lives = []

    def put(ctx):
        ctx.store.put("kept", (lambda: 7) if is_by_value else Local)
        return "USE"

    def use(ctx):
        lives.append(ctx.run_id)
        if len(lives) == 1:
            raise ValueError("once")
        kept = ctx.store.get("kept")
        assert kept() == 7 if is_by_value else kept is Local
        return "DONE"

    workflow = Workflow("w", journal=journal).register("PUT", put).register("USE", use).add_exit_state("DONE")
    with pytest.raises(TaskError, match="once"):
        workflow.orchestrate("PUT", run_id="r")
    present = resuming.made_with()
    monkeypatch.setattr(resuming, "made_with", lambda: "Python 3.99, cloudpickle 9.9")
    # Told once, it is not forgotten.
    for _ in range(2 * is_by_value):
        with pytest.raises(VersionMismatchError, match=r"made with Python 3\.\d+, cloudpickle .*this is Python 3\.99"):
            workflow.resume("r")
        assert [run.status for run in journal.runs()] == [RunStatus.FAILED]
    if is_by_value:
        monkeypatch.setattr(resuming, "made_with", lambda: present)
    assert workflow.resume("r") == "DONE"


@pytest.mark.parametrize("what", ["value", "update"])
def test_branches_by_value_need_their_interpreter_too(what, journal, inline, tmp_path, points, monkeypatch):
    """So do recorded values of branches, and functions of updates that are not committed."""

    def work(ctx, item):
        if what == "value":
            return lambda: item
        ctx.store.update("sum", lambda value: value + item, 0)
        return None

    def workflow():
        return flow(tmp_path, journal, [1, 2], JoinConfig(ALL, "DONE"), work)

    interrupt(workflow(), points, inline, "engine.commit.before")
    present = resuming.made_with()
    monkeypatch.setattr(resuming, "made_with", lambda: "Python 3.99, cloudpickle 9.9")
    for _ in range(2):
        with pytest.raises(VersionMismatchError, match=r"this is Python 3\.99"):
            workflow().resume("r", pool=inline)
    monkeypatch.setattr(resuming, "made_with", lambda: present)
    run = workflow().start_resume("r", pool=inline)
    assert run.wait() == "DONE"
    assert what == "value" or run.store.get("sum") == 3


# -- what is kept


JOINS = {
    "any": (JoinStrategy.any(), 1),
    "quorum": (JoinStrategy.quorum(2), 2),
    "percentage": (JoinStrategy.percentage(0.5), 2),
    "partial results": (JoinStrategy.partial_results(3), 3),
    "all": (ALL, 4),
}


@pytest.mark.parametrize(("strategy", "needed"), JOINS.values(), ids=JOINS)
def test_a_join_that_was_met_stays_met(strategy, needed, journal, inline, tmp_path, points):
    """Killed between the last acceptance and the commit, a split is settled without running anything."""

    def workflow():
        return flow(tmp_path, journal, [5, 6, 7, 8], JoinConfig(strategy, "DONE", into="values"))

    interrupt(workflow(), points, inline, "engine.commit.before")
    before = marks(tmp_path)
    assert before.total() == needed
    run = workflow().start_resume("r", pool=inline)
    assert run.wait() == "DONE"
    assert marks(tmp_path) == before
    assert run.store.get("values") == [5, 6, 7, 8][:needed]
    statuses = [branch.status for branch in run.report().splits["MAP"]]
    assert statuses == ["succeeded"] * needed + ["not_started"] * (4 - needed)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_equal_items_and_a_fold_are_right_after_a_resume(ordered, shared_pool, tmp_path, points):
    """Branches are told apart by their index, and folded once, also those that wait behind one that was not done."""
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        mark(tmp_path, ctx.branch)
        while ctx.branch == 1 and not os.path.exists(tmp_path / "go"):
            pass
        return item

    def workflow():
        join = JoinConfig(ALL, "DONE", into="folded", reduce=(lambda value, item: value * 2 + item, 1), ordered=ordered)
        return flow(tmp_path, journal, [3] * 12, join, work)

    interrupt(workflow(), points, shared_pool, "engine.accept.after", 6)
    recorded = succeeded(journal)
    assert len(recorded) == 6
    before = marks(tmp_path)
    (tmp_path / "go").touch()
    run = workflow().start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    # 1, doubled and 3 added, twelve times.
    assert run.store.get("folded") == 4 * 2**12 - 3
    assert [branch for branch in recorded if marks(tmp_path)[str(branch)] != before[str(branch)]] == []


def test_a_run_may_go_on_elsewhere(tmp_path, points):
    """Begun on two workers, gone on with on one, and ended without any: each does what is left."""
    journal = SqliteJournal(tmp_path / "home")

    def workflow():
        return flow(tmp_path, journal, list(range(20)))

    with WorkerPool(2) as pool:
        interrupt(workflow(), points, pool, "engine.accept.after", 6)
    first = succeeded(journal)
    with WorkerPool(1) as pool:
        points(Death(journal, "engine.accept.before", 6))
        with pytest.raises(DEATHS):
            workflow().resume("r", pool=pool)
        points(None)
    second = succeeded(journal)
    with InlineBackend() as backend:
        run = workflow().start_resume("r", pool=backend)
        assert run.wait() == "DONE"
        assert first < second
        assert len(backend.calls) == 20 - len(second)
    assert run.store.get("values") == list(range(20))


def test_a_report_tells_of_earlier_lives(journal, inline, tmp_path):
    """After a resume the report has all visits, their attempts and durations, and the results of earlier splits."""

    def look(ctx):
        if not (tmp_path / "fixed").exists():
            raise ValueError("once")
        return "DONE"

    def work(ctx, item):
        if item == 2:
            raise ValueError("two")
        return item

    def workflow():
        join = JoinConfig(JoinStrategy.partial_timeout(1), "ROUTE", timeout=600.0)
        return (
            flow(tmp_path, journal, [0, 1, 2], join, work)
            .register("LOAD", lambda: "MAP")
            .register_router("ROUTE", lambda: "LOOK")
            .register("LOOK", look)
        )

    run = workflow().start("LOAD", pool=inline, run_id="r")
    with pytest.raises(TaskError, match="once"):
        run.wait()
    before = run.report()
    (tmp_path / "fixed").touch()
    run = workflow().start_resume("r", pool=inline)
    assert run.wait() == "DONE"
    after = run.report()
    assert after.path == ["LOAD", "MAP", "ROUTE", "LOOK", "DONE"]
    assert [visit.state for visit in after.states] == ["LOAD", "MAP", "ROUTE", "LOOK"]
    assert [visit.attempts for visit in after.states[:2]] == [visit.attempts for visit in before.states[:2]]
    assert all(visit.duration is not None for visit in after.states[:2])
    old, new = (
        [(one.status, one.value, one.attempts, one.duration) for one in report.splits["MAP"]]
        for report in (before, after)
    )
    assert old == new
    assert str(after.splits["MAP"][2].error.__cause__) == "two"


def test_deadlines_start_anew(journal, inline, tmp_path):
    """A resumed run, and its split, have all their time again, however long it lay there."""

    def work(ctx, item):
        mark(tmp_path, ctx.deadline)
        if not (tmp_path / "fixed").exists():
            raise ValueError("once")
        return item

    def workflow():
        join = JoinConfig(ALL, "DONE", timeout=100.0)
        return flow(tmp_path, journal, [0], join, work, total_timeout=1000.0)

    with FakeClock() as clock:
        with pytest.raises(Exception, match="once"):
            workflow().orchestrate("MAP", pool=inline, run_id="r")
        clock.advance(5000.0)
        (tmp_path / "fixed").touch()
        assert workflow().resume("r", pool=inline) == "DONE"
    assert marks(tmp_path) == {"100.0": 2}


def test_one_workflow_resumes_a_run_twice(shared_pool, tmp_path):
    """While a run goes on a second resume is refused; when it is through, a resume gives its end and runs nothing."""
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        mark(tmp_path, item)
        if not os.path.exists(tmp_path / "fixed"):
            raise ValueError("once")
        while not os.path.exists(tmp_path / "go"):
            pass
        return item

    workflow = flow(tmp_path, journal, [0, 1], work=work)
    with pytest.raises(Exception, match="once"):
        workflow.orchestrate("MAP", pool=shared_pool, run_id="r")
    (tmp_path / "fixed").touch()
    run = workflow.start_resume("r", pool=shared_pool)
    while marks(tmp_path).total() < 3:
        pass
    with pytest.raises(RunInUseError, match=f"in use by process {os.getpid()}"):
        workflow.start_resume("r", pool=shared_pool)
    (tmp_path / "go").touch()
    assert run.wait() == "DONE"
    before = marks(tmp_path)
    again = workflow.start_resume("r", pool=shared_pool)
    assert again.wait() == "DONE"
    assert content(again.store) == {"values": [0, 1]}
    assert again.report().path == ["MAP", "DONE"]
    assert marks(tmp_path) == before


class Feed(StreamTask):
    """Ten items in windows of two; waits in the third window until it may go on."""

    window = Count(2)

    def __init__(self, place):
        self.place = place

    def open(self, ctx, cursor):
        """Go on from the cursor."""
        mark(self.place, f"open {cursor}")
        return self._items(ctx, cursor or 0)

    def _items(self, ctx, first):
        for item in range(first, 10):
            while item == 5 and not os.path.exists(f"{self.place}/go") and not ctx.cancelled:
                pass
            yield item

    def process_item(self, ctx, item):
        """Process one."""
        return item, item + 1

    def flush_window(self, ctx, outputs):
        """Keep it."""
        mark(self.place, f"window {outputs}")
        ctx.store.append("windows", outputs)

    def on_close(self, ctx, reason):
        """Go on."""
        return "DONE"


def test_a_kept_cancel_keeps_a_stream_s_cursor(journal, tmp_path):
    """A cancelled stream goes on where it was drained to: nothing is handed on twice, nothing is left out."""
    workflow = Workflow("feed", journal=journal).register_stream("FEED", Feed(tmp_path)).add_exit_state("DONE")
    run = workflow.start("FEED", run_id="r")
    while marks(tmp_path)["window [2, 3]"] == 0:
        pass
    run.cancel("enough", keep=True)
    with pytest.raises(RunCancelledError):
        run.wait()
    (tmp_path / "go").touch()
    run = workflow.start_resume("r")
    assert run.wait() == "DONE"
    assert [item for window in run.store.get("windows") for item in window] == list(range(10))
    assert all(count == 1 for name, count in marks(tmp_path).items() if name.startswith("window"))
    assert marks(tmp_path)["open None"] == 1


class Deed(CompensatableTask):
    """Does something, and undoes it."""

    def __init__(self, place, *, in_doubt):
        self.place = place
        self.compensates_in_doubt = in_doubt

    def run(self, ctx):
        """Do it."""
        mark(self.place, "do")
        return "SHIP", "ticket"

    def compensate(self, ctx, output):
        """Undo it."""
        mark(self.place, f"undo {output}")


@pytest.mark.parametrize("in_doubt", [True, False])
def test_what_was_cut_in_the_midst_of_a_deed_is_in_doubt(in_doubt, journal, tmp_path, points):
    """Killed after it took effect and before that was recorded, it is undone by itself, or listed, in a roll-back."""

    def ship(ctx):
        raise RuntimeError("no ship")

    def saga(journal):
        return (
            Workflow("saga", journal=journal)
            .register_with_compensation("MAP", Deed(tmp_path, in_doubt=in_doubt))
            .register("SHIP", ship)
            .add_exit_state("DONE")
        )

    death = Dying(2)  # The 1st point of the engine enters the state, the 2nd is the commit.
    points(lambda name: death(name) if name.startswith("engine.") or death.is_dead else None)
    with pytest.raises(DEATHS):
        saga(Mortal(journal, death)).orchestrate("MAP", run_id="r")
    points(None)
    assert marks(tmp_path) == {"do": 1}
    assert [one.status for one in journal.run("r").compensations] == ["intended"]
    with pytest.raises(TaskError if in_doubt else CompensationError, match="no ship" if in_doubt else "in doubt"):
        saga(journal).resume("r")
    assert marks(tmp_path) == {"do": 2, "undo ticket": 1} | ({"undo None": 1} if in_doubt else {})


# -- attempts


def flaky(place, journal):
    """Return a workflow of one task that may be tried three times and always fails."""

    def fail(ctx):
        mark(place, ctx.attempt)
        raise ValueError("no")

    config = TaskConfig(retry=Retry.fixed(2, 0.001))
    return Workflow("flaky", journal=journal).register("MAP", fail, config=config).add_exit_state("DONE")


def test_a_single_task_s_attempts_go_on_counting(journal, tmp_path, points):
    """Killed after two of three attempts, a single task has one left, as a branch has."""
    token = CancelToken()

    class Watch:
        def on_event(self, event):
            # Before its third attempt.
            if event.kind == "retry" and event.attempt == 2:
                token.cancel("enough", keep=True)

    with pytest.raises(RunCancelledError):
        flaky(tmp_path, journal).with_observer(Watch()).orchestrate("MAP", run_id="r", cancel=token)
    assert marks(tmp_path) == {"1": 1, "2": 1}
    with pytest.raises(TaskError):
        flaky(tmp_path, journal).resume("r")
    assert marks(tmp_path) == {"1": 1, "2": 1, "3": 1}


# -- whose run it is

SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


@pytest.fixture
def left_over():
    """A process that carries a token, as one that a lost pool left."""
    token = f"left.{os.urandom(8).hex()}"
    process = subprocess.Popen(SLEEPER, env={**os.environ, _procs.TOKEN: token}, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield token, process
    process.kill()
    process.wait()
    process.stdout.close()


def owned(journal, monkeypatch, token, **facts):
    """Make an interrupted run whose owner was this process, but for ``facts``."""
    this = owner.this_process()._replace(**facts)
    with monkeypatch.context() as patched:
        patched.setattr(owner, "this_process", lambda: this)

        def fail(ctx):
            raise ValueError("once")

        broken = Workflow("w", journal=journal).register("MAP", fail).add_exit_state("DONE")
        with pytest.raises(TaskError):
            broken.orchestrate("MAP", run_id="r")
        run, _ = journal.take_over("r", workflow="w", version=0)
        run.own(token, "")
        run.close()
    return Workflow("w", journal=journal).register("MAP", lambda: "DONE").add_exit_state("DONE")


def test_a_reused_pid_is_not_the_owner(tmp_path, monkeypatch, left_over):
    """An owner whose number another process has by now is dead: what it left is killed before its run goes on."""
    token, process = left_over
    workflow = owned(SqliteJournal(tmp_path), monkeypatch, token, start_ticks=1)
    assert workflow.resume("r") == "DONE"
    assert not is_alive(process.pid)


STRANGERS = [{}, {"start_ticks": 1, "boot_id": "another"}, {"start_ticks": 1, "pid_namespace": 1}]


@pytest.mark.parametrize("facts", STRANGERS, ids=["alive", "another boot", "another namespace"])
def test_what_is_not_of_a_dead_owner_here_is_left_alone(facts, tmp_path, monkeypatch, left_over):
    """An owner that lives and only let go of its run keeps its processes; so does one of another boot or namespace."""
    token, process = left_over
    workflow = owned(SqliteJournal(tmp_path), monkeypatch, token, **facts)
    assert workflow.resume("r") == "DONE"
    assert is_alive(process.pid)


def test_who_dies_while_taking_over_leaves_the_killing_to_the_next(tmp_path, monkeypatch, left_over, points):
    """What a dead owner left is killed by the second resumer if the first died before it could."""
    token, process = left_over
    workflow = owned(SqliteJournal(tmp_path), monkeypatch, token, start_ticks=1)
    monkeypatch.setattr(resuming, "_kill_what_is_left", lambda owner: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        workflow.resume("r")
    monkeypatch.undo()
    assert workflow.resume("r") == "DONE"
    assert not is_alive(process.pid)
