"""A run with every kind of state, stopped or killed at every point: resumed, it ends as if undisturbed."""

from __future__ import annotations

import errno
import json
import logging
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from canobatch import TaskError, _faults
from canobatch.errors import JournalError, RunNotFoundError
from canobatch.journal import MemoryJournal, RunStatus, SqliteJournal
from canobatch.testing import InlineBackend
from tests.support.dying import DEATHS, Dying, Mortal
from tests.support.journaled import content, marks
from tests.support.log_journal import LogJournal
from tests.support.whole import W, executions, parameters, settled, whole

KILLS = Path(__file__).resolve().parents[1] / "support" / "kills.py"


#: Marks of an item that fails twice.
FAILING = {"BATCH/1/2", "BATCH/2/2"}


@pytest.fixture
def points(monkeypatch, caplog):
    """Set what is called at each fault point."""
    # A record of an error would hold all that its traceback does, the run's store for one.
    caplog.set_level(logging.CRITICAL + 1, "canobatch")
    return lambda hook: monkeypatch.setattr(_faults, "hook", hook)


def went(run):
    """Return how a run ended: at a state, or with an error."""
    try:
        return run.wait()
    except TaskError as error:
        return str(error)


class Undisturbed:
    """What comes of a run that nobody kills."""

    def __init__(self, place, backend, *, fails):
        place.mkdir()
        self.fails = fails
        # The places of runs are in their parameters, not in their stores.
        run = whole(place, MemoryJournal()).start(W.START, pool=backend, params=parameters(place, fails=fails))
        self.end = went(run)
        self.content = content(run.store)
        self.path = run.report().path
        self.marks = executions(place)
        self.values = {state: result.values for state, result in run.report().splits.items()}
        assert (self.end is W.DONE) is not fails

    def check(self, place, backend, crashes, journal=None):
        """Go on with the run in ``place`` and compare."""
        journal = journal or SqliteJournal(place / "home")
        workflow = whole(place, journal)
        before, over = executions(place), None
        goes_back = any(name.startswith("undo/") for name in marks(place))
        try:
            kept = settled(journal.run("r"))
            run = workflow.start_resume("r", pool=backend)
        except RunNotFoundError:
            assert before == {}
            kept = ()
            run = workflow.start(W.START, pool=backend, run_id="r", params=parameters(place, fails=self.fails))
        except TaskError as error:
            # It was rolled back before it died.
            run, over = None, str(error)
        assert (over if run is None else went(run)) == self.end
        if run is not None:
            assert content(run.store) == self.content
            assert run.report().path == self.path
            assert {state: result.values for state, result in run.report().splits.items()} == self.values
        after = executions(place)
        assert after == before or not goes_back, "what had begun to go back went forth again"
        again = [name for name, count in (after - before).items() if before[name] and name.startswith(kept)]
        assert again == [], "what was recorded was run again"
        assert self.marks - after == Counter()
        for name, count in (after - self.marks).items():
            # An item that failed for good fails again, with fresh attempts.
            assert count <= (crashes * 2 if name in FAILING else crashes), (name, count)
        undone = Counter({name: count for name, count in marks(place).items() if name.startswith("undo/")})
        for state in ("RESERVE", "PAY"):
            for number in (1, 2):
                # Once; again only where a crash came between the deed and its record.
                assert self.fails <= undone[f"undo/{state}/{number}"] <= self.fails * (1 + crashes)
        status = RunStatus.ROLLED_BACK if self.fails else RunStatus.COMPLETED
        assert [one.status for one in journal.runs()] == [status]


def total_points(place, backend, points, *, fails):
    """Return how many points an undisturbed run passes, about; and see that all of the engine's are among them."""
    counter = Dying()
    points(counter)
    place.mkdir()
    went(whole(place).start(W.START, pool=backend, run_id="r", params=parameters(place, fails=fails)))
    points(None)
    documented = {line.split()[0] for line in _faults.__doc__.splitlines() if line.startswith(("journal.", "engine."))}
    # A run that is begun is not taken over, nor pruned.
    assert {name.rpartition(".")[0] for name in documented - set(counter.passed)} == {"journal.take", "journal.prune"}
    return len(counter.passed)


def begin_and_die(place, backend, points, number, *, fails=False):
    """Begin the run and die at a point."""
    place.mkdir()
    points(Dying(number))
    with suppress(*DEATHS, TaskError):
        params = parameters(place, fails=fails)
        whole(place).orchestrate(W.START, pool=backend, run_id="r", params=params)
    points(None)


def resume_and_die(place, backend, points, number):
    """Go on with the run and die at a point; return whether it died."""
    dying = Dying(number)
    points(dying)
    with suppress(*DEATHS, TaskError, RunNotFoundError):
        whole(place).resume("r", pool=backend)
    points(None)
    return len(dying.passed) >= number


PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("fails", [False, True], ids=["through", "rolled back"])
def test_a_crash_at_any_point_changes_nothing(fails, part, tmp_path, points):
    """Stopped at each point in turn and resumed, the whole workflow ends as if undisturbed, and repeats no record."""
    with InlineBackend() as backend:
        undisturbed = Undisturbed(tmp_path / "wanted", backend, fails=fails)
        total = total_points(tmp_path / "count", backend, points, fails=fails)
        # On the way back only what is beyond the way forth is another thing.
        for number in range(1 + part, total + 5, PARTS):
            if fails and number < total - 60 and number % 5:
                continue
            begin_and_die(tmp_path / str(number), backend, points, number, fails=fails)
            undisturbed.check(tmp_path / str(number), backend, 1)


@pytest.mark.parametrize("fails", [False, True], ids=["through", "rolled back"])
def test_a_crash_with_worker_processes_changes_nothing(fails, shared_pool, tmp_path, points):
    """The same with real workers, for a sample of the points."""
    undisturbed = Undisturbed(tmp_path / "wanted", shared_pool, fails=fails)
    total = total_points(tmp_path / "count", shared_pool, points, fails=fails)
    for number in range(3, total, 17 if fails else 11):
        begin_and_die(tmp_path / str(number), shared_pool, points, number, fails=fails)
        undisturbed.check(tmp_path / str(number), shared_pool, 1)


@pytest.mark.parametrize("fails", [False, True], ids=["through", "rolled back"])
def test_the_engine_needs_of_a_journal_what_is_written_of_it(fails, tmp_path, points):
    """The same with a journal that somebody else wrote, stopped between its calls."""
    with InlineBackend() as backend:
        undisturbed = Undisturbed(tmp_path / "wanted", backend, fails=fails)
        for number in range(2, 160, 9):
            place = tmp_path / str(number)
            place.mkdir()
            journal = LogJournal(place / "log")
            death = Dying(number)
            points(death)
            with suppress(*DEATHS):
                params = parameters(place, fails=fails)
                whole(place, Mortal(journal, death)).orchestrate(W.START, pool=backend, run_id="r", params=params)
            points(None)
            undisturbed.check(place, backend, 1, journal)


@pytest.mark.parametrize("fails", [False, True], ids=["through", "rolled back"])
def test_crashes_while_resuming_change_nothing(fails, tmp_path, points):
    """Stopped again at any point of a resume, also of one that rolls back, and again: it ends as if undisturbed."""
    chance = random.Random(f"second crash {fails}")
    with InlineBackend() as backend:
        undisturbed = Undisturbed(tmp_path / "wanted", backend, fails=fails)
        total = total_points(tmp_path / "count", backend, points, fails=fails)
        # The first points of a resume are those of taking over.
        cases = [(chance.randrange(20, total), [number]) for number in range(1, 25)]
        cases += [(total - 8 * number, [5 + 3 * number, 4 + number]) for number in range(8)]
        cases += [(chance.randrange(20, total), chance.sample(range(1, 60), 3)) for _ in range(12)]
        for case, (first, others) in enumerate(cases):
            place = tmp_path / str(case)
            begin_and_die(place, backend, points, first, fails=fails)
            crashes = 1 + sum([resume_and_die(place, backend, points, number) for number in others])
            undisturbed.check(place, backend, crashes)


def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path, points):
    """A write of the journal that fails ends the run with a clear error; with room again it goes on as it was."""
    writes = ("journal.write.before", "journal.write.rows", "journal.file.before")
    with InlineBackend() as backend:
        undisturbed = Undisturbed(tmp_path / "wanted", backend, fails=False)
        counter = Dying()
        points(counter)
        (tmp_path / "count").mkdir()
        whole(tmp_path / "count").orchestrate(W.START, pool=backend, params=parameters(tmp_path / "count"))
        total = sum(name in writes for name in counter.passed)
        assert total > 100
        for number in range(1, total + 1, 3):
            place = tmp_path / str(number)
            place.mkdir()
            seen = Counter()

            def full(name, number=number, seen=seen):
                seen["writes"] += name in writes
                # Once: it is the journal's own doing that nothing is written after it.
                if name in writes and seen["writes"] == number:
                    raise OSError(errno.ENOSPC, "No space left on device")

            points(full)
            with pytest.raises(JournalError, match="no space left") as caught:
                whole(place).orchestrate(W.START, pool=backend, run_id="r", params=parameters(place))
            points(None)
            assert caught.value.reason == "full"
            undisturbed.check(place, backend, 1)


def plan(place, kind, cases, *, fails=False):
    """Return what the script is to do."""
    return [(str(place / f"{kind} {fails} {number}"), kind, fails, kills) for number, kills in enumerate(cases)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fails", [False, True], ids=["through", "rolled back"])
def test_a_killed_process_is_gone_on_with(fails, run_script, tmp_path):
    """SIGKILLed at a point, at any time, twice in a row: what the process left is gone on with by another."""
    chance = random.Random(f"kills {fails}")
    with InlineBackend() as backend:
        undisturbed = Undisturbed(tmp_path / "wanted", backend, fails=fails)
    total = 430
    cases = plan(tmp_path, "inline", [[number] for number in range(2, total, 8)], fails=fails)
    cases += plan(
        tmp_path, "twice", [[chance.randrange(20, total), chance.randrange(1, 60)] for _ in range(8)], fails=fails
    )
    cases += plan(tmp_path, "timed", [[round(0.1 * chance.random(), 5)] for _ in range(8)], fails=fails)
    cases += plan(tmp_path, "pool", [[number] for number in range(9, total, 90)], fails=fails)
    done = run_script(KILLS, json.dumps(cases), timeout=240)
    assert done.returncode == 0, done.stderr
    ends = Counter(line.split()[-1] for line in done.stdout.splitlines())
    # Some are timed so late, or fall so few points short, that they end.
    assert set(ends) <= {"0", str(-signal.SIGKILL)}, done.stderr
    assert ends[str(-signal.SIGKILL)] >= 60
    print(ends[str(-signal.SIGKILL)], "processes were killed")
    with InlineBackend() as backend:
        for place, _, _, kills in cases:
            undisturbed.check(Path(place), backend, len(kills))
