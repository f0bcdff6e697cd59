"""A run that was killed at any instant goes on, and does only what was not recorded."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from canobatch import (
    JoinConfig,
    JoinError,
    JoinStrategy,
    RunCancelledError,
    TaskError,
    Workflow,
    WorkflowError,
    _faults,
)
from canobatch.engine import records
from canobatch.errors import (
    ConfigurationError,
    JournalError,
    RunInUseError,
    RunNotFoundError,
    VersionMismatchError,
)
from canobatch.journal import MemoryJournal, RunStatus, SqliteJournal
from tests.support.dying import DEATHS, Crash, Dying
from tests.support.journaled import UNDISTURBED, S, content, everything, mark, marks
from tests.support.watch import is_alive

ROOT = Path(__file__).resolve().parents[2]
ALL = JoinStrategy.all()


@pytest.fixture
def points(monkeypatch):
    """Set what is called at each fault point."""
    return lambda hook: monkeypatch.setattr(_faults, "hook", hook)


def wanted_content(place, pool):
    """Return the store of an undisturbed run."""
    place.mkdir()
    run = everything(place, MemoryJournal()).start(S.LOAD, pool=pool)
    assert run.wait() is S.DONE
    assert marks(place) == UNDISTURBED
    return content(run.store)


#: How often more a task may run for one crash: what was not recorded, and was on its way.
def check_executions(place, crashes):
    """Each task ran as often as undisturbed, but for what was in flight at a crash."""
    more = marks(place) - UNDISTURBED
    assert UNDISTURBED - marks(place) == {}
    assert max(more.values(), default=0) <= crashes
    return sum(more.values())


@pytest.mark.parametrize("part", range(4))
def test_a_crash_at_any_point_changes_nothing_but_what_was_in_flight(part, shared_pool, tmp_path, points):
    """Stopped at each fault point in turn and resumed, a run ends with the store of an undisturbed one."""
    wanted = wanted_content(tmp_path / "wanted", shared_pool)
    counter = Dying()
    points(counter)
    (tmp_path / "count").mkdir()
    everything(tmp_path / "count").orchestrate(S.LOAD, pool=shared_pool, run_id="r")
    total = len(counter.passed)
    assert {name for name in counter.passed if name.startswith("engine")} == {
        "engine.state.entered", "engine.accept.before", "engine.accept.after", "engine.commit.before",
        "engine.commit.after",
    }  # fmt: skip
    for number in range(1 + part, total + 1, 4):
        place = tmp_path / str(number)
        place.mkdir()
        points(Dying(number))
        with suppress(*DEATHS):
            everything(place).orchestrate(S.LOAD, pool=shared_pool, run_id="r")
        points(None)
        workflow = everything(place)
        try:
            run = workflow.start_resume("r", pool=shared_pool)
        except RunNotFoundError:
            assert marks(place) == {}
            run = workflow.start(S.LOAD, pool=shared_pool, run_id="r")
        assert run.wait() is S.DONE
        assert content(run.store) == wanted, f"after a crash at point {number}"
        check_executions(place, 1)
        assert workflow.resume("r") is S.DONE


KILLED = """if True:
    import os, signal, sys
    from canobatch import WorkerPool, _faults
    from tests.support.journaled import S, everything

    passed, number = 0, int(sys.argv[2])

    def kill(name):
        global passed
        passed += 1
        if passed == number:
            print("killed at", name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    _faults.hook = kill
    with WorkerPool(2) as pool:
        everything(sys.argv[1]).orchestrate(S.LOAD, pool=pool, run_id="r")
    print("through", flush=True)
"""


@pytest.mark.parametrize("number", [3, 9, 14, 20, 27, 34, 43, 55, 70])
def test_a_killed_process_is_resumed_by_another(number, shared_pool, run_script, tmp_path):
    """SIGKILLed at a point, its workers with it, a run is resumed here with the store of an undisturbed one."""
    wanted = wanted_content(tmp_path / "wanted", shared_pool)
    done = run_script(KILLED, tmp_path, number)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    workflow = everything(tmp_path)
    try:
        run = workflow.start_resume("r", pool=shared_pool)
    except RunNotFoundError:
        assert marks(tmp_path) == {}
        return
    assert run.wait() is S.DONE
    assert content(run.store) == wanted
    check_executions(tmp_path, 1)


THOUSAND = """if True:
    import os, sys, time
    from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow
    from canobatch.journal import SqliteJournal
    from tests.support.journaled import mark

    place = sys.argv[1]

    def work(ctx, item):
        mark(place, item)
        while item >= 900 and not os.path.exists(place + "/resuming"):
            time.sleep(0.01)
        ctx.store.add("sum", item)
        return item * 2

    def workflow():
        return (
            Workflow("thousand", journal=SqliteJournal(place + "/home"))
            .register_map("MAP", work, list(range(1000)), JoinConfig(JoinStrategy.all(), "DONE", into="values"))
            .add_exit_state("DONE")
        )

    class Watch:
        def on_event(self, event):
            if event.kind == "branch_finished":
                print(event.branch, flush=True)

    with WorkerPool(2) as pool:
        if sys.argv[2] == "run":
            workflow().with_observer(Watch()).orchestrate("MAP", pool=pool, run_id="r")
        else:
            run = workflow().start_resume("r", pool=pool)
            assert run.wait() == "DONE"
            assert run.store.get("values") == [2 * index for index in range(1000)]
            assert run.store.get("sum") == sum(range(1000))
            print("resumed", flush=True)
"""


def test_accepted_branches_of_a_big_split_are_not_run_again(start_script, run_script, tmp_path):
    """Killed at about 70 % of 1000 branches, a split keeps what it recorded and runs again what was in flight."""
    script = start_script(THOUSAND, tmp_path, "run")
    while script.stdout.count("\n") < 700:
        assert script.process.poll() is None, script.stderr
    script.process.kill()
    script.process.wait()
    assert script.survivors(within=5.0) == {}
    recorded = {attempt.branch for attempt in SqliteJournal(tmp_path / "home").run("r").attempts}
    before = marks(tmp_path)
    assert 700 <= len(recorded) < 1000
    assert {int(line) for line in script.stdout.split()} <= recorded, "an observer heard of what was not durable"
    (tmp_path / "resuming").touch()
    done = run_script(THOUSAND, tmp_path, "resume")
    assert "resumed" in done.stdout, done.stderr
    after = marks(tmp_path)
    assert [index for index in recorded if after[str(index)] != 1] == []
    again = {int(name) for name, count in after.items() if count > 1}
    assert again <= {int(name) for name in before} - recorded
    print(len(recorded), len(again), "branches were recorded, run again")
    assert len(after) == 1000


def simple(place, journal, join=None, items=None, work=None, **facts):
    """Return a workflow of one map."""

    def default(ctx, item):
        mark(place, item)
        return item

    join = join or JoinConfig(ALL, "DONE", into="values")
    return (
        Workflow("simple", journal=journal, **facts)
        .register_map("MAP", work or default, [0, 1, 2, 3] if items is None else items, join)
        .add_exit_state("DONE")
    )


#: After the transaction that made the first end of an attempt durable.
RECORDED = ("an attempt is durable", 1)


def interrupt(workflow, points, pool, at, **options):
    """Run until the n-th passing of a named point, and die there."""
    name, number = at
    passed = Counter()

    def hook(point):
        passed[point] += 1
        # What a transaction holds was settled before it began, so only the journal can tell.
        if point == "journal.write.after" and name == RECORDED[0]:
            passed[name] += bool(workflow.journal.run("r").attempts)
        if passed[name] >= number:
            raise Crash(point)

    points(hook)
    with pytest.raises(DEATHS):
        workflow.orchestrate("MAP", pool=pool, run_id="r", **options)
    points(None)


def test_a_winner_that_was_recorded_stays_the_winner(shared_pool, tmp_path, points):
    """An `any` whose winner is recorded and not committed is settled on resume without running anything."""
    journal = SqliteJournal(tmp_path / "home")
    join = JoinConfig(JoinStrategy.any(), "DONE", into="values")
    interrupt(simple(tmp_path, journal, join), points, shared_pool, ("engine.commit.before", 1))
    before = marks(tmp_path)
    run = simple(tmp_path, journal, join).start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    assert marks(tmp_path) == before
    (value,) = run.store.get("values")
    result = run.report().splits["MAP"]
    assert (result[value].value, len(result.successes), len(result)) == (value, 1, 4)


def test_a_failed_run_tries_its_failures_again(shared_pool, tmp_path):
    """Of a failed split the successes are kept and the failures run again, from attempt 1."""
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        mark(tmp_path, f"{item} {ctx.attempt}")
        if item == 2 and not os.path.exists(tmp_path / "fixed"):
            raise ValueError("broken")
        return item

    workflow = simple(tmp_path, journal, work=work)
    with pytest.raises(JoinError):
        workflow.orchestrate("MAP", pool=shared_pool, run_id="r")
    (summary,) = journal.runs()
    assert (summary.status, summary.state) == (RunStatus.FAILED, "'MAP'")
    with pytest.raises(JoinError):
        workflow.resume("r", pool=shared_pool)
    (tmp_path / "fixed").touch()
    run = workflow.start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    assert run.store.get("values") == [0, 1, 2, 3]
    assert marks(tmp_path) == {"0 1": 1, "1 1": 1, "2 1": 3, "3 1": 1}
    assert journal.runs()[0].status is RunStatus.COMPLETED


def test_interrupted_retries_go_on_counting(shared_pool, tmp_path, points):
    """A branch that was between two attempts goes on with the next one."""
    from canobatch import Retry, TaskConfig

    def work(ctx, item):
        mark(tmp_path, f"attempt {ctx.attempt}")
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return ctx.attempt

    def flow():
        return (
            Workflow("retries", journal=SqliteJournal(tmp_path / "home"))
            .register_map(
                "MAP", work, [0], JoinConfig(ALL, "DONE", into="v"), config=TaskConfig(retry=Retry.fixed(2, 0.0))
            )
            .add_exit_state("DONE")
        )

    interrupt(flow(), points, shared_pool, RECORDED)
    run = flow().start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    assert run.store.get("v") == [3]
    assert marks(tmp_path)["attempt 1"] == 1


def test_other_items_are_refused(shared_pool, tmp_path, points):
    """An outcome is not given to another item at its index; the error names state and branch."""
    journal = SqliteJournal(tmp_path / "home")
    interrupt(simple(tmp_path, journal), points, shared_pool, RECORDED)
    with pytest.raises(VersionMismatchError, match=r"'MAP', branch \d: its item is not the one"):
        simple(tmp_path, journal, items=["a", "b", "c", "d"]).resume("r", pool=shared_pool)
    assert simple(tmp_path, journal).resume("r", pool=shared_pool) == "DONE"


def test_a_generator_is_read_again_and_recorded_items_are_skipped(shared_pool, tmp_path, points):
    """Items from a generator are matched by index; only what was not recorded runs."""
    journal = SqliteJournal(tmp_path / "home")
    interrupt(simple(tmp_path, journal, items=lambda ctx: iter(range(50))), points, shared_pool, RECORDED)
    recorded = {attempt.branch for attempt in journal.run("r").attempts}
    run = simple(tmp_path, journal, items=lambda ctx: iter(range(50))).start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    assert run.store.get("values") == list(range(50))
    assert recorded
    assert all(marks(tmp_path)[str(index)] == 1 for index in recorded)


def test_very_many_branches_leave_counts_after_a_resume_too(shared_pool, tmp_path, points, monkeypatch):
    """Beyond a number of them branches are counted, not kept: those of an earlier life, and of an earlier split."""
    monkeypatch.setattr(records, "KEPT", 10)
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        mark(tmp_path, item)
        if item % 10 == 9:
            raise ValueError(item)
        return item

    def look(ctx):
        result = ctx.split("MAP")
        ctx.store.put("counts", result.counts)
        ctx.store.put("kept", [branch.index for branch in result])
        if marks(tmp_path)["look"] == 0:
            mark(tmp_path, "look")
            raise ValueError("once")
        return "DONE"

    def workflow():
        join = JoinConfig(JoinStrategy.partial_results(36), "LOOK", into="values")
        return simple(tmp_path, journal, join, list(range(40)), work).register("LOOK", look)

    interrupt(workflow(), points, shared_pool, ("engine.commit.before", 1))
    with pytest.raises(TaskError, match="once"):
        workflow().resume("r", pool=shared_pool)
    (visit, *_) = journal.run("r").visits
    assert visit.total == 40
    run = workflow().start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    counts = run.store.get("counts")
    assert counts["succeeded"] == 36
    assert sum(counts.values()) == 40
    kept = run.store.get("kept")
    # The last ones may have been cut before they could fail.
    assert kept[:10] == list(range(10))
    assert set(kept[10:]) <= {19, 29, 39}
    assert run.store.get("values") == [index for index in range(40) if index % 10 != 9]
    assert {marks(tmp_path)[str(index)] for index in range(40) if index % 10 != 9} == {1}


def test_what_on_failure_followed_is_known_after_a_resume(shared_pool, tmp_path, points):
    """The result of a split that failed on its way to on_failure is there for later states, errors and all."""
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        if item == 1:
            raise ValueError("one")
        return item

    def after(ctx):
        result = ctx.split("MAP")
        ctx.store.put("found", (result.values, [str(one.error.__cause__) for one in result.errors], len(result)))
        return "DONE"

    def flow():
        join = JoinConfig(ALL, "DONE", on_failure="AFTER")
        return simple(tmp_path, journal, join, [0, 1, 2], work).register("AFTER", after)

    interrupt(flow(), points, shared_pool, ("engine.commit.before", 2))
    run = flow().start_resume("r", pool=shared_pool)
    assert run.wait() == "DONE"
    assert run.store.get("found") == ([0, 2], ["one"], 3)
    assert run.report().to_dict()["path"] == ["'MAP'", "'AFTER'", "'DONE'"]


MAIN = """if True:
    import os, signal, sys
    from dataclasses import dataclass
    from enum import Enum, auto
    from canobatch import JoinConfig, JoinStrategy, Workflow, _faults
    from canobatch.journal import SqliteJournal

    class S(Enum):
        MAP = auto(); CHECK = auto(); DONE = auto()

    @dataclass(frozen=True)
    class Point:
        x: int

    @dataclass
    class Parameters:
        scale: int = 1

    def work(ctx, item):
        return Point(item.x * ctx.params.scale)

    def check(ctx):
        values = ctx.split(S.MAP).values
        assert values == [Point(10), Point(20)] and type(values[0]) is Point
        assert ctx.store.get("values") == values and ctx.params == Parameters(10)
        assert ctx.store.get("unset", S.MAP) is S.MAP
        return S.DONE

    workflow = (
        Workflow("main", journal=SqliteJournal(sys.argv[1]), params=Parameters)
        .register_map(S.MAP, work, [Point(1), Point(2)], JoinConfig(JoinStrategy.all(), S.CHECK, into="values"))
        .register(S.CHECK, check)
        .add_exit_state(S.DONE)
    )
    if sys.argv[2] == "run":
        commits = []
        def kill(name):
            if name == "engine.commit.after":
                os.kill(os.getpid(), signal.SIGKILL)
        _faults.hook = kill
        workflow.orchestrate(S.MAP, params={"scale": 10}, run_id="r")
    else:
        assert workflow.resume("r") is S.DONE
        print("equal")
"""


def test_classes_of_main_are_the_same_after_a_resume(run_script, tmp_path):
    """States, values and parameters whose classes live in __main__ are equal in the next process."""
    script = tmp_path / "main_script.py"
    script.write_text(MAIN)
    assert run_script(script, tmp_path / "home", "run").returncode == -signal.SIGKILL
    done = run_script(script, tmp_path / "home", "resume")
    assert done.stdout == "equal\n", done.stderr


def test_a_cancelled_run_is_resumed_if_it_was_kept(shared_pool, tmp_path):
    """cancel(keep=True) leaves a run that goes on; a plain cancel ends it for good, with its reason."""
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        mark(tmp_path, item)
        while not os.path.exists(tmp_path / "go"):
            pass
        return item

    for keep in (True, None, False):
        (tmp_path / "marks").unlink(missing_ok=True)
        run = simple(tmp_path, journal, work=work).start("MAP", pool=shared_pool, run_id=f"kept {keep}")
        while not marks(tmp_path):
            pass
        run.cancel("enough", keep=keep)
        with pytest.raises(RunCancelledError):
            run.wait()
    (tmp_path / "go").touch()
    for keep in (True, None):
        assert simple(tmp_path, journal, work=work).resume(f"kept {keep}", pool=shared_pool) == "DONE"
    with pytest.raises(RunCancelledError, match="enough"):
        simple(tmp_path, journal, work=work).resume("kept False", pool=shared_pool)


def test_a_run_with_a_living_owner_is_left_alone(shared_pool, tmp_path):
    """Neither a resume nor a second run of the id disturbs a run that goes on."""
    journal = SqliteJournal(tmp_path / "home")

    def work(ctx, item):
        mark(tmp_path, item)
        while not os.path.exists(tmp_path / "go"):
            pass
        return item

    run = simple(tmp_path, journal, work=work).start("MAP", pool=shared_pool, run_id="r")
    while not marks(tmp_path):
        pass
    with pytest.raises(RunInUseError):
        simple(tmp_path, journal, work=work).resume("r", pool=shared_pool)
    with pytest.raises(RunInUseError):
        simple(tmp_path, journal, work=work).orchestrate("MAP", pool=shared_pool, run_id="r")
    (tmp_path / "go").touch()
    assert run.wait() == "DONE"
    assert set(marks(tmp_path).values()) == {1}


def test_what_a_dead_owner_left_is_killed(start_script, tmp_path):
    """What outlived a launcher whose keeper was killed with it is killed before its run goes on."""
    script = start_script(
        """if True:
            import os, sys, time
            from canobatch import JoinConfig, JoinStrategy, Workflow
            from canobatch.journal import SqliteJournal

            def work(ctx, item):
                if os.fork() == 0:
                    os.setsid()
                    print("left", os.getpid(), flush=True)
                    time.sleep(600)
                time.sleep(600)

            (
                Workflow("simple", journal=SqliteJournal(sys.argv[1]))
                .register_map("MAP", work, [0, 1, 2, 3], JoinConfig(JoinStrategy.all(), "DONE", into="values"))
                .add_exit_state("DONE")
                .orchestrate("MAP", run_id="r")
            )
        """,
        tmp_path / "home",
    )
    script.wait_for("left")
    keeper, *_ = psutil.Process(script.process.pid).children()
    for pid in (keeper.pid, script.process.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (keeper.pid, script.process.pid):
        os.kill(pid, signal.SIGKILL)
    script.process.wait()
    left = int(script.stdout.split()[1])
    assert is_alive(left)
    journal = SqliteJournal(tmp_path / "home")
    workflow = simple(tmp_path, journal, work=lambda ctx, item: item)
    assert workflow.start_resume("r").wait() == "DONE"
    assert not is_alive(left)


@pytest.mark.parametrize("times", [8, pytest.param(50, marks=pytest.mark.stress)])
def test_of_two_who_resume_one_wins(times, shared_pool, tmp_path, points):
    """Resumed by two at once, a run goes on once: the other is told, and nothing runs twice."""
    for number in range(times):
        place = tmp_path / str(number)
        place.mkdir()
        journal = SqliteJournal(place / "home")
        interrupt(simple(place, journal), points, shared_pool, ("journal.write.before", 1))
        before = marks(place)
        barrier, runs, lost = threading.Barrier(2), [], []

        def race():
            barrier.wait()
            try:
                runs.append(simple(place, journal).start_resume("r", pool=shared_pool))
            except RunInUseError as error:
                lost.append(error)

        threads = [threading.Thread(target=race) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run.wait() for run in runs] == ["DONE"] * len(runs)
        # Who comes when the other is through gets its end.
        assert len(runs) + len(lost) == 2
        assert len(runs) >= 1
        assert set((marks(place) - before).values()) == {1}


def test_what_cannot_be_resumed_is_said(shared_pool, tmp_path, points):
    """No journal, an unknown id, another version, a state that is no more: each has an error of its own."""
    journal = SqliteJournal(tmp_path / "home")
    interrupt(simple(tmp_path, journal), points, shared_pool, ("engine.accept.after", 1))
    with pytest.raises(ConfigurationError, match="no journal"):
        simple(tmp_path, None).resume("r")
    with pytest.raises(RunNotFoundError, match="no run nobody"):
        simple(tmp_path, journal).resume("nobody")
    with pytest.raises(VersionMismatchError, match="version 0"):
        simple(tmp_path, journal, version=1).resume("r")
    other = Workflow("simple", journal=journal).register("OTHER", lambda: "DONE").add_exit_state("DONE")
    with pytest.raises(WorkflowError, match="'MAP', which workflow 'simple' does not have"):
        other.resume("r")
    assert simple(tmp_path, journal).resume("r", pool=shared_pool) == "DONE"


@pytest.mark.parametrize(("facts", "problem"), [({"journal": "home"}, "SqliteJournal"), ({"version": "1"}, "whole")])
def test_impossible_arguments_are_refused(facts, problem):
    """A journal that is none and a version that is no number are errors at once."""
    with pytest.raises(ConfigurationError, match=problem):
        Workflow("w", **facts)


def test_a_single_task_that_failed_is_run_again(tmp_path):
    """A failed run of single tasks goes on at the one that failed, with the store of before it."""

    def load(ctx):
        mark(tmp_path, "load")
        ctx.store.put("x", 1)
        return "FAIL"

    def fail(ctx):
        mark(tmp_path, "fail")
        ctx.store.add("x", 10)
        if marks(tmp_path)["fail"] < 2:
            raise ValueError("once")
        return "DONE"

    journal = MemoryJournal()
    workflow = Workflow("w", journal=journal).register("LOAD", load).register("FAIL", fail).add_exit_state("DONE")
    with pytest.raises(TaskError):
        workflow.orchestrate("LOAD", run_id="r")
    (attempt,) = journal.run("r").attempts
    assert (attempt.status, attempt.error.text) == ("failed", "state 'FAIL', attempt 1: ValueError: once")
    run = workflow.start_resume("r")
    assert run.wait() == "DONE"
    assert run.store.get("x") == 11
    assert marks(tmp_path) == {"load": 1, "fail": 2}


def test_a_commit_that_cannot_be_written_changes_nothing(tmp_path, points):
    """When the journal fails at a commit the store is as it was, and the run can be resumed."""
    workflow = (
        Workflow("w", journal=SqliteJournal(tmp_path / "home"))
        .register("PUT", lambda ctx: ctx.store.put("x", 1) or "DONE")
        .add_exit_state("DONE")
    )

    def hook(name):
        if name == "journal.write.rows":
            raise OSError(28, "No space left on device")

    points(hook)
    run = workflow.start("PUT", run_id="r")
    with pytest.raises(JournalError, match="no space left") as caught:
        run.wait()
    points(None)
    assert caught.value.reason == "full"
    assert content(run.store) == {}
    again = workflow.start_resume("r")
    assert again.wait() == "DONE"
    assert content(again.store) == {"x": 1}
