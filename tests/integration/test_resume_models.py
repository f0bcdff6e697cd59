"""Models in runs that were killed: cursors, wake-up times, items and deeds are where they were."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import suppress

import pytest

from canobatch import RunCancelledError, TaskError, Workflow, _faults
from canobatch.errors import CompensationError, RunNotFoundError
from canobatch.journal import MemoryJournal, RunStatus, SqliteJournal
from canobatch.models import CompensatableTask
from tests.support.dying import DEATHS, Crash, Dying
from tests.support.journaled import content, mark, marks
from tests.support.journaled_models import Deed, Wait, models


@pytest.fixture
def points(monkeypatch):
    """Set what is called at each fault point."""
    return lambda hook: monkeypatch.setattr(_faults, "hook", hook)


def resumed(workflow, pool):
    """Go on with a run that was stopped; return its store, None if it was over, and what it ended with."""
    try:
        run = workflow.start_resume("r", pool=pool)
    except RunNotFoundError:
        run = workflow.start("STEPS", pool=pool, run_id="r")
    except TaskError as error:
        return None, str(error)
    try:
        end = run.wait()
    except TaskError as error:
        end = str(error)
    return content(run.store), end


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("fails", [False, True], ids=["through", "rolled back"])
def test_models_go_on_after_a_crash_at_any_point(fails, part, shared_pool, tmp_path, points):
    """Stopped at each fault point and resumed, models end, or are rolled back, as if undisturbed."""
    (tmp_path / "wanted").mkdir()
    undisturbed = models(tmp_path / "wanted", fails=fails, journal=MemoryJournal()).start("STEPS", pool=shared_pool)
    with suppress(TaskError):
        undisturbed.wait()
    wanted, executions = content(undisturbed.store), marks(tmp_path / "wanted")
    counter = Dying()
    points(counter)
    (tmp_path / "count").mkdir()
    with suppress(TaskError):
        models(tmp_path / "count", fails=fails).orchestrate("STEPS", pool=shared_pool, run_id="r")
    for number in range(1 + part, len(counter.passed) + 1, 4):
        place = tmp_path / str(number)
        place.mkdir()
        points(Dying(number))
        with suppress(*DEATHS, TaskError):
            models(place, fails=fails).orchestrate("STEPS", pool=shared_pool, run_id="r")
        points(None)
        found, end = resumed(models(place, fails=fails), shared_pool)
        assert ("no ship" in end) if fails else (end == "DONE")
        # It had been rolled back to its end before.
        found = wanted if found is None else found
        # Who was in doubt is undone as well: that may add to what was undone, and to nothing else.
        if fails and Counter(found["undone"]) - Counter(wanted["undone"]):
            found["undone"] = wanted["undone"]
        assert found == wanted, f"after a crash at point {number}"
        more = Counter({name: count for name, count in (marks(place) - executions).items() if "None" not in name})
        assert executions - marks(place) == {}
        assert max(more.values(), default=0) <= 2, more
        status = RunStatus.ROLLED_BACK if fails else RunStatus.COMPLETED
        assert [one.status for one in SqliteJournal(place / "home").runs()] == [status]


KILLED = """if True:
    import os, signal, sys
    from canobatch import WorkerPool, _faults
    from tests.support.journaled_models import models

    passed, number = 0, int(sys.argv[2])

    def kill(name):
        global passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _faults.hook = kill
    with WorkerPool(2) as pool:
        models(sys.argv[1], fails=True).orchestrate("STEPS", pool=pool, run_id="r")
"""


@pytest.mark.parametrize("number", [12, 30, 50, 70, 85, 100, 110])
def test_a_killed_saga_is_rolled_back_by_another_process(number, shared_pool, run_script, tmp_path):
    """SIGKILLed at a point, on its way or going back, a run that must fail ends rolled back, each deed undone."""
    done = run_script(KILLED, tmp_path, number)
    assert done.returncode in {1, -signal.SIGKILL}, done.stderr
    _, end = resumed(models(tmp_path, fails=True), shared_pool)
    assert "no ship" in end
    found = marks(tmp_path)
    assert found["undo reserve reserve"] >= 1
    assert found["undo pay pay"] >= 1
    assert max(found["undo reserve reserve"], found["undo pay pay"]) <= 2
    assert [one.status for one in SqliteJournal(tmp_path / "home").runs()] == [RunStatus.ROLLED_BACK]


def test_a_resumed_timer_does_not_start_over(tmp_path, points):
    """The wake-up time is kept: wait is asked once, and what is left of it is waited for."""

    def flow(seconds):
        return (
            Workflow("timer", journal=SqliteJournal(tmp_path / "home"))
            .register("WAIT", Wait(tmp_path, seconds))
            .add_exit_state("BATCH")
        )

    # An hour, were it asked again: the second life would never end within the test's time.
    points(lambda name: (_ for _ in ()).throw(Crash(name)) if name == "engine.commit.after" else None)
    with suppress(*DEATHS):
        flow(0.2).orchestrate("WAIT", run_id="r")
    points(None)
    assert marks(tmp_path) == {"wait": 1}
    run = flow(3600.0).start_resume("r")
    assert run.wait(60.0) == "BATCH"
    assert marks(tmp_path) == {"wait": 1, "after_wait": 1}
    assert run.store.get("waits") == 1


def saga(place, journal, task):
    """Return a workflow of a deed, and one more task."""
    return (
        Workflow("saga", journal=journal)
        .register_with_compensation("RESERVE", Deed(place, "reserve", "SHIP"))
        .register("SHIP", task)
        .add_exit_state("DONE")
    )


def test_a_rolled_back_run_raises_its_failure_again(tmp_path):
    """What was rolled back is over: a resume raises the original failure, and undoes nothing again."""

    def fail(ctx):
        raise RuntimeError("no ship")

    journal = SqliteJournal(tmp_path / "home")
    for _ in range(2):
        with pytest.raises(TaskError, match="no ship"):
            saga(tmp_path, journal, fail).orchestrate("RESERVE", run_id="r") if not marks(tmp_path) else saga(
                tmp_path, journal, fail
            ).resume("r")
    assert marks(tmp_path) == {"do reserve": 1, "undo reserve reserve": 1}
    assert [run.status for run in journal.runs()] == [RunStatus.ROLLED_BACK]


def test_a_kept_cancel_undoes_nothing(tmp_path):
    """cancel(keep=True) leaves the deeds in effect and the run resumable; any other cancel undoes them."""
    journal = SqliteJournal(tmp_path / "home")

    def ship(ctx):
        mark(tmp_path, "ship")
        while not ctx.cancelled:
            if (tmp_path / "go").exists():
                return "DONE"
        raise InterruptedError

    for keep in (True, False, None):
        before = marks(tmp_path)["ship"]
        run = saga(tmp_path, journal, ship).start("RESERVE", run_id=f"kept {keep}")
        while marks(tmp_path)["ship"] == before:
            pass
        run.cancel("enough", keep=keep)
        with pytest.raises(RunCancelledError):
            run.wait()
        assert marks(tmp_path)["undo reserve reserve"] == {True: 0, False: 1, None: 2}[keep]
    (tmp_path / "go").touch()
    run = saga(tmp_path, journal, ship).start_resume("kept True")
    assert run.wait() == "DONE"
    assert run.store.get("deeds") == ["reserve"]
    for keep in (False, None):
        with pytest.raises(RunCancelledError, match="enough"):
            saga(tmp_path, journal, ship).resume(f"kept {keep}")
    assert marks(tmp_path)["do reserve"] == 3


def test_what_failed_to_be_undone_is_tried_again(tmp_path):
    """A rollback that failed in part is gone on with by a resume, without undoing again what was undone."""

    class Stubborn(CompensatableTask):
        def run(self, ctx):
            return "RESERVE", "stubborn"

        def compensate(self, ctx, output):
            mark(tmp_path, "undo stubborn")
            if not (tmp_path / "fixed").exists():
                raise OSError("bank closed")

    def fail(ctx):
        raise RuntimeError("no ship")

    def flow():
        return saga(tmp_path, journal, fail).register_with_compensation("FIRST", Stubborn())

    journal = SqliteJournal(tmp_path / "home")
    with pytest.raises(CompensationError, match="bank closed"):
        flow().orchestrate("FIRST", run_id="r")
    assert [run.status for run in journal.runs()] == [RunStatus.FAILED]
    (tmp_path / "fixed").touch()
    with pytest.raises(TaskError, match="no ship"):
        flow().resume("r")
    assert marks(tmp_path) == {"do reserve": 1, "undo reserve reserve": 1, "undo stubborn": 2}
    assert [run.status for run in journal.runs()] == [RunStatus.ROLLED_BACK]
