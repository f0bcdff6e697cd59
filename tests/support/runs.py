"""What tests of journals write and compare."""

from __future__ import annotations

import functools

from canobatch.effects import entry_of, record_error
from canobatch.journal import AttemptRecord, Commit, MemoryJournal, NewRun

#: More than a row holds: it gets a file.
LARGE = b"large " * 200_000


def new_run(run_id="r", **facts):
    """Return a run to begin."""
    known = {"workflow": "words", "version": 3, "initial": "LOAD", "params": b"params", "made_with": "3.11 / 3.1"}
    return NewRun(run_id, **{**known, **facts})


def success(visit, branch, value=b"value", **facts):
    """Return an accepted attempt."""
    known = {"attempt": 1, "started": 17.25, "duration": 0.5, "cpu_time": 0.25, "max_rss": 1 << 20, "item": b"digest"}
    return AttemptRecord(visit, branch, status="succeeded", value=value, **{**known, **facts})


def failure(visit, branch, attempt=1, status="failed", text="no such word"):
    """Return an attempt that failed."""
    return AttemptRecord(visit, branch, attempt, status, error=record_error(ValueError(text)))


def put(key, value):
    """Return the operation of a put."""
    return ("put", key, tuple(entry_of(value)))


def entries(**values):
    """Return store entries."""
    return {key: entry_of(value) for key, value in values.items()}


def take_over(journal, run_id="r", **facts):
    """Take a run over as the workflow that began it."""
    return journal.take_over(run_id, **{"workflow": "words", "version": 3, **facts})


def essence(recovered):
    """Return what a resumed run goes by, without what differs from time to time."""
    return {
        "status": recovered.status,
        "visits": [visit._replace(entered_at=0.0, left_at=None) for visit in recovered.visits],
        "store": dict(recovered.store),
        "cursors": dict(recovered.cursors),
        # In order, but a number may be given again after a withdrawal.
        "compensations": [one._replace(number=0) for one in recovered.compensations],
        "rollback": recovered.rollback,
        "state": recovered.state,
        "error": recovered.error,
        "params": recovered.params,
        "life": recovered.life,
        "is_resumable": recovered.is_resumable,
    }


class StoppedError(Exception):
    """The calls that were allowed are used up."""


class Counted:
    """A run that takes only so many calls."""

    def __init__(self, run, calls):
        self._run = run
        self._left = calls

    def __getattr__(self, name):
        def call(*arguments, **keywords):
            if self._left == 0:
                raise StoppedError
            self._left -= 1
            return getattr(self._run, name)(*arguments, **keywords)

        return call


#: More visits than the story has.
VISITS = range(1, 9)


@functools.cache
def truths(run_id="r", **facts):
    """Return all that a run may be found as whose owner was killed in the story: after no call, one, two ...

    Each with its attempts, by visit.
    """
    found = []
    is_whole = False
    calls = 0
    while not is_whole:
        journal = MemoryJournal()
        run = journal.begin(new_run(run_id, **facts))
        try:
            for _ in story(Counted(run, calls)):
                pass
            is_whole = True
        except StoppedError:
            pass
        run.close()
        run, recovered = take_over(journal, run_id)
        found.append((essence(recovered), [list(run.attempts(visit)) for visit in VISITS]))
        calls += 1
    return found


def story(run):
    """Write a run that has a bit of everything, one durable step after the other; yield after each.

    The steps are those of a driver: what is yielded is durable, and nothing else is on its way.
    """
    run.record(success(1, None, None, operations=(put("texts", ["a", "b"]),))).wait()
    yield "single recorded"
    run.commit(Commit(1, "LOAD", "COUNT", entries=entries(texts=["a", "b"]), attempts=1, duration=0.5))
    yield "single committed"
    run.record(failure(2, 1, 1, "retried"))
    run.record(success(2, 2, LARGE))
    run.record(success(2, 0, b"zero", operations=(put("big", LARGE), ("append", "seen", b"0")))).wait()
    yield "branches recorded"
    run.record(success(2, 1, b"one", attempt=2))
    run.record(failure(2, 3, status="timed_out")).wait()
    yield "failure recorded"
    changes = {**entries(big=LARGE, counts=[1, 2, 3]), "texts": None}
    run.commit(Commit(2, "COUNT", "ROUTE", entries=changes, attempts=5, total=5, duration=2.0))
    yield "split committed"
    run.enter(4, "STEP")
    run.note(4, "step", b"cursor 1").wait()
    yield "cursor noted"
    run.commit(Commit(4, "STEP", None, entries=entries(sum=10), cursors={"step": b"cursor 2"}))
    yield "step committed"
    run.commit(Commit(4, "STEP", "RESERVE", is_cleared=True, entries=entries(sum=11)))
    yield "steps committed"
    number = run.intend(5, "RESERVE")
    yield "intended"
    run.commit(Commit(5, "RESERVE", "SHIP", outputs={number: b"reservation"}))
    yield "compensatable committed"
    again = run.intend(6, "SHIP")
    run.withdraw(again).wait()
    yield "withdrawn"
    run.begin_rollback(record_error(RuntimeError("no ship")))
    yield "rollback begun"
    run.commit(Commit(6, "SHIP", None, entries=entries(undone=1), undone=number))
    yield "compensated"
